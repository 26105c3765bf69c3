//! The operating systems on a guest's disks: found by looking at every filesystem, and one of them chosen.

use crate::engine::Session;
use crate::guest::{is_further_device, mount, open_reader};
use crate::inspect::{Inspection, subvolume};
use crate::{Error, Result, Tree, Volumes};

/// The operating systems on a guest's disks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roots {
    /// Each of them.
    pub found: Vec<Inspection>,
    /// Filesystems that could not be looked at, by volume, and why.
    pub unreadable: Vec<(usize, String)>,
}

impl Roots {
    /// Looks at every filesystem that can be read in this process.
    pub fn direct(volumes: &Volumes) -> Self {
        Roots::look(volumes, |index| {
            subvolume::roots(volumes, index, &mut |options, look| {
                look(&Tree::new(open_reader(volumes, index, options)?));
                Ok(())
            })
        })
        .0
    }

    /// Looks at every filesystem in the appliance, mounting each in turn.
    pub fn in_appliance(volumes: &Volumes, session: &mut dyn Session) -> Result<Self> {
        let (roots, failure) = Roots::look(volumes, |index| {
            subvolume::roots(volumes, index, &mut |options, look| {
                mount(volumes, index, session, b"/", &["ro", options])?;
                look(session.as_fs());
                session.unmount_all()
            })
        });
        failure.map_or(Ok(roots), Err)
    }

    /// Asks `roots_of` for the roots of each volume. An appliance that is gone ends it.
    fn look(volumes: &Volumes, mut roots_of: impl FnMut(usize) -> Result<Vec<Inspection>>) -> (Self, Option<Error>) {
        let mut roots = Roots::default();
        for (index, _) in volumes.volumes.iter().enumerate().filter(|(i, v)| v.may_hold_files() && !is_further_device(volumes, *i)) {
            match roots_of(index) {
                Ok(found) => roots.found.extend(found),
                Err(e @ Error::Appliance { .. }) => return (roots, Some(e)),
                Err(e) => roots.unreadable.push((index, e.to_string())),
            }
        }
        (roots, None)
    }

    /// The one root, or the one that the user named.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the candidates.
    pub fn choose(&self, volumes: &Volumes, wanted: Option<&str>) -> Result<Inspection> {
        let candidates: Vec<String> =
            self.found.iter().map(|i| format!("  {}: {}", i.root_name(volumes), i.release.product_name)).collect();
        if let Some(wanted) = wanted {
            let volume = volumes.find(wanted.as_bytes());
            // A subvolume by its whole name, or a volume that has only one root.
            let named = self.found.iter().find(|i| i.root_name(volumes) == wanted);
            let mut on_volume = self.found.iter().filter(|i| Some(i.root) == volume);
            return match (named, on_volume.next(), on_volume.next()) {
                (Some(one), ..) | (None, Some(one), None) => Ok(one.clone()),
                (None, None, _) => {
                    Err(Error::Invalid(format!("there is no operating system on {wanted}; there is one on:\n{}", candidates.join("\n"))))
                }
                _ => Err(Error::Invalid(format!(
                    "there are several operating systems on {wanted}, choose one of:\n{}",
                    candidates.join("\n")
                ))),
            };
        }
        match &self.found[..] {
            [one] => Ok(one.clone()),
            [] => {
                let seen: Vec<String> = volumes
                    .volumes
                    .iter()
                    .enumerate()
                    .map(|(i, v)| {
                        let locked = volumes.locked.contains(&i).then(|| ": locked, give its passphrase with --key".to_string());
                        let why = self.unreadable.iter().find(|(u, _)| *u == i).map(|(_, why)| format!(": {why}"));
                        let why = why.or(locked).unwrap_or_default();
                        format!("  {} {}{why}", v.device, if v.kind().is_empty() { "(unknown content)" } else { v.kind() })
                    })
                    .chain(volumes.complaints.iter().map(|complaint| format!("  {complaint}")))
                    .collect();
                Err(Error::Invalid(format!("no operating system was found; the guest's volumes are:\n{}", seen.join("\n"))))
            }
            several => {
                let roots = several.iter().map(|i| i.root_name(volumes)).collect();
                Err(Error::SeveralSystems { roots, list: candidates.join("\n") })
            }
        }
    }
}
