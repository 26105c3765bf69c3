//! pacman's database: a folder for each package, with a file of sections.

use super::{Application, CONFIG_LIMIT, epoch};
use crate::{Error, Ext, FileType, GuestFs, Result};

const FOLDER: &[u8] = b"/var/lib/pacman/local";

pub(super) fn applications(fs: &dyn GuestFs) -> Result<Vec<Application>> {
    let entries = match fs.read_dir(FOLDER) {
        Err(Error::NotFound(_)) => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut names: Vec<Vec<u8>> = entries.into_iter().filter(|e| e.kind == FileType::Directory).map(|e| e.name).collect();
    names.sort();
    let mut found = Vec::new();
    for name in names {
        match fs.read(&[FOLDER, b"/", &name, b"/desc"].concat(), CONFIG_LIMIT) {
            Ok(content) => found.extend(sections(&String::from_utf8_lossy(&content))),
            Err(Error::NotFound(_)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// `%NAME%` on a line, and its value on the next.
fn sections(text: &str) -> Option<Application> {
    let mut app = Application::default();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(key) = line.strip_prefix('%').and_then(|l| l.strip_suffix('%')) else { continue };
        let value = lines.next().unwrap_or_default();
        match key {
            "NAME" => app.name = value.into(),
            "VERSION" => {
                let (epoch, rest) = epoch(value);
                let (version, release) = rest.rsplit_once('-').unwrap_or((rest, ""));
                (app.epoch, app.version, app.release) = (epoch, version.into(), release.into());
            }
            "ARCH" => app.arch = value.into(),
            "URL" => app.url = value.into(),
            "PROVIDES" => {
                let more = lines.by_ref().take_while(|l| !l.is_empty());
                let name = |p: &str| p.split(['=', '<', '>']).next().unwrap_or_default().to_string();
                app.provides = std::iter::once(value).chain(more).map(name).collect();
            }
            "DESC" => app.description = value.into(),
            _ => {}
        }
    }
    (!app.name.is_empty()).then_some(app)
}
