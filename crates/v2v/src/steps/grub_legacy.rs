//! GRUB legacy's `menu.lst`: entries, Debian's magic comments, and the default.

use guestfs::{Ext, GuestFs};
use md5::{Digest, Md5};

use crate::Result;
use crate::guest::cmdline::Rewrite;
use crate::guest::grub::{BootDevice, MENU_LST};
use crate::guest::kernels::Kernel;
use crate::guest::text::{Line, Text, fields, map_lines};
use crate::step::{Context, Step};
use crate::steps::grub2::{Bare, initrd_of, tell_stuck};

pub(super) const STEP: Step = Step {
    name: "grub-legacy",
    about: "menu.lst names the new devices and consoles, in its entries and in the comments from which update-grub makes new ones",
    run,
};

/// Where what update-grub writes begins: its settings end with this.
const LIST: &str = "## ## End Default Options ##";
/// And where it ends.
const LIST_END: &str = "### END DEBIAN AUTOMAGIC KERNELS LIST";
/// The sums of files that ucf wrote, and the folder with those files' contents.
const UCF: (&str, &str) = ("/var/lib/ucf/hashfile", "/var/lib/ucf/cache");

fn run(cx: &mut Context<'_>) -> Result<()> {
    let device = cx.mounted("/boot")?.and_then(|v| BootDevice::of(cx.layout, &v));
    let root = cx.root_spec()?;
    let mut seen = Vec::new();
    for path in MENU_LST {
        let Ok(stat) = cx.fs.stat(path.as_bytes()) else { continue };
        // Names are often links to one file.
        if seen.contains(&(stat.dev, stat.ino)) {
            continue;
        }
        seen.push((stat.dev, stat.ino));
        let Some(old) = cx.text(path)? else { continue };
        let mut bare = Bare::new(cx, default_kernel(cx, path)?);
        let new = rewrite(&old, &cx.rewrite(), root.as_deref(), device.as_ref(), &mut |kernel| bare.initrd(kernel));
        let stuck = bare.stuck;
        let new = with_default(cx, &new, device.as_ref());
        known_to_ucf(cx, &old, &new)?;
        cx.edit(path, |_| new)?;
        tell_stuck(cx, path, &stuck);
        device_map(cx, path)?;
    }
    Ok(())
}

/// Ubuntu's update-grub has ucf merge the list, as a file of its own. That leaves alone what has another sum than it wrote, where nobody answers:
/// new kernels would get no entry.
fn known_to_ucf(cx: &mut Context<'_>, old: &Text, new: &str) -> Result<()> {
    let (Some(old_list), Some(new_list)) = (list(old), list(new)) else { return Ok(()) };
    let (old_sum, new_sum) = (md5(&old.encode(old_list)), md5(&old.encode(new_list)));
    let (sums, cache) = UCF;
    // By its newer versions after links are followed.
    for path in ["/var/run/grub/menu.lst", "/run/grub/menu.lst"] {
        let known = format!("{old_sum}  {path}");
        let changed = cx.edit_lines(sums, |line| Line::of((line == known).then(|| format!("{new_sum}  {path}"))))?;
        // What both sides of a later merge come from.
        let cached = format!("{cache}/{}", path.replace('/', ":"));
        if changed && cx.fs.is_file(cached.as_bytes()) {
            cx.fs.put(cached.as_bytes(), &old.encode(new_list), None)?;
        }
    }
    Ok(())
}

/// The part of a menu that update-grub hands over: whole lines, with those between which it stands.
fn list(menu: &str) -> Option<&str> {
    let line = |at: usize| menu[..at].rfind('\n').map_or(0, |end| end + 1);
    let end_of_line = |at: usize| menu[at..].find('\n').map(|end| at + end + 1);
    let start = menu.find(LIST)?;
    let behind = end_of_line(start)?;
    let end = behind + menu[behind..].find(LIST_END)?;
    Some(&menu[line(start)..end_of_line(end).unwrap_or(menu.len())])
}

