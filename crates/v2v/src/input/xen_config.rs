//! Input `xlcfg`: configurations of xl and xm, by what their keys mean.

use std::path::{Path, PathBuf};

use super::images::{self, Named};
use super::value::{Config, Value};
use super::{Input, Opened, Request, autostart, left_out, read_config, running, xen_disk, xen_vif, xl, xm};
use crate::source::{Boot, Nic, Source, SourceDisk};
use crate::{Error, Result};

/// The table's line.
pub const INPUT: Input = Input { mode: "xlcfg", about: "a configuration of xl or xm, and the disks that it names", probe, read };

fn probe(probe: &super::Probe<'_>) -> bool {
    let text = !probe.head.is_empty() && !probe.head.iter().any(|b| *b < b'\t' || (14..32).contains(b) || *b == 127);
    text && probe.head.contains(&b'=') && !probe.head.trim_ascii_start().starts_with(b"<")
}

fn read(request: &Request<'_>) -> Result<Opened> {
    let file = request.guest.display().to_string();
    if file == "-" {
        return Err(Error::Invalid("a configuration cannot be read from standard input: give it as a file".into()));
    }
    let config = parse(&file, &read_config(request.guest)?)?;
    source(request, &config).map(Into::into)
}

/// Parses with xl's grammar, else with what we read of Python; the error is that of the parser that came further.
pub fn parse(file: &str, text: &str) -> Result<Config> {
    xl::parse(file, text).or_else(|of_xl| {
        xm::parse(file, text).map_err(|of_xm| match (&of_xl, &of_xm) {
            (Error::Config { line: xl, .. }, Error::Config { line: xm, .. }) if xl > xm => of_xl,
            _ => of_xm,
        })
    })
}

fn source(request: &Request<'_>, config: &Config) -> Result<Source> {
    let mut warnings = Vec::new();
    let name = match config.text("name")? {
        Some(name) => name,
        None => {
            let name = request.guest.file_stem().map_or_else(|| "guest".into(), |s| s.to_string_lossy().into_owned());
            warnings.push(format!("{} gives the guest no name: it is called {name}", config.file));
            name
        }
    };
    if !request.in_use {
        running::check_domain(&name)?;
    }
    let memory_mib = match config.number("memory")?.or(config.number("maxmem")?) {
        Some(memory) if (1..=(64 << 20)).contains(&memory) => memory,
        Some(memory) => {
            return Err(config.error(config.line("memory"), format!("memory = {memory} MiB is no amount that a guest can have")));
        }
        None => {
            warnings.push(format!("{} gives no memory: 128 MiB, as for Xen", config.file));
            128
        }
    };
    let vcpus = config.number("vcpus")?.or(config.number("maxvcpus")?).unwrap_or(1);
    let vcpus = u32::try_from(vcpus).ok().filter(|v| (1..=4096).contains(v));
    let vcpus = vcpus.ok_or_else(|| config.error(config.line("vcpus"), "vcpus is no number that a guest can have"))?;
    if let Some(most) = config.number("maxmem")?.filter(|most| *most > memory_mib) {
        warnings.push(left_out::more_memory(most, memory_mib));
    }
    warnings.extend(left_out::XL.iter().filter(|(key, _)| says_something(config, key)).map(|(key, what)| format!("{key}: {what}")));
    let boot = boot(request, config, &mut warnings)?;
    let vifs = config.texts("vif")?;
    warnings.extend(vifs.iter().enumerate().flat_map(|(index, text)| xen_vif::left_out(index, text)));
    let nics: Vec<Nic> = (vifs.iter())
        .map(|text| xen_vif::parse(text).map_err(|e| config.error(config.line("vif"), format!("vif '{text}': {e}"))))
        .collect::<Result<_>>()?;
    warnings.extend(nics.iter().enumerate().filter_map(|(i, nic)| left_out::tagged(i, nic.bridge.as_deref()?)));
    Ok(Source {
        name,
        uuid: config.text("uuid")?,
        description: String::new(),
        memory_mib,
        vcpus,
        boot,
        disks: disks(request, config, &mut warnings)?,
        nics,
        local_time: config.number("localtime")?.is_some_and(|n| n != 0),
        policy: autostart::of_xen(request.guest),
        warnings,
        origin: format!("Xen configuration {}", config.file),
    })
}

