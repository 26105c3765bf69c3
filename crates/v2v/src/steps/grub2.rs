//! GRUB 2: every entry of `grub.cfg` that is there, and the settings from which the guest makes it anew.

use guestfs::Ext;

use crate::Result;
use crate::guest::cmdline::Rewrite;
use crate::guest::devices::Devices;
use crate::guest::grub::{BootDevice, GRUB_CFG};
use crate::guest::has_program;
use crate::guest::kernels::{self, Kernel};
use crate::guest::menus::is_microcode;
use crate::guest::text::{Line, add_line, fields, map_lines, replaced};
use crate::step::{Context, Step};
use crate::steps::grub2_default;

pub(super) const STEP: Step =
    Step { name: "grub2", about: "grub.cfg and the settings that update-grub reads name the new devices and consoles", run };

const DEFAULTS: &str = "/etc/default/grub";

fn run(cx: &mut Context<'_>) -> Result<()> {
    let device = cx.mounted("/boot")?.and_then(|v| BootDevice::of(cx.layout, &v));
    let root = cx.root_spec()?;
    let others = ["/boot/grub/custom.cfg", "/etc/grub.d/40_custom", "/etc/grub.d/41_custom"];
    for path in GRUB_CFG.iter().chain(&others) {
        let Some(old) = cx.text(path)? else { continue };
        let default = if GRUB_CFG.contains(path) { grub2_default::default_kernel(cx, path)? } else { None };
        let mut bare = Bare::new(cx, default);
        let new = rewrite(&old, &cx.rewrite(), root.as_deref(), device.as_ref(), &mut |kernel| bare.initrd(kernel));
        let stuck = bare.stuck;
        cx.edit(path, |_| new)?;
        tell_stuck(cx, path, &stuck);
    }
    let Some(old) = cx.text(DEFAULTS)? else {
        // What makes grub.cfg anew with the next kernel knows no console then.
        if ["grub-mkconfig", "grub2-mkconfig"].iter().any(|program| has_program(&cx.fs, program)) {
            let line = format!("GRUB_CMDLINE_LINUX=\"{}\"\n", cx.rewrite().whole(""));
            cx.fs.put(DEFAULTS.as_bytes(), line.as_bytes(), None)?;
        }
        return Ok(());
    };
    let mut new = settings(&old, &cx.rewrite());
    if !new.lines().any(|l| l.trim_start().starts_with("GRUB_CMDLINE_LINUX=")) {
        new = add_line(&new, &format!("GRUB_CMDLINE_LINUX=\"{}\"", cx.rewrite().whole("")));
    }
    cx.edit(DEFAULTS, |_| new)?;
    for name in cx.names("/etc/default/grub.d") {
        let path = [b"/etc/default/grub.d/", &name[..]].concat();
        let Some(old) = cx.text(&path)? else { continue };
        let new = settings(&old, &cx.rewrite());
        cx.edit(&path, |_| new)?;
    }
    install_device(cx)
}

/// The disk on which updates of the package grub-pc install the boot loader, as debconf remembers it.
fn install_device(cx: &mut Context<'_>) -> Result<()> {
    let Some(disk) = cx.layout.disks.first().map(|d| format!("/dev/{}", d.device)) else { return Ok(()) };
    if !cx.fs.is_file(b"/var/cache/debconf/config.dat") {
        return Ok(());
    }
    let mut ours = false;
    cx.edit_lines("/var/cache/debconf/config.dat", |line| {
        if let Some(name) = line.strip_prefix("Name: ") {
            ours = matches!(name.trim(), "grub-pc/install_devices" | "grub-pc/install_devices_disks_changed");
        }
        let old = line.strip_prefix("Value: ").filter(|v| ours && v.split(", ").all(Devices::is_disk_name));
        Line::of(old.filter(|v| **v != *disk).map(|_| format!("Value: {disk}")))
    })?;
    Ok(())
}