fn md5(bytes: &[u8]) -> String {
    Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// `device.map`: update-grub asks it which disk GRUB sees as which.
fn device_map(cx: &mut Context<'_>, menu: &str) -> Result<()> {
    let path = menu.replace("menu.lst", "device.map").replace("grub.conf", "device.map");
    let map: String = cx.layout.disks.iter().enumerate().map(|(i, d)| format!("(hd{i})\t/dev/{}\n", d.device)).collect();
    cx.edit(path, |_| map)?;
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
    let moved = device.filter(|d| !d.kept).map(BootDevice::legacy);
    let with_moved = |text: &str| moved.as_ref().map_or_else(|| text.to_string(), |moved| with_device(text, moved));
    let entries = entries(text);
    let mut entry = 0usize;
    map_lines(text, |line| {
        if let Some(comment) = line.strip_prefix("# ") {
            return Line::of(magic(comment, words, moved.as_deref()).map(|c| format!("# {c}")));
        }
        let parts = fields(line);
        let keyword = parts.first().map_or("", |w| w.1).to_ascii_lowercase();
        let mut new = line.to_string();
        let mut lacking = None;
        match keyword.as_str() {
            "title" => entry += 1,
            "kernel" => {
                let has_initrd = entries.get(entry.wrapping_sub(1)).is_none_or(|e| e.initrd);
                if let Some(path) = parts.iter().skip(1).find(|w| !w.1.starts_with("--"))
                    && !is_hypervisor(path.1)
                {
                    lacking = if has_initrd { None } else { initrd(path.1) };
                    let whole = Rewrite { root, by_name: !has_initrd && lacking.is_none(), ..words.clone() };
                    let lead = if line.len() > path.0.end { "" } else { " " };
                    new.replace_range(path.0.end.., &format!("{lead}{}", whole.whole(&line[path.0.end..])));
                }
            }
            "root" | "rootnoverify" | "initrd" | "splashimage" | "module" | "" => {}
            _ if keyword.starts_with("splashimage=") => {}
            _ => return Line::Keep,
        }
        new = with_moved(&new);
        if let Some(path) = lacking {
            let indent = &line[..line.len() - line.trim_start().len()];
            new += &format!("\n{indent}initrd\t\t{}", with_moved(&path));
        }
        Line::of((new != line).then_some(new))
    })
}

/// One of Debian's settings that look like comments, changed.
fn magic(comment: &str, words: &Rewrite<'_>, moved: Option<&str>) -> Option<String> {
    let (name, value) = comment.split_once('=')?;
    if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        return None;
    }
    let new = match name {
        "kopt" => words.whole(value),
        _ if name.starts_with("kopt_") => words.whole(value),
        "defoptions" | "altoptions" | "xenkopt" | "lockoptions" => words.part(value),
        "groot" if value.starts_with('(') => moved?.to_string(),
        // update-grub would go by what it finds around it; no entry is for a paravirtual guest any more.
        "indomU" => "false".into(),
        _ => return None,
    };
    (new != value).then(|| format!("{name}={new}"))
}

/// The line with every `(hd…)` become the boot volume's name.
fn with_device(line: &str, device: &str) -> String {
    let Some(start) = line.find("(hd") else { return line.into() };
    let Some(end) = line[start..].find(')') else { return line.into() };
    format!("{}{device}{}", &line[..start], &line[start + end + 1..])
}

fn is_hypervisor(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.starts_with("xen") && !name.contains("vmlinuz")
}

/// The options of the kernel that the default entry starts.
pub(super) fn default_args(cx: &Context<'_>, path: &str) -> Result<Option<String>> {
    let Some(text) = cx.text(path)? else { return Ok(None) };
    Ok(entries(&text).into_iter().nth(default_of(cx, &text)).map(|e| e.args))
}

/// The kernel that the default entry starts.
pub(super) fn default_kernel(cx: &Context<'_>, path: &str) -> Result<Option<Kernel>> {
    let Some(text) = cx.text(path)? else { return Ok(None) };
    let entry = entries(&text).into_iter().nth(default_of(cx, &text));
    Ok(entry.and_then(|entry| cx.kernel_at(&entry.kernel).cloned()))
}

