//! syslinux's configurations: `append` lines, the default, and the settings from which tools in the guest make them anew.

use guestfs::Ext;

use crate::Result;
use crate::guest::cmdline::Rewrite;
use crate::guest::grub::SYSLINUX;
use crate::guest::kernels::Kernel;
use crate::guest::text::{Line, add_line, fields, map_lines, replaced};
use crate::step::{Context, Step};
use crate::steps::grub2::initrd_of;

pub(super) const STEP: Step =
    Step { name: "extlinux", about: "extlinux's entries name the new devices and consoles, and the right one is the default", run };

/// Settings of the tools that write configurations, and in each the variables that hold a whole command line, and `root=` alone:
/// extlinux-update of Debian until 8, u-boot-menu after it, Alpine's update-extlinux.
const SETTINGS: [(&str, &str, &str); 3] = [
    ("/etc/default/extlinux", "EXTLINUX_PARAMETERS", "EXTLINUX_ROOT"),
    ("/etc/default/u-boot", "U_BOOT_PARAMETERS", "U_BOOT_ROOT"),
    (ALPINES, "default_kernel_opts", "root"),
];

/// Tools that write configurations when a kernel comes or goes.
const UPDATERS: [&str; 4] = ["/usr/sbin/extlinux-update", "/usr/sbin/u-boot-update", "/sbin/update-extlinux", "/usr/sbin/update-extlinux"];

/// The settings of Alpine's that name the kernel to start, too.
const ALPINES: &str = "/etc/update-extlinux.conf";

/// Files that one configuration includes; people have three.
const INCLUDES: usize = 16;

fn run(cx: &mut Context<'_>) -> Result<()> {
    let mut is_other = cx.is_kernel_given();
    for path in SYSLINUX {
        for file in with_includes(cx, path)? {
            let Some(old) = cx.text(&file)? else { continue };
            let new = rewrite(&old, &cx.rewrite());
            cx.edit(&file, |_| new)?;
        }
        is_other |= default(cx, path)?;
    }
    if is_other && let Some(kernel) = cx.facts.kernel.clone() {
        by_flavor(cx, &kernel)?;
    }
    let devices = cx.devices.clone();
    let words =
        Rewrite { devices: &devices, target: cx.options.target, kernel_nic_names: cx.facts.kernel_nic_names, root: None, by_name: false };
    for (path, parameters, root) in SETTINGS {
        cx.edit_lines(path, |line| {
            let Some((name, value)) = line.split_once('=') else { return Line::Keep };
            let quote = value.chars().next().filter(|c| matches!(c, '"' | '\''));
            let inner = value.trim_end().trim_matches(['"', '\'']);
            let new = match name {
                _ if name == parameters => words.whole(inner),
                // Alpine's has the device alone.
                _ if name == root => devices.stable(inner).unwrap_or_else(|| words.part(inner)),
                _ => return Line::Keep,
            };
            let quote = quote.map_or(if new.contains(' ') { "\"" } else { "" }, |q| if q == '"' { "\"" } else { "'" });
            Line::of((new != inner).then(|| format!("{name}={quote}{new}{quote}")))
        })?;
    }
    Ok(())
}

/// Whether a tool of the guest's keeps its configuration up to date.
pub(super) fn is_maintained(cx: &Context<'_>) -> bool {
    UPDATERS.iter().any(|tool| cx.fs.is_file(tool.as_bytes()))
}

/// The options of the entry that starts by default, in a configuration and what it includes.
pub(super) fn default_args(cx: &Context<'_>, path: &str) -> Result<Option<String>> {
    let text = whole(cx, path)?;
    let entries = entries(&text);
    Ok(default_of(&text, &entries).map(|entry| without_initrd(entry.append)))
}

/// The kernel of that entry.
pub(super) fn default_kernel(cx: &Context<'_>, path: &str) -> Result<Option<Kernel>> {
    let text = whole(cx, path)?;
    Ok(default_of(&text, &entries(&text)).and_then(|entry| cx.kernel_at(&beside(path, entry.kernel))).cloned())
}

