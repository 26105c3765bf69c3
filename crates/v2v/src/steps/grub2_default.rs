//! The entry of `grub.cfg` that GRUB 2 starts: one whose kernel can start on KVM.

use crate::Result;
use crate::guest::grub::GRUB_CFG;
use crate::guest::grubenv::{self, GRUBENV};
use crate::guest::text::{Line, fields, map_lines, replaced};
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "grub2-default", about: "the default entry may be one that only Xen starts: another becomes the default", run };

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
        let Some(text) = cx.text(path)? else { continue };
        let entries = entries(&text);
        let Some(setting) = text.lines().find_map(default_of) else { continue };
        let remembered = setting.starts_with("${");
        let default = if remembered { saved(cx)?.unwrap_or_else(|| "0".into()) } else { setting.to_string() };
        // A default that is nowhere means the first.
        let current = entries.iter().find(|e| e.is(&default)).or(entries.first());
        let starts = |entry: &Entry| entry.kernel.as_deref().and_then(|kernel| cx.kernel_at(kernel));
        if current.is_none_or(|entry| starts(entry).is_some()) {
            continue;
        }
        let Some(chosen) = entries.iter().find(|e| starts(e).is_some() && starts(e) == cx.facts.kernel.as_ref()) else {
            cx.warn(format!("{path}: the default entry only starts on Xen, and no entry has the kernel that starts on KVM: run grub-mkconfig in the guest"));
            continue;
        };
        let id = chosen.id();
        let title = chosen.path.last().map(|name| name.title.clone()).unwrap_or_default();
        if remembered {
            remember(cx, &id)?
        } else {
            set(cx, path, &id)?
        }
        cx.note(format!("'{title}' is the default, since that before only starts on Xen"));
    }
    Ok(())
}

/// The value in `set default="…"`.
fn default_of(line: &str) -> Option<&str> {
    let words = fields(line);
    let value = words.get(1).filter(|_| words[0].1 == "set")?.1.strip_prefix("default=")?;
    Some(value.trim_matches(['"', '\'']))
}

fn saved(cx: &Context<'_>) -> Result<Option<String>> {
    for block in GRUBENV {
        if let Some(text) = cx.text(block)? {
            return Ok(grubenv::get(&text, "saved_entry").filter(|entry| !entry.is_empty()).map(String::from));
        }
    }
    Ok(None)
}

fn remember(cx: &mut Context<'_>, id: &str) -> Result<()> {
    for block in GRUBENV {
        let Some(old) = cx.text(block)? else { continue };
        match grubenv::with(&old, "saved_entry", id) {
            Some(new) => cx.edit(block, |_| new)?,
            None => return Err(cx.fail(format!("{block} has no room to remember the default entry {id}"))),
        };
    }
    Ok(())
}

/// In the file, and in the settings from which the guest makes it anew.
fn set(cx: &mut Context<'_>, path: &str, id: &str) -> Result<()> {
    cx.edit(path, |text| {
        map_lines(text, |line| {
            let old = default_of(line).filter(|value| !value.starts_with("${"));
            Line::of(old.map(|_| replaced(line, fields(line)[1].0.start..line.trim_end().len(), &format!("default=\"{id}\""))))
        })
    })?;
    cx.edit_lines("/etc/default/grub", |line| Line::of(line.starts_with("GRUB_DEFAULT=").then(|| format!("GRUB_DEFAULT=\"{id}\""))))?;
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
                    entries.push(Entry { path, kernel: None });
                }
                open.push(keyword);
            }
            "linux" | "linux16" | "linuxefi" if open.contains(&"menuentry") => {
                let kernel = words.get(1).map(|w| w.1.to_string());
                if let Some(entry) = entries.last_mut() {
                    entry.kernel = kernel.or(entry.kernel.take());
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
    use crate::testing::{MemFs, bzimage, run_step};

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
        run_after_kernel(&guest("1>1"), |cx| assert!(cx.fs.is_unchanged()));
    }

    #[test]
    fn what_is_remembered_changes_in_grubenv() {
        let text = "# GRUB Environment Block\nsaved_entry=1>0\n";
        let block = format!("{text}{}", "#".repeat(1024 - text.len()));
        run_after_kernel(&guest("${saved_entry}").file("/boot/grub2/grubenv", block), |cx| {
            assert_eq!(grubenv::get(&cx.show("/boot/grub2/grubenv"), "saved_entry"), Some("advanced-1>default-advanced"));
            assert!(cx.show("/boot/grub2/grub.cfg").starts_with("set default=\"${saved_entry}\""));
        });
    }
}