/// Whether a key has a value that is more than nothing: `pci = []` and `vfb = ''` are.
fn says_something(config: &Config, key: &str) -> bool {
    match config.get(key).map(|(value, _)| value) {
        None | Some(Value::None) => false,
        Some(Value::Int(number)) => *number != 0,
        Some(Value::Text(text)) => !text.trim().is_empty(),
        Some(Value::List(list)) => !list.is_empty(),
        Some(Value::Unreadable(_)) => true,
    }
}

fn disks(request: &Request<'_>, config: &Config, warnings: &mut Vec<String>) -> Result<Vec<SourceDisk>> {
    let line = config.line("disk");
    let mut disks = Vec::new();
    for text in config.texts("disk")?.iter().filter(|t| !t.trim().is_empty()) {
        let spec = xen_disk::parse(text).map_err(|e| config.error(line, format!("disk '{text}': {e}")))?;
        if spec.cdrom {
            warnings.push(left_out::cd_drive(&spec.vdev, &spec.target));
            continue;
        }
        if spec.shared {
            warnings.push(left_out::shared_disk(&spec.vdev));
        }
        let is_named = request.disks.iter().any(|disk| disk.target.as_ref() == Some(&spec.vdev));
        if let Some(why) = spec.elsewhere.as_ref().filter(|_| !is_named) {
            let what = format!("disk '{text}': {why}: name the device that is there, or a copy of it, with --disk {}=FILE", spec.vdev);
            return Err(config.error(line, what));
        }
        let format = Some(spec.format.as_deref().unwrap_or("raw"));
        let named = Named { config: Some(request.guest), path: &spec.target, format, in_dev: spec.phy };
        let disk = images::open_disk(request, &spec.vdev, &named, warnings).map_err(|e| config.error(line, e))?;
        disks.push(SourceDisk { read_only: spec.read_only, ..disk });
    }
    add_named(request, &mut disks, warnings)?;
    if disks.is_empty() {
        return Err(config.error(line, "the guest has no disk: name one with --disk xvda=FILE"));
    }
    images::check_distinct(&disks)?;
    Ok(disks)
}

/// Adds the disks that the user named and the configuration does not have.
pub(super) fn add_named(request: &Request<'_>, disks: &mut Vec<SourceDisk>, warnings: &mut Vec<String>) -> Result<()> {
    for own in request.disks {
        let Some(target) = &own.target else {
            return Err(Error::Invalid(format!("--disk {}: say how the guest calls it: --disk xvdb={0}", own.file.display())));
        };
        if !disks.iter().any(|d| own.is_for(&d.target)) {
            let image = images::open(request, &own.file, own.format.as_deref(), warnings)?;
            let (size, origin) = (image.size(), own.file.display().to_string());
            disks.push(SourceDisk { target: target.clone(), image: Some(image), size, read_only: false, bootable: false, origin });
        }
    }
    Ok(())
}