/// A menu with new devices and consoles. `initrd` gives entries that load none the one that they lack.
fn rewrite(
    text: &str,
    words: &Rewrite<'_>,
    root: Option<&str>,
    device: Option<&BootDevice>,
    initrd: &mut dyn FnMut(&str) -> Option<String>,
) -> String {
    let moved = device.filter(|d| !d.kept).map(BootDevice::grub2);
    let lines: Vec<&str> = text.lines().collect();
    let keyword = |line: &str| fields(line).first().map_or("", |w| w.1).to_string();
    // Whether the entry of a line loads such an initrd: the processor's microcode finds no root.
    let loads = |at: usize, is_it: &dyn Fn(&str) -> bool| {
        let rest = lines.iter().skip(at + 1).map(|l| (keyword(l), fields(l).iter().skip(1).any(|word| is_it(word.1))));
        rest.take_while(|(k, _)| k != "}" && !is_linux(k)).any(|(k, names)| k.starts_with("initrd") && names)
    };
    // To be loaded behind the microcode, in a line that is to come.
    let mut behind: Option<String> = None;
    let mut at = 0;
    map_lines(text, |line| {
        at += 1;
        let parts = fields(line);
        match (keyword(line).as_str(), parts.get(1)) {
            (word, Some((range, kernel))) if is_linux(word) => {
                let has_initrd = loads(at - 1, &|path| !is_microcode(path));
                let lacking = if has_initrd { None } else { initrd(kernel) };
                let whole = Rewrite { root, by_name: !has_initrd && lacking.is_none(), ..words.clone() };
                let lead = if line.len() > range.end { "" } else { " " };
                let mut new = format!("{}{lead}{}", &line[..range.end], whole.whole(&line[range.end..]));
                if let Some(path) = lacking {
                    if loads(at - 1, &is_microcode) {
                        behind = Some(path);
                    } else {
                        let indent = &line[..line.len() - line.trim_start().len()];
                        new += &format!("\n{indent}{}\t{path}", word.replace("linux", "initrd"));
                    }
                }
                Line::of((new != line).then_some(new))
            }
            (word, Some(_)) if word.starts_with("initrd") => Line::of(behind.take().map(|path| format!("{} {path}", line.trim_end()))),
            ("set", Some((range, value))) if value.starts_with("root=") => {
                let disk = value.contains("hd") || value.contains("xen/");
                Line::of(moved.as_ref().filter(|_| disk).map(|m| replaced(line, range.clone(), &format!("root='{m}'"))))
            }
            _ => Line::Keep,
        }
    })
}

/// Entries that load no initrd, though their kernels drive the new disks by modules: Xen's they had built in.
pub(super) struct Bare<'c, 'g> {
    cx: &'c Context<'g>,
    /// The kernel of the menu's default entry, which step `bootloader` may choose.
    default: Option<Kernel>,
    /// Images of those for which there is no initrd.
    pub stuck: Vec<String>,
}

impl<'c, 'g> Bare<'c, 'g> {
    pub(super) fn new(cx: &'c Context<'g>, default: Option<Kernel>) -> Self {
        Bare { cx, default: default.filter(|_| !cx.is_kernel_given()), stuck: Vec::new() }
    }

    /// The initrd that the entry of a kernel lacks, named as this is.
    pub(super) fn initrd(&mut self, named: &str) -> Option<String> {
        let cx = self.cx;
        let kernel = cx.kernel_at(named).filter(|kernel| needs_initrd(cx, kernel))?;
        let will_be = || (Some(kernel) == self.default.as_ref()).then(|| (cx.family.initrd)(cx, kernel));
        let Some(initrd) = initrd_of(cx, kernel).or_else(will_be) else {
            if !self.stuck.contains(&kernel.image) {
                self.stuck.push(kernel.image.clone());
            }
            return None;
        };
        let split = |path: &str| path.rsplit_once('/').map(|(folder, name)| (folder.to_string(), name.to_string()));
        match (split(named), split(&kernel.image), split(&initrd)) {
            (Some((seen, name)), Some((folder, image)), Some((beside, initrd))) if name == image && folder == beside => {
                Some(format!("{seen}/{initrd}"))
            }
            // By a link that is elsewhere.
            _ => {
                let device = named.rfind(')').map_or("", |at| &named[..=at]);
                Some(format!("{device}{}", cx.seen_by_boot_loader(&initrd).ok()?))
            }
        }
    }
}

/// Says which kernels do not start from a menu.
pub(super) fn tell_stuck(cx: &mut Context<'_>, menu: &str, stuck: &[String]) {
    for image in stuck {
        cx.warn(format!(
            "{menu} starts {image} without an initrd, there is none for it, and it has the new disks' drivers only as modules: it does not find its root"
        ));
    }
}

/// The initrd that a kernel has in the result: step `initrd` makes one for what the result starts, where that needs it.
pub(super) fn initrd_of(cx: &Context<'_>, kernel: &Kernel) -> Option<String> {
    let is_made = Some(kernel) == cx.facts.kernel.as_ref() && needs_initrd(cx, kernel);
    kernel.initrd.clone().or_else(|| is_made.then(|| (cx.family.initrd)(cx, kernel)))
}

