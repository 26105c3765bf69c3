//! The conversion: read, inspect, plan, copy, change, describe, check.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use guestfs::engine::Disk;
use guestfs::inspect::{Inspection, System};
use guestfs::volume::{GuestDisk, Place, Volume, Volumes};
use guestfs::{Guest, OpenOptions};
use imgcore::formats::CreateOptions;
use imgcore::storage::FileStorage;
use imgcore::{ImageMut, Progress, copy};

use crate::copy_only::{self, Copy};
use crate::disk_build;
use crate::esp::Esp;
use crate::grow::Growth;
use crate::input::Opened;
use crate::layout::Layout;
use crate::options::{Firmware, Host, Request};
use crate::output::nbd::NbdDisk;
use crate::output::{DiskFormat, Folder, Handover, Machine, xva};
use crate::plan::{self, Plan};
use crate::report::{Clock, Ran, Report};
use crate::source::{Boot, Source};
use crate::staged::Staged;
use crate::step::{self, Context};
use crate::stream::Spool;
use crate::target::Target;
use crate::{Error, Result, finish, health, input, macs, phases, room, stack, steps, stream};

/// Files of the Xen host and packages are no larger.
const HOST_FILE_LIMIT: u64 = 1 << 30;

/// Says what a conversion would do. Nothing is written, but for a stream, which is spooled to a nameless temporary file.
pub fn plan(request: &Request, host: &Host<'_>) -> Result<Plan> {
    let mut clock = Clock::new(host.events);
    let Opened { mut source, stream, .. } = read(request, host, &mut clock)?;
    let name = finish::name(request, &source)?;
    if let Some(stream) = stream {
        let folder = std::env::temp_dir();
        let spool = clock.stage("Reading the stream", || stream::receive(stream, &source, &stream::Place::Nameless(&folder), host))?;
        spool.attach(&mut source)?;
    }
    if request.copy_only {
        return Ok(Copy::new(&source)?.plan(request, &source, &name, &String::clone));
    }
    let guest = clock.stage("Inspecting the guest", || open(request, request.root.as_deref(), &source, host))?;
    let donor = donor(request, host, &mut clock)?;
    let prepared = Prepared::new(request, &source, &guest)?;
    let options = step_options(request, &source, &prepared)?;
    let context = clock.stage("Planning", || prepared.run_steps(&source, &options, &guest, donor.as_ref()))?;
    let outputs = if request.discard { Vec::new() } else { finish::files(request, &name, &prepared.layout) };
    Ok(prepared.plan(&source, &context, outputs))
}