fn rewrite(text: &str, words: &Rewrite<'_>) -> String {
    map_lines(text, |line| {
        let parts = fields(line);
        let Some((range, _)) = parts.first().filter(|w| w.1.eq_ignore_ascii_case("append")) else { return Line::Keep };
        // "append -" takes a general one back, and a general one may be for other things than Linux.
        let rest = &line[range.end..];
        let new = if rest.contains("root=") || rest.contains("vmlinu") { words.whole(rest) } else { words.part(rest) };
        Line::of((new != rest).then(|| format!("{}{new}", &line[..range.end])))
    })
}

/// A configuration and the files that it includes, whose names are relative to its directory.
fn with_includes(cx: &Context<'_>, path: &str) -> Result<Vec<String>> {
    let mut files = vec![path.to_string()];
    let mut at = 0;
    while let Some(file) = files.get(at).cloned() {
        at += 1;
        let Some(text) = cx.text(&file)? else { continue };
        for line in text.lines() {
            let parts = fields(line);
            let words: Vec<&str> = parts.iter().map(|w| w.1).collect();
            let included = match words[..] {
                [word, file, ..] if word.eq_ignore_ascii_case("include") => file,
                [menu, word, file, ..] if menu.eq_ignore_ascii_case("menu") && word.eq_ignore_ascii_case("include") => file,
                _ => continue,
            };
            let included = beside(path, included);
            if !files.contains(&included) && files.len() < INCLUDES {
                files.push(included);
            }
        }
    }
    Ok(files)
}

/// A file that a configuration names.
fn beside(config: &str, file: &str) -> String {
    if file.starts_with('/') { file.into() } else { format!("{}/{file}", config.rsplit_once('/').map_or("", |(dir, _)| dir)) }
}

fn whole(cx: &Context<'_>, path: &str) -> Result<String> {
    let mut text = String::new();
    for file in with_includes(cx, path)? {
        if let Some(part) = cx.text(&file)? {
            text += &part;
            text += "\n";
        }
    }
    Ok(text)
}

#[derive(Clone, Copy)]
struct Entry<'a> {
    label: &'a str,
    kernel: &'a str,
    append: &'a str,
    /// It says of itself that it is the default.
    is_default: bool,
}

fn entries(text: &str) -> Vec<Entry<'_>> {
    let mut entries: Vec<Entry<'_>> = Vec::new();
    for line in text.lines() {
        let parts = fields(line);
        let Some((range, keyword)) = parts.first() else { continue };
        let rest = line[range.end..].trim();
        match (keyword.to_ascii_lowercase().as_str(), entries.last_mut()) {
            ("label", _) => entries.push(Entry { label: rest, kernel: "", append: "", is_default: false }),
            ("linux" | "kernel", Some(entry)) => entry.kernel = rest.split_ascii_whitespace().next().unwrap_or(""),
            ("append", Some(entry)) => entry.append = rest,
            ("menu", Some(entry)) if rest.eq_ignore_ascii_case("default") => entry.is_default = true,
            _ => {}
        }
    }
    entries
}

/// The entry that starts by default: the one that is named so, else the first.
fn default_of<'a>(text: &str, entries: &[Entry<'a>]) -> Option<Entry<'a>> {
    let mut named = text.lines().map(fields).filter_map(|parts| {
        let [(_, word), (_, label), ..] = parts[..] else { return None };
        ["default", "ontimeout"].iter().any(|w| word.eq_ignore_ascii_case(w)).then_some(label)
    });
    let named = named.next_back().and_then(|label| entries.iter().find(|e| e.label == label));
    entries.iter().find(|e| e.is_default).or(named).or(entries.first()).copied()
}

