//! The kernel that the result starts: the guest's own where one can, else the Xen host's, else one from a package.

use guestfs::engine::Command;
use guestfs::{Attributes, Ext, GuestFs, GuestFsMut};

use crate::Result;
use crate::donor;
use crate::family::{self, PackageSet};
use crate::guest::kernels::{self, Kernel};
use crate::initrd;
use crate::source::Boot;
use crate::step::{Context, HostKernel, Step};

pub(super) const STEP: Step = Step {
    name: "kernel",
    about: "the new machine starts the kernel that lies in the guest: one that can drive its disks is chosen, or brought in",
    run,
};

/// The option that gives packages.
const OPTION: &str = "--kernel-package";

fn run(cx: &mut Context<'_>) -> Result<()> {
    let (fit, unfit): (Vec<_>, Vec<_>) = kernels::find(&cx.fs, cx.options.target).into_iter().partition(|k| k.unfit.is_none());
    for kernel in &unfit {
        cx.note(format!("{} is not used: {}", kernel.image, kernel.unfit.as_deref().unwrap_or_default()));
    }
    let mut chosen = from_packages(cx)?;
    if let Some(donor) = cx.donor {
        chosen = Some(donor::take(cx, &donor)?);
    }
    if chosen.is_none()
        && fit.is_empty()
        && let Some(host) = &cx.options.host_kernel
    {
        chosen = Some(from_host(cx, host)?);
    }
    // Those that are called by their package take the place of the one before.
    let fit: Vec<Kernel> = fit.into_iter().filter(|k| chosen.as_ref().is_none_or(|c| c.image != k.image)).collect();
    cx.facts.kernels = chosen.into_iter().chain(fit).collect();
    cx.facts.kernel = cx.facts.kernels.first().cloned();
    match &cx.facts.kernel {
        Some(kernel) => {
            let initrd = kernel.initrd.as_deref().unwrap_or("no initrd");
            let note = format!("{} with {initrd}", kernel.image);
            cx.note(note);
        }
        None if cx.is_hvm() => cx.note("no kernel found in /boot: the guest's own boot loader knows better"),
        None => return Err(cx.fail(no_kernel(cx, &unfit))),
    }
    Ok(())
}

fn no_kernel(cx: &Context<'_>, unfit: &[Kernel]) -> String {
    let found = match unfit {
        [] => "/boot holds no kernel".to_string(),
        some => some.iter().map(|k| format!("{}: {}", k.image, k.unfit.as_deref().unwrap_or_default())).collect::<Vec<_>>().join("; "),
    };
    let host = match (&cx.options.host_kernel_problem, &cx.source.boot) {
        (Some(problem), _) => format!(" The kernel that the Xen host started it with cannot be taken: {problem}."),
        (None, Boot::Direct { kernel: Some(kernel), .. }) => {
            format!(" The Xen host started it with {}, which was not given.", kernel.display())
        }
        _ => String::new(),
    };
    let target = cx.options.target.name();
    format!("the guest has no kernel that starts on {target}: {found}.{host} {}", family::kernel_advice(cx))
}

