//! Input `xva`: XenServer and XCP-ng appliances, as a file, a folder, or a stream on standard input.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imgcore::{Image, ImageMut, Progress, copy};
use xva::{Appliance, Form, Options, Role, Stream, StreamSink, Vm, Xva};

use super::{DiskStream, Input, Opened, Probe, Request, images, left_out, xen_config, xen_vif};
use crate::source::{Boot, Nic, Policy, Source, SourceDisk};
use crate::{Error, Result};

/// The table's line.
pub const INPUT: Input =
    Input { mode: "xva", about: "an appliance of XenServer or XCP-ng: a file, a folder, or - for standard input", probe, read };

/// What a machine gets that has no memory in its description.
const DEFAULT_MEMORY_MIB: u64 = 1024;

fn probe(probe: &Probe<'_>) -> bool {
    probe.is_stdin() || xva::probe(probe.path)
}

fn read(request: &Request<'_>) -> Result<Opened> {
    let name = request.guest.display().to_string();
    if request.guest == Path::new("-") {
        return from_stream(request, Stream::open(std::io::stdin(), "standard input")?, "standard input");
    }
    if is_packed(request.guest)? {
        // Unpacked once, front to back. At random it would be unpacked more than once, and zstd cannot be at all.
        let file = File::open(request.guest).map_err(|source| Error::Io { file: name.clone(), action: "open", source })?;
        return from_stream(request, Stream::open(file, &name)?, &name);
    }
    let xva = Xva::open(request.guest, &Options::default())?;
    let mut disk = |index| xva.disk(index).map(Some);
    let (source, _) = source(request, xva.appliance(), &name, &mut disk)?;
    Ok(source.into())
}

/// Whether the whole archive is compressed.
fn is_packed(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let fail = |source| Error::Io { file: path.display().to_string(), action: "open", source };
    let mut head = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(File::open(path).map_err(fail)?, 4), &mut head).map_err(fail)?;
    Ok(xva::is_packed(&head))
}

fn from_stream(request: &Request<'_>, stream: Stream<'static>, name: &str) -> Result<Opened> {
    let (source, order) = source(request, stream.appliance(), name, &mut |_| Ok(None))?;
    Ok(Opened { stream: Some(Box::new(Arriving { stream, order })), ..source.into() })
}

/// Gives the source, and for each of its disks the index in the appliance.
pub(super) fn source(
    request: &Request<'_>,
    appliance: &Appliance,
    file: &str,
    image: &mut dyn FnMut(usize) -> xva::Result<Option<Arc<dyn Image>>>,
) -> Result<(Source, Vec<Option<usize>>)> {
    let vm = choose(appliance, request.machine, file)?;
    let mut warnings = appliance.warnings.clone();
    warn(vm, appliance, &mut warnings);
    let name = match vm.name.as_str() {
        "" => request.guest.file_stem().map_or_else(|| "guest".into(), |s| s.to_string_lossy().into_owned()),
        name => name.to_owned(),
    };
    let memory_mib = match vm.memory >> 20 {
        0 => {
            warnings.push(format!("{file} gives no memory: {DEFAULT_MEMORY_MIB} MiB are assumed"));
            DEFAULT_MEMORY_MIB
        }
        memory => memory,
    };
    let vcpus = u32::try_from(vm.vcpus.max(1)).ok().filter(|v| *v <= 4096);
    let vcpus = vcpus.ok_or_else(|| Error::Invalid(format!("{file}: {} processors are no number that a guest can have", vm.vcpus)))?;

    let mut disks: Vec<SourceDisk> = Vec::new();
    let mut order = Vec::new();
    for drive in &vm.drives {
        let target = drive.device.strip_prefix("/dev/").unwrap_or(&drive.device).to_owned();
        let Some(model) = appliance.disks.get(drive.disk) else { continue };
        let origin = format!("{file}#{}", model.id);
        // The archive's own disk under a name says what the guest called it.
        let renamed = request.disks.iter().find(|own| own.file.as_os_str() == origin.as_str()).and_then(|own| own.target.clone());
        let target = renamed.unwrap_or(target);
        let (image, origin, from) = match request.disks.iter().find(|own| own.is_for(&target) && own.file.as_os_str() != origin.as_str()) {
            Some(own) => {
                (Some(images::open(request, &own.file, own.format.as_deref(), &mut warnings)?), own.file.display().to_string(), None)
            }
            None => (image(drive.disk)?, origin, Some(drive.disk)),
        };
        let size = image.as_ref().map_or(model.size, |i| i.size());
        disks.push(SourceDisk { target, image, size, read_only: drive.read_only, bootable: drive.bootable, origin });
        order.push(from);
    }
    xen_config::add_named(request, &mut disks, &mut warnings)?;
    order.resize(disks.len(), None);
    if disks.is_empty() {
        return Err(Error::Invalid(format!("{file}: {name} has no disk: name one with --disk xvda=FILE")));
    }
    images::check_distinct(&disks)?;
    let mut nics: Vec<Nic> = vm.nics.iter().map(|n| nic(n, &mut warnings)).collect();
    if nics.is_empty() && appliance.form == Form::Legacy {
        warnings.push("a legacy archive tells nothing of NICs: one on the default network is assumed".into());
        nics.push(Nic::default());
    }
    let source = Source {
        name,
        uuid: Some(vm.uuid.clone()).filter(|u| !u.is_empty()),
        description: vm.description.clone(),
        memory_mib,
        vcpus,
        boot: boot(request, vm, &mut warnings),
        disks,
        nics,
        local_time: vm.host.local_time,
        policy: Policy {
            autostart: vm.host.autostart,
            start_order: vm.host.order.and_then(|n| u32::try_from(n).ok()),
            start_delay: vm.host.start_delay.and_then(|n| u32::try_from(n).ok()),
        },
        warnings,
        origin: format!("XVA {file}"),
    };
    Ok((source, order))
}