struct Entry {
    kernel: String,
    args: String,
    initrd: bool,
}

fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for line in text.lines() {
        let parts = fields(line);
        match (parts.first().map(|w| w.1.to_ascii_lowercase()).as_deref(), entries.last_mut()) {
            (Some("title"), _) => entries.push(Entry { kernel: String::new(), args: String::new(), initrd: false }),
            (Some("kernel"), Some(entry)) => {
                if let Some((range, path)) = parts.iter().skip(1).find(|w| !w.1.starts_with("--")) {
                    (entry.kernel, entry.args) = (path.to_string(), line[range.end..].trim().into());
                }
            }
            (Some("initrd"), Some(entry)) => entry.initrd = true,
            _ => {}
        }
    }
    entries
}

/// The text with a default entry that starts on KVM: the guest's own choice if it does, else the chosen kernel's, which is added if need be.
fn with_default(cx: &mut Context<'_>, text: &str, device: Option<&BootDevice>) -> String {
    let Some(chosen) = cx.facts.kernel.clone() else { return text.into() };
    let entries = entries(text);
    let kernels: Vec<Option<Kernel>> = entries.iter().map(|e| cx.kernel_at(&e.kernel).cloned()).collect();
    let default = default_of(cx, text);
    if let Some(Some(kernel)) = kernels.get(default)
        && (!cx.is_kernel_given() || kernel == &chosen)
    {
        return set_default(text, default);
    }
    if let Some(at) = kernels.iter().position(|k| k.as_ref() == Some(&chosen)) {
        cx.note(format!("entry {at} of menu.lst becomes the default: it starts {}", chosen.image));
        return set_default(text, at);
    }
    cx.note(format!("menu.lst gets an entry for {}", chosen.image));
    let seen_by_grub = |path: &str| cx.seen_by_boot_loader(path).unwrap_or_else(|_| path.into());
    let root = cx.root_spec().ok().flatten();
    // As the default before it, unless that starts a hypervisor.
    let like = entries.get(default).filter(|e| !is_hypervisor(&e.kernel)).map_or("", |e| e.args.as_str());
    let like = if like.is_empty() { "ro" } else { like };
    let initrd = initrd_of(cx, &chosen);
    let args = Rewrite { root: root.as_deref(), by_name: initrd.is_none(), ..cx.rewrite() }.whole(like);
    let mut block = format!("title\t\tLinux, kernel {}\n", chosen.version);
    if let Some(device) = device {
        block += &format!("root\t\t{}\n", device.legacy());
    }
    block += &format!("kernel\t\t{} {args}\n", seen_by_grub(&chosen.image));
    if let Some(initrd) = &initrd {
        block += &format!("initrd\t\t{}\n", seen_by_grub(initrd));
    }
    block.push('\n');
    let marker = text.find("## ## End Default Options ##").and_then(|at| Some(at + text[at..].find('\n')? + 1));
    let first_title = || text.match_indices('\n').map(|m| m.0 + 1).chain([0]).filter(|&at| text[at..].starts_with("title")).min();
    let at = marker.or_else(first_title).unwrap_or(text.len());
    let gap = if marker.is_some() { "\n" } else { "" };
    set_default(&format!("{}{gap}{block}{}", &text[..at], text[at..].trim_start_matches('\n')), 0)
}

fn default_of(cx: &Context<'_>, text: &str) -> usize {
    let value = text.lines().find_map(|l| Some(l[default_value(l)?].to_string()));
    let saved =
        || cx.fs.read(b"/boot/grub/default", 4096).ok().and_then(|b| String::from_utf8_lossy(&b).lines().next()?.trim().parse().ok());
    match value.as_deref() {
        Some("saved") => saved().unwrap_or(0),
        Some(number) => number.parse().unwrap_or(0),
        None => 0,
    }
}