/// Puts packages into the guest and has them installed.
fn from_packages(cx: &mut Context<'_>) -> Result<Option<Kernel>> {
    let options = cx.options;
    if options.kernel_packages.is_empty() {
        return Ok(None);
    }
    let packages = PackageSet::read(cx, OPTION, &options.kernel_packages)?;
    let Some(brought) = packages.files().filter_map(|f| f.kernel.clone()).last() else {
        return Err(cx.fail(format!("none of {} holds a kernel (its image): {}", packages.names(), family::kernel_advice(cx))));
    };
    if kernels::is_xens(&brought.release) {
        return Err(cx.fail(format!("{}: {} is a kernel for Xen too: {}", packages.names(), brought.release, family::kernel_advice(cx))));
    }
    if let Some(module) = lacking(cx, &packages, &brought.release) {
        return Err(cx.fail(format!(
            "{}: {} has no driver for {}'s disks ({module} is not among its modules): {}",
            packages.names(),
            brought.release,
            cx.options.target.name(),
            family::kernel_advice(cx)
        )));
    }
    packages.install(cx, "installs the kernel packages; their hooks build the initrd")?;
    let mut kernel = Kernel { version: brought.release, image: brought.image, initrd: None, unfit: None, pending: true };
    let initrd = (cx.family.initrd)(cx, &kernel);
    // Where it is called by its package, the one before would pass for it.
    if cx.fs.is_file(initrd.as_bytes()) {
        cx.fs.remove(initrd.as_bytes())?;
    }
    let makes = initrd::made(cx, &initrd, &kernel);
    cx.fs.makes(makes.into_iter().chain([kernel.image.clone()]));
    // Hooks add it to boot menus: with BLS in files of their own.
    cx.fs.makes(["/boot/loader/entries/"].into_iter().filter(|dir| cx.fs.is_dir(dir.as_bytes())).map(String::from).collect::<Vec<_>>());
    // Hooks say little when they fail.
    let test = r#"for file do [ -s "$file" ] || { echo "the packages were installed, and $file is not there" >&2; exit 1; }; done"#;
    let command = Command::new(["/bin/sh", "-c", test, "sh", &kernel.image, &initrd]);
    cx.fs.command("the packages must have left a kernel and its initrd", command);
    kernel.initrd = Some(initrd);
    Ok(Some(kernel))
}

/// A driver that a kernel of these packages needs on the target and cannot have: it is older than virtio, and the modules that come with it are
/// known. What newer ones have built in is not seen in packages.
fn lacking(cx: &Context<'_>, packages: &PackageSet<'_>, release: &str) -> Option<&'static str> {
    if cx.options.target.is_xen() || kernels::compare_versions(release, kernels::VIRTIO_SINCE).is_ge() {
        return None;
    }
    let folder = format!("/modules/{release}/");
    let modules: Vec<(&String, String)> =
        packages.files().flat_map(|file| &file.files).filter_map(|path| Some((path, kernels::module_name(path)?))).collect();
    let is_known = modules.iter().any(|(path, _)| path.contains(&folder));
    cx.drivers().disk.iter().copied().find(|driver| is_known && !modules.iter().any(|(_, name)| name == driver))
}

/// Puts the Xen host's kernel into the guest, under the names that its distribution would give it.
fn from_host(cx: &mut Context<'_>, host: &HostKernel) -> Result<Kernel> {
    if !kernels::is_bzimage(&host.kernel) {
        return Err(cx.fail(format!(
            "{}, the kernel that the Xen host started the guest with, can only be started by Xen (it has no boot header), and the guest has none of \
             its own. {}",
            host.kernel_name,
            family::kernel_advice(cx)
        )));
    }
    let named = || host.kernel_name.split_once('-').map(|(_, v)| v.to_string());
    let version = kernels::bzimage_version(&host.kernel).or_else(named).unwrap_or_else(|| "xen-host".into());
    let size = host.kernel.len() as u64 + host.ramdisk.as_ref().map_or(0, |(_, data)| data.len() as u64);
    let free = cx.fs.statfs(b"/boot").or_else(|_| cx.fs.statfs(b"/")).map(|s| s.blocks_available.saturating_mul(s.block_size))?;
    // An initrd may have to grow, and a full filesystem is no good guest.
    let needed = size.saturating_add(16 << 20);
    if free < needed {
        return Err(cx.fail(format!(
            "/boot has {} free, and the Xen host's kernel {} with its initrd needs {}: make room in the guest",
            imgcore::size::human(free),
            host.kernel_name,
            imgcore::size::human(needed)
        )));
    }
    let image = format!("/boot/vmlinuz-{version}");
    cx.fs.put(image.as_bytes(), &host.kernel, Some(Attributes::root(0o644)))?;
    let mut initrd = None;
    if let Some((_, data)) = &host.ramdisk {
        let path = format!("/boot/initrd.img-{version}");
        cx.fs.put(path.as_bytes(), data, Some(Attributes::root(0o644)))?;
        initrd = Some(path);
    }
    cx.note(format!("the guest has no kernel of its own: {} of the Xen host becomes its own", host.kernel_name));
    if !kernels::has_modules(&cx.fs, &version) {
        cx.warn(format!(
            "the guest has no modules for the Xen host's kernel (/lib/modules/{version} is missing): only drivers in its initrd will work. Better give \
             the guest a kernel of its own with --kernel-package"
        ));
    }
    link(cx, "/vmlinuz", &image)?;
    if let Some(initrd) = &initrd {
        link(cx, "/initrd.img", initrd)?;
    }
    Ok(Kernel { version, image, initrd, unfit: None, pending: false })
}