/// Converts a guest.
///
/// A boot check that fails is not an error: the result is kept, and [`Report::is_success`] says so.
///
/// `ready` gets the report when all is done but the renaming of the result's files into place: who keeps it there knows of every
/// result how it came about. Its error stops the conversion.
pub fn convert(request: &Request, host: &Host<'_>, ready: &mut dyn FnMut(&Report) -> Result<()>) -> Result<Report> {
    let mut clock = Clock::new(host.events);
    let mut copied = phases::Copy::wanted(request, host)?;
    let Opened { mut source, stream, verify } = match &mut copied {
        Some(copy) => complete(request, copy.update(request, host, &mut clock, false)?.into())?,
        None => read(request, host, &mut clock)?,
    };
    let name = finish::name(request, &source)?;
    let folder = Folder::begin(&request.out, &name)?;
    let may_replace = request.force || request.discard;
    if !may_replace {
        folder.check_free(&[finish::mark(request, &name)])?;
    }
    if let Some(verify) = verify {
        clock.stage("Checking the source's checksums", || verify(host.progress))?;
    }
    // A rehearsal leaves the copy as it is.
    let mut spool = copied.as_ref().map(|copy| copy.attach(&mut source, host, !request.discard)).transpose()?;
    if let Some(stream) = stream {
        let place = stream::Place::Folder(folder.work());
        let received = clock.stage("Reading the stream", || stream::receive(stream, &source, &place, host))?;
        received.attach(&mut source)?;
        spool = Some(received);
    }
    if request.copy_only {
        let report = Copy::new(&source)?.write(request, host, clock, &source, spool.as_ref(), folder, &name, ready)?;
        phases::done(copied, request, host);
        return Ok(report);
    }
    let guest = clock.stage("Inspecting the guest", || open(request, request.root.as_deref(), &source, host))?;
    let donor = donor(request, host, &mut clock)?;
    let prepared = Prepared::new(request, &source, &guest)?;
    let options = step_options(request, &source, &prepared)?;
    let context = clock.stage("Planning", || prepared.run_steps(&source, &options, &guest, donor.as_ref()))?;
    let files = finish::files(request, &name, &prepared.layout);
    finish::check_free(request, &source, &folder, &files)?;
    // A stream is in the folder already.
    let in_folder = spool.is_none() && !matches!(request.handover, Handover::Nbd(_));
    let room = if in_folder { room::check(&source, &prepared.layout, folder.work(), request.preallocated)? } else { None };
    let shown = if request.discard { &[][..] } else { &files[..] };
    let plan = prepared.plan(&source, &context, shown.iter().map(|f| folder.path_of(f).display().to_string()).collect());
    for warning in plan.warnings.iter().chain(&room) {
        host.events.warning(warning);
    }

    if !context.fs.is_unchanged() || prepared.growth.is_some() || context.facts.loader.is_some() {
        host.engine.check()?;
    }
    let remote = finish::remote(request, &prepared.layout, host, &mut clock)?;
    let disk_files = finish::disk_files(request, &name, &prepared.layout);
    let targets = clock.stage("Copying the disks", || {
        copy_disks(request, host, &source, &prepared.layout, spool.as_ref(), &folder, &disk_files, &remote)
    })?;
    if let Some(esp) = &prepared.esp
        && let Some(target) = targets.get(esp.disk)
    {
        esp.write_table(target.as_ref())?;
    }
    if let (Some(grub), Some(place)) = (&context.facts.grub, &context.facts.boot_place)
        && let Some(target) = targets.get(place.disk)
    {
        grub.embed(target.as_ref(), place)?;
    }
    stop_if_cancelled(host.progress)?;
    let ran = clock.stage("Changing the guest", || prepared.apply(&source, &context, &targets, host))?;
    stop_if_cancelled(host.progress)?;
    let mut machine = finish::machine(request, &source, &prepared.layout, prepared.inspection.arch, &name, &folder);
    machine.uefi |= prepared.esp.is_some();
    // What was spooled is no part of the result.
    drop(context);
    drop(guest);
    let boot_check = finish::describe(request, host, &mut clock, &machine, targets, &folder)?;
    let policy = source.policy.clone();
    let report = Report { name, policy, plan, ran: ran.iter().map(Ran::from).collect(), boot_check, timings: clock.timings() };
    finish::hand_over(request, folder, &files, &remote, &report, ready)?;
    phases::done(copied, request, host);
    Ok(report)
}

/// The source, complete: every NIC has a MAC address.
fn read(request: &Request, host: &Host<'_>, clock: &mut Clock<'_>) -> Result<Opened> {
    let opened = clock.stage("Reading the source", || input::read(&request.input, &input_request(request, host)))?;
    complete(request, opened)
}

/// What is asked of the input.
pub(crate) fn input_request<'a>(request: &'a Request, host: &Host<'a>) -> input::Request<'a> {
    input::Request {
        guest: &request.guest,
        formats: host.formats,
        allow: &request.allow,
        machine: request.machine.as_deref(),
        disks: &request.disks,
        vdis: &request.vdis,
        kernel: request.kernel.as_deref(),
        ramdisk: request.ramdisk.as_deref(),
        remote: &request.remote,
        in_use: request.in_use,
    }
}

/// What the user says goes before what the source does.
fn complete(request: &Request, mut opened: Opened) -> Result<Opened> {
    let source = &mut opened.source;
    source.memory_mib = request.memory_mib.unwrap_or(source.memory_mib);
    source.vcpus = request.vcpus.unwrap_or(source.vcpus);
    macs::assign(source, &request.macs)?;
    source.warnings.extend(Machine::unplugged(source, &request.plugs));
    if request.target.is_xen() {
        for disk in source.disks.iter_mut().filter(|disk| disk.read_only) {
            source.warnings.push(format!("{} was read only: Xen emulates no such disk, and the result's can be written", disk.target));
            disk.read_only = false;
        }
    }
    // What an appliance's machine has for a clock, its server says.
    source.local_time &= request.handover != Handover::Appliance;
    if request.handover == Handover::Appliance && !xva::has_one_network(&Machine::nics(source, &request.plugs)) {
        let several = "the NICs are on several networks, and the appliance names only the first: choose the others after the import";
        source.warnings.push(several.into());
    }
    Ok(opened)
}