/// The machine that is meant.
fn choose<'a>(appliance: &'a Appliance, wanted: Option<&str>, file: &str) -> Result<&'a Vm> {
    let candidates = match wanted {
        Some(name) => appliance.vms.iter().filter(|v| v.name == name || (!v.uuid.is_empty() && v.uuid == name)).collect(),
        None => appliance.main_vms(),
    };
    match candidates[..] {
        [only] => Ok(only),
        _ => {
            let names: Vec<_> =
                appliance.vms.iter().map(|v| if v.uuid.is_empty() { v.name.clone() } else { format!("{} ({})", v.name, v.uuid) }).collect();
            let problem = match wanted {
                Some(name) => format!("has not one machine called '{name}'"),
                None => "holds several machines".into(),
            };
            Err(Error::Invalid(format!("{file}: {problem}: say which with --machine NAME: {}", names.join(", "))))
        }
    }
}

fn warn(vm: &Vm, appliance: &Appliance, warnings: &mut Vec<String>) {
    if vm.suspended {
        warnings.push(format!(
            "{} was suspended, not shut down: its memory is not taken over, and its filesystems are as after a power cut",
            vm.name
        ));
    }
    if !vm.suspended && appliance.disks.iter().any(|d| d.role == Role::Suspend) {
        warnings.push("the archive holds the memory of a suspended machine, which is left out".into());
    }
    if vm.snapshot {
        warnings.push(format!("{} is a snapshot: if it was taken while the guest ran, its filesystems are as after a power cut", vm.name));
    }
    if vm.template {
        warnings.push(format!("{} is a template", vm.name));
    }
    for device in &vm.host.devices {
        warnings.push(format!("{} uses {device} of its Xen host, which are not passed through: add <hostdev> to the domain", vm.name));
    }
    warnings.extend(vm.host.discs.iter().map(|(drive, disc)| left_out::cd_drive(&format!("drive {drive}"), disc)));
    warnings.extend(vm.drives.iter().filter(|d| d.shared).map(|d| left_out::shared_disk(&d.device)));
    if vm.vtpm {
        warnings
            .push(format!("{} has a TPM, whose content is not taken over: have recovery keys at hand if a disk is bound to it", vm.name));
    }
}

fn boot(request: &Request<'_>, vm: &Vm, warnings: &mut Vec<String>) -> Boot {
    match &vm.boot {
        xva::Boot::Hvm { uefi: true, secure_boot } => {
            if *secure_boot {
                warnings.push(format!("{} starts with secure boot, which is not set up", vm.name));
            }
            Boot::Uefi
        }
        xva::Boot::Hvm { uefi: false, .. } => Boot::Bios,
        xva::Boot::Pv { bootloader, kernel, ramdisk, args, pvh } => {
            let own = request.kernel.map(Path::to_owned);
            let kernel = kernel.as_ref().filter(|_| bootloader.is_none()).map(PathBuf::from).filter(|k| !xen_config::is_grub(k));
            let Some(kernel) = own.or(kernel) else {
                // Consoles and verbosity are set for KVM anyway.
                let says = |word: &&str| !["--", "quiet", "ro"].contains(word) && !word.starts_with("console=");
                if args.split_whitespace().any(|word| says(&word)) {
                    warnings.push(format!("'{args}' was added to the kernel's command line by Xen, and is not taken over"));
                }
                return Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh: *pvh };
            };
            if request.kernel.is_none() {
                warnings.push(format!(
                    "{} starts with a file of the Xen host that is not in the archive: {}; copy it here or give a kernel with --kernel FILE",
                    vm.name,
                    vm.dom0_files().join(", ")
                ));
            }
            let ramdisk =
                request.ramdisk.map(Path::to_owned).or_else(|| ramdisk.as_ref().filter(|_| bootloader.is_none()).map(PathBuf::from));
            Boot::Direct { kernel: Some(kernel), ramdisk, cmdline: args.clone(), pvh: *pvh }
        }
    }
}

