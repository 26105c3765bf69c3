//! Boot loader specification: an entry a file, of Fedora from 30 and Red Hat's family from 8, and the options that they share.

use crate::Result;
use crate::guest::cmdline::Rewrite;
use crate::guest::grubenv::{self, GRUBENV};
use crate::guest::text::{Line, fields};
use crate::step::{Context, Step};

pub(super) const STEP: Step = Step {
    name: "bls",
    about: "boot entries that are files of their own name the new devices and consoles, and the right one is the default",
    run,
};

const ENTRIES: &[&str] = &["/boot/loader/entries", "/loader/entries"];
/// What kernel-install gives to the entries of new kernels.
const CMDLINE: &str = "/etc/kernel/cmdline";
/// Stands in entries for the options in grubenv.
const SHARED: &str = "$kernelopts";

fn run(cx: &mut Context<'_>) -> Result<()> {
    let files: Vec<String> = ENTRIES.iter().flat_map(|dir| entries(cx, dir)).collect();
    if files.is_empty() {
        return Ok(());
    }
    let root = cx.root_spec()?;
    for file in &files {
        let Some(text) = cx.text(file)? else { continue };
        let has_initrd = text.lines().any(|line| keyword(line) == "initrd");
        let words = Rewrite { root: root.as_deref(), by_name: !has_initrd, ..cx.rewrite() };
        let new = crate::guest::text::map_lines(&text, |line| {
            if keyword(line) != "options" {
                return Line::Keep;
            }
            let end = fields(line)[0].0.end;
            let rest = &line[end..];
            let new = if rest.contains(SHARED) { words.part(rest) } else { words.whole(rest) };
            Line::of((new != rest).then(|| format!("{}{new}", &line[..end])))
        });
        cx.edit(file, |_| new)?;
    }
    if let Some(old) = cx.text(CMDLINE)? {
        let new = Rewrite { root: root.as_deref(), ..cx.rewrite() }.whole(old.trim());
        cx.edit(CMDLINE, |_| format!("{new}\n"))?;
    }
    for block in GRUBENV {
        shared_options(cx, block, root.as_deref())?;
        default_entry(cx, block, &files)?;
    }
    Ok(())
}

fn keyword(line: &str) -> &str {
    fields(line).first().map_or("", |word| word.1)
}

fn entries(cx: &Context<'_>, dir: &str) -> Vec<String> {
    let names = cx.names(dir).into_iter().filter_map(|name| String::from_utf8(name).ok());
    names.filter(|name| name.ends_with(".conf")).map(|name| format!("{dir}/{name}")).collect()
}

fn shared_options(cx: &mut Context<'_>, block: &str, root: Option<&str>) -> Result<()> {
    let Some(old) = cx.text(block)? else { return Ok(()) };
    let Some(options) = grubenv::get(&old, "kernelopts") else { return Ok(()) };
    let new = Rewrite { root, ..cx.rewrite() }.whole(options);
    match grubenv::with(&old, "kernelopts", &new) {
        Some(new) => cx.edit(block, |_| new).map(drop),
        None => Err(cx.fail(format!("{block} has no room for the kernel's options: {new}"))),
    }
}

