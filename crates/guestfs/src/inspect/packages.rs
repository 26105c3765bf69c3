//! What is installed, from the package manager's own database.

use super::{CONFIG_LIMIT, Family, Inspection};
use crate::{Error, Ext, GuestFs, Result};

/// An installed package. Absent fields are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are libguestfs's")]
pub struct Application {
    pub name: String,
    pub epoch: u32,
    pub version: String,
    pub release: String,
    pub arch: String,
    pub url: String,
    pub source_package: String,
    pub summary: String,
    pub description: String,
}

/// A dpkg database has a few MiB.
const DATABASE_LIMIT: u64 = 64 * CONFIG_LIMIT;

/// Installed packages by name. `None` for package formats that are not read.
pub fn applications(fs: &dyn GuestFs, inspection: &Inspection) -> Result<Option<Vec<Application>>> {
    match inspection.release.family {
        Family::Debian => dpkg(fs).map(Some),
        Family::Alpine => apk(fs).map(Some),
        _ => Ok(None),
    }
}

fn database(fs: &dyn GuestFs, path: &[u8]) -> Result<String> {
    match fs.read(path, DATABASE_LIMIT) {
        Ok(content) => Ok(String::from_utf8_lossy(&content).into_owned()),
        Err(Error::NotFound(_)) => Ok(String::new()),
        Err(e) => Err(e),
    }
}

fn dpkg(fs: &dyn GuestFs) -> Result<Vec<Application>> {
    let mut found: Vec<Application> = database(fs, b"/var/lib/dpkg/status")?.split("\n\n").filter_map(dpkg_paragraph).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn dpkg_paragraph(text: &str) -> Option<Application> {
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
                let (epoch, rest) = value.split_once(':').unwrap_or(("0", value));
                let (version, release) = rest.split_once('-').unwrap_or((rest, ""));
                app.epoch = epoch.parse().unwrap_or(0);
                (app.version, app.release) = (version.into(), release.into());
            }
            "Architecture" => app.arch = value.into(),
            "Homepage" => app.url = value.into(),
            "Source" => app.source_package = value.split(' ').next().unwrap_or_default().into(),
            "Description" => app.summary = value.into(),
            _ => {}
        }
    }
    (installed && !app.name.is_empty()).then_some(app)
}

fn apk(fs: &dyn GuestFs) -> Result<Vec<Application>> {
    let paragraph = |text: &str| {
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
                "o" => app.source_package = value.into(),
                "T" => app.summary = value.into(),
                _ => {}
            }
        }
        (!app.name.is_empty()).then_some(app)
    };
    let mut found: Vec<Application> = database(fs, b"/lib/apk/db/installed")?.split("\n\n").filter_map(paragraph).collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dpkg_paragraph() {
        let text = "Package: libc6\nStatus: install ok installed\nSource: glibc (2.3)\nVersion: 1:2.36-9+deb12u4\nArchitecture: amd64\nConffiles:\n /etc/x abc\nDescription: GNU C Library\n Contains\n .\n libs\nHomepage: https://example.org";
        let app = dpkg_paragraph(text).unwrap();
        assert_eq!((app.epoch, app.version.as_str(), app.release.as_str()), (1, "2.36", "9+deb12u4"));
        assert_eq!((app.source_package.as_str(), app.description.as_str()), ("glibc", "Contains\n.\nlibs"));
        assert!(dpkg_paragraph("Package: x\nStatus: deinstall ok config-files\nVersion: 1").is_none());
    }
}