fn nic(nic: &xva::Nic, warnings: &mut Vec<String>) -> Nic {
    let mac = xen_vif::mac(nic.mac.trim());
    if mac.is_none() && !nic.mac.trim().is_empty() {
        warnings.push(format!("'{}' is no MAC address: another one is made up", nic.mac.escape_default()));
    }
    let some = |text: &str| Some(text.to_owned()).filter(|t| !t.is_empty());
    Nic { mac, bridge: some(&nic.bridge), network: some(&nic.network), device: nic.device, ..Nic::default() }
}

/// An archive of which the disks are still to come.
pub(super) struct Arriving {
    pub stream: Stream<'static>,
    /// The appliance's index of each of the source's disks.
    pub order: Vec<Option<usize>>,
}

impl DiskStream for Arriving {
    fn receive(self: Box<Self>, targets: &[Arc<dyn ImageMut>], progress: &dyn Progress) -> Result<()> {
        let mut sink = Targets { order: self.order, targets, current: None };
        self.stream.read(&mut sink, progress)?;
        Ok(sink.finish()?)
    }
}

/// Hands pieces over to the copy engine, one disk after the other.
struct Targets<'a> {
    order: Vec<Option<usize>>,
    targets: &'a [Arc<dyn ImageMut>],
    current: Option<(usize, copy::Sink)>,
}

impl Targets<'_> {
    fn finish(&mut self) -> imgcore::Result<()> {
        self.current.take().map_or(Ok(()), |(_, sink)| sink.finish().map(|_| ()))
    }
}

