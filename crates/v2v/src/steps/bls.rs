//! Boot loader specification: an entry a file, of Fedora from 30 and Red Hat's family from 8, and the options that they share.

use crate::Result;
use crate::guest::cmdline::Rewrite;
use crate::guest::grubenv::{self, GRUBENV};
use crate::guest::kernels::Kernel;
use crate::guest::text::{Line, fields, map_lines};
use crate::step::{Context, Step};
use crate::steps::grub2::{Bare, initrd_of, tell_stuck};

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
    let files = with_chosen(cx, files)?;
    for file in &files {
        let Some(text) = cx.text(file)? else { continue };
        let has_initrd = text.lines().any(|line| keyword(line) == "initrd");
        let remembered = if is_remembered(cx, file)? { kernel_of(&text).and_then(|path| cx.kernel_at(path)).cloned() } else { None };
        let mut bare = Bare::new(cx, remembered);
        let lacking = if has_initrd { None } else { kernel_of(&text).and_then(|path| bare.initrd(path)) };
        let stuck = bare.stuck;
        let words = Rewrite { root: root.as_deref(), by_name: !has_initrd && lacking.is_none(), ..cx.rewrite() };
        let new = map_lines(&text, |line| {
            if keyword(line) == "linux" {
                return Line::of(lacking.as_ref().map(|path| format!("{line}\ninitrd {path}")));
            }
            if keyword(line) != "options" {
                return Line::Keep;
            }
            let end = fields(line)[0].0.end;
            let rest = &line[end..];
            let new = if rest.contains(SHARED) { words.part(rest) } else { words.whole(rest) };
            Line::of((new != rest).then(|| format!("{}{new}", &line[..end])))
        });
        cx.edit(file, |_| new)?;
        tell_stuck(cx, file, &stuck);
    }
    for block in GRUBENV {
        shared_options(cx, block, root.as_deref())?;
        default_entry(cx, block, &files)?;
    }
    if let Some(old) = cx.text(CMDLINE)? {
        let new = Rewrite { root: root.as_deref(), ..cx.rewrite() }.whole(old.trim());
        cx.edit(CMDLINE, |_| format!("{new}\n"))?;
    } else if cx.facts.kernel.as_ref().is_some_and(|kernel| kernel.pending)
        && let Some(options) = default_args(cx)?
    {
        // Without it kernel-install takes the options of the kernel that runs: the appliance's.
        cx.fs.put(CMDLINE.as_bytes(), format!("{options}\n").as_bytes(), None)?;
    }
    Ok(())
}

/// The entries, with one for the chosen kernel, as kernel-install would call it: a copy of another.
fn with_chosen(cx: &mut Context<'_>, mut files: Vec<String>) -> Result<Vec<String>> {
    let (Some(kernel), Some(dir)) = (cx.facts.kernel.clone(), ENTRIES.iter().find(|dir| files.iter().any(|f| f.starts_with(**dir)))) else {
        return Ok(files);
    };
    let mut like = None;
    for file in &files {
        let Some(text) = cx.text(file)? else { continue };
        let starts = kernel_of(&text).and_then(|path| cx.kernel_at(path));
        if starts.is_some_and(|starts| *starts == kernel || !cx.is_kernel_given()) {
            return Ok(files);
        }
        like = like.or(kernel_of(&text).is_some().then_some(text));
    }
    let (Some(text), Some(machine)) = (like, cx.text("/etc/machine-id")?) else { return Ok(files) };
    let initrd = match initrd_of(cx, &kernel) {
        Some(initrd) => format!("\ninitrd {}", cx.seen_by_boot_loader(&initrd)?),
        None => String::new(),
    };
    let mut lines = Vec::new();
    for line in text.lines() {
        lines.push(match keyword(line) {
            "title" => format!("title Linux ({})", kernel.version),
            "version" => format!("version {}", kernel.version),
            "linux" => format!("linux {}{initrd}", cx.seen_by_boot_loader(&kernel.image)?),
            "initrd" | "id" => continue,
            _ => line.into(),
        });
    }
    let file = format!("{dir}/{}-{}.conf", machine.trim(), kernel.version);
    cx.fs.put(file.as_bytes(), (lines.join("\n") + "\n").as_bytes(), None)?;
    cx.note(format!("{} gets an entry", kernel.image));
    files.push(file);
    Ok(files)
}

