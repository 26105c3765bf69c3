//! The entry of `grub.cfg` that GRUB 2 starts: one whose kernel can start on KVM.

use crate::Result;
use crate::guest::cmdline::Rewrite;
use crate::guest::grub::GRUB_CFG;
use crate::guest::grubenv::{self, GRUBENV};
use crate::guest::kernels::{self, Kernel, compare_versions};
use crate::guest::text::{Line, add_line, fields, map_lines, replaced};
use crate::step::{Context, Step};
use crate::steps::{bls, grub2};

pub(super) const STEP: Step =
    Step { name: "grub2-default", about: "the default entry may be one that only Xen starts: another becomes the default", run };

/// From which the guest makes its menu anew.
const SETTINGS: &str = "/etc/default/grub";

/// Folders in folders that are followed; people make two.
const DEPTH: usize = 8;

/// What an entry or a menu is called; a default may use any of these.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Name {
    /// The identifier, or the title where it has none.
    id: String,
    /// Its place, from 0.
    number: String,
    title: String,
}

/// An entry of a menu.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    /// The menus above it, and itself.
    path: Vec<Name>,
    /// What its `linux` line names.
    kernel: Option<String>,
    /// The rest of that line.
    args: String,
}

impl Entry {
    /// Whether a default of these words means it.
    fn is(&self, default: &str) -> bool {
        let parts: Vec<&str> = default.split('>').collect();
        let fits = |(part, name): (&&str, &Name)| [&name.id, &name.number, &name.title].iter().any(|known| known == part);
        parts.len() == self.path.len() && parts.iter().zip(&self.path).all(fits)
    }

    /// The words of a default that means it.
    fn id(&self) -> String {
        self.path.iter().map(|name| name.id.as_str()).collect::<Vec<_>>().join(">")
    }
}

/// A menu that is being read; the outermost has no name.
#[derive(Default)]
struct Menu {
    name: Option<Name>,
    entries: usize,
}

fn run(cx: &mut Context<'_>) -> Result<()> {
    for path in GRUB_CFG {
        // Where the entries are files of their own, those here are others: the firmware's settings.
        let Some(text) = cx.text(path)?.filter(|text| !has_files(text)) else { continue };
        let entries = entries(&text);
        let setting = setting(&text);
        let remembered = setting.starts_with("${");
        let Some(current) = current(cx, path, &entries, setting)? else { continue };
        // A script chooses, as ours does.
        if current.kernel.as_ref().is_some_and(|kernel| kernel.contains('$')) {
            continue;
        }
        let starts = |entry: &Entry| entry.kernel.as_deref().and_then(|kernel| cx.kernel_at(kernel));
        let chosen = cx.facts.kernel.clone();
        if starts(current).is_some_and(|kernel| Some(kernel) == chosen.as_ref() || !cx.is_kernel_given()) {
            continue;
        }
        let Some(chosen) = chosen else { continue };
        let first = entries.first().filter(|entry| entry.path.len() == 1);
        let (id, later, title, is_first) = match entries.iter().find(|e| starts(e) == Some(&chosen)) {
            Some(entry) => {
                let title = entry.path.last().map(|name| name.title.clone()).unwrap_or_default();
                (entry.id(), entry.id(), title, first.is_some_and(|first| starts(first) == Some(&chosen)))
            }
            None => {
                let (id, title) = (format!("linux-{}", chosen.version), format!("Linux {}", chosen.version));
                let entry = new_entry(cx, &chosen, &current.args, &id, &title)?;
                cx.edit(path, |text| add_line(text, &entry))?;
                // A hypervisor's goes on to be the first, a kernel's is the newest one's.
                (id, made_later(cx, &chosen)?, title, first.is_some_and(|first| first.kernel.is_some()))
            }
        };
        if remembered {
            remember(cx, path, &id)?
        } else {
            set(cx, path, &id)?
        }
        let newer = newer(cx, &chosen);
        if is_first && newer.is_none() {
            // What is remembered, and is nowhere any more, means the first as well.
            if !remembered {
                set_later(cx, "0")?;
            }
        } else if !(remembered && later == id) && set_later(cx, &format!("\"{later}\""))? {
            let why = newer.map_or("the menu does not begin with it".into(), |image| format!("{image} comes before it in the menu"));
            cx.warn(format!(
                "GRUB_DEFAULT in {SETTINGS} names {}, since {why}: newer kernels do not start by themselves until it is 0 again",
                chosen.version
            ));
        }
        let why = if cx.is_kernel_given() { "its kernel was given" } else { "that before only starts on Xen" };
        cx.note(format!("'{title}' is the default, since {why}"));
    }
    Ok(())
}

