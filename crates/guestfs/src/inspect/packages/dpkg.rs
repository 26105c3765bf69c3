//! dpkg's database: paragraphs of fields.

use super::{Application, epoch, text};
use crate::{GuestFs, Result};

pub(super) fn applications(fs: &dyn GuestFs) -> Result<Vec<Application>> {
    Ok(text(fs, b"/var/lib/dpkg/status")?.split("\n\n").filter_map(paragraph).collect())
}

fn paragraph(text: &str) -> Option<Application> {
    let mut app = Application::default();
    let mut installed = false;
    let mut field = "";
    for line in text.lines() {
        if let Some(more) = line.strip_prefix(' ') {
            if field == "Description" {
                app.description.push_str(if app.description.is_empty() { "" } else { "\n" });
                app.description.push_str(more);
            }
            continue;
        }
        let Some((key, value)) = line.split_once(':') else { continue };
        let value = value.trim();
        field = key;
        match key {
            "Package" => app.name = value.into(),
            "Status" => installed = value.split(' ').any(|w| w == "installed"),
            "Version" => {
                // At the first hyphen, as libguestfs does; Debian's policy says the last.
                let (epoch, rest) = epoch(value);
                let (version, release) = rest.split_once('-').unwrap_or((rest, ""));
                (app.epoch, app.version, app.release) = (epoch, version.into(), release.into());
            }
            "Architecture" => app.arch = value.into(),
            "Homepage" => app.url = value.into(),
            "Source" => app.source_package = value.split(' ').next().unwrap_or_default().into(),
            "Provides" => app.provides = value.split(',').filter_map(|p| Some(p.split_whitespace().next()?.into())).collect(),
            "Description" => app.summary = value.into(),
            _ => {}
        }
    }
    (installed && !app.name.is_empty()).then_some(app)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_paragraph() {
        let text = "Package: libc6\nStatus: install ok installed\nSource: glibc (2.3)\nVersion: 1:2.36-9+deb12u4\nArchitecture: amd64\nProvides: libc-dev (= 1), glibc\nConffiles:\n /etc/x abc\nDescription: GNU C Library\n Contains\n .\n libs\nHomepage: https://example.org";
        let app = paragraph(text).unwrap();
        assert_eq!((app.epoch, app.version.as_str(), app.release.as_str()), (1, "2.36", "9+deb12u4"));
        assert_eq!((app.source_package.as_str(), app.description.as_str()), ("glibc", "Contains\n.\nlibs"));
        assert_eq!(app.provides, ["libc-dev", "glibc"]);
        assert!(paragraph("Package: x\nStatus: deinstall ok config-files\nVersion: 1").is_none());
    }
}
