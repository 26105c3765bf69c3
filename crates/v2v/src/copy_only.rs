//! `--copy-only`: the disks are copied and the machine is described; the guest stays as it is.

use crate::disk_build;
use crate::foreign::{self, Foreign};
use crate::layout::Layout;
use crate::options::{Host, Request};
use crate::output::{Folder, Machine};
use crate::plan::{self, Plan};
use crate::report::{Clock, Report};
use crate::source::{Boot, Source};
use crate::stream::Spool;
use crate::{Error, Result, convert, finish, health};

/// A guest that is not looked into any further.
pub(crate) struct Copy {
    layout: Layout,
    foreign: Option<Foreign>,
}

impl Copy {
    /// Decides on everything. The source's disks can be read.
    pub fn new(source: &Source) -> Result<Self> {
        let contents = disk_build::examine(source)?;
        let options = disk_build::Options { keep: true, ..disk_build::Options::default() };
        let mut layout = disk_build::compute(source, &contents, &options)?;
        for volume in layout.disks.iter_mut().flat_map(|d| &mut d.volumes) {
            volume.recreate = false;
        }
        Ok(Copy { layout, foreign: foreign::find(source, &contents) })
    }

    /// What would be done.
    pub fn plan(&self, request: &Request, source: &Source, name: &str, place: &dyn Fn(&String) -> String) -> Plan {
        let mut warnings = source.warnings.clone();
        warnings.extend(health::warnings(source, &self.layout));
        warnings.extend(self.warnings(source));
        Plan {
            guest: plan::Guest {
                system: self.foreign.as_ref().map_or("not looked into".into(), |f| f.what.clone()),
                ..plan::Guest::of(source)
            },
            disks: plan::disks(&self.layout, source),
            boot_loader: "as it is".into(),
            steps: Vec::new(),
            files: Vec::new(),
            commands: Vec::new(),
            outputs: if request.discard { Vec::new() } else { finish::files(request, name, &self.layout).iter().map(place).collect() },
            warnings,
        }
    }

    /// Does it.
    #[allow(clippy::too_many_arguments, reason = "what a conversion has at hand there")]
    pub fn write(
        self,
        request: &Request,
        host: &Host<'_>,
        mut clock: Clock<'_>,
        source: &Source,
        spool: Option<&Spool>,
        folder: Folder,
        name: &str,
        ready: &mut dyn FnMut(&Report) -> Result<()>,
    ) -> Result<Report> {
        let files = finish::files(request, name, &self.layout);
        finish::check_free(request, source, &folder, &files)?;
        let plan = self.plan(request, source, name, &|file| folder.path_of(file).display().to_string());
        plan.warnings.iter().for_each(|warning| host.events.warning(warning));
        let remote = finish::remote(request, &self.layout, host, &mut clock)?;
        let disk_files = finish::disk_files(request, name, &self.layout);
        let targets = clock.stage("Copying the disks", || {
            convert::copy_disks(request, host, source, &self.layout, spool, &folder, &disk_files, &remote)
        })?;
        let machine = self.machine(finish::machine(request, source, &self.layout, "x86_64", name, &folder));
        let boot_check = finish::describe(request, host, &mut clock, &machine, targets, &folder)?;
        let policy = source.policy.clone();
        let report = Report { name: name.into(), policy, plan, ran: Vec::new(), boot_check, timings: clock.timings() };
        finish::hand_over(request, folder, &files, &remote, &report, ready)?;
        Ok(report)
    }

    /// Linux has virtio's drivers; what others have is not known.
    fn machine(&self, mut machine: Machine) -> Machine {
        if let Some(foreign) = &self.foreign {
            machine.emulate_hardware();
            // Windows keeps the hardware's clock in local time, and Xen's tools know that without being told.
            machine.local_time |= foreign.is_windows;
        }
        machine
    }

    fn warnings(&self, source: &Source) -> Vec<String> {
        let mut warnings = Vec::new();
        match &self.foreign {
            Some(foreign) if foreign.is_windows => warnings.push(format!(
                "{}: it is copied and not converted. Its disks are emulated and its NICs are e1000, so that it starts without virtio's drivers; \
                 install these in it (virtio-win), then change the domain to virtio; remove Xen's drivers and tools",
                foreign.what
            )),
            Some(foreign) => warnings.push(format!(
                "{}: it is copied and not converted. Its disks are emulated and its NICs are e1000: names in its /etc/fstab and /etc/rc.conf may \
                 have to follow",
                foreign.what
            )),
            None => warnings.push("the guest is copied and not converted: nothing in it is made to fit KVM, and it may not start".into()),
        }
        if self.foreign.is_some() {
            let read_only = source.disks.iter().filter(|disk| disk.read_only);
            warnings.extend(
                read_only.map(|d| format!("{} was read only: QEMU emulates no such disk, and the result's can be written", d.target)),
            );
        }
        if matches!(source.boot, Boot::Direct { .. }) {
            warnings.push("on Xen it was paravirtual: its kernel was started without a boot loader, and KVM will not do that".into());
        }
        warnings
    }
}

/// What an inspection that failed means where the guest is one that is not converted.
pub(crate) fn explain(source: &Source, error: Error) -> Error {
    let foreign = disk_build::examine(source).ok().and_then(|contents| foreign::find(source, &contents));
    match foreign {
        Some(foreign) => Error::Invalid(format!(
            "{}: this is {}, which is not converted: '--copy-only' copies its disks and describes the machine, and changes nothing in it",
            source.name, foreign.what
        )),
        None => error,
    }
}