/// The default entry may be one that only starts on Xen, or another kernel was given: that one's becomes the default, and is added if need be.
/// Whether it was another.
fn default(cx: &mut Context<'_>, path: &str) -> Result<bool> {
    let text = whole(cx, path)?;
    let entries = entries(&text);
    let starts = |entry: &Entry<'_>| cx.kernel_at(&beside(path, entry.kernel));
    let Some(kernel) = cx.facts.kernel.clone() else { return Ok(false) };
    let stays = |entry: &Entry<'_>| starts(entry).is_some_and(|starts| *starts == kernel || !cx.is_kernel_given());
    let Some(current) = default_of(&text, &entries).filter(|e| !e.kernel.is_empty() && !stays(e)) else { return Ok(false) };
    let old = current.label.to_string();
    let new = match entries.iter().find(|e| starts(e) == Some(&kernel)) {
        Some(entry) => entry.label.to_string(),
        None => {
            let label = label(&kernel, &entries);
            let entry = entry(cx, path, &current, &kernel, &label)?;
            // Where the present one is: a configuration may include others for other things.
            let files = with_includes(cx, path)?;
            let is_olds = |line: &str| is_label(line, &old);
            let is_there = |file: &&String| cx.text(file).is_ok_and(|text| text.is_some_and(|text| text.lines().any(is_olds)));
            let file = files.iter().find(is_there).map_or(path, String::as_str);
            cx.edit(file, |text| add_line(text, &entry))?;
            label
        }
    };
    let files = with_includes(cx, path)?;
    let mut named = false;
    for file in &files {
        cx.edit_lines(file, |line| {
            let parts = fields(line);
            let names =
                parts.len() == 2 && parts[1].1 == old && ["default", "ontimeout"].iter().any(|w| parts[0].1.eq_ignore_ascii_case(w));
            let marks = parts.len() == 2 && parts[0].1.eq_ignore_ascii_case("menu") && parts[1].1.eq_ignore_ascii_case("default");
            named |= names;
            match (names, marks) {
                (true, _) => Line::Become(replaced(line, parts[1].0.clone(), &new)),
                (_, true) => Line::Drop,
                _ => Line::Keep,
            }
        })?;
    }
    // Where a menu's program is what starts, an entry says so itself.
    for file in files.iter().filter(|_| !named) {
        cx.edit_lines(file, |line| Line::of(is_label(line, &new).then(|| format!("{line}\n  MENU DEFAULT"))))?;
    }
    let why = if cx.is_kernel_given() { "its kernel was given".into() } else { format!("'{old}' only starts on Xen") };
    cx.note(format!("'{new}' is the default, since {why}"));
    Ok(true)
}

fn is_label(line: &str, label: &str) -> bool {
    let parts = fields(line);
    parts.first().is_some_and(|(range, word)| word.eq_ignore_ascii_case("label") && line[range.end..].trim() == label)
}