fn boot(request: &Request<'_>, config: &Config, warnings: &mut Vec<String>) -> Result<Boot> {
    let kind = match (config.text("type")?, config.text("builder")?) {
        (Some(kind), _) => kind,
        (None, Some(builder)) if builder == "hvm" => builder,
        (None, Some(builder)) if ["generic", "linux"].contains(&builder.as_str()) => "pv".into(),
        (None, Some(builder)) => {
            return Err(config.error(config.line("builder"), format!("builder '{builder}' must be hvm, generic or linux")));
        }
        (None, None) => "pv".into(),
    };
    let pvh = match kind.as_str() {
        "pv" => false,
        "pvh" => true,
        "hvm" => {
            let own = config.text("kernel")?.is_some_and(|kernel| !is_hvmloader(Path::new(&kernel)));
            let firmware = config.text("firmware")?.or(config.text("bios")?).unwrap_or_default();
            match ["uefi", "ovmf"].contains(&firmware.as_str()) {
                true => return Ok(Boot::Uefi),
                false if !own => return Ok(Boot::Bios),
                // QEMU starts the Xen host's kernel, as `-kernel` does.
                false => false,
            }
        }
        other => return Err(config.error(config.line("type"), format!("type '{other}' must be pv, pvh or hvm"))),
    };
    let inside = Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh };
    let extra = config.text("extra")?;
    if let Some(bootloader) = config.text("bootloader")?.or(config.text("firmware")?).filter(|_| kind != "hvm") {
        if let Some(extra) = config.text("cmdline")?.or(extra) {
            warnings.push(format!("'{extra}' was added to the kernel's command line by Xen ({bootloader}), and is not taken over"));
        }
        return Ok(inside);
    }
    let kernel = request.kernel.map(Path::to_owned).or(config.text("kernel")?.map(PathBuf::from));
    let Some(kernel) = kernel.filter(|k| !is_grub(k)) else { return Ok(inside) };
    let cmdline = match (config.text("cmdline")?, config.text("root")?) {
        (Some(cmdline), _) => cmdline,
        (None, Some(root)) => format!("root={root} {}", extra.unwrap_or_default()).trim_end().to_owned(),
        (None, None) => extra.unwrap_or_default(),
    };
    let ramdisk = request.ramdisk.map(Path::to_owned).or(config.text("ramdisk")?.map(PathBuf::from));
    Ok(Boot::Direct { kernel: Some(kernel), ramdisk, cmdline, pvh })
}

/// Whether a kernel is really Xen's firmware, which starts a fully virtual guest's own boot loader.
pub(super) fn is_hvmloader(kernel: &Path) -> bool {
    kernel.file_name().is_some_and(|name| name.to_string_lossy().starts_with("hvmloader"))
}