/// The guest whose kernel is to be taken, under the name that the user gave.
fn donor(request: &Request, host: &Host<'_>, clock: &mut Clock<'_>) -> Result<Option<(String, Guest)>> {
    let Some(path) = &request.kernel_from else { return Ok(None) };
    let name = path.display().to_string();
    // Its kernel does not change under us.
    let donor = input::Request { allow: &request.allow, remote: &request.remote, in_use: true, ..input::Request::new(path, host.formats) };
    let guest = clock.stage("Inspecting the kernel's guest", || {
        let opened = input::read("auto", &donor)?;
        if opened.stream.is_some() {
            return Err(Error::Invalid(format!("--kernel-from {name}: this is a stream: give a disk image or a configuration")));
        }
        open(request, None, &opened.source, host)
    })?;
    Ok(Some((name, guest)))
}

fn open(request: &Request, root: Option<&str>, source: &Source, host: &Host<'_>) -> Result<Guest> {
    let disk = |d: &crate::source::SourceDisk| {
        let image = d.image.clone().ok_or_else(|| Error::Invalid(format!("disk {} ({}) has not been read", d.target, d.origin)))?;
        Ok(GuestDisk { name: d.target.clone(), image })
    };
    let disks = source.disks.iter().map(disk).collect::<Result<_>>()?;
    let log = |what: &str| host.events.detail(what);
    let options = OpenOptions { appliance: Some(host.engine), root, keys: Some(&request.keys), log: &log, ..Default::default() };
    let failed = |e: Error| copy_only::explain(source, Error::Invalid(format!("{}: {e}", source.name)));
    let guest = Guest::open(disks, &options).map_err(|e| failed(e.into()))?;
    match &guest.inspection {
        Some(Inspection { system, release, .. }) if *system != System::Linux => {
            Err(failed(Error::Invalid(format!("{} is not converted, only Linux is", release.product_name))))
        }
        _ => Ok(guest),
    }
}

/// What the steps are asked for: the Xen host's kernel, and packages.
fn step_options(request: &Request, source: &Source, prepared: &Prepared) -> Result<step::Options> {
    let mut options = step::Options { target: request.target, esp: prepared.esp.clone(), ..step::Options::default() };
    if let Boot::Direct { kernel: Some(kernel), ramdisk, .. } = &source.boot {
        match host_kernel(request, kernel, ramdisk.as_deref()) {
            Ok(kernel) => options.host_kernel = Some(kernel),
            Err(e) if request.kernel.is_some() || request.ramdisk.is_some() => return Err(e),
            Err(e) => options.host_kernel_problem = Some(e.to_string()),
        }
    }
    let packages = |paths: &[PathBuf]| -> Result<_> {
        paths.iter().map(|path| Ok(step::Package { name: file_name(path), data: host_file(path)? })).collect()
    };
    options.kernel_packages = packages(&request.kernel_packages)?;
    options.agent_packages = packages(&request.agent_packages)?;
    Ok(options)
}

