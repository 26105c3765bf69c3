//! The command line of `v2v`: its own long options, and virt-v2v's words (`-i`, `-o`, `-os`, `-of`, `-oa`, `-on`).

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use guestfs::Keys;
use guestfs_appliance::Accel;
use imgcore::nbd::uri::Uri;
use imgcore::size;
use v2v::input::DiskFile;
use v2v::input::remote::check_url;
use v2v::macs::MacRule;
use v2v::options::{Firmware, Request};
use v2v::output::{DiskFormat, Handover, Plug, PlugRule};
use v2v::phases::Phase;
use v2v::target::Target;

use super::server::ServerArgs;
use crate::common::Failure;

const EXAMPLES: &str = "\
Examples:
  v2v --from xen --to kvm /etc/xen/web.cfg -os /var/lib/libvirt/images
      converts a guest by its xl or xm configuration
  v2v web.xva -os out --check-boot
      converts an export of XenServer or XCP-ng, and starts the result once to see that it boots
  ssh xenserver xe vm-export vm=web filename= | v2v - -os out
      converts an export while it is made: no copy of it is kept
  v2v -i xenserver xen1 --ca xen1.pem --password-file pw
      lists the guests of a XenServer or XCP-ng
  v2v -i xenserver xen1 web --ca xen1.pem --password-file pw -os out
      converts one of them while it is exported: no copy of the export is kept
  v2v -i xenserver xen1 web --ca xen1.pem --password-file pw -os out --phase copy
      copies its disks while it runs; when it is shut down, '--phase finish' copies what has changed, and converts
  v2v --plan web.cfg
      shows everything that would be changed, and changes nothing
  v2v web.cfg -os out --disk xvda2=/mnt/backup/web-root.img
      takes a disk from elsewhere than the configuration says
  v2v web.cfg -os out --grow 10G
      makes the root larger, with its partition and its logical volume
  v2v --to hvm web.cfg -os out
      makes a fully virtual machine of Xen of a paravirtual one
  v2v web.cfg -os out --kernel-package linux-image-amd64.deb
      gives a kernel to a guest that has none of its own, or only one for Xen
  v2v old-sles.cfg -os out --kernel-from new-sles.qcow2
      takes that kernel from another guest
  v2v web.cfg -os out --install-agent qemu-guest-agent.deb
      gives the guest KVM's agent
  v2v /run/sr-mount/SR/0b4cd4c2-6e6b-4f2a-9d0a-3f1f0d6b8a11.vhd -os out -on web --memory 2G --vcpus 2
      converts a disk of a storage repository, with the chain of snapshots below it
  v2v -i sr /dev/sdb3 --vdi 0b4cd4c2-6e6b-4f2a-9d0a-3f1f0d6b8a11 --vdi 7f1a9a34-58a4-4a4b-8f13-0d2b6c1e9c55 -os out -on db
      converts two disks out of a volume group VG_XenStorage-…, none of which has to be active
  v2v batch plan.toml
      converts many guests by a plan: 'v2v batch --help'
  v2v web.cfg -os out --firmware uefi --bridge xenbr0:br0 --mac 0=52:54:00:12:34:56
      makes it start by UEFI, plugs its NICs into another bridge, and gives the first one a new address, in the guest as well
  v2v appliance.ova -os out
      converts an export of VMware, VirtualBox or XenServer, whose disks are read where they are
  v2v web.cfg -o kubevirt -os out --network xenbr0:pod
      writes a manifest for KubeVirt beside the disks; -o proxmox a script with 'qm' commands
  v2v web.cfg -o nbd --nbd nbd://store/web -os out
      writes the disk to an NBD server, and what describes the machine to the folder
  v2v windows.xva -os out --copy-only
      copies a guest that is not converted, with hardware that it knows

Written are DIR/NAME-vda.qcow2 (-vdb, …), DIR/NAME.xml for 'virsh define', and DIR/NAME-run.sh, which starts the guest in QEMU; with
--to hvm DIR/NAME-xvda.qcow2, DIR/NAME.xml for libvirt on Xen, and DIR/NAME.cfg for 'xl create'.
NAME.xml (NAME-kubevirt.yaml, NAME-qm.sh) comes last: where it is, the result is whole. The source is only read.";

