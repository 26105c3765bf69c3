//! Windows: known by its folder, told by its registry. (libguestfs's rules)

use imgcore::partition::{Guid, TableKind};

use super::packages::Application;
use super::{CONFIG_LIMIT, Family, Inspection, Mount, Release, System};
use crate::bytes::{cut, le16, le32, le64};
use crate::registry::{Hive, Key};
use crate::{Error, Ext, FileType, GuestFs, Result, Volumes};

/// What the folder of Windows is called, ReactOS's included.
const FOLDERS: [&str; 5] = ["windows", "winnt", "win32", "win", "reactos"];
/// Begins the name of a volume that has a letter.
const LETTER: &str = "\\DosDevices\\";
/// Begins the place of a partition of a GPT.
const GPT_PLACE: &[u8] = b"DMIO:ID:";
/// The first build of what is called Windows 11.
const WINDOWS_11: u32 = 22000;

/// What is told of a Windows, and of nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Windows {
    /// The folder of Windows in the guest's tree: `/Windows`.
    pub systemroot: String,
    /// What it starts with: `ControlSet001`.
    pub control_set: Option<String>,
    /// `Client`, `Server`, `Server Core`.
    pub variant: String,
    /// Letters of drives, and the volumes that have them, by position in [`Volumes::volumes`].
    pub drives: Vec<(char, usize)>,
}

impl Windows {
    /// The place of a hive in the guest's tree: `software`, `system`.
    pub fn hive(&self, fs: &dyn GuestFs, name: &str) -> Option<Vec<u8>> {
        any_case(fs, &format!("{}/system32/config/{name}", self.systemroot))
    }
}

/// The path with each name as it is written in the guest, whatever case it is asked for in; `None` where there is none.
pub fn any_case(fs: &dyn GuestFs, path: &str) -> Option<Vec<u8>> {
    let mut found = Vec::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let folder = if found.is_empty() { b"/" } else { &found[..] };
        let entries = fs.read_dir(folder).ok()?;
        let exact = entries.iter().find(|e| e.name == name.as_bytes());
        let entry = exact.or_else(|| entries.iter().find(|e| e.name.eq_ignore_ascii_case(name.as_bytes())))?;
        found = [&found[..], b"/", &entry.name[..]].concat();
    }
    Some(if found.is_empty() { b"/".to_vec() } else { found })
}

/// The folder of Windows, if there is one on this filesystem.
pub(super) fn systemroot(fs: &dyn GuestFs) -> Option<String> {
    let usual = FOLDERS.iter().map(|name| format!("/{name}"));
    usual.chain(boot_ini(fs)).find_map(|folder| {
        let has = |path: &str, kind| {
            let found = any_case(fs, &format!("{folder}/{path}"));
            found.is_some_and(|path| fs.stat(&path).is_ok_and(|s| s.kind == kind))
        };
        let is_root = has("system32/config", FileType::Directory) && has("system32/cmd.exe", FileType::Regular);
        is_root.then(|| any_case(fs, &folder).and_then(|path| String::from_utf8(path).ok())).flatten()
    })
}

/// Where older versions' boot loader says that it is: `multi(0)disk(0)rdisk(0)partition(1)\WINDOWS="…"`.
fn boot_ini(fs: &dyn GuestFs) -> Option<String> {
    let content = fs.read(&any_case(fs, "/boot.ini")?, CONFIG_LIMIT).ok()?;
    let text = String::from_utf8_lossy(&content).into_owned();
    let system = text.lines().filter(|l| l.contains("partition(")).find_map(|l| l.split_once(")\\"))?.1;
    let folder = system.split(['=', '"']).next()?.trim();
    (!folder.is_empty()).then(|| format!("/{}", folder.replace('\\', "/")))
}