fn host_kernel(request: &Request, kernel: &Path, ramdisk: Option<&Path>) -> Result<step::HostKernel> {
    let find = |path: &Path| {
        let text = path.to_string_lossy();
        let named = input::images::Named { config: Some(&request.guest), path: &text, format: None, in_dev: false };
        input::images::find(&named, &mut Vec::new()).map_err(Error::Invalid)
    };
    let ramdisk = match ramdisk {
        None => None,
        Some(path) => {
            let found = find(path)?;
            Some((file_name(&found), host_file(&found)?))
        }
    };
    let found = find(kernel)?;
    Ok(step::HostKernel { kernel_name: file_name(&found), kernel: host_file(&found)?, ramdisk })
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

fn host_file(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| Error::Io { file: path.display().to_string(), action: "read", source };
    let size = path.metadata().map_err(failed)?.len();
    if size > HOST_FILE_LIMIT {
        return Err(Error::Invalid(format!("{}: larger than 1 GiB: this is no kernel and no package", path.display())));
    }
    std::fs::read(path).map_err(failed)
}

/// Whether the guest is to start by UEFI, and did not.
fn wants_esp(request: &Request, source: &Source, arch: &str) -> Result<bool> {
    match (request.firmware, &source.boot) {
        (Some(Firmware::Bios), Boot::Uefi) => Err(Error::Invalid(format!(
            "{}: it starts by UEFI, and is not made to start by a BIOS: leave --firmware bios away",
            source.name
        ))),
        (Some(Firmware::Uefi), _) if request.target != Target::Kvm => {
            Err(Error::Invalid(format!("{}: --firmware uefi is for KVM: {} gets a BIOS", source.name, request.target.name())))
        }
        (None | Some(Firmware::Bios), _) | (Some(Firmware::Uefi), Boot::Uefi) => Ok(false),
        (Some(Firmware::Uefi), _) if arch == "x86_64" => Ok(true),
        (Some(Firmware::Uefi), _) => {
            Err(Error::Invalid(format!("{}: its programs are for {arch}, and only 64-bit PCs are made to start by UEFI", source.name)))
        }
    }
}

/// What is known before the steps run.
struct Prepared {
    layout: Layout,
    inspection: Inspection,
    volumes: Volumes,
    mounts: Vec<stack::Mounted>,
    growth: Option<Growth>,
    /// Where a loader for UEFI goes, for a guest that did not start by it.
    esp: Option<Esp>,
}

impl Prepared {
    fn new(request: &Request, source: &Source, guest: &Guest) -> Result<Self> {
        let inspection = guest.inspection.clone().ok_or_else(|| Error::Invalid(format!("{}: was not inspected", source.name)))?;
        let mounts = stack::mounted(&guest.volumes, &inspection);
        let places = disk_build::Places { boot: stack::disks(&mounts, "/boot"), root: stack::disks(&mounts, "/") };
        let growth = request.grow.map(|by| Growth::new(&source.name, &guest.volumes, inspection.root, &mounts, by)).transpose()?;
        let contents = disk_build::examine(source)?;
        let options = disk_build::Options {
            keep: request.keep_layout,
            target: request.target,
            alignment: request.alignment.unwrap_or(disk_build::ALIGNMENT),
            realign: request.alignment.is_some(),
            grow: growth.clone(),
            places: Some(places),
        };
        let mut layout = disk_build::compute(source, &contents, &options)?;
        let esp = match wants_esp(request, source, inspection.arch)? {
            true => Some(Esp::place(&mut layout, source, &contents)?),
            false => None,
        };
        Ok(Prepared { layout, inspection, volumes: guest.volumes.clone(), mounts, growth, esp })
    }

    fn run_steps<'a>(
        &'a self,
        source: &'a Source,
        options: &'a step::Options,
        guest: &'a Guest,
        donor: Option<&'a (String, Guest)>,
    ) -> Result<Context<'a>> {
        let mut context = Context::new(source, &self.layout, options, Staged::new(guest.fs()))?;
        context.mounts.clone_from(&self.mounts);
        context.donor = donor.map(|(name, guest)| step::Donor { name, fs: guest.fs() });
        steps::run_all(&mut context)?;
        Ok(context)
    }

    fn plan(&self, source: &Source, context: &Context<'_>, outputs: Vec<String>) -> Plan {
        let mut warnings = source.warnings.clone();
        warnings.extend(health::warnings(source, &self.layout));
        for step in &context.reports {
            warnings.extend(step.warnings.iter().map(|w| format!("{}: {w}", step.name)));
        }
        let command = |c: &crate::staged::StagedCommand| plan::Command {
            command: c.shown(),
            step: c.step.into(),
            why: c.why.clone(),
            makes: c.makes.clone(),
        };
        Plan {
            guest: plan::Guest {
                system: self.inspection.release.product_name.clone(),
                arch: self.inspection.arch.into(),
                hostname: self.inspection.hostname.clone(),
                ..plan::Guest::of(source)
            },
            disks: plan::disks(&self.layout, source),
            boot_loader: context.facts.boot_loader.clone(),
            steps: context.reports.clone(),
            files: context.fs.diff(),
            commands: context.fs.commands().iter().map(command).collect(),
            outputs,
            warnings,
        }
    }

    /// Makes all changes on the copied disks, in one appliance.
    fn apply(
        &self,
        source: &Source,
        context: &Context<'_>,
        targets: &[Arc<dyn ImageMut>],
        host: &Host<'_>,
    ) -> Result<Vec<crate::staged::Ran>> {
        let staged = &context.fs;
        if staged.is_unchanged() && self.growth.is_none() && context.facts.loader.is_none() {
            return Ok(Vec::new());
        }
        let mut session = host.engine.start(targets.iter().cloned().map(Disk::Writable).collect(), self.growth.is_some())?;
        if let (Some(esp), Some(loader)) = (&self.esp, &context.facts.loader) {
            esp.install(session.as_mut(), loader)?;
        }
        let on_target = |volume: &Volume| match volume.place {
            Place::Disk { disk, start } => {
                let place = self.layout.volumes().find(|v| v.disk == disk && v.source_offset == start);
                place.and_then(|place| self.layout.in_appliance(place))
            }
            // What lies on other volumes is found wherever they are.
            _ => Some(volume.device.clone()),
        };
        self.volumes.activate_on(session.as_mut(), &on_target)?;
        if let Some(growth) = &self.growth {
            growth.apply(session.as_mut(), &self.volumes, &on_target)?;
        }
        for mount in &self.inspection.mounts {
            let Some(volume) = self.volumes.volumes.get(mount.volume).filter(|volume| !volume.is_blank()) else { continue };
            let Some(device) = on_target(volume) else {
                return Err(Error::Invalid(format!("{}: {} has no place on the new disks", source.name, volume.device)));
            };
            let subvolume = mount.options.split(|b| *b == b',').find(|o| o.starts_with(b"subvol"));
            let options = subvolume.map(|s| format!("rw,{}", String::from_utf8_lossy(s)));
            match session.mount(&device, &mount.path, volume.kind(), options.as_deref().unwrap_or("rw")) {
                // Its mount point is missing, or it is damaged: so it was on Xen, and nothing of ours belongs there.
                Err(e) if !matches!(e, guestfs::Error::Appliance { .. }) && !is_needed(&mount.path, staged) => {
                    host.events.warning(&format!("{} on {device} is not mounted, and stays as it is: {e}", guestfs::show(&mount.path)));
                }
                outcome => outcome?,
            }
        }
        let ran = staged.apply(&source.name, session.as_mut())?;
        session.unmount_all()?;
        session.shutdown()?;
        Ok(ran)
    }
}