fn keyword(line: &str) -> &str {
    fields(line).first().map_or("", |word| word.1)
}

fn entries(cx: &Context<'_>, dir: &str) -> Vec<String> {
    let names = cx.names(dir).into_iter().filter_map(|name| String::from_utf8(name).ok());
    names.filter(|name| name.ends_with(".conf")).map(|name| format!("{dir}/{name}")).collect()
}

fn shared_options(cx: &mut Context<'_>, block: &str, root: Option<&str>) -> Result<()> {
    let Some(old) = cx.text(block)?.filter(|text| grubenv::is_block(text)) else { return Ok(()) };
    let Some(options) = grubenv::get(&old, "kernelopts") else { return Ok(()) };
    let new = Rewrite { root, ..cx.rewrite() }.whole(options);
    match grubenv::with(&old, "kernelopts", &new) {
        Some(new) => cx.edit(block, |_| new).map(drop),
        None => Err(cx.fail(format!("{block} has no room for the kernel's options: {new}"))),
    }
}

/// The kernel that an entry starts, as it names it.
fn kernel_of(text: &str) -> Option<&str> {
    text.lines().find(|line| keyword(line) == "linux").and_then(|line| Some(fields(line).get(1)?.1))
}

/// What GRUB calls an entry: its file's name.
fn id(file: &str) -> &str {
    let name = file.rsplit('/').next().unwrap_or(file);
    name.strip_suffix(".conf").unwrap_or(name)
}

/// The options of the entry that is remembered, or of the chosen kernel's, with those that all share.
pub(super) fn default_args(cx: &Context<'_>) -> Result<Option<String>> {
    let mut block = None;
    for path in GRUBENV {
        block = block.or(cx.text(path)?.filter(|text| grubenv::is_block(text)));
    }
    let setting = |name: &str| block.as_deref().and_then(|block| grubenv::get(block, name)).unwrap_or_default();
    let mut found = None;
    for file in ENTRIES.iter().flat_map(|dir| entries(cx, dir)) {
        let Some(text) = cx.text(&file)? else { continue };
        let Some(kernel) = kernel_of(&text).and_then(|kernel| cx.kernel_at(kernel)) else { continue };
        let remembered = setting("saved_entry") == id(&file);
        if remembered || found.is_none() && Some(kernel) == cx.facts.kernel.as_ref() {
            let options = text.lines().filter(|line| keyword(line) == "options").flat_map(|line| line.split_ascii_whitespace().skip(1));
            let shared = setting("kernelopts");
            // What else GRUB would put in, like tuned's, is not there without its own scripts.
            let words = options.flat_map(|word| if word == SHARED { shared } else { word }.split_ascii_whitespace());
            found = Some(words.filter(|word| !word.starts_with('$')).collect::<Vec<_>>().join(" "));
        }
        if remembered {
            break;
        }
    }
    Ok(found)
}

/// The kernel of the entry of this name. The first of all, where none has it, is the newest: GRUB sorts them.
pub(super) fn kernel_of_entry(cx: &Context<'_>, name: &str) -> Result<Option<Kernel>> {
    let file = ENTRIES.iter().flat_map(|dir| entries(cx, dir)).find(|file| id(file) == name);
    let text = file.map(|file| cx.text(&file)).transpose()?.flatten();
    Ok(text.and_then(|text| cx.kernel_at(kernel_of(&text)?).cloned()))
}

/// Whether a menu remembers an entry.
fn is_remembered(cx: &Context<'_>, file: &str) -> Result<bool> {
    let mut found = false;
    for block in GRUBENV {
        found |= cx.text(block)?.is_some_and(|text| grubenv::get(&text, "saved_entry") == Some(id(file)));
    }
    Ok(found)
}