/// Inspects the Windows in this folder. A hive that can't be read tells nothing, as in libguestfs.
pub(super) fn inspect(fs: &dyn GuestFs, volumes: &Volumes, root: usize, systemroot: String) -> Result<Inspection> {
    let mut windows = Windows { systemroot, ..Windows::default() };
    let mut release = Release { family: Family::Other, ..Release::named("windows", "windows") };
    let mut told = Told::default();
    if let Some(path) = windows.hive(fs, "software") {
        unless_damaged(Hive::open(fs, &path).and_then(|hive| software(&hive, &mut windows, &mut release)))?;
    }
    if let Some(path) = windows.hive(fs, "system") {
        told = unless_damaged(Hive::open(fs, &path).and_then(|hive| system(&hive, volumes, &mut windows)))?.unwrap_or_default();
    }
    let program = any_case(fs, &format!("{}/system32/cmd.exe", windows.systemroot));
    Ok(Inspection {
        root,
        system: System::Windows(windows),
        release,
        // Programs may be packed in a way that only Windows knows.
        arch: program.and_then(|path| arch(fs, &path)).or_else(|| told.arch()).unwrap_or("unknown"),
        hostname: Some(told.hostname).filter(|name| !name.is_empty()),
        mounts: vec![Mount { path: b"/".to_vec(), volume: root, options: Vec::new() }],
        swaps: Vec::new(),
        fstab: Vec::new(),
    })
}