/// An image in /boot, whether it can start or not, that menus made anew have before a kernel.
fn newer(cx: &Context<'_>, chosen: &Kernel) -> Option<String> {
    let is_newer = |kernel: &Kernel| kernel.image != chosen.image && compare_versions(&kernel.version, &chosen.version).is_gt();
    kernels::find(&cx.fs, cx.options.target).into_iter().find(is_newer).map(|kernel| kernel.image)
}

/// The default of the menus that are made anew; whether it changed.
fn set_later(cx: &mut Context<'_>, value: &str) -> Result<bool> {
    let setting = format!("GRUB_DEFAULT={value}");
    cx.edit(SETTINGS, |text| {
        let is_it = |line: &str| line.starts_with("GRUB_DEFAULT=");
        match text.lines().any(is_it) {
            true => map_lines(text, |line| Line::of(is_it(line).then(|| setting.clone()))),
            // The first is the default where nothing is said.
            false if value == "0" => text.into(),
            false => add_line(text, &setting),
        }
    })
}

/// An entry for a kernel that no entry starts, with the options of the one that was the default.
fn new_entry(cx: &Context<'_>, kernel: &Kernel, args: &str, id: &str, title: &str) -> Result<String> {
    let root = cx.root_spec()?;
    let initrd = grub2::initrd_of(cx, kernel);
    let args = if args.is_empty() { "ro" } else { args };
    let args = Rewrite { root: root.as_deref(), by_name: initrd.is_none(), ..cx.rewrite() }.whole(args);
    let search = cx.uuid_of("/boot")?.map(|uuid| format!("\tsearch --no-floppy --fs-uuid --set=root {uuid}\n"));
    let initrd = initrd.map(|initrd| Ok::<_, crate::Error>(format!("\tinitrd {}\n", cx.seen_by_boot_loader(&initrd)?))).transpose()?;
    Ok(format!(
        "menuentry '{title}' --id '{id}' {{\n{}\tlinux {} {args}\n{}}}",
        search.unwrap_or_default(),
        cx.seen_by_boot_loader(&kernel.image)?,
        initrd.unwrap_or_default()
    ))
}

/// What grub-mkconfig will call the entry of a kernel: Xen's stay in its menu, and may come before it.
fn made_later(cx: &Context<'_>, kernel: &Kernel) -> Result<String> {
    let device = cx.uuid_of("/")?.unwrap_or_default();
    let entry = format!("gnulinux-{}-advanced-{device}", kernel.version);
    let flat = cx
        .text(SETTINGS)?
        .is_some_and(|text| text.lines().any(|l| matches!(l.trim(), "GRUB_DISABLE_SUBMENU=true" | "GRUB_DISABLE_SUBMENU=y")));
    Ok(if flat { entry } else { format!("gnulinux-advanced-{device}>{entry}") })
}

/// What a menu's setting of the default means, which may be one that is remembered.
fn meant(cx: &Context<'_>, menu: &str, setting: &str) -> Result<String> {
    Ok(if setting.starts_with("${") { saved(cx, menu)?.unwrap_or_else(|| "0".into()) } else { setting.to_string() })
}

/// The entry that a menu's setting of the default means: one that is nowhere means the first.
fn current<'a>(cx: &Context<'_>, menu: &str, entries: &'a [Entry], setting: &str) -> Result<Option<&'a Entry>> {
    let default = meant(cx, menu, setting)?;
    Ok(entries.iter().find(|e| e.is(&default)).or(entries.first()))
}