/// Converts guests from Xen to KVM.
#[derive(Debug, Parser)]
#[command(name = "v2v", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(crate) struct Args {
    /// The guest: an xl or xm configuration, a libvirt XML, an XVA (file or folder), an OVF or OVA, a VDI in a storage repository, a disk image, or '-'
    /// for an XVA on standard input
    #[arg(value_name = "GUEST")]
    pub guest: PathBuf,

    /// With '-i xenserver': the guest's name or UUID. GUEST is the host then, as HOST or USER@HOST; without VM its guests are listed
    #[arg(value_name = "VM", conflicts_with = "machine")]
    pub vm: Option<String>,

    /// The hypervisor that the guest comes from
    #[arg(long, value_name = "HYPERVISOR", default_value = "xen", value_parser = ["xen"])]
    pub from: String,

    /// Where it goes: kvm, or hvm for a fully virtual machine of Xen
    #[arg(long, value_name = "HYPERVISOR", default_value = "kvm", value_parser = ["kvm", "hvm"], help_heading = "The result")]
    pub to: String,

    /// What GUEST is: auto (by its content), xenserver, xva, ovf, libvirtxml, xlcfg, sr (a storage repository of XenServer) or disk
    #[arg(short = 'i', long = "input", value_name = "MODE", default_value = "auto", help_heading = "What is converted")]
    pub input: String,

    /// How the result is handed over: as files in a folder (local), defined in libvirt besides (libvirt), with a manifest for KubeVirt
    /// (kubevirt) or a script for Proxmox VE (proxmox) instead, with its disks on NBD servers (nbd), as one appliance for XenServer (xva,
    /// with --to hvm), or not at all: all is done, and thrown away (null)
    #[arg(short = 'o', long = "output", value_name = "MODE", default_value = "local", help_heading = "The result")]
    pub output: OutputMode,

    /// A server's disk for a disk of '-o nbd', nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH; once for each, in order
    #[arg(long, value_name = "URI", help_heading = "The result")]
    pub nbd: Vec<String>,

    /// The libvirt of '-o libvirt' (also -oc), as qemu:///system
    #[arg(long, value_name = "URI", help_heading = "The result")]
    pub connect: Option<String>,

    /// The folder of the result (also -os)
    #[arg(long, value_name = "DIR", help_heading = "The result")]
    pub out: Option<PathBuf>,

    /// The format of its disks (also -of)
    #[arg(long, value_name = "FORMAT", default_value = "qcow2", help_heading = "The result")]
    pub format: Format,

    /// How room for its disks is taken (also -oa)
    #[arg(long, value_name = "MODE", default_value = "sparse", help_heading = "The result")]
    pub allocation: Allocation,

    /// Its name (also -on); the source's if not given
    #[arg(long, value_name = "NAME", help_heading = "The result")]
    pub name: Option<String>,

    /// Replace a result of that name, and take a guest that runs here or a disk that is in use
    #[arg(long)]
    pub force: bool,

    /// Only replace a result of that name
    #[arg(long, hide = true)]
    pub replace: bool,

    /// Convert in two phases: 'copy' copies the disks while the guest runs, and again what has changed since; when it is shut down, 'finish'
    /// copies the rest and converts. 'forget' removes the copy, and the snapshot that a XenServer keeps for it
    #[arg(long, value_name = "PHASE", conflicts_with = "plan", help_heading = "What is converted")]
    pub phase: Option<PhaseArg>,

    /// The machine that is meant, by name or UUID, where an appliance holds several
    #[arg(long, value_name = "NAME", help_heading = "What is converted")]
    pub machine: Option<String>,

    /// A disk that the source does not name, or names wrongly: xvda2=FILE, with ',format=raw' behind it if need be
    #[arg(long, value_name = "[TARGET=]FILE", help_heading = "What is converted")]
    pub disk: Vec<String>,

    /// A VDI of a storage repository, by its uuid, with the guest's name of the disk before it where that is known (may be repeated)
    #[arg(long, value_name = "[TARGET=]UUID", help_heading = "What is converted")]
    pub vdi: Vec<String>,

    /// Memory of the result in MiB, as 2048, or with a unit, as 2G; the source's if not given
    #[arg(long, value_name = "SIZE", value_parser = memory, help_heading = "The new machine")]
    pub memory: Option<u64>,

    /// Processors of the result; the source's if not given
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "The new machine")]
    pub vcpus: Option<u32>,

    /// The root filesystem, where there are several systems: /dev/xvda2, UUID=…
    #[arg(long, value_name = "DEVICE", help_heading = "What is converted")]
    pub root: Option<String>,

    /// Whether volumes become partitions of one bootable disk, or every disk stays as it is
    #[arg(long, value_name = "LAYOUT", default_value = "merge", help_heading = "The new machine")]
    pub layout: LayoutArg,

    /// Make the root larger by so much: its partition, its logical volume and its filesystem
    #[arg(long, value_name = "SIZE", value_parser = |text: &str| size::parse(text.strip_prefix('+').unwrap_or(text)), help_heading = "The new machine")]
    pub grow: Option<u64>,

    /// Where partitions start: at multiples of so many bytes, from 64K to 1G. New ones do so at 1M if it is not given; those of a
    /// disk that has a partition table move if they have to
    #[arg(long, value_name = "SIZE", value_parser = alignment, help_heading = "The new machine")]
    pub alignment: Option<u64>,

    /// A key of an encrypted volume: ID:key:PASSPHRASE or ID:file:FILE, where ID is its device, its UUID or 'all' (may be repeated)
    #[arg(long, value_name = "SELECTOR", help_heading = "What is converted")]
    pub key: Vec<String>,

    /// The Xen host's kernel, for a guest without one of its own
    #[arg(long, value_name = "FILE", help_heading = "Changes in the guest")]
    pub kernel: Option<PathBuf>,

    /// The ramdisk that belongs to --kernel
    #[arg(long, value_name = "FILE", requires = "kernel", help_heading = "Changes in the guest")]
    pub ramdisk: Option<PathBuf>,

    /// A kernel package of the guest's distribution (.deb, .rpm, .apk, .pkg.tar.zst) to install in it, offline; what it depends on as well
    #[arg(long, value_name = "PACKAGE", help_heading = "Changes in the guest")]
    pub kernel_package: Vec<PathBuf>,

    /// Another guest of that distribution (a configuration or a disk image) whose kernel and modules are put into this one
    #[arg(long, value_name = "GUEST", conflicts_with = "kernel_package", help_heading = "Changes in the guest")]
    pub kernel_from: Option<PathBuf>,

    /// A package of QEMU's guest agent (.deb, .rpm, .apk, .pkg.tar.zst) to install in the guest, offline; what it depends on as well
    #[arg(long, value_name = "PACKAGE", conflicts_with = "copy_only", help_heading = "Changes in the guest")]
    pub install_agent: Vec<PathBuf>,

    /// What starts the result; as the source if not given. 'uefi' gives a guest that a BIOS or Xen itself started an ESP with a loader
    #[arg(long, value_name = "FIRMWARE", conflicts_with = "copy_only", help_heading = "The new machine")]
    pub firmware: Option<FirmwareArg>,

    /// Copy the disks and describe the machine, and change nothing in the guest: for Windows, BSD, and whatever is not converted
    #[arg(long, conflicts_with_all = ["kernel", "kernel_package", "root"], help_heading = "Changes in the guest")]
    pub copy_only: bool,

    /// Another MAC address for a NIC, by its old one or its number from 0; the guest's configuration follows (may be repeated)
    #[arg(long, value_name = "OLD=NEW|INDEX=NEW", help_heading = "The new machine")]
    pub mac: Vec<String>,

    /// Where NICs are plugged in: a bridge, or OLD:NEW for those of one bridge or network
    #[arg(long, value_name = "[OLD:]BRIDGE", help_heading = "The new machine")]
    pub bridge: Vec<String>,

    /// Where NICs are plugged in: a network of libvirt, or OLD:NEW
    #[arg(long, value_name = "[OLD:]NETWORK", help_heading = "The new machine")]
    pub network: Vec<String>,

    /// What runs the appliance: kvm, tcg (QEMU's translator) or auto; the environment's GUESTLIFT_ACCEL says so, too
    #[arg(long, value_name = "ACCEL")]
    pub accel: Option<Accel>,

    /// Let images name files in this folder too, not only in their own
    #[arg(long, value_name = "DIR", help_heading = "What is converted")]
    pub allow_path: Vec<PathBuf>,

    /// Show every change as a diff, and change nothing
    #[arg(long)]
    pub plan: bool,

    /// Start the result on a throw-away overlay and wait for its login prompt, for so many seconds
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "300")]
    pub check_boot: Option<u64>,

    /// Write what was found, done and measured as JSON
    #[arg(long, value_name = "FILE.json")]
    pub report: Option<PathBuf>,

    /// Print the plan or the report as JSON on standard output
    #[arg(long)]
    pub json: bool,

    /// Print what happens as JSON lines on standard output: for the program that has started this one
    #[arg(long, hide = true, conflicts_with = "json")]
    pub events: bool,

    /// End when this process, which must be the parent, does
    #[arg(long, hide = true, value_name = "PID")]
    pub parent: Option<i32>,

    #[command(flatten)]
    pub server: ServerArgs,

    /// Say what is done and why, and show the console of --check-boot
    #[arg(short, long, conflicts_with = "quiet")]
    pub verbose: bool,

    /// Say nothing but errors
    #[arg(short, long)]
    pub quiet: bool,
}