/// Where the value of a line's `default` stands. GRUB takes `default 1`, `default=1` and `default = 1` alike.
fn default_value(line: &str) -> Option<std::ops::Range<usize>> {
    let is_between = |c: char| c.is_ascii_whitespace() || c == '=';
    let keyword = line.trim_start().split(is_between).next().filter(|k| k.eq_ignore_ascii_case("default"))?;
    let rest = &line.trim_start()[keyword.len()..];
    let value = rest.trim_start_matches(is_between);
    let start = line.len() - value.len();
    let end = value.find(|c: char| c.is_ascii_whitespace()).unwrap_or(value.len());
    (!rest.is_empty()).then_some(start..start + end)
}

/// Sets `default`, which GRUB 2 takes as a number only.
fn set_default(text: &str, entry: usize) -> String {
    let mut found = false;
    let new = map_lines(text, |line| match default_value(line) {
        Some(range) => {
            found = true;
            Line::of((line[range.clone()].parse() != Ok(entry)).then(|| format!("{}{entry}", &line[..range.start])))
        }
        None => Line::Keep,
    });
    if found || entry == 0 { new } else { format!("default\t\t{entry}\n{new}") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, ROOT_UUID, bzimage, run_step};

    const FSTAB: &str = "/dev/xvda2 / ext4 defaults 0 1\n";
    /// What xen-tools 4.9 writes, with Debian's comments of update-grub cut short.
    const XEN_TOOLS: &str = "default         0\ntimeout         2\n\n### BEGIN AUTOMAGIC KERNELS LIST\n## e.g. kopt=root=/dev/hda1 ro\n\
        ##      kopt_2_6_8=root=/dev/hdc1 ro\n# kopt=root=/dev/xvda2 ro elevator=noop\n\n## e.g. groot=(hd0,0)\n# groot=(hd0,0)\n\
        # alternative=true\n# defoptions=\n# xenkopt=console=tty0\n# altoptions=(single-user mode) single\n## ## End Default Options ##\n\n\
        title\t\tDebian GNU/Linux, kernel 6.1.0-50-amd64\nroot\t\t(hd0,0)\nkernel\t\t/boot/vmlinuz-6.1.0-50-amd64 root=/dev/xvda2 ro elevator=noop \n\
        initrd\t\t/boot/initrd.img-6.1.0-50-amd64\n\ntitle\t\tDebian GNU/Linux, kernel 6.1.0-50-amd64 (single-user mode)\nroot\t\t(hd0,0)\n\
        kernel\t\t/boot/vmlinuz-6.1.0-50-amd64 root=/dev/xvda2 ro elevator=noop single\ninitrd\t\t/boot/initrd.img-6.1.0-50-amd64\n\n\
        ### END DEBIAN AUTOMAGIC KERNELS LIST\n\ntitle           Debian GNU/Linux 12 (Default Kernel)\nroot            (hd0,0)\n\
        kernel          /vmlinuz root=/dev/xvda2 ro elevator=noop\ninitrd          /initrd.img\n";

    fn guest(menu: &str) -> MemFs {
        MemFs::new()
            .file("/etc/fstab", FSTAB)
            .file("/boot/grub/menu.lst", menu)
            .file("/boot/grub/device.map", "")
            .file("/boot/vmlinuz-6.1.0-50-amd64", bzimage("6.1.0-50-amd64"))
            .file("/boot/initrd.img-6.1.0-50-amd64", "x")
            .link_to("/vmlinuz", "boot/vmlinuz-6.1.0-50-amd64")
    }

    fn run_on(base: &MemFs, check: impl FnOnce(&mut Context<'_>)) {
        run_step(base, &super::super::kernel::STEP, |cx| {
            cx.run(&STEP).unwrap();
            check(cx);
        });
    }

    #[test]
    fn xen_tools_menu() {
        run_on(&guest(XEN_TOOLS), |cx| {
            let new = XEN_TOOLS
                .replace("# groot=(hd0,0)", "# groot=(hd0,1)")
                .replace("\t(hd0,0)", "\t(hd0,1)")
                .replace("      (hd0,0)", "      (hd0,1)")
                .replace(
                    "root=/dev/xvda2 ro elevator=noop single\n",
                    "root=/dev/xvda2 ro elevator=noop single console=tty0 console=ttyS0,115200n8\n",
                )
                .replace("ro elevator=noop \n", "ro elevator=noop console=tty0 console=ttyS0,115200n8 \n")
                .replace("ro elevator=noop\n", "ro elevator=noop console=tty0 console=ttyS0,115200n8\n")
                .replace("root=/dev/xvda2", &format!("root=UUID={ROOT_UUID}"));
            assert_eq!(cx.show("/boot/grub/menu.lst"), new);
            assert_eq!(cx.show("/boot/grub/device.map"), "(hd0)\t/dev/vda\n(hd1)\t/dev/vdb\n");
        });
    }

    #[test]
    fn edited_by_hand() {
        let menu = "default=saved\nfallback 1\ntimeout=5\n# indomU=detect\n# kopt_2_6=root=/dev/sda2 ro xencons=tty\n# a comment with = in it\n\
                    title Mine\n  kernel (hd0)/boot/vmlinuz-6.1.0-50-amd64 ro console=hvc0 earlyprintk=xen\n  initrd (hd0)/boot/initrd.img-6.1.0-50-amd64\n\
                    title No initrd\nroot (hd0)\nkernel /vmlinuz root=/dev/xvda2\ntitle Hypervisor\nroot (hd0,0)\nkernel /boot/xen-4.1.gz dom0_mem=512M\n\
                    module /boot/vmlinuz-6.1.0-50-amd64 root=/dev/xvda2\n";
        run_on(&guest(menu), |cx| {
            let new = cx.show("/boot/grub/menu.lst");
            for line in [
                "# indomU=false",
                &format!("# kopt_2_6=root=UUID={ROOT_UUID} ro console=tty0 console=ttyS0,115200n8"),
                "# a comment with = in it",
                "  kernel (hd0,1)/boot/vmlinuz-6.1.0-50-amd64 root=/dev/xvda2 ro console=tty0 console=ttyS0,115200n8",
                "  initrd (hd0,1)/boot/initrd.img-6.1.0-50-amd64",
                "kernel /vmlinuz root=/dev/vda2 console=tty0 console=ttyS0,115200n8",
                "kernel /boot/xen-4.1.gz dom0_mem=512M",
            ] {
                let line = line.replace("root=/dev/xvda2 ro console", &format!("root=UUID={ROOT_UUID} ro console"));
                assert!(new.lines().any(|l| l == line), "{line} in\n{new}");
            }
        });
    }

    #[test]
    fn an_entry_without_an_initrd_gets_what_its_kernel_needs() {
        let menu =
            "title x\n\tkernel (hd0,0)/boot/vmlinuz-6.1.0-50-amd64 root=/dev/xvda2 ro\ntitle y\nkernel /vmlinuz root=/dev/xvda2 ro\n";
        let base = guest(menu).file("/lib/modules/6.1.0-50-amd64/modules.dep", "kernel/virtio_blk.ko:\n");
        let args = format!("root=UUID={ROOT_UUID} ro console=tty0 console=ttyS0,115200n8");
        run_on(&base, |cx| {
            assert_eq!(
                cx.show("/boot/grub/menu.lst"),
                format!(
                    "title x\n\tkernel (hd0,1)/boot/vmlinuz-6.1.0-50-amd64 {args}\n\tinitrd\t\t(hd0,1)/boot/initrd.img-6.1.0-50-amd64\ntitle y\n\
                     kernel /vmlinuz {args}\ninitrd\t\t/boot/initrd.img-6.1.0-50-amd64\n"
                )
            );
        });
    }

    /// As Ubuntu's update-grub takes it from the menu with sed, and as md5sum says.
    #[test]
    fn ucf_knows_the_list_again() {
        const SUM: &str = "e52bdd186fa5d22535ce80c3c4269441";
        let end = XEN_TOOLS.find("\ntitle           Debian").unwrap();
        let old = &XEN_TOOLS[XEN_TOOLS.find("## ## End").unwrap()..end];
        assert_eq!((list(XEN_TOOLS), md5(old.as_bytes()).as_str()), (Some(old), SUM));
        for (sum, path, follows) in [
            (SUM, "/var/run/grub/menu.lst", true),
            (SUM, "/run/grub/menu.lst", true),
            (SUM, "/etc/grub/menu.lst", false),
            // A person's list.
            ("d41d8cd98f00b204e9800998ecf8427e", "/var/run/grub/menu.lst", false),
        ] {
            let cached = format!("/var/lib/ucf/cache/{}", path.replace('/', ":"));
            let sums = |sum: &str| format!("0123456789abcdef0123456789abcdef  /etc/default/x\n{sum}  {path}\n");
            run_on(&guest(XEN_TOOLS).file(UCF.0, sums(sum)).file(&cached, old), |cx| {
                let menu = cx.show("/boot/grub/menu.lst");
                let new = list(&menu).unwrap();
                assert_ne!(new, old);
                let new_sum = md5(new.as_bytes());
                assert_eq!(cx.show(UCF.0), sums(if follows { &new_sum } else { sum }));
                assert_eq!(cx.show(&cached), if follows { new } else { old });
            });
        }
        for none in ["", "title x\n", "## ## End Default Options ##", "## ## End Default Options ##\ntitle x\n"] {
            assert_eq!(list(none), None, "{none}");
        }
    }

    #[test]
    fn an_entry_that_only_xen_starts_is_not_the_default() {
        let menu = "default 0\ntimeout 2\n\ntitle Xen\nroot (hd0,0)\nkernel /boot/vmlinuz-2.6.18-6-xen-686 root=/dev/xvda2\n\n\
                    title Other\nroot (hd0,0)\nkernel /boot/vmlinuz-6.1.0-50-amd64 root=/dev/xvda2\ninitrd /boot/initrd.img-6.1.0-50-amd64\n";
        let base = guest(menu).file("/boot/vmlinuz-2.6.18-6-xen-686", [0x1f; 0x300]);
        run_on(&base, |cx| assert!(cx.show("/boot/grub/menu.lst").starts_with("default 1\n")));
        for (written, becomes) in [("default=0", "default=1\n"), (" default = 0", " default = 1\n"), ("default=saved", "default=1\n")] {
            let base = base.clone().file("/boot/grub/menu.lst", menu.replace("default 0", written));
            run_on(&base, |cx| assert!(cx.show("/boot/grub/menu.lst").starts_with(becomes), "{}", cx.show("/boot/grub/menu.lst")));
        }
        // What a person chose is read in all forms too.
        let other = menu.replace("kernel /boot/vmlinuz-2.6.18-6-xen-686", "kernel /boot/vmlinuz-6.1.0-50-amd64");
        for written in ["default=1", "default = 1"] {
            let base = base.clone().file("/boot/grub/menu.lst", other.replace("default 0", written));
            run_on(&base, |cx| assert!(cx.show("/boot/grub/menu.lst").starts_with(written)));
        }
        let only = "default 0\n\ntitle Xen\nroot (hd0,0)\nkernel /boot/vmlinuz-2.6.18-6-xen-686 root=/dev/xvda2\n";
        let base = guest(only).file("/boot/vmlinuz-2.6.18-6-xen-686", [0x1f; 0x300]);
        run_on(&base, |cx| {
            let new = cx.show("/boot/grub/menu.lst");
            let added = format!(
                "default 0\n\ntitle\t\tLinux, kernel 6.1.0-50-amd64\nroot\t\t(hd0,1)\nkernel\t\t/boot/vmlinuz-6.1.0-50-amd64 root=UUID={ROOT_UUID} \
                 console=tty0 console=ttyS0,115200n8\ninitrd\t\t/boot/initrd.img-6.1.0-50-amd64\n\ntitle Xen\n"
            );
            assert!(new.starts_with(&added), "{new}");
        });
    }
}
