//! apk's database: paragraphs of one-letter fields.

use super::{Application, text};
use crate::{GuestFs, Result};

pub(super) fn applications(fs: &dyn GuestFs) -> Result<Vec<Application>> {
    Ok(text(fs, b"/lib/apk/db/installed")?.split("\n\n").filter_map(paragraph).collect())
}

fn paragraph(text: &str) -> Option<Application> {
    let mut app = Application::default();
    for (key, value) in text.lines().filter_map(|l| l.split_once(':')) {
        match key {
            "P" => app.name = value.into(),
            "V" => {
                let (version, release) = value.rsplit_once("-r").unwrap_or((value, ""));
                (app.version, app.release) = (version.into(), release.into());
            }
            "A" => app.arch = value.into(),
            "U" => app.url = value.into(),
            "p" => {
                app.provides = value.split_whitespace().map(|p| p.split(['=', '<', '>', '~']).next().unwrap_or_default().into()).collect()
            }
            "T" => app.description = value.into(),
            _ => {}
        }
    }
    (!app.name.is_empty()).then_some(app)
}