/// How a result is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputMode {
    Local,
    Libvirt,
    Kubevirt,
    Proxmox,
    Nbd,
    Xva,
    Null,
}

/// The format of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Qcow2,
    Raw,
}

/// How room is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Allocation {
    Sparse,
    Preallocated,
}

/// What becomes of disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutArg {
    Merge,
    Keep,
}

/// What starts a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FirmwareArg {
    Bios,
    Uefi,
}

/// What is done of a conversion in two phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum PhaseArg {
    Copy,
    Finish,
    Forget,
}

/// virt-v2v's words of several letters behind one dash, which clap does not know.
const WORDS: &[(&str, &str)] = &[("-os", "--out"), ("-of", "--format"), ("-oa", "--allocation"), ("-on", "--name"), ("-oc", "--connect")];

/// Options that take packages.
const PACKAGES: [&str; 2] = ["--kernel-package", "--install-agent"];
const PACKAGE_ENDINGS: [&str; 4] = [".deb", ".rpm", ".apk", ".pkg.tar.zst"];

/// Writes virt-v2v's words as long options, and `--kernel-package A.deb B.deb` as two of them: clap would take B.deb for GUEST.
pub(crate) fn translated(arguments: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let (mut rest, mut option, mut is_value) = (false, None, false);
    let word = |argument: OsString| {
        rest |= argument == "--";
        let is_package = |a: &str| PACKAGE_ENDINGS.iter().any(|end| a.ends_with(end)) && !a.starts_with('-');
        let another = option.filter(|_| !is_value && !rest && argument.to_str().is_some_and(is_package));
        let begun = PACKAGES.into_iter().find(|option| argument == *option);
        option = begun.or(another).or(option.filter(|_| is_value));
        is_value = begun.is_some();
        if let Some(option) = another {
            return format!("{option}={}", argument.to_string_lossy()).into();
        }
        let text = argument.to_str().filter(|_| !rest).unwrap_or_default();
        let (name, value) = text.split_once('=').map_or((text, None), |(n, v)| (n, Some(v)));
        match (WORDS.iter().find(|(short, _)| *short == name), value) {
            (Some((_, long)), None) => (*long).into(),
            (Some((_, long)), Some(value)) => format!("{long}={value}").into(),
            (None, _) => argument,
        }
    };
    arguments.map(word).collect()
}