/// The kernel's options in the default entry.
pub(super) fn default_args(cx: &Context<'_>, path: &str) -> Result<Option<String>> {
    let Some(text) = cx.text(path)? else { return Ok(None) };
    let entries = entries(&text);
    let current = current(cx, path, &entries, setting(&text))?;
    // What the menu's own scripts would put in is not known elsewhere.
    let plain = |entry: &Entry| entry.args.split_ascii_whitespace().filter(|word| !word.contains('$')).collect::<Vec<_>>().join(" ");
    Ok(current.filter(|entry| entry.kernel.is_some()).map(plain))
}

/// The kernel of the default entry, which may be a file of its own.
pub(super) fn default_kernel(cx: &Context<'_>, path: &str) -> Result<Option<Kernel>> {
    let Some(text) = cx.text(path)? else { return Ok(None) };
    if has_files(&text) {
        return bls::kernel_of_entry(cx, &meant(cx, path, setting(&text))?);
    }
    let entries = entries(&text);
    let kernel = current(cx, path, &entries, setting(&text))?.and_then(|entry| entry.kernel.as_deref());
    Ok(kernel.and_then(|kernel| cx.kernel_at(kernel)).cloned())
}

/// Whether the entries are files of their own (BLS).
fn has_files(text: &str) -> bool {
    text.lines().any(|line| fields(line).first().is_some_and(|word| word.1 == "blscfg"))
}

/// The default that lasts: `next_entry` is for one start only.
fn setting(text: &str) -> &str {
    text.lines().filter_map(default_of).find(|value| *value != "${next_entry}").unwrap_or("0")
}

/// The value in `set default="…"`.
fn default_of(line: &str) -> Option<&str> {
    let words = fields(line);
    let value = words.get(1).filter(|_| words[0].1 == "set")?.1.strip_prefix("default=")?;
    Some(value.trim_matches(['"', '\'']))
}

/// The block beside a menu: the one that GRUB reads.
fn beside(menu: &str) -> String {
    menu.replace("grub.cfg", "grubenv")
}

fn saved(cx: &Context<'_>, menu: &str) -> Result<Option<String>> {
    for block in [beside(menu).as_str()].iter().chain(GRUBENV) {
        if let Some(text) = cx.text(block)?.filter(|text| grubenv::is_block(text)) {
            return Ok(grubenv::get(&text, "saved_entry").filter(|entry| !entry.is_empty()).map(String::from));
        }
    }
    Ok(None)
}

/// In the block beside the menu, and in those that are there and beside none.
fn remember(cx: &mut Context<'_>, menu: &str, id: &str) -> Result<()> {
    let beside = beside(menu);
    if !cx.text(&beside)?.is_some_and(|text| grubenv::is_block(&text)) {
        cx.fs.put(beside.as_bytes(), grubenv::empty().as_bytes(), None)?;
    }
    for block in GRUBENV.iter().copied().chain([beside.as_str()]) {
        let is_anothers = block != beside && cx.text(block.replace("grubenv", "grub.cfg"))?.is_some();
        if is_anothers {
            continue;
        }
        let Some(old) = cx.text(block)?.filter(|text| grubenv::is_block(text)) else { continue };
        match grubenv::with(&old, "saved_entry", id) {
            Some(new) => cx.edit(block, |_| new)?,
            None => return Err(cx.fail(format!("{block} has no room to remember the default entry {id}"))),
        };
    }
    Ok(())
}

/// In the file: where it says none, it means its first entry.
fn set(cx: &mut Context<'_>, path: &str, id: &str) -> Result<()> {
    cx.edit(path, |text| {
        let mut found = false;
        let new = map_lines(text, |line| {
            let old = default_of(line).filter(|value| !value.starts_with("${"));
            found |= old.is_some();
            Line::of(old.map(|_| replaced(line, fields(line)[1].0.start..line.trim_end().len(), &format!("default=\"{id}\""))))
        });
        if found { new } else { format!("set default=\"{id}\"\n{new}") }
    })?;
    Ok(())
}