/// The entry that is remembered stays if it starts on KVM.
fn default_entry(cx: &mut Context<'_>, block: &str, files: &[String]) -> Result<()> {
    let Some(old) = cx.text(block)? else { return Ok(()) };
    let id = |file: &str| file.rsplit('/').next().unwrap_or(file).trim_end_matches(".conf").to_string();
    let mut chosen = None;
    for file in files {
        let Some(text) = cx.text(file)? else { continue };
        let Some(kernel) = text.lines().find(|line| keyword(line) == "linux").and_then(|line| Some(fields(line).get(1)?.1)) else {
            continue;
        };
        let starts = cx.kernel_at(kernel);
        if starts.is_some() && grubenv::get(&old, "saved_entry") == Some(&id(file)) {
            return Ok(());
        }
        if starts.is_some() && starts == cx.facts.kernel.as_ref() {
            chosen = chosen.or(Some(id(file)));
        }
    }
    let Some(chosen) = chosen else { return Ok(()) };
    match grubenv::with(&old, "saved_entry", &chosen) {
        Some(new) => cx.edit(block, |_| new).map(drop),
        None => Err(cx.fail(format!("{block} has no room to remember the default entry {chosen}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Step;
    use crate::testing::{MemFs, ROOT_UUID, bzimage, run_step};

    const KERNEL: &Step = &super::super::STEPS[0];

    fn block(settings: &str) -> String {
        let text = format!("# GRUB Environment Block\n{settings}");
        format!("{text}{}", "#".repeat(1024 - text.len()))
    }

    fn entry(version: &str, options: &str) -> String {
        format!(
            "title Rocky Linux ({version})\nversion {version}\nlinux /boot/vmlinuz-{version}\ninitrd /boot/initramfs-{version}.img $tuned_initrd\noptions {options}\ngrub_users $grub_users\n"
        )
    }

    fn rhel(options: &str, settings: &str) -> MemFs {
        MemFs::new()
            .file("/boot/vmlinuz-5.14.0-70.el9.x86_64", bzimage("5.14.0-70.el9.x86_64"))
            .file("/boot/vmlinuz-4.18.0-80.el8.x86_64", bzimage("4.18.0-80.el8.x86_64"))
            .file("/boot/loader/entries/3f-5.14.0-70.el9.x86_64.conf", entry("5.14.0-70.el9.x86_64", options))
            .file("/boot/loader/entries/3f-4.18.0-80.el8.x86_64.conf", entry("4.18.0-80.el8.x86_64", options))
            .file("/boot/grub2/grubenv", block(settings))
            .file("/etc/fstab", "/dev/xvda2 / xfs defaults 0 0\n")
    }

    #[test]
    fn options_in_the_entries() {
        run_step(&rhel("root=/dev/xvda2 ro console=hvc0 $tuned_params", ""), KERNEL, |cx| {
            cx.run(&STEP).unwrap();
            let text = cx.show("/boot/loader/entries/3f-5.14.0-70.el9.x86_64.conf");
            let options = format!("options root=UUID={ROOT_UUID} ro $tuned_params console=tty0 console=ttyS0,115200n8\n");
            assert!(text.contains(&options), "{text}");
            assert_eq!(grubenv::get(&cx.show("/boot/grub2/grubenv"), "saved_entry"), Some("3f-5.14.0-70.el9.x86_64"));
        });
    }

    #[test]
    fn options_that_entries_share() {
        let settings = "saved_entry=3f-4.18.0-80.el8.x86_64\nkernelopts=root=/dev/xvda2 ro crashkernel=auto console=hvc0 \n";
        run_step(&rhel("$kernelopts $tuned_params", settings).file(CMDLINE, "root=/dev/xvda2 ro\n"), KERNEL, |cx| {
            cx.run(&STEP).unwrap();
            let text = cx.show("/boot/loader/entries/3f-4.18.0-80.el8.x86_64.conf");
            assert!(text.contains("options $kernelopts $tuned_params\n"), "{text}");
            let block = cx.show("/boot/grub2/grubenv");
            let options = grubenv::get(&block, "kernelopts").unwrap();
            assert_eq!(options.trim(), format!("root=UUID={ROOT_UUID} ro crashkernel=auto console=tty0 console=ttyS0,115200n8"));
            assert_eq!(grubenv::get(&block, "saved_entry"), Some("3f-4.18.0-80.el8.x86_64"), "a person's choice stays");
            assert_eq!(cx.show(CMDLINE), format!("root=UUID={ROOT_UUID} ro console=tty0 console=ttyS0,115200n8\n"));
        });
    }

    #[test]
    fn an_entry_that_only_xen_starts_is_not_the_default() {
        let guest = rhel("ro", "saved_entry=3f-xen\n")
            .file("/boot/loader/entries/3f-xen.conf", "title Xen\nlinux /boot/vmlinuz-2.6.18-xen\noptions ro\n");
        run_step(&guest, KERNEL, |cx| {
            cx.run(&STEP).unwrap();
            assert_eq!(grubenv::get(&cx.show("/boot/grub2/grubenv"), "saved_entry"), Some("3f-5.14.0-70.el9.x86_64"));
        });
    }
}