/// Whether a kernel has what drives the new disks as modules.
fn needs_initrd(cx: &Context<'_>, kernel: &Kernel) -> bool {
    let is_module = |name: &str| kernels::has_module(&cx.fs, &kernel.version, name) && !kernels::is_builtin(&cx.fs, &kernel.version, name);
    cx.drivers_of(kernel).disk.iter().any(|name| is_module(name))
}

fn is_linux(keyword: &str) -> bool {
    matches!(keyword, "linux" | "linux16" | "linuxefi")
}

/// Shell assignments of kernel options: whole lines in `GRUB_CMDLINE_LINUX`, which all entries get, parts in the others.
fn settings(text: &str, words: &Rewrite<'_>) -> String {
    map_lines(text, |line| {
        let Some((name, value)) = line.split_once('=') else { return Line::Keep };
        let name = name.trim().trim_start_matches("export ");
        if !name.starts_with("GRUB_CMDLINE_LINUX") || name.starts_with("GRUB_CMDLINE_LINUX_XEN") {
            return Line::Keep;
        }
        let quote = value.chars().next().filter(|c| *c == '"' || *c == '\'');
        let (inner, rest) = match quote {
            Some(quote) => match value[1..].find(quote) {
                Some(end) => (&value[1..end + 1], &value[end + 2..]),
                // It goes on in the next line: a person's work that is better left alone.
                None => return Line::Keep,
            },
            None => value.split_at(value.find(|c: char| c.is_ascii_whitespace()).unwrap_or(value.len())),
        };
        let new = if name == "GRUB_CMDLINE_LINUX" { words.whole(inner) } else { words.part(inner) };
        let quote = quote.unwrap_or('"');
        Line::of((new != inner).then(|| format!("{}={quote}{new}{quote}{rest}", &line[..line.len() - value.len() - 1])))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, ROOT_UUID, bzimage, run_step};

    const ENTRY: &str = "menuentry 'Debian GNU/Linux' --class debian $menuentry_id_option 'gnulinux-simple-79b3' {\n\tload_video\n\tinsmod part_msdos\n\
        \tset root='hd0,msdos1'\n\t  search --no-floppy --fs-uuid --set=root --hint-bios=hd0,msdos1 79b3\n\techo\t'Loading Linux 6.1.0-50-amd64 ...'\n\
        \tlinux\t/boot/vmlinuz-6.1.0-50-amd64 root=/dev/xvda2 ro console=hvc0 quiet\n\tinitrd\t/boot/initrd.img-6.1.0-50-amd64\n}\n\
        menuentry 'bare' {\n\tset root=(hd0)\n\tlinux /vmlinuz root=/dev/xvda2\n}\n";

    #[test]
    fn entries_and_settings() {
        let base = MemFs::new()
            .file("/etc/fstab", "/dev/xvda2 / ext4 defaults 0 1\n")
            .file("/boot/grub/grub.cfg", ENTRY)
            .file(DEFAULTS, "GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet console=hvc0\" # x\nGRUB_CMDLINE_LINUX=\"console=hvc0\"\n#GRUB_CMDLINE_LINUX=\"hvc0\"\n")
            .file("/etc/default/grub.d/50-cloud.cfg", "GRUB_CMDLINE_LINUX_DEFAULT='console=hvc0'\nGRUB_TIMEOUT=0\n")
            .file("/var/cache/debconf/config.dat", "Name: grub-pc/install_devices\nValue: /dev/xvda\nOwners: grub-pc\n\nName: x/y\nValue: /dev/xvda\n");
        run_step(&base, &STEP, |cx| {
            let new = ENTRY
                .replace("root='hd0,msdos1'", "root='hd0,msdos2'")
                .replace("root=(hd0)", "root='hd0,msdos2'")
                .replace(
                    "root=/dev/xvda2 ro console=hvc0 quiet",
                    &format!("root=UUID={ROOT_UUID} ro quiet console=tty0 console=ttyS0,115200n8"),
                )
                .replace("root=/dev/xvda2\n", "root=/dev/vda2 console=tty0 console=ttyS0,115200n8\n");
            assert_eq!(cx.show("/boot/grub/grub.cfg"), new);
            assert_eq!(
                cx.show(DEFAULTS),
                "GRUB_DEFAULT=0\nGRUB_CMDLINE_LINUX_DEFAULT=\"quiet\" # x\nGRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200n8\"\n#GRUB_CMDLINE_LINUX=\"hvc0\"\n"
            );
            assert_eq!(cx.show("/etc/default/grub.d/50-cloud.cfg"), "GRUB_CMDLINE_LINUX_DEFAULT=''\nGRUB_TIMEOUT=0\n");
            assert_eq!(
                cx.show("/var/cache/debconf/config.dat"),
                "Name: grub-pc/install_devices\nValue: /dev/vda\nOwners: grub-pc\n\nName: x/y\nValue: /dev/xvda\n"
            );
        });
    }

    #[test]
    fn an_entry_without_an_initrd_gets_what_its_kernel_needs() {
        let dep = "kernel/virtio_pci.ko:\nkernel/virtio_blk.ko:\n";
        let (by_uuid, by_name) = (format!("root=UUID={ROOT_UUID} ro"), "root=/dev/vda2 ro".to_string());
        let consoles = "console=tty0 console=ttyS0,115200n8";
        let entry = |line: &str| format!("menuentry 'x' {{\n\tlinux {line}\n}}\n");
        let image = "/boot/vmlinuz-4.4";
        let base = MemFs::new().file("/etc/fstab", "/dev/xvda2 / ext4 defaults 0 1\n").file(image, bzimage("4.4"));
        let modular = base.clone().file("/lib/modules/4.4/modules.dep", dep);
        let with_initrd = modular.clone().file("/boot/initrd.img-4.4", "x");
        let linked = with_initrd.clone().link_to("/vmlinuz", "boot/vmlinuz-4.4");
        let older = modular.clone().file("/boot/vmlinuz-4.5", bzimage("4.5"));
        let older = older.file("/lib/modules/4.5/modules.dep", dep).file("/boot/initrd.img-4.5", "x");
        let second = format!("set default=1\n{}{}", entry("/boot/vmlinuz-4.5 ro"), entry("@"));
        let (only, microcode) = (entry("@"), "menuentry 'x' {\n\tlinuxefi @\n\tinitrdefi /boot/intel-uc.img\n}\n".to_string());
        let (debians, behind) = ("\n\tinitrd\t/boot/initrd.img-4.4\n", "\n\tinitrdefi /boot/intel-uc.img /boot/initrd.img-4.4\n");
        for (fs, menu, named, root, follows, stuck) in [
            // Its drivers are built in, or it is not known.
            (&base, &only, image, &by_name, "\n}\n", false),
            (&with_initrd, &only, "/boot/other", &by_name, "\n}\n", false),
            (&with_initrd, &only, image, &by_uuid, debians, false),
            (&with_initrd, &only, "(hd0,msdos2)/boot/vmlinuz-4.4", &by_uuid, "\n\tinitrd\t(hd0,msdos2)/boot/initrd.img-4.4\n", false),
            (&linked, &only, "/vmlinuz", &by_uuid, debians, false),
            (&with_initrd, &microcode, image, &by_uuid, behind, false),
            // Step initrd makes it, where it is what starts.
            (&modular, &only, image, &by_uuid, "\n\tinitrd\t/boot/initramfs-4.4.img\n", false),
            (&older, &second, image, &by_uuid, "\n\tinitrd\t/boot/initrd.img-4.4\n", false),
            (&older, &second.replace("default=1", "default=0"), image, &by_name, "\n}\n", true),
        ] {
            let fs = fs.clone().file("/boot/grub/grub.cfg", menu.replace('@', &format!("{named} root=/dev/xvda2 ro")));
            run_step(&fs, &super::super::kernel::STEP, |cx| {
                cx.run(&STEP).unwrap();
                let cfg = cx.show("/boot/grub/grub.cfg");
                assert!(cfg.contains(&format!("{named} {root} {consoles}{follows}")), "{cfg}");
                let told = cx.reports[1].warnings.iter().any(|w| w.starts_with("/boot/grub/grub.cfg starts /boot/vmlinuz-4.4 without"));
                assert_eq!(told, stuck, "{:?}", cx.reports[1].warnings);
            });
        }
    }

    #[test]
    fn missing_settings_are_made_where_a_tool_reads_them() {
        for (tool, made) in [("/usr/sbin/grub-mkconfig", true), ("/usr/bin/true", false)] {
            run_step(&MemFs::new().file("/boot/grub/grub.cfg", ENTRY).file(tool, ""), &STEP, |cx| {
                let settings = cx.text(DEFAULTS).unwrap();
                assert_eq!(settings.as_deref(), made.then_some("GRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200n8\"\n"));
            });
        }
    }

    #[test]
    fn a_missing_setting_is_added_and_unfinished_quotes_are_left() {
        let base = MemFs::new().file(DEFAULTS, "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet \\\nconsole=hvc0\"");
        run_step(&base, &STEP, |cx| {
            assert_eq!(
                cx.show(DEFAULTS),
                "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet \\\nconsole=hvc0\"\nGRUB_CMDLINE_LINUX=\"console=tty0 console=ttyS0,115200n8\"\n"
            );
        });
    }
}
