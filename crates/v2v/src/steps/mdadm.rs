//! `mdadm.conf` looks for arrays on disks by their new names.

use crate::guest::text::{Line, fields};
use crate::step::{Context, Step};

pub(super) const STEP: Step =
    Step { name: "mdadm", about: "software RAID is assembled from disks that have other names on the new machine", run };

fn run(cx: &mut Context<'_>) -> crate::Result<()> {
    let devices = cx.devices.clone();
    for path in ["/etc/mdadm/mdadm.conf", "/etc/mdadm.conf"] {
        cx.edit_lines(path, |line| {
            let words = fields(line);
            let keyword = words.first().map_or("", |w| w.1).to_ascii_uppercase();
            if !matches!(keyword.as_str(), "DEVICE" | "ARRAY") {
                return Line::Keep;
            }
            let mut new = line.to_string();
            for (range, word) in words.iter().rev() {
                if let Some(wildcard) =
                    ["/dev/xvd", "/dev/sd", "/dev/hd"].iter().find_map(|p| word.strip_prefix(p)).filter(|w| w.contains(['*', '?', '[']))
                {
                    new.replace_range(range.clone(), &format!("/dev/vd{wildcard}"));
                } else if let Some(list) = word.strip_prefix("devices=") {
                    let list: Vec<_> = list.split(',').map(|d| devices.plain(d).unwrap_or_else(|| d.into())).collect();
                    new.replace_range(range.clone(), &format!("devices={}", list.join(",")));
                } else if let Some(plain) = devices.plain(word) {
                    new.replace_range(range.clone(), &plain);
                }
            }
            Line::of((new != line).then_some(new))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{MemFs, run_step};

    #[test]
    fn devices_and_wildcards() {
        let old = "# DEVICE /dev/xvda2\nDEVICE partitions\nDEVICE /dev/xvda2 /dev/xvd*\nARRAY /dev/md0 devices=/dev/xvda2,/dev/xvdb1\nMAILADDR root\n";
        run_step(&MemFs::new().file("/etc/mdadm/mdadm.conf", old), &STEP, |cx| {
            let new = "# DEVICE /dev/xvda2\nDEVICE partitions\nDEVICE /dev/vda2 /dev/vd*\nARRAY /dev/md0 devices=/dev/vda2,/dev/vdb1\nMAILADDR root\n";
            assert_eq!(cx.show("/etc/mdadm/mdadm.conf"), new);
        });
    }
}