/// Whether a kernel is really GRUB, which then reads the guest's own configuration.
pub(super) fn is_grub(kernel: &Path) -> bool {
    let name = kernel.file_name().map(|n| n.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    ["pv-grub", "pvgrub", "pv_grub", "pygrub", "grub"].iter().any(|g| name.starts_with(g))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::testing::{Folder, read_in};
    use crate::source::Policy;

    fn direct(kernel: Option<&str>, ramdisk: Option<&str>, cmdline: &str) -> Boot {
        Boot::Direct { kernel: kernel.map(Into::into), ramdisk: ramdisk.map(Into::into), cmdline: cmdline.into(), pvh: false }
    }

    #[test]
    fn a_device_of_the_xen_host_is_replaced_by_a_copy_beside_the_configuration() {
        let folder = Folder::new(&["web-disk"]);
        for path in ["guestlift-no-such-vg/web-disk", "/dev/guestlift-no-such-vg/web-disk"] {
            let guest = read_in(&folder, "web.cfg", &format!("name='web'\nmemory=64\ndisk=['phy:{path},xvda2,w']\n")).unwrap();
            assert_eq!(guest.disks[0].size, 4096);
            assert!(guest.warnings.iter().any(|w| w.contains("web-disk is not there: ") && w.contains("is used in its place")), "{path}");
        }
    }

    #[test]
    fn what_xen_create_image_writes() {
        let folder = Folder::new(&["srv/disk.img", "srv/swap.img"]);
        let config = "#
# Configuration file for the Xen instance web, created
# by xen-tools 4.9.2 on Sat Nov 21 05:42:14 2026.
#
kernel      = '/boot/vmlinuz-6.1.0-50-amd64'
extra       = 'elevator=noop'
ramdisk     = '/boot/initrd.img-6.1.0-50-amd64'

vcpus       = '2'
memory      = '512'

root        = '/dev/xvda2 ro'
disk        = [
                  'file:DIR/srv/disk.img,xvda2,w',
                  'file:DIR/srv/swap.img,xvda1,w',
              ]
name        = 'web'
vif         = [ 'ip=192.168.77.10 ,mac=00:16:3E:77:00:10,bridge=br0' ]

on_poweroff = 'destroy'
";
        let guest = read_in(&folder, "web.cfg", config).unwrap();
        assert_eq!((guest.name.as_str(), guest.memory_mib, guest.vcpus), ("web", 512, 2));
        let kernel =
            direct(Some("/boot/vmlinuz-6.1.0-50-amd64"), Some("/boot/initrd.img-6.1.0-50-amd64"), "root=/dev/xvda2 ro elevator=noop");
        assert_eq!(guest.boot, kernel);
        let disks: Vec<_> = guest.disks.iter().map(|d| (d.target.as_str(), d.size, d.read_only)).collect();
        assert_eq!(disks, [("xvda2", 4096, false), ("xvda1", 4096, false)]);
        assert_eq!(guest.nics[0].mac.as_deref(), Some("00:16:3e:77:00:10"));
        assert_eq!(guest.nics[0].bridge.as_deref(), Some("br0"));
        assert!(guest.warnings.is_empty(), "{:?}", guest.warnings);
    }

    #[test]
    fn an_xl_guest_with_keyed_disks() {
        let folder = Folder::new(&["root.img", "cd.iso", "data"]);
        let config = r#"
type = "pvh"; name = "db"; uuid = "3d1a2b3c-0000-0000-0000-000000000001"
memory = 0x800 maxmem"#;
        assert!(read_in(&folder, "db.cfg", config).is_err());
        let config = r#"
type = "pvh"; name = "db"; uuid = "3d1a2b3c-0000-0000-0000-000000000001"
memory = 0x800
bootloader = "pygrub"
extra = "quiet"
disk = [ "format=raw, vdev=xvda, access=rw, target=DIR/root.img", "DIR/cd.iso,,hdc,cdrom" ]
disk += [ "data,raw,xvdb,r", ]
vif = [ "", "model=e1000,bridge=br1" ]
"#;
        let guest = read_in(&folder, "db.cfg", config).unwrap();
        assert_eq!((guest.memory_mib, guest.vcpus), (2048, 1));
        assert_eq!(guest.boot, Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh: true });
        let disks: Vec<_> = guest.disks.iter().map(|d| (d.target.as_str(), d.read_only)).collect();
        assert_eq!(disks, [("xvda", false), ("xvdb", true)]);
        assert_eq!(guest.nics.len(), 2);
        assert_eq!(guest.warnings.len(), 2);
        assert!(guest.warnings.iter().any(|w| w.starts_with("hdc: the CD drive with ") && w.contains("/cd.iso is not taken over")));
    }

    #[test]
    fn what_no_output_can_say_is_told_by_name() {
        let folder = Folder::new(&["a", "b"]);
        let config = "memory=512; maxmem=2048; name='x'; disk=['a,raw,xvda,w!', 'b,raw,xvdb,w']; pci=['01:00.0']; cpus='2-3'; localtime=1\n\
                      vfb=['type=vnc,vncpasswd=secret']; vtpm=['backend=vtpm']; usbdev=[]; vnuma=None\n";
        let guest = read_in(&folder, "x.cfg", config).unwrap();
        let named: Vec<_> = guest.warnings.iter().map(|w| w.split([':', ' ']).next().unwrap()).collect();
        assert_eq!(named, ["the", "pci", "vtpm", "vfb", "cpus", "xvda"], "{:?}", guest.warnings);
        assert!(guest.warnings.iter().all(|w| !w.contains("secret")));
        assert!(guest.local_time);
    }

    #[test]
    fn guests_that_start_with_their_host_in_its_order() {
        let folder = Folder::new(&["a", "auto/00-db"]);
        let config = "memory=512; name='x'; disk=['a,raw,xvda,w']";
        assert_eq!(read_in(&folder, "x.cfg", config).unwrap().policy, Policy::default());
        std::os::unix::fs::symlink("../x.cfg", folder.path().join("auto/10-web")).unwrap();
        let policy = Policy { autostart: true, start_order: Some(2), start_delay: None };
        assert_eq!(read_in(&folder, "x.cfg", config).unwrap().policy, policy);
    }

    #[test]
    fn boot_kinds() {
        let folder = Folder::new(&["x"]);
        for (config, expected) in [
            ("bootloader='/usr/lib/xen/bin/pygrub'; kernel='/boot/x'", direct(None, None, "")),
            ("kernel='/usr/lib/xen/boot/pv-grub-x86_64.gz'; extra='(hd0)/boot/grub/menu.lst'", direct(None, None, "")),
            ("kernel='/k'; root='/dev/xvda1'; extra='quiet'; cmdline='root=/dev/xvda9'", direct(Some("/k"), None, "root=/dev/xvda9")),
            ("kernel='/k'; extra='root=/dev/sda1 ro'", direct(Some("/k"), None, "root=/dev/sda1 ro")),
            ("builder='hvm'; kernel='hvmloader'", Boot::Bios),
            ("type='hvm'; firmware='bios'; kernel='/k'; root='/dev/xvda ro'", direct(Some("/k"), None, "root=/dev/xvda ro")),
            ("type='hvm'; bios='ovmf'", Boot::Uefi),
            ("type='hvm'; firmware='uefi'", Boot::Uefi),
        ] {
            let config = format!("memory=1; name='x'; disk=['x,raw,xvda,w']; {config}");
            assert_eq!(read_in(&folder, "x.cfg", &config).unwrap().boot, expected, "{config}");
        }
    }

    #[test]
    fn a_format_that_the_configuration_says_is_not_probed() {
        let folder = Folder::new(&[]);
        std::fs::write(folder.path().join("x"), [b"QFI\xfb\0\0\0\x03".as_slice(), &[0xff; 4088]].concat()).unwrap();
        let guest = read_in(&folder, "x.cfg", "memory=1; name='x'; disk=['x,raw,xvda,w']").unwrap();
        assert_eq!(guest.disks[0].image.as_ref().unwrap().info().format, "raw");
        assert_eq!(guest.disks[0].size, 4096);
    }

    #[test]
    fn a_file_beside_the_configuration_is_found() {
        let folder = Folder::new(&["disk.img"]);
        let guest = read_in(&folder, "x.cfg", "memory=1; name='x'; disk=['file:/nonexistent/vm/disk.img,xvda,w']").unwrap();
        assert!(guest.warnings[0].starts_with("/nonexistent/vm/disk.img is not there: "), "{:?}", guest.warnings);
    }

    #[test]
    fn errors_name_file_line_and_what_to_do() {
        let folder = Folder::new(&["x", "y"]);
        for (config, error) in [
            ("name='x'\nmemory='many'", "DIR/x.cfg:2: memory must be a number, not 'many'"),
            ("name='x'\nmemory=0", "DIR/x.cfg:2: memory = 0 MiB is no amount that a guest can have"),
            ("memory=1\nvcpus=99999999999", "DIR/x.cfg:2: vcpus is no number that a guest can have"),
            ("memory=1\ndisk=[]", "DIR/x.cfg:2: the guest has no disk: name one with --disk xvda=FILE"),
            ("memory=1\n\ndisk=[1]", "DIR/x.cfg:3: disk must hold strings, not a number"),
            ("memory=1\ndisk=['x,raw']", "DIR/x.cfg:2: disk 'x,raw': it does not say how the guest calls it (vdev=xvda)"),
            (
                "memory=1\ndisk=['phy:vg/none,xvda,w']",
                "DIR/x.cfg:2: disk xvda: /dev/vg/none is not there; copy it there, or say where it is with --disk xvda=FILE",
            ),
            (
                "memory=1\ndisk=['none,raw,xvda']",
                "DIR/x.cfg:2: disk xvda: none is neither here nor in DIR; copy it there, or say where it is with --disk xvda=FILE",
            ),
            ("memory=1\ndisk=['DIR/x,raw,xvda','DIR/y,raw,xvda']", "two disks are called xvda: DIR/x and DIR/y"),
            (
                "memory=1\ndisk=['DIR/x,raw,xvda','x,raw,xvdb']",
                "DIR/x would be both disk xvda and disk xvdb; say where they are with --disk xvdb=FILE",
            ),
            ("memory=1\nvif=['mac=1']", "DIR/x.cfg:2: vif 'mac=1': mac=1 is no MAC address"),
            ("memory=1\ntype='kvm'", "DIR/x.cfg:2: type 'kvm' must be pv, pvh or hvm"),
            (
                "memory=1\nname = os.name",
                "DIR/x.cfg:2: cannot read 'os.name': this is a Python program, which is not executed; write the values that it gives in its place",
            ),
        ] {
            let message = read_in(&folder, "x.cfg", config).err().unwrap().to_string();
            assert_eq!(message.replace(folder.path().to_str().unwrap(), "DIR").replace("DIR/x and disk", "x and disk"), error, "{config}");
        }
    }
}