/// The entry that is remembered stays if it starts on KVM.
fn default_entry(cx: &mut Context<'_>, block: &str, files: &[String]) -> Result<()> {
    let Some(old) = cx.text(block)?.filter(|text| grubenv::is_block(text)) else { return Ok(()) };
    let mut chosen = None;
    for file in files {
        let Some(text) = cx.text(file)? else { continue };
        let Some(kernel) = kernel_of(&text) else { continue };
        let starts = cx.kernel_at(kernel);
        // What a person chose stays, but that something else was asked for.
        let asked = cx.is_kernel_given() && starts != cx.facts.kernel.as_ref();
        if starts.is_some() && !asked && grubenv::get(&old, "saved_entry") == Some(id(file)) {
            return Ok(());
        }
        if starts.is_some() && starts == cx.facts.kernel.as_ref() {
            chosen = chosen.or(Some(id(file).to_string()));
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
    fn an_entry_without_an_initrd_gets_what_its_kernel_needs() {
        let (newest, older) = ("5.14.0-70.el9.x86_64", "4.18.0-80.el8.x86_64");
        let path = |version: &str| format!("/boot/loader/entries/3f-{version}.conf");
        let bare = |version: &str| format!("linux /boot/vmlinuz-{version}\noptions root=/dev/xvda2 ro\n");
        let with = |initrd: &str, saved: &str| {
            [newest, older].into_iter().fold(rhel("", &format!("saved_entry=3f-{saved}\n")).file(initrd, "x"), |fs, version| {
                fs.file(&path(version), bare(version)).file(&format!("/lib/modules/{version}/modules.dep"), "kernel/virtio_blk.ko:\n")
            })
        };
        let consoles = "console=tty0 console=ttyS0,115200n8";
        let given = |version: &str| {
            format!("linux /boot/vmlinuz-{version}\ninitrd /boot/initramfs-{version}.img\noptions root=UUID={ROOT_UUID} ro {consoles}\n")
        };
        let left = bare(older).replace("root=/dev/xvda2 ro", &format!("root=/dev/vda2 ro {consoles}"));
        for (initrd, saved, expected) in [
            ("/boot/initramfs-4.18.0-80.el8.x86_64.img", newest, given(older)),
            // Step initrd makes what starts one.
            ("/boot/other", older, given(older)),
            ("/boot/other", newest, left),
        ] {
            run_step(&with(initrd, saved), KERNEL, |cx| {
                cx.run(&STEP).unwrap();
                assert_eq!((cx.show(&path(newest)), cx.show(&path(older))), (given(newest), expected.clone()));
                assert_eq!(cx.reports[1].warnings.is_empty(), expected == given(older), "{:?}", cx.reports[1].warnings);
            });
        }
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
            assert_eq!(default_args(cx).unwrap().as_deref(), Some(options.trim()), "without what only tuned knows");
            assert_eq!(cx.show(CMDLINE), format!("root=UUID={ROOT_UUID} ro console=tty0 console=ttyS0,115200n8\n"));
        });
    }

    #[test]
    fn a_kernel_that_no_entry_starts_gets_one() {
        let guest = rhel("root=/dev/xvda2 ro console=hvc0 $tuned_params", "saved_entry=3f-5.14.0-70.el9.x86_64\n")
            .file("/boot/vmlinuz-5.14.0-427.el9.x86_64", bzimage("5.14.0-427.el9.x86_64"))
            .file("/etc/machine-id", "3f\n")
            .file("/boot/initramfs-5.14.0-427.el9.x86_64.img", "x");
        run_step(&guest, KERNEL, |cx| {
            // As where a package brings it.
            cx.facts.kernels[0].pending = true;
            cx.facts.kernel = cx.facts.kernels.first().cloned();
            cx.run(&STEP).unwrap();
            let options = format!("root=UUID={ROOT_UUID} ro $tuned_params console=tty0 console=ttyS0,115200n8");
            assert_eq!(
                cx.show("/boot/loader/entries/3f-5.14.0-427.el9.x86_64.conf"),
                format!(
                    "title Linux (5.14.0-427.el9.x86_64)\nversion 5.14.0-427.el9.x86_64\nlinux /boot/vmlinuz-5.14.0-427.el9.x86_64\ninitrd \
                     /boot/initramfs-5.14.0-427.el9.x86_64.img\noptions {options}\ngrub_users $grub_users\n"
                )
            );
            assert_eq!(grubenv::get(&cx.show("/boot/grub2/grubenv"), "saved_entry"), Some("3f-5.14.0-427.el9.x86_64"));
            assert_eq!(cx.show(CMDLINE), format!("{}\n", options.replace("$tuned_params ", "")));
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
