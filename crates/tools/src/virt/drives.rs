//! Paths as Windows writes them, `C:\autoexec.bat`: the drive by its letter in the registry, names in any case.

use guestfs::inspect::any_case;
use guestfs::{Guest, GuestFs, Tree, reader};

use crate::common::Failure;

/// Where a path leads.
pub(super) struct Located<'g> {
    guest: &'g Guest,
    /// The drive, if it is not the one that the system is on.
    drive: Option<Tree>,
    /// The path there, as the other programs write it.
    pub path: Vec<u8>,
}

impl Located<'_> {
    /// The tree that the path is in.
    pub(super) fn fs(&self) -> &dyn GuestFs {
        self.drive.as_ref().map_or(self.guest.fs(), |tree| tree)
    }

    /// Whether that is the one that the system is on.
    pub(super) fn is_on_system_drive(&self) -> bool {
        self.drive.is_none()
    }
}

/// Understands a path if the guest is Windows; another guest's stays as it is.
pub(super) fn locate<'g>(guest: &'g Guest, path: &[u8]) -> Result<Located<'g>, Failure> {
    let found = guest.inspection.as_ref().and_then(|inspection| Some((inspection.root, inspection.windows()?)));
    let Some((root, windows)) = found else { return Ok(Located { guest, drive: None, path: path.to_vec() }) };
    let (letter, rest) = match path {
        [letter, b':', rest @ ..] if letter.is_ascii_alphabetic() => (Some(char::from(letter.to_ascii_uppercase())), rest),
        _ => (None, path),
    };
    let drive = match letter.map(|letter| (letter, windows.drives.iter().find(|(known, _)| *known == letter))) {
        Some((_, Some((_, volume)))) if *volume != root => Some(open(guest, *volume)?),
        // What the registry does not tell.
        Some((letter, None)) if letter != 'C' => {
            let known: Vec<String> = windows.drives.iter().map(|(letter, _)| format!("{letter}:")).collect();
            return Err(Failure::new(format!("the guest has no drive {letter}: on its disks; it has {}", known.join(", "))));
        }
        _ => None,
    };
    let path: Vec<u8> = rest.iter().map(|b| if *b == b'\\' { b'/' } else { *b }).collect();
    let mut located = Located { guest, drive, path };
    let cased = std::str::from_utf8(&located.path).ok().and_then(|path| any_case(located.fs(), path));
    located.path = cased.unwrap_or(located.path);
    Ok(located)
}

/// Another drive of the guest's, in this process.
fn open(guest: &Guest, index: usize) -> Result<Tree, Failure> {
    let volumes = &guest.volumes;
    let volume = volumes.volumes.get(index).ok_or_else(|| Failure::new("the drive is gone"))?;
    let reader = reader::open(volume.kind(), volumes.image(volume)?, 0, volume.len);
    Ok(Tree::new(reader.map_err(|e| Failure::from(e).hint(format!("mount it by its name: -m {}", volume.device)))?))
}