/// What an entry for a kernel is called: by its name, as Alpine's are, unless another is.
fn label(kernel: &Kernel, entries: &[Entry<'_>]) -> String {
    let by_name = flavor(kernel).filter(|name| !entries.iter().any(|entry| entry.label == *name));
    by_name.map_or_else(|| format!("linux-{}", kernel.version), String::from)
}

/// An entry for a kernel that none starts, with the options of the one that was the default, and named from where that is.
fn entry(cx: &Context<'_>, path: &str, like: &Entry<'_>, kernel: &Kernel, label: &str) -> Result<String> {
    let seen = |file: &str| match file.rsplit_once('/') {
        Some((_, name)) if !like.kernel.contains('/') && beside(path, name) == file => Ok(name.to_string()),
        _ => cx.seen_by_boot_loader(file),
    };
    let (root, initrd) = (cx.root_spec()?, initrd_of(cx, kernel));
    let words = Rewrite { root: root.as_deref(), by_name: initrd.is_none(), ..cx.rewrite() };
    let append = words.whole(&without_initrd(like.append));
    let initrd = initrd.map(|initrd| seen(&initrd)).transpose()?.map_or(String::new(), |initrd| format!("  INITRD {initrd}\n"));
    let image = seen(&kernel.image)?;
    Ok(format!("LABEL {label}\n  MENU LABEL Linux {}\n  LINUX {image}\n{initrd}  APPEND {append}", kernel.version))
}

/// The options of an entry without the initrd, which may stand among them.
fn without_initrd(append: &str) -> String {
    append.split_ascii_whitespace().filter(|w| !w.starts_with("initrd=")).collect::<Vec<_>>().join(" ")
}

/// What a kernel is called behind `vmlinuz-`: the flavor, with Alpine.
fn flavor(kernel: &Kernel) -> Option<&str> {
    kernel.image.rsplit('/').next()?.strip_prefix("vmlinuz-")
}

/// Alpine's tool makes the entry of this flavor the default.
fn by_flavor(cx: &mut Context<'_>, kernel: &Kernel) -> Result<()> {
    let Some(flavor) = flavor(kernel) else { return Ok(()) };
    let setting = format!("default={flavor}");
    cx.edit(ALPINES, |text| {
        let is_it = |line: &str| line.starts_with("default=");
        if text.lines().any(is_it) {
            map_lines(text, |line| Line::of(is_it(line).then(|| setting.clone())))
        } else {
            add_line(text, &setting)
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, ROOT_UUID, bzimage, run_step};

    const CONSOLES: &str = "console=tty0 console=ttyS0,115200n8";

    #[test]
    fn entries_and_settings() {
        let base = MemFs::new()
            .file("/boot/extlinux/extlinux.conf", "default l0\nlabel l0\n\tlinux /boot/vmlinuz-3.2\n\tinitrd /boot/initrd.img-3.2\n\tappend root=/dev/xvda2 ro console=hvc0\n")
            .file("/etc/default/extlinux", "EXTLINUX_UPDATE=\"true\"\nEXTLINUX_ROOT=\"root=/dev/xvda2\"\nEXTLINUX_PARAMETERS=\"ro quiet\"\n");
        run_step(&base, &STEP, |cx| {
            assert!(cx.show("/boot/extlinux/extlinux.conf").ends_with(&format!("\tappend root=UUID={ROOT_UUID} ro {CONSOLES}\n")));
            assert_eq!(
                cx.show("/etc/default/extlinux"),
                format!("EXTLINUX_UPDATE=\"true\"\nEXTLINUX_ROOT=\"root=UUID={ROOT_UUID}\"\nEXTLINUX_PARAMETERS=\"ro quiet {CONSOLES}\"\n")
            );
        });
    }

    /// wheezy's extlinux-update splits its configuration.
    #[test]
    fn files_that_are_included() {
        let base = MemFs::new()
            .file(
                "/boot/extlinux/extlinux.conf",
                "## IMPORTANT WARNING\ndefault l0\ndisplay boot.txt\nprompt 0\ntimeout 50\n\ninclude themes/debian/theme.cfg\n",
            )
            .file("/boot/extlinux/themes/debian/theme.cfg", "include linux.cfg\nmenu include memdisk.cfg\n")
            .file(
                "/boot/extlinux/linux.cfg",
                "label l0\n\tkernel /boot/vmlinuz-3.2.0-4-amd64\n\tappend initrd=/boot/initrd.img-3.2.0-4-amd64 root=/dev/xvda2 ro quiet\n",
            )
            .file("/boot/extlinux/memdisk.cfg", "include linux.cfg\nlabel memdisk\n\tkernel memdisk\n\tappend -\n");
        run_step(&base, &STEP, |cx| {
            assert!(cx.show("/boot/extlinux/linux.cfg").contains(&format!("root=UUID={ROOT_UUID} ro quiet {CONSOLES}\n")));
            assert_eq!(cx.reports[0].changed, ["/boot/extlinux/linux.cfg"]);
            let args = default_args(cx, "/boot/extlinux/extlinux.conf").unwrap();
            assert_eq!(args, Some(format!("root=UUID={ROOT_UUID} ro quiet {CONSOLES}")));
        });
    }

    #[test]
    fn u_boot_menus_and_alpines_settings() {
        let base = MemFs::new()
            .file(
                "/etc/default/u-boot",
                "#U_BOOT_UPDATE=\"true\"\nU_BOOT_PARAMETERS=\"ro quiet console=hvc0\"\nU_BOOT_ROOT='root=/dev/xvda2'\n",
            )
            .file(
                "/etc/update-extlinux.conf",
                "overwrite=1\ndefault_kernel_opts=\"console=hvc0 rootfstype=ext4\"\nmodules=sd-mod,ext4\nroot=/dev/xvda2\nverbose=0\n",
            );
        run_step(&base, &STEP, |cx| {
            assert_eq!(
                cx.show("/etc/default/u-boot"),
                format!("#U_BOOT_UPDATE=\"true\"\nU_BOOT_PARAMETERS=\"ro quiet {CONSOLES}\"\nU_BOOT_ROOT='root=UUID={ROOT_UUID}'\n")
            );
            assert_eq!(
                cx.show("/etc/update-extlinux.conf"),
                format!(
                    "overwrite=1\ndefault_kernel_opts=\"rootfstype=ext4 {CONSOLES}\"\nmodules=sd-mod,ext4\nroot=UUID={ROOT_UUID}\nverbose=0\n"
                )
            );
        });
    }

    #[test]
    fn a_kernel_that_is_given_becomes_the_default() {
        let alpines = "DEFAULT menu.c32\nPROMPT 0\nLABEL lts\n  MENU DEFAULT\n  LINUX vmlinuz-lts\n  INITRD initramfs-lts\n  APPEND root=/dev/xvda2 modules=ext4\n\nMENU SEPARATOR\n";
        let virt = "LABEL virt\n  LINUX vmlinuz-virt\n  APPEND root=/dev/xvda2\n";
        let debians = "default l0\nlabel l0\n\tlinux /boot/vmlinuz-lts\n\tappend initrd=/boot/initramfs-lts root=/dev/xvda2 ro\n";
        let args = format!("root=UUID={ROOT_UUID}");
        let new = |folder: &str, mark: &str, words: &str| {
            format!(
                "LABEL virt\n{mark}  MENU LABEL Linux 6.6.14-0-virt\n  LINUX {folder}vmlinuz-virt\n  INITRD {folder}initramfs-virt\n  APPEND {args} {words} \
                 {CONSOLES}\n"
            )
        };
        let mark = "  MENU DEFAULT\n";
        for (path, menu, begins, ends) in [
            ("/boot/extlinux.conf", alpines.to_string(), "DEFAULT menu.c32\nPROMPT 0\nLABEL lts\n  LINUX", new("", mark, "modules=ext4")),
            (
                "/boot/extlinux.conf",
                format!("{alpines}{virt}"),
                "DEFAULT menu.c32\nPROMPT 0\nLABEL lts\n  LINUX",
                virt.replace("virt\n  LINUX", "virt\n  MENU DEFAULT\n  LINUX").replace("root=/dev/xvda2", &format!("{args} {CONSOLES}")),
            ),
            ("/boot/extlinux/extlinux.conf", debians.to_string(), "default virt\nlabel l0\n", new("/boot/", "", "ro")),
        ] {
            let base = MemFs::new()
                .file("/boot/vmlinuz-virt", bzimage("6.6.14-0-virt"))
                .file("/boot/initramfs-virt", "x")
                .file("/boot/vmlinuz-lts", bzimage("6.6.14-0-lts"))
                .file("/boot/initramfs-lts", "x")
                .file(path, &menu)
                .file(ALPINES, "timeout=1\ndefault=lts\n");
            for given in [true, false] {
                run_step(&base, &crate::steps::STEPS[0], |cx| {
                    cx.facts.kernels[0].pending = given;
                    cx.facts.kernel = cx.facts.kernels.first().cloned();
                    cx.run(&STEP).unwrap();
                    let (new, kernel) = (cx.show(path), default_kernel(cx, path).unwrap().unwrap());
                    assert_eq!(kernel.version, if given { "6.6.14-0-virt" } else { "6.6.14-0-lts" });
                    assert_eq!(new.starts_with(begins) && new.ends_with(&ends), given, "{new}");
                    assert_eq!(cx.show(ALPINES), format!("timeout=1\ndefault={}\n", if given { "virt" } else { "lts" }));
                });
            }
        }
    }

    #[test]
    fn the_default_starts_on_kvm() {
        let base = MemFs::new()
            .file("/boot/vmlinuz-2.6.18-xen", [0x1f; 0x300])
            .file("/boot/vmlinuz-virt", bzimage("6.6.14-0-virt"))
            .file("/boot/extlinux.conf", "DEFAULT xen\nLABEL xen\n  MENU DEFAULT\n  LINUX vmlinuz-2.6.18-xen\n  APPEND root=/dev/xvda2\nLABEL virt\n  LINUX vmlinuz-virt\n  APPEND root=/dev/xvda2\n");
        run_step(&base, &crate::steps::STEPS[0], |cx| {
            cx.run(&STEP).unwrap();
            let new = cx.show("/boot/extlinux.conf");
            assert!(new.starts_with("DEFAULT virt\nLABEL xen\n  LINUX vmlinuz-2.6.18-xen\n"), "{new}");
        });
    }
}