impl StreamSink for Targets<'_> {
    fn data(&mut self, disk: usize, offset: u64, data: &[u8]) -> imgcore::Result<()> {
        let target = self.order.iter().position(|from| *from == Some(disk)).and_then(|index| self.targets.get(index));
        let Some(target) = target else { return Ok(()) };
        if self.current.as_ref().is_none_or(|(current, _)| *current != disk) {
            self.finish()?;
            let options = copy::Options { target_is_zero: true, ..copy::Options::default() };
            self.current = Some((disk, copy::Sink::new(target.clone(), options)?));
        }
        self.current.as_mut().map_or(Ok(()), |(_, sink)| sink.write(offset, data.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use imgcore::raw::Raw;
    use imgcore::storage::MemStorage;
    use imgcore::{Formats, NoProgress};

    use super::*;
    use crate::input::{self, DiskFile};

    const ROOT: usize = 3_300_352;
    const SWAP: usize = 1 << 20;

    /// A folder with the disks `root` and `swap`, and an appliance of them.
    fn make(name: &str, options: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let noise: Vec<u8> = (0..ROOT).map(|i| if (1 << 20..2 << 20).contains(&i) { 0 } else { ((i * i) >> 7) as u8 }).collect();
        std::fs::write(folder.path().join("root"), noise).unwrap();
        std::fs::write(folder.path().join("swap"), vec![7; SWAP]).unwrap();
        let path = folder.path().join(name);
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../../scripts/mkxva");
        let mut command = Command::new(script);
        command
            .current_dir(&folder)
            .arg(name)
            .args(["root,ref=10,device=xvda2,boot", "swap,ref=2,device=xvda1"])
            .args(options.split(' ').filter(|o| !o.is_empty()));
        let out = command.output().expect("mkxva needs python3");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        (folder, path)
    }

    fn open(path: &Path, machine: Option<&str>, disks: &[DiskFile]) -> Result<Opened> {
        let formats = Formats::new();
        input::read("auto", &Request { machine, disks, ..Request::new(path, &formats) })
    }

    fn whole(image: &dyn Image) -> Vec<u8> {
        let mut bytes = vec![0; image.size() as usize];
        image.read_at(&mut bytes, 0).unwrap();
        bytes
    }

    #[test]
    fn files_folders_and_packed_files_give_the_same_guest() {
        for (name, options) in [
            ("a.xva", ""),
            ("a.d", "--extracted"),
            ("a.gz", "--compress gzip"),
            ("a.zst", "--compress zstd"),
            ("l.d", "--legacy dir"),
            ("l.xva", "--legacy tar"),
        ] {
            let common = " --name web --memory 256 --vcpus 2 --keep-alive 2 --nic 00:16:3E:00:00:07,bridge=xenbr0";
            let (folder, path) = make(name, &format!("{options}{common}"));
            let Opened { mut source, stream, .. } = open(&path, None, &[]).unwrap();
            assert_eq!((source.name.as_str(), source.memory_mib, source.vcpus), ("web", 256, 2), "{name}");
            assert_eq!(source.boot, Boot::Direct { kernel: None, ramdisk: None, cmdline: String::new(), pvh: false });
            let disks: Vec<_> = source.disks.iter().map(|d| (d.target.as_str(), d.size, d.bootable)).collect();
            assert_eq!(disks, [("xvda1", SWAP as u64, false), ("xvda2", ROOT as u64, true)], "{name}");
            if options.contains("legacy") {
                assert_eq!(source.nics, [Nic::default()]);
                assert!(source.warnings.pop().is_some_and(|w| w.contains("tells nothing of NICs")));
            } else {
                assert_eq!(
                    source.nics,
                    [Nic {
                        mac: Some("00:16:3e:00:00:07".into()),
                        bridge: Some("xenbr0".into()),
                        network: Some("Pool-wide network associated with eth0".into()),
                        device: Some(0),
                        ..Nic::default()
                    }]
                );
            }
            assert_eq!(stream.is_some(), options.contains("compress"));
            assert!(source.warnings.is_empty(), "{:?}", source.warnings);
            if let Some(stream) = stream {
                let targets: Vec<Arc<dyn ImageMut>> = (source.disks.iter())
                    .map(|d| Arc::new(Raw::open(Arc::new(MemStorage::new("target", d.size))).unwrap()) as Arc<dyn ImageMut>)
                    .collect();
                stream.receive(&targets, &NoProgress).unwrap();
                for (disk, target) in source.disks.iter_mut().zip(targets) {
                    disk.image = Some(target);
                }
            }
            for (disk, file) in source.disks.iter().zip(["swap", "root"]) {
                assert!(whole(&**disk.image.as_ref().unwrap()) == std::fs::read(folder.path().join(file)).unwrap(), "{name}: {file}");
            }
        }
    }

    #[test]
    fn a_kernel_of_the_xen_host_is_named() {
        let (_folder, path) = make("k.xva", "--boot kernel --kernel /boot/vmlinuz-xen --ramdisk /boot/initrd-xen --args root=/dev/xvda2");
        let source = open(&path, None, &[]).unwrap().source;
        let boot = Boot::Direct {
            kernel: Some("/boot/vmlinuz-xen".into()),
            ramdisk: Some("/boot/initrd-xen".into()),
            cmdline: "root=/dev/xvda2".into(),
            pvh: false,
        };
        assert_eq!(source.boot, boot);
        assert!(source.warnings[0].contains("not in the archive: /boot/vmlinuz-xen, /boot/initrd-xen; copy"), "{:?}", source.warnings);
    }

    #[test]
    fn what_the_user_must_know_is_said() {
        for (options, what) in [
            ("--suspend swap", "was suspended"),
            ("--snapshot", "is a snapshot"),
            ("--args init=/x", "'init=/x' was added"),
            ("--checksum none", "no checksums"),
        ] {
            let (_folder, path) = make("w.xva", options);
            let warnings = open(&path, None, &[]).unwrap().source.warnings;
            assert!(warnings.iter().any(|w| w.contains(what)), "{options}: {warnings:?}");
        }
        let (_folder, path) = make("m.xva", "--metadata-only");
        assert!(open(&path, None, &[]).err().unwrap().to_string().contains("metadata only"));
    }

    #[test]
    fn one_of_several_machines_is_chosen_by_name() {
        let (folder, path) = make("two.d", "--legacy dir --name one --another-vm two");
        let e = open(&path, None, &[]).err().unwrap().to_string();
        assert!(e.ends_with("two.d: holds several machines: say which with --machine NAME: one, two"), "{e}");
        assert_eq!(open(&path, Some("two"), &[]).unwrap().source.name, "two");
        let e = open(&path, Some("three"), &[]).err().unwrap().to_string();
        assert!(e.contains("has not one machine called 'three'"), "{e}");
        // A disk that the user names replaces the archive's.
        let own = [DiskFile::parse(&format!("xvda1={}", folder.path().join("root").display())).unwrap()];
        assert_eq!(open(&path, Some("one"), &own).unwrap().source.disks[0].size, ROOT as u64);
        // The archive's own gets another name.
        let source = open(&path, Some("one"), &[]).unwrap().source;
        let own = [DiskFile::parse(&format!("xvdc={}", source.disks[0].origin)).unwrap()];
        let renamed = open(&path, Some("one"), &own).unwrap().source;
        let names = |source: &Source| source.disks.iter().map(|disk| disk.target.clone()).collect::<Vec<_>>();
        assert_eq!((names(&renamed)[0].as_str(), &names(&renamed)[1..]), ("xvdc", &names(&source)[1..]));
    }
}