fn entries(text: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut menus = vec![Menu::default()];
    // What the open braces belong to.
    let mut open: Vec<&str> = Vec::new();
    for line in text.lines() {
        let words = fields(line);
        let keyword = words.first().map_or("", |w| w.1);
        match keyword {
            "menuentry" | "submenu" if line.trim_end().ends_with('{') && menus.len() < DEPTH => {
                let Some(menu) = menus.last_mut() else { return entries };
                let title = quoted(line).first().copied().unwrap_or_default().to_string();
                let name = Name { id: id_of(line).unwrap_or_else(|| title.clone()), number: menu.entries.to_string(), title };
                menu.entries += 1;
                if keyword == "submenu" {
                    menus.push(Menu { name: Some(name), entries: 0 });
                } else {
                    let path = menus.iter().filter_map(|menu| menu.name.clone()).chain([name]).collect();
                    entries.push(Entry { path, kernel: None, args: String::new() });
                }
                open.push(keyword);
            }
            "linux" | "linux16" | "linuxefi" if open.contains(&"menuentry") => {
                if let (Some(entry), Some((range, kernel))) = (entries.last_mut(), words.get(1)) {
                    (entry.kernel, entry.args) = (Some(kernel.to_string()), line[range.end..].trim().into());
                }
            }
            "}" if open.pop() == Some("submenu") => drop(menus.pop()),
            _ if line.trim_end().ends_with('{') => open.push(""),
            _ => {}
        }
    }
    entries
}

/// The texts in quotes of a line.
fn quoted(line: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(start) = rest.find(['\'', '"']) {
        let inner = &rest[start + 1..];
        let Some(end) = inner.find(&rest[start..=start]) else { break };
        found.push(&inner[..end]);
        rest = &inner[end + 1..];
    }
    found
}