/// A power of two, so that what is aligned to it is aligned to less; never less than what a stream is put together of.
fn alignment(text: &str) -> Result<u64, String> {
    let size = size::parse(text).map_err(|e| e.to_string())?;
    let fits = size.is_power_of_two() && (64 << 10..=1 << 30).contains(&size);
    if fits { Ok(size) } else { Err("it must be a power of two from 64K to 1G".into()) }
}

/// A bare number is MiB, as in configurations of Xen.
fn memory(text: &str) -> Result<u64, String> {
    let mib = match text.parse() {
        Ok(mib) => mib,
        Err(_) => size::parse(text).map_err(|e| e.to_string())? >> 20,
    };
    if (1..=64 << 20).contains(&mib) { Ok(mib) } else { Err("it must be from 1 MiB to 64 TiB".into()) }
}

impl Args {
    fn handover(&self) -> Result<Handover, Failure> {
        if self.output != OutputMode::Nbd && !self.nbd.is_empty() {
            return Err(Failure::new("--nbd is for -o nbd").code(2));
        }
        Ok(match self.output {
            OutputMode::Xva => Handover::Appliance,
            OutputMode::Kubevirt => Handover::KubeVirt,
            OutputMode::Proxmox => Handover::Proxmox,
            OutputMode::Nbd => Handover::Nbd(self.nbd.iter().map(|uri| Uri::parse(uri)).collect::<Result<_, _>>()?),
            OutputMode::Local | OutputMode::Libvirt | OutputMode::Null => Handover::Files,
        })
    }