/// A damaged hive leaves what it would tell unknown; other failures are failures.
fn unless_damaged<T>(outcome: Result<T>) -> Result<Option<T>> {
    match outcome {
        Ok(told) => Ok(Some(told)),
        Err(Error::Corrupt { .. } | Error::NotFound(_) | Error::WrongType { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Names and versions, from HKLM\SOFTWARE.
fn software(hive: &Hive<'_>, windows: &mut Windows, release: &mut Release) -> Result<()> {
    let Some(key) = hive.key(&["Microsoft", "Windows NT", "CurrentVersion"])? else { return Ok(()) };
    release.product_name = key.text("ProductName")?;
    windows.variant = key.text("InstallationType")?;
    let number = |name: &str| Ok::<_, Error>(key.value(name)?.and_then(|v| v.number()));
    // Since Windows 10 the text says 6.3 for ever.
    match (number("CurrentMajorVersionNumber")?, number("CurrentMinorVersionNumber")?) {
        (Some(major), Some(minor)) => (release.major, release.minor) = (major, minor),
        _ => *release = release.clone().version(&key.text("CurrentVersion")?),
    }
    let build = key.text("CurrentBuildNumber")?;
    let is_11 = release.major >= 10 && build.parse().is_ok_and(|build: u32| build >= WINDOWS_11);
    if is_11 && windows.variant == "Client" {
        // The registry was never told.
        release.product_name = release.product_name.replacen("Windows 10", "Windows 11", 1);
    }
    release.build_id = Some(build).filter(|build| !build.is_empty());
    Ok(())
}

/// What HKLM\SYSTEM tells of the machine. Unknown is empty.
#[derive(Default)]
struct Told {
    hostname: String,
    /// `AMD64`
    processor: String,
}

impl Told {
    fn arch(&self) -> Option<&'static str> {
        Some(match self.processor.to_ascii_uppercase().as_str() {
            "AMD64" => "x86_64",
            "X86" => "i386",
            "ARM64" => "aarch64",
            _ => return None,
        })
    }
}

/// The control set, letters of drives and the machine, from HKLM\SYSTEM.
fn system(hive: &Hive<'_>, volumes: &Volumes, windows: &mut Windows) -> Result<Told> {
    if let Some(devices) = hive.key(&["MountedDevices"])? {
        for (name, place) in devices.values()? {
            let letter = name.strip_prefix(LETTER).and_then(|rest| rest.strip_suffix(':')).and_then(|rest| rest.chars().next());
            if let (Some(letter), Some(volume)) = (letter.filter(char::is_ascii_alphabetic), volume_at(volumes, &place.0)) {
                windows.drives.push((letter.to_ascii_uppercase(), volume));
            }
        }
        windows.drives.sort_unstable();
        windows.drives.dedup_by_key(|(letter, _)| *letter);
    }
    let Some(current) = hive.key(&["Select"])?.map(|key| key.value("Current")).transpose()?.flatten().and_then(|v| v.number()) else {
        return Ok(Told::default());
    };
    let set = format!("ControlSet{current:03}");
    let parameters = hive.key(&[&set, "Services", "Tcpip", "Parameters"])?;
    let environment = hive.key(&[&set, "Control", "Session Manager", "Environment"])?;
    windows.control_set = Some(set);
    let text = |key: &Option<Key<'_>>, name: &str| key.as_ref().map_or(Ok(String::new()), |key| key.text(name));
    let hostname = text(&parameters, "Hostname")?;
    let hostname = if hostname.is_empty() { text(&parameters, "NV Hostname")? } else { hostname };
    Ok(Told { hostname, processor: text(&environment, "PROCESSOR_ARCHITECTURE")? })
}

/// The volume that a mounted device means: a disk's signature and an offset, or a partition's GUID.
fn volume_at(volumes: &Volumes, place: &[u8]) -> Option<usize> {
    let is_it = |volume: &crate::Volume| {
        let (Some(disk), Some(partition)) = (volume.disk(), &volume.partition) else { return false };
        match (place.strip_prefix(GPT_PLACE), volumes.tables.get(disk).and_then(Option::as_ref)) {
            (Some(guid), _) => guid.try_into().is_ok_and(|guid| partition.uuid == Guid(guid).to_string()),
            (None, Some(table)) if place.len() == 12 && table.kind == TableKind::Mbr => {
                table.id == format!("{:08x}", le32(place, 0)) && partition.start == le64(place, 4)
            }
            _ => false,
        }
    };
    volumes.volumes.iter().position(is_it)
}

/// Which processors a program of Windows is for.
fn arch(fs: &dyn GuestFs, path: &[u8]) -> Option<&'static str> {
    let mut head = [0; 4096];
    let n = fs.read_at(path, 0, &mut head).ok()?;
    let head = cut(&head, 0, n);
    let pe = le32(head, 60) as usize;
    if !head.starts_with(b"MZ") || cut(head, pe, 4) != b"PE\0\0" {
        return None;
    }
    Some(match le16(head, pe + 4) {
        0x14c => "i386",
        0x8664 => "x86_64",
        0xaa64 => "aarch64",
        0x1c0 | 0x1c2 | 0x1c4 => "arm",
        0x200 => "ia64",
        _ => return None,
    })
}

/// libosinfo's short name: `win7`, `win2k19`.
pub(super) fn osinfo(release: &Release, variant: &str) -> Option<&'static str> {
    let is_server = variant.starts_with("Server");
    let build = release.build_id.as_deref().and_then(|b| b.parse().ok()).unwrap_or(0u32);
    let named = |part: &str| release.product_name.contains(part);
    Some(match (release.major, release.minor) {
        (5, 1) => "winxp",
        (5, 2) if named("XP") => "winxp",
        (5, 2) if named("R2") => "win2k3r2",
        (5, 2) => "win2k3",
        (6, 0) => {
            if is_server {
                "win2k8"
            } else {
                "winvista"
            }
        }
        (6, 1) => {
            if is_server {
                "win2k8r2"
            } else {
                "win7"
            }
        }
        (6, 2) => {
            if is_server {
                "win2k12"
            } else {
                "win8"
            }
        }
        (6, 3) => {
            if is_server {
                "win2k12r2"
            } else {
                "win8.1"
            }
        }
        (10, 0) if is_server => ["2025", "2022", "2019"]
            .into_iter()
            .zip(["win2k25", "win2k22", "win2k19"])
            .find(|(year, _)| named(year))
            .map_or("win2k16", |(_, name)| name),
        (10, 0) if build >= WINDOWS_11 => "win11",
        (10, 0) => "win10",
        _ => return None,
    })
}

/// What the system's list of programs has, those of 32 bits included.
pub(super) fn applications(fs: &dyn GuestFs, windows: &Windows) -> Result<Vec<Application>> {
    const LISTS: [&[&str]; 2] =
        [&["Microsoft", "Windows", "CurrentVersion", "Uninstall"], &["WOW6432node", "Microsoft", "Windows", "CurrentVersion", "Uninstall"]];
    let Some(path) = windows.hive(fs, "software") else { return Ok(Vec::new()) };
    let hive = Hive::open(fs, &path)?;
    let mut found = Vec::new();
    for list in LISTS {
        let keys = hive.key(list)?.map(|list| list.children()).transpose()?.unwrap_or_default();
        for key in keys {
            found.extend(application(&key)?);
        }
    }
    Ok(found)
}

fn application(key: &Key<'_>) -> Result<Option<Application>> {
    let mut app = Application { name: key.name(), ..Application::default() };
    for (name, value) in key.values()? {
        let place = match name.to_ascii_lowercase().as_str() {
            "displayname" => &mut app.display_name,
            "displayversion" => &mut app.version,
            "installlocation" => &mut app.install_path,
            "publisher" => &mut app.publisher,
            "urlinfoabout" => &mut app.url,
            "comments" => &mut app.description,
            _ => continue,
        };
        *place = value.text();
    }
    Ok(Some(app).filter(|app| !app.display_name.is_empty()))
}