/// What follows `--id` or `$menuentry_id_option`.
fn id_of(line: &str) -> Option<String> {
    let at = ["--id", "$menuentry_id_option"].iter().find_map(|option| Some(line.find(option)? + option.len()))?;
    let rest = line[at..].trim_start_matches(['=', ' ']);
    match rest.chars().next()? {
        '\'' | '"' => quoted(rest).first().map(|id| id.to_string()),
        _ => rest.split_ascii_whitespace().next().map(String::from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack::Mounted;
    use crate::testing::{MemFs, ROOT_UUID, bzimage, mounted_subvolume, run_step};

    /// SLES 12's menu in a guest that has both kernels.
    const CFG: &str = "set default=\"@DEFAULT@\"\nfunction load_video {\n  insmod vbe\n}\n\
        menuentry 'SLES 12, with Xen'  --class sles $menuentry_id_option 'xen-gnulinux-simple-1' {\n\tmultiboot /boot/xen.gz\n\tmodule /boot/vmlinuz-3.12-xen\n}\n\
        submenu 'Advanced options' $menuentry_id_option 'advanced-1' {\n\
        \tmenuentry 'SLES 12, with Linux 3.12-xen' --id 'xen-advanced' {\n\t\tlinux /boot/vmlinuz-3.12-xen root=/dev/xvda2\n\t}\n\
        \tmenuentry \"SLES 12, with Linux 3.12-default\" --id 'default-advanced' {\n\t\tif [ x = x ]; then\n\t\tlinux /boot/vmlinuz-3.12-default root=/dev/xvda2\n\t\tfi\n\t}\n}\n";

    fn guest(default: &str) -> MemFs {
        MemFs::new()
            .file("/boot/vmlinuz-3.12-default", bzimage("3.12-default"))
            .file("/boot/vmlinuz-3.12-xen", [0x1f; 0x300])
            .file("/boot/grub2/grub.cfg", CFG.replace("@DEFAULT@", default))
            .file("/etc/default/grub", "GRUB_DEFAULT=0\nGRUB_TIMEOUT=8\n")
    }

    fn run_after_kernel(base: &MemFs, check: impl FnOnce(&mut Context<'_>)) {
        run_step(base, &super::super::STEPS[0], |cx| {
            cx.run(&STEP).unwrap();
            check(cx);
        });
    }

    #[test]
    fn menus_are_read_as_grub_reads_them() {
        let found = entries(CFG);
        let numbers = |entry: &Entry| entry.path.iter().map(|name| name.number.as_str()).collect::<Vec<_>>().join(">");
        let of = |i: usize| (found[i].id(), numbers(&found[i]), found[i].kernel.as_deref());
        assert_eq!(of(0), ("xen-gnulinux-simple-1".into(), "0".into(), None));
        assert_eq!(of(1), ("advanced-1>xen-advanced".into(), "1>0".into(), Some("/boot/vmlinuz-3.12-xen")));
        assert_eq!(of(2), ("advanced-1>default-advanced".into(), "1>1".into(), Some("/boot/vmlinuz-3.12-default")));
        assert!(found[2].is("1>1") && found[2].is("Advanced options>default-advanced") && !found[2].is("1") && found[0].is("0"));
        for broken in ["}", "menuentry {", "menuentry 'x' {\n}\n}\n}\nlinux\n", &"submenu 'a' {\n".repeat(100)] {
            entries(broken);
        }
    }

    #[test]
    fn an_entry_for_xen_is_not_the_default() {
        for default in ["0", "1>0", "gone"] {
            run_after_kernel(&guest(default), |cx| {
                let cfg = cx.show("/boot/grub2/grub.cfg");
                assert!(cfg.starts_with("set default=\"advanced-1>default-advanced\"\nfunction"), "{cfg}");
                assert_eq!(cx.show("/etc/default/grub"), "GRUB_DEFAULT=\"advanced-1>default-advanced\"\nGRUB_TIMEOUT=8\n");
            });
        }
        run_after_kernel(&guest("0"), |cx| {
            let warning =
                "GRUB_DEFAULT in /etc/default/grub names 3.12-default, since /boot/vmlinuz-3.12-xen comes before it in the menu: ";
            assert!(cx.reports[1].warnings[0].starts_with(warning), "{:?}", cx.reports[1].warnings);
        });
        run_after_kernel(&guest("1>1"), |cx| {
            assert!(cx.fs.is_unchanged());
            assert_eq!(default_args(cx, "/boot/grub2/grub.cfg").unwrap().as_deref(), Some("root=/dev/xvda2"));
        });
    }

    #[test]
    fn later_kernels_start_where_nothing_that_cannot_comes_before_them() {
        let entry = |kind: &str| format!("menuentry '{kind}' --id '{kind}' {{\n\tlinux /boot/vmlinuz-3.{kind} root=/dev/xvda2\n}}\n");
        let (both, alone) = (entry("13-default") + &entry("12-xen"), entry("12-xen"));
        let hypervisor = format!("menuentry 'Xen' {{\n\tmultiboot /boot/xen.gz\n}}\n{alone}");
        for (entries, default, newest, settings, becomes) in [
            (&both, "12-xen", "/boot/other", "GRUB_DEFAULT=12-xen", "GRUB_DEFAULT=0"),
            (&both, "12-xen", "/boot/other", "GRUB_TIMEOUT=1", "GRUB_TIMEOUT=1"),
            (&both, "12-xen", "/boot/vmlinuz-3.14-xen", "GRUB_DEFAULT=12-xen", "GRUB_DEFAULT=\"13-default\""),
            (&both, "12-xen", "/boot/vmlinuz-3.14-xen", "GRUB_TIMEOUT=1", "GRUB_TIMEOUT=1\nGRUB_DEFAULT=\"13-default\""),
            (&both, "${saved_entry}", "/boot/vmlinuz-3.14-xen", "GRUB_DEFAULT=saved", "GRUB_DEFAULT=saved"),
            (&alone, "0", "/boot/other", "GRUB_DEFAULT=0", "GRUB_DEFAULT=0"),
            (&alone, "${saved_entry}", "/boot/other", "GRUB_DEFAULT=saved", "GRUB_DEFAULT=saved"),
            (&hypervisor, "1", "/boot/other", "GRUB_DEFAULT=1", "GRUB_DEFAULT=\"gnulinux-advanced->gnulinux-3.13-default-advanced-\""),
        ] {
            let saved = "# GRUB Environment Block\nsaved_entry=12-xen\n";
            let base = MemFs::new()
                .file("/boot/vmlinuz-3.13-default", bzimage("3.13-default"))
                .file("/boot/vmlinuz-3.12-xen", [0x1f; 0x300])
                .file(newest, [0x1f; 0x300])
                .file("/boot/grub/grub.cfg", format!("set default=\"{default}\"\n{entries}"))
                .file("/boot/grub/grubenv", format!("{saved}{}", "#".repeat(1024 - saved.len())))
                .file("/etc/default/grub", format!("{settings}\n"));
            run_after_kernel(&base, |cx| {
                assert_eq!(cx.show("/etc/default/grub"), format!("{becomes}\n"), "{default} {newest} {entries}");
                let kernel = default_kernel(cx, "/boot/grub/grub.cfg").unwrap();
                assert_eq!(kernel.map(|kernel| kernel.version).as_deref(), Some("3.13-default"));
                assert_eq!(cx.reports[1].warnings.len(), usize::from(becomes.contains('"')), "{:?}", cx.reports[1].warnings);
            });
        }
    }

    #[test]
    fn a_kernel_that_no_entry_starts_gets_one() {
        let cfg = "menuentry 'SLES' {\n\tlinux /boot/vmlinuz-3.12-xen root=/dev/xvda2 splash=silent\n}\n";
        let base = guest("0")
            .file("/boot/grub2/grub.cfg", cfg)
            .file("/boot/initrd-3.12-default", "x")
            .file("/etc/fstab", "/dev/xvda2 / ext4 acl 1 1\n");
        run_after_kernel(&base, |cx| {
            let cfg = cx.show("/boot/grub2/grub.cfg");
            assert!(cfg.starts_with("set default=\"linux-3.12-default\"\nmenuentry 'SLES' {"), "{cfg}");
            let entry = format!(
                "menuentry 'Linux 3.12-default' --id 'linux-3.12-default' {{\n\tsearch --no-floppy --fs-uuid --set=root {ROOT_UUID}\n\tlinux \
                 /boot/vmlinuz-3.12-default root=UUID={ROOT_UUID} splash=silent console=tty0 console=ttyS0,115200n8\n\tinitrd /boot/initrd-3.12-default\n}}\n"
            );
            assert!(cfg.ends_with(&entry), "{cfg}");
            let later = format!("GRUB_DEFAULT=\"gnulinux-advanced-{ROOT_UUID}>gnulinux-3.12-default-advanced-{ROOT_UUID}\"\n");
            assert!(cx.show("/etc/default/grub").starts_with(&later), "what grub-mkconfig will call it");
        });
    }

    /// No volume of a layout is either of them.
    #[test]
    fn an_array_with_boot_is_known_by_its_uuid() {
        let cfg = "menuentry 'x' {\n\tlinux /vmlinuz-3.12-xen root=/dev/mapper/vg-root\n}\n";
        let base = guest("0").file("/boot/grub2/grub.cfg", cfg).file("/etc/fstab", "/dev/mapper/vg-root / ext4\n/dev/md0 /boot ext4\n");
        run_step(&base, &super::super::STEPS[0], |cx| {
            let mount = |path, uuid: &str| Mounted { uuid: Some(uuid.into()), ..mounted_subvolume(path, "") };
            cx.mounts = vec![mount("/", "root-uuid"), mount("/boot", "boot-uuid")];
            cx.run(&STEP).unwrap();
            let cfg = cx.show("/boot/grub2/grub.cfg");
            let lines = "\tsearch --no-floppy --fs-uuid --set=root boot-uuid\n\tlinux /vmlinuz-3.12-default root=/dev/mapper/vg-root ";
            assert!(cfg.contains(lines), "{cfg}");
            let later = "GRUB_DEFAULT=\"gnulinux-advanced-root-uuid>gnulinux-3.12-default-advanced-root-uuid\"\n";
            assert!(cx.show("/etc/default/grub").starts_with(later));
            cx.mounts.clear();
            assert_eq!(cx.seen_by_boot_loader("/boot/x").unwrap(), "/boot/x", "where nothing is known but fstab");
        });
    }

    #[test]
    fn kernels_are_seen_from_the_top_of_btrfs() {
        let cfg = "menuentry 'x' {\n\tlinux /@/boot/vmlinuz-3.12-@KIND@ root=/dev/xvda2\n}\n";
        for (kind, expected) in [("default", None), ("xen", Some("\tlinux /@/boot/vmlinuz-3.12-default root=/dev/vda2 console="))] {
            let base =
                guest("0").file("/boot/grub2/grub.cfg", cfg.replace("@KIND@", kind)).file("/etc/fstab", "/dev/xvda2 / btrfs subvol=@\n");
            run_step(&base, &super::super::STEPS[0], |cx| {
                cx.mounts.push(mounted_subvolume("/", "/@"));
                cx.run(&STEP).unwrap();
                let cfg = cx.show("/boot/grub2/grub.cfg");
                assert_eq!(cx.fs.is_unchanged(), expected.is_none(), "{cfg}");
                assert!(expected.is_none_or(|line| cfg.contains(line)), "{cfg}");
            });
        }
    }

    #[test]
    fn what_is_remembered_changes_in_grubenv() {
        let text = "# GRUB Environment Block\nsaved_entry=1>0\n";
        let block = format!("{text}{}", "#".repeat(1024 - text.len()));
        run_after_kernel(&guest("${saved_entry}").file("/boot/grub2/grubenv", block), |cx| {
            assert_eq!(grubenv::get(&cx.show("/boot/grub2/grubenv"), "saved_entry"), Some("advanced-1>default-advanced"));
            assert!(cx.show("/boot/grub2/grub.cfg").starts_with("set default=\"${saved_entry}\""));
        });
        run_after_kernel(&guest("${saved_entry}"), |cx| {
            let block = cx.show("/boot/grub2/grubenv");
            assert_eq!((grubenv::get(&block, "saved_entry"), block.len()), (Some("advanced-1>default-advanced"), 1024));
        });
    }

    /// As grub-mkconfig writes it.
    #[test]
    fn what_is_started_once_is_not_the_default() {
        let head = |default: &str| {
            format!(
                "if [ -s $prefix/grubenv ]; then\n  set have_grubenv=true\n  load_env\nfi\nif [ \"${{next_entry}}\" ] ; then\n   set \
                 default=\"${{next_entry}}\"\n   set next_entry=\n   save_env next_entry\n   set boot_once=true\nelse\n   set \
                 default=\"{default}\"\nfi\n"
            )
        };
        let with = |default: &str| {
            let menu = CFG.strip_prefix("set default=\"@DEFAULT@\"\n").unwrap();
            guest("").file("/boot/grub2/grub.cfg", format!("{}{menu}", head(default)))
        };
        run_after_kernel(&with("0"), |cx| {
            let cfg = cx.show("/boot/grub2/grub.cfg");
            assert!(cfg.starts_with(&head("advanced-1>default-advanced")), "{cfg}");
            assert!(cx.text("/boot/grub2/grubenv").unwrap().is_none());
            assert!(cx.show("/etc/default/grub").starts_with("GRUB_DEFAULT=\"advanced-1>default-advanced\"\n"));
        });
        run_after_kernel(&with("1>1"), |cx| assert!(cx.fs.is_unchanged()));
        run_after_kernel(&with("${saved_entry}"), |cx| {
            assert_eq!(grubenv::get(&cx.show("/boot/grub2/grubenv"), "saved_entry"), Some("advanced-1>default-advanced"));
            assert!(cx.show("/boot/grub2/grub.cfg").starts_with(&head("${saved_entry}")));
        });
    }
}