/// Whether anything is changed below this mount point, or a command may look there.
fn is_needed(mount: &[u8], staged: &Staged<'_>) -> bool {
    let below = |path: &[u8]| path.strip_prefix(mount).is_some_and(|rest| rest.first() == Some(&b'/'));
    mount == b"/" || !staged.commands().is_empty() || staged.changes().iter().any(|c| below(c.op.path()))
}

/// Makes the new disks, or takes those on servers, and fills them.
#[allow(clippy::too_many_arguments, reason = "what a conversion has at hand there")]
pub(crate) fn copy_disks(
    request: &Request,
    host: &Host<'_>,
    source: &Source,
    layout: &Layout,
    spool: Option<&Spool>,
    folder: &Folder,
    files: &[String],
    remote: &[Arc<NbdDisk>],
) -> Result<Vec<Arc<dyn ImageMut>>> {
    // The largest disk is made of the spool itself, after all others were copied from there.
    let spool = spool.filter(|s| s.may_take && request.format == DiskFormat::Qcow2 && !request.preallocated && remote.is_empty());
    // One whose partitions move is copied, for they may begin anywhere.
    let whole = (0..layout.disks.len()).filter(|i| layout.disks[*i].moved.is_none());
    let moved = whole.max_by_key(|i| layout.disks[*i].size).filter(|_| spool.is_some());
    let copied = || layout.disks.iter().zip(files).enumerate().filter(|(index, _)| Some(*index) != moved);
    let total = Total::new(host.progress, copied().flat_map(|(_, (disk, _))| disk_build::moves(disk)).map(|m| m.len).sum());
    let mut targets = Vec::new();
    for (index, (disk, file)) in copied() {
        let target = match remote.get(index) {
            Some(disk) => disk.clone() as Arc<dyn ImageMut>,
            None => create(request, host, &folder.work().join(file), disk.size)?,
        };
        let options = copy::Options { target_is_zero: true, ..copy::Options::default() };
        for doubt in disk_build::build(source, disk, target.as_ref(), &options, &total)? {
            host.events.warning(&doubt);
        }
        targets.push(target);
    }
    if let Some((spool, index)) = spool.zip(moved) {
        let (disk, file) = (&layout.disks[index], &files[index]);
        targets.insert(index, stream::become_disk(spool, disk, folder.work(), file, host)?);
    }
    Ok(targets)
}

fn create(request: &Request, host: &Host<'_>, path: &Path, size: u64) -> Result<Arc<dyn ImageMut>> {
    let storage = Arc::new(FileStorage::create(path)?);
    let options = if request.preallocated { CreateOptions::new().set("preallocation", "falloc") } else { CreateOptions::new() };
    let driver = host.formats.driver(request.format.name())?;
    Ok(driver.create(storage, size, &options)?)
}

/// Several copies as one piece of work.
struct Total<'a>(&'a dyn Progress);

impl<'a> Total<'a> {
    fn new(progress: &'a dyn Progress, bytes: u64) -> Self {
        progress.total(bytes);
        Total(progress)
    }
}

impl Progress for Total<'_> {
    fn total(&self, _: u64) {}
    fn advance(&self, done: u64) {
        self.0.advance(done);
    }
    fn cancelled(&self) -> bool {
        self.0.cancelled()
    }
}

fn stop_if_cancelled(progress: &dyn Progress) -> Result<()> {
    if progress.cancelled() { Err(imgcore::Error::Cancelled.into()) } else { Ok(()) }
}