    /// Whether the host's guests are asked for, and no conversion.
    pub fn is_list(&self) -> bool {
        let names_none = self.vm.is_none() && self.machine.is_none() && !self.guest.to_string_lossy().contains("/export");
        self.server.list
            || (self.input == "xenserver" && names_none && self.out.is_none() && !self.plan && self.output == OutputMode::Local)
    }

    /// What is asked for, in the library's words.
    pub fn request(&self) -> Result<Request, Failure> {
        check_url(&self.guest)?;
        if let Some(vm) = &self.vm
            && self.input != "xenserver"
        {
            return Err(Failure::new(format!("'{vm}': only '-i xenserver' has a second word behind the guest")).code(2));
        }
        let discard = self.output == OutputMode::Null;
        let out = match &self.out {
            Some(out) => out.clone(),
            None if discard => std::env::temp_dir(),
            None if self.plan => ".".into(),
            None => return Err(Failure::new("where to? say it with -os DIR").code(2)),
        };
        let target = if self.to == "hvm" { Target::XenHvm } else { Target::Kvm };
        let handover = self.handover()?;
        if handover == Handover::Appliance && target != Target::XenHvm {
            return Err(Failure::new("-o xva: an appliance is for Xen").hint("add --to hvm"));
        }
        if self.copy_only && target != Target::Kvm {
            return Err(Failure::new("--copy-only makes machines of KVM").hint("a fully virtual guest needs no conversion for Xen"));
        }
        if !self.install_agent.is_empty() && target != Target::Kvm {
            return Err(
                Failure::new("--install-agent: QEMU's agent serves guests of KVM").hint("install xe-guest-utilities for a XenServer")
            );
        }
        if matches!(handover, Handover::KubeVirt | Handover::Proxmox | Handover::Nbd(_)) && target != Target::Kvm {
            return Err(Failure::new("-o kubevirt, -o proxmox and -o nbd are for KVM").hint("leave --to hvm away"));
        }
        let mut keys = Keys::default();
        self.key.iter().try_for_each(|selector| keys.add(selector))?;
        let plugs = |texts: &[String], plug: fn(String) -> Plug| texts.iter().map(|t| PlugRule::parse(t, plug)).collect::<Vec<_>>();
        Ok(Request {
            target,
            handover,
            guest: self.guest.clone(),
            input: self.input.clone(),
            machine: self.machine.clone().or(self.vm.clone()),
            remote: self.server.remote.remote(),
            disks: self.disk.iter().map(|d| DiskFile::parse(d)).collect::<Result<_, _>>()?,
            vdis: self.vdi.clone(),
            memory_mib: self.memory,
            vcpus: self.vcpus,
            allow: self.allow_path.clone(),
            kernel: self.kernel.clone(),
            ramdisk: self.ramdisk.clone(),
            kernel_packages: self.kernel_package.clone(),
            agent_packages: self.install_agent.clone(),
            kernel_from: self.kernel_from.clone(),
            root: self.root.clone(),
            keep_layout: self.layout == LayoutArg::Keep,
            grow: self.grow,
            alignment: self.alignment,
            keys,
            out,
            format: if self.format == Format::Raw { DiskFormat::Raw } else { DiskFormat::Qcow2 },
            preallocated: self.allocation == Allocation::Preallocated,
            name: self.name.clone(),
            force: self.force || self.replace,
            in_use: self.force || matches!(self.phase, Some(PhaseArg::Copy | PhaseArg::Forget)),
            phase: self.phase.map(|phase| match phase {
                PhaseArg::Copy => Phase::Copy,
                PhaseArg::Finish => Phase::Finish,
                PhaseArg::Forget => Phase::Forget,
            }),
            discard,
            firmware: self.firmware.map(|f| if f == FirmwareArg::Uefi { Firmware::Uefi } else { Firmware::Bios }),
            copy_only: self.copy_only,
            macs: self.mac.iter().map(|m| MacRule::parse(m)).collect::<Result<_, _>>()?,
            plugs: [plugs(&self.bridge, Plug::Bridge), plugs(&self.network, Plug::Network)].concat(),
            check_boot: self.check_boot.map(Duration::from_secs),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(words: &[&str]) -> Args {
        Args::try_parse_from(translated(std::iter::once("v2v").chain(words.iter().copied()).map(OsString::from))).unwrap()
    }

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn words_of_virt_v2v() {
        let args = parse(&[
            "--from",
            "xen",
            "--to",
            "kvm",
            "-i",
            "xlcfg",
            "web.cfg",
            "-o",
            "local",
            "-os",
            "out",
            "-of",
            "raw",
            "-oa",
            "preallocated",
            "-on=new",
        ]);
        assert_eq!(args.guest, PathBuf::from("web.cfg"));
        let request = args.request().unwrap();
        assert_eq!((request.input.as_str(), request.out, request.format), ("xlcfg", PathBuf::from("out"), DiskFormat::Raw));
        assert!(request.preallocated);
        assert_eq!(request.name.as_deref(), Some("new"));
    }

    #[test]
    fn the_short_form() {
        let args = parse(&["-", "-os", "out", "--check-boot", "--disk", "xvda2=x"]);
        assert_eq!(args.guest, PathBuf::from("-"));
        assert_eq!(args.check_boot, Some(300));
        assert_eq!(parse(&["x", "-os", "out", "--check-boot=60"]).check_boot, Some(60));
        assert!(parse(&["--plan", "x"]).out.is_none());
        for words in [
            &["--kernel-package", "a.deb", "b.deb", "x", "--plan"][..],
            &["x", "--plan", "--kernel-package", "a.deb", "--kernel-package=b.deb"],
            &["--plan", "--kernel-package", "a.deb", "b.deb", "x"],
        ] {
            let args = parse(words);
            assert_eq!((args.guest, args.kernel_package), (PathBuf::from("x"), vec!["a.deb".into(), "b.deb".into()]));
        }
        let after_dashes = translated(["--", "-os"].into_iter().map(OsString::from));
        assert_eq!(after_dashes, ["--", "-os"]);
    }

    #[test]
    fn guests_of_a_server_have_two_words() {
        let args = parse(&["-i", "xenserver", "root@xen1", "web", "-os", "out", "--snapshot", "--phase", "copy"]);
        assert!(!args.is_list());
        let request = args.request().unwrap();
        assert_eq!((request.machine.as_deref(), request.phase, request.in_use), (Some("web"), Some(Phase::Copy), true));
        assert!(request.remote.snapshot && !request.force);
        assert!(parse(&["-i", "xenserver", "xen1"]).is_list() && parse(&["https://xen1", "--list"]).is_list());
        assert!(!parse(&["-i", "xenserver", "xen1", "-os", "out"]).is_list());
        assert_eq!(parse(&["web.cfg", "db.cfg", "-os", "out"]).request().unwrap_err().exit_code(), 2);
        let leak = parse(&["https://root:geheim@xen1/export?uuid=1", "-os", "out"]).request().unwrap_err();
        assert!(!leak.message().contains("geheim"), "{}", leak.message());
        let replaced = parse(&["web.cfg", "-os", "out", "--replace"]).request().unwrap();
        assert!(replaced.force && !replaced.in_use);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert_eq!(parse(&["x"]).request().unwrap_err().exit_code(), 2);
        for words in [
            &["x", "-os"][..],
            &["x", "-os", "out", "-o", "rhv"],
            &["x", "-os", "out", "--from", "vmware"],
            &["x", "-os", "out", "-v", "-q"],
        ] {
            let words = std::iter::once("v2v").chain(words.iter().copied()).map(OsString::from);
            assert!(Args::try_parse_from(translated(words)).is_err());
        }
    }

    #[test]
    fn a_rehearsal_needs_no_place() {
        let request = parse(&["x", "-o", "null"]).request().unwrap();
        assert!(request.discard && request.out == std::env::temp_dir());
        assert!(!parse(&["x", "-os", "out", "-o", "libvirt", "-oc", "qemu:///system"]).request().unwrap().discard);
        let failure = parse(&["x", "-os", "out", "-o", "xva"]).request().unwrap_err();
        assert_eq!(failure.message(), "-o xva: an appliance is for Xen");
        let request = parse(&["x", "-os", "out", "-o", "xva", "--to", "hvm"]).request().unwrap();
        assert!(request.handover == Handover::Appliance && request.target == Target::XenHvm);
    }
}