/// Debian's links in the root, which boot loaders and people look at. An existing file stays.
fn link(cx: &mut Context<'_>, path: &str, target: &str) -> Result<()> {
    if cx.fs.lstat(path.as_bytes()).is_err() {
        cx.fs.symlink(target.trim_start_matches('/').as_bytes(), path.as_bytes())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::deb::tests::package;
    use crate::staged::Staged;
    use crate::step::{Options, Package};
    use crate::testing::{MemFs, bzimage, run_step, run_step_with, xen_tools_guest};

    fn failure(base: &MemFs, options: &Options) -> String {
        let (source, layout) = xen_tools_guest();
        let mut cx = Context::new(&source, &layout, options, Staged::new(base)).unwrap();
        cx.run(&STEP).unwrap_err().to_string()
    }

    #[test]
    fn the_guests_own_kernel_is_kept() {
        let base = MemFs::new().file("/boot/vmlinuz-6.1.0-50-amd64", bzimage("6.1")).file("/boot/initrd.img-6.1.0-50-amd64", "x");
        run_step(&base, &STEP, |cx| {
            assert!(cx.fs.is_unchanged());
            assert_eq!(cx.facts.kernel.as_ref().unwrap().initrd.as_deref(), Some("/boot/initrd.img-6.1.0-50-amd64"));
        });
    }

    #[test]
    fn the_xen_hosts_kernel_becomes_the_guests() {
        let host = HostKernel {
            kernel_name: "vmlinuz-custom".into(),
            kernel: bzimage("6.1.0-13-amd64"),
            ramdisk: Some(("initrd.gz".into(), b"ramdisk".to_vec())),
        };
        let options = Options { host_kernel: Some(host), ..Options::default() };
        run_step_with(&MemFs::new().dir("/boot").dir("/lib/modules/6.1.0-13-amd64"), &options, &STEP, |cx| {
            assert_eq!(cx.fs.read(b"/boot/vmlinuz-6.1.0-13-amd64", 9999).unwrap(), bzimage("6.1.0-13-amd64"));
            assert_eq!(cx.fs.read(b"/initrd.img", 9999).unwrap(), b"ramdisk");
            assert_eq!(cx.fs.readlink(b"/vmlinuz").unwrap(), b"boot/vmlinuz-6.1.0-13-amd64");
            assert!(cx.reports[0].warnings.is_empty());
        });
        run_step_with(&MemFs::new().dir("/boot"), &options, &STEP, |cx| {
            assert!(cx.reports[0].warnings[0].contains("/lib/modules/6.1.0-13-amd64 is missing"));
        });
        let own = MemFs::new().file("/boot/vmlinuz-5.10", bzimage("5.10"));
        run_step_with(&own, &options, &STEP, |cx| assert!(cx.fs.is_unchanged(), "the guest's own comes first"));
    }

    #[test]
    fn packages_are_installed_in_the_guest() {
        let deb = |name: &str, files: &[&str], needs: &str| Package {
            name: name.into(),
            data: package(files, &format!("Package: {name}\nDepends: {needs}\n")),
        };
        let options = Options {
            kernel_packages: vec![
                deb("cpio.deb", &["./bin/cpio"], "kmod"),
                deb("linux.deb", &["./boot/vmlinuz-6.1.0-13-amd64"], "cpio.deb | dracut"),
            ],
            ..Options::default()
        };
        let kmod = MemFs::new().file("/var/lib/dpkg/status", "Package: kmod\nStatus: install ok installed\nVersion: 30\n");
        run_step_with(&kmod, &options, &STEP, |cx| {
            assert_eq!(cx.facts.kernel.as_ref().unwrap().image, "/boot/vmlinuz-6.1.0-13-amd64");
            assert!(cx.fs.exists(b"/var/tmp/guestlift-kernel-package/instead/cpio.deb"));
            let command = &cx.fs.commands()[0];
            assert_eq!(command.shown(), "/bin/sh /var/tmp/guestlift-kernel-package/install");
            assert!(cx.show("/var/tmp/guestlift-kernel-package/install").contains("dpkg -i"));
            assert!(cx.fs.commands()[1].shown().ends_with("sh /boot/vmlinuz-6.1.0-13-amd64 /boot/initrd.img-6.1.0-13-amd64"));
        });
        let error =
            failure(&MemFs::new().file("/var/lib/dpkg/status", "Package: x\nStatus: install ok installed\nVersion: 30\n"), &options);
        assert!(error.contains("that the guest lacks: kmod (for cpio.deb). Get them"), "{error}");
        let none = Options { kernel_packages: vec![deb("cpio.deb", &["./bin/cpio"], "")], ..Options::default() };
        assert!(failure(&kmod, &none).contains("none of cpio.deb holds a kernel"));
        let rpm = Options { kernel_packages: vec![Package { name: "kernel.rpm".into(), data: vec![] }], ..Options::default() };
        assert!(failure(&kmod, &rpm).contains("kernel.rpm is no package for this guest"));
    }

    /// Debian 4's kernel and Red Hat 5's are of the same time, and only one was given virtio.
    #[test]
    fn a_packages_kernel_without_drivers_is_refused() {
        let guest = MemFs::new().file("/etc/debian_version", "4.0\n");
        let given = |release: &str, modules: &[&str]| {
            let modules = modules.iter().map(|module| format!("./lib/modules/{release}/kernel/{module}.ko"));
            let files: Vec<String> = modules.chain([format!("./boot/vmlinuz-{release}")]).collect();
            let data = package(&files.iter().map(String::as_str).collect::<Vec<_>>(), "Package: linux\n");
            Options { kernel_packages: vec![Package { name: "linux.deb".into(), data }], ..Options::default() }
        };
        for (release, modules, module) in [
            ("2.6.18-6-686", &["ext3"][..], "virtio_pci"),
            // The disk's driver came before the bus's.
            ("2.6.24-etchnhalf.1-686", &["ext3", "virtio_blk"], "virtio_pci"),
            ("2.6.18-398.el5", &["virtio_pci"], "virtio_blk"),
        ] {
            let error = failure(&guest, &given(release, modules));
            let why =
                format!("linux.deb: {release} has no driver for KVM's disks ({module} is not among its modules): Get linux-image-2.6");
            assert!(error.contains(&why), "{error}");
        }
        for (release, modules) in [
            ("2.6.18-398.el5", &["virtio_blk", "virtio_pci"][..]),
            // Built in, as far as can be seen; and a package with the image alone.
            ("2.6.26-2-686", &["ext3"]),
            ("2.6.18-6-686", &[]),
        ] {
            run_step_with(&guest, &given(release, modules), &STEP, |cx| {
                assert_eq!(cx.facts.kernel.as_ref().unwrap().version, release);
            });
        }
    }

    #[test]
    fn no_kernel_is_a_named_error() {
        let base = MemFs::new()
            .file("/boot/vmlinuz-2.6.18-6-xen-686", [0x1f; 0x300])
            .file("/etc/debian_version", "12.5\n")
            .file("/etc/os-release", "ID=debian\nVERSION_ID=12\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n")
            .dir("/lib64");
        let options = Options { host_kernel_problem: Some("/boot/vmlinuz-6.1: permission denied".into()), ..Options::default() };
        let error = failure(&base, &options);
        for part in [
            "web: step 'kernel'",
            "/boot/vmlinuz-2.6.18-6-xen-686: only Xen can start it",
            "/boot/vmlinuz-6.1: permission denied",
            "Get linux-image-amd64 (the linux-image-VERSION-amd64 that it depends on) for Debian GNU/Linux 12 (bookworm)",
            "--kernel-package",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        let host = HostKernel { kernel_name: "vmlinuz-2.6.18-xen".into(), kernel: vec![0x1f; 999], ramdisk: None };
        let options = Options { host_kernel: Some(host), ..Options::default() };
        assert!(failure(&MemFs::new().dir("/boot"), &options).contains("vmlinuz-2.6.18-xen, the kernel that the Xen host started"));
    }
}
