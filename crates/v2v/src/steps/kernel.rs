//! The kernel that the result starts: the guest's own where one can, else the Xen host's, else one from a package.

use guestfs::engine::Command;
use guestfs::{Attributes, GuestFs, GuestFsMut};

use crate::Result;
use crate::guest::deb;
use crate::guest::kernels::{self, Kernel};
use crate::source::Boot;
use crate::step::{Context, HostKernel, Package, Step};

pub(super) const STEP: Step = Step {
    name: "kernel",
    about: "the new machine starts the kernel that lies in the guest: one that can drive its disks is chosen, or brought in",
    run,
};

/// Where packages wait for the command that installs them.
const PACKAGES: &str = "/var/tmp/guestlift-packages";

/// Installs the packages beside it with services kept from starting, and takes their directory away.
const INSTALL: &str = r#"#!/bin/sh
folder=${0%/*}
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then made=1; printf '#!/bin/sh\nexit 101\n' > $policy; chmod 755 $policy; fi
dpkg -i "$folder"/*.deb; status=$?
[ -z "$made" ] || rm -f $policy
rm -rf "$folder"
exit $status
"#;

fn run(cx: &mut Context<'_>) -> Result<()> {
    let (fit, unfit): (Vec<_>, Vec<_>) = kernels::find(&cx.fs, cx.options.target).into_iter().partition(|k| k.unfit.is_none());
    for kernel in &unfit {
        cx.note(format!("{} is not used: {}", kernel.image, kernel.unfit.as_deref().unwrap_or_default()));
    }
    let mut chosen = from_packages(cx)?;
    if chosen.is_none()
        && fit.is_empty()
        && let Some(host) = &cx.options.host_kernel
    {
        chosen = Some(from_host(cx, host)?);
    }
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
    let machine = if cx.packages.names().any(|n| n == "libc6-i386") || cx.fs.lstat(b"/lib64").is_ok() { "amd64" } else { "686" };
    let (major, os) = os_name(cx);
    let target = cx.options.target.name();
    let package = match (machine, major) {
        ("686", Some(7..) | None) => "linux-image-686-pae".to_string(),
        (machine, _) => format!("linux-image-{machine}"),
    };
    format!(
        "the guest has no kernel that starts on {target}: {found}.{host} Get the kernel that {package} of {os} stands for, with \
         initramfs-tools and what that needs where the guest lacks it (apt-get download), and add each file with --kernel-package FILE.deb"
    )
}

fn os_name(cx: &Context<'_>) -> (Option<u32>, String) {
    let text = |path: &str| cx.text(path).ok().flatten().map(|t| t.trim().to_string());
    let major = text("/etc/debian_version").and_then(|v| v.split('.').next()?.parse().ok());
    let name = text("/etc/os-release")
        .and_then(|t| t.lines().find_map(|l| Some(l.strip_prefix("PRETTY_NAME=")?.trim_matches('"').to_string())))
        .or_else(|| major.map(|m| format!("Debian {m}")));
    (major, name.unwrap_or_else(|| "the guest's distribution".into()))
}

/// Puts packages into the guest and has them installed.
fn from_packages(cx: &mut Context<'_>) -> Result<Option<Kernel>> {
    if cx.options.kernel_packages.is_empty() {
        return Ok(None);
    }
    let mut version = None;
    for package in &cx.options.kernel_packages {
        if !package.name.ends_with(".deb") || package.name.contains('/') {
            return Err(cx.fail(format!("{} is no package for this guest: it takes .deb files", package.name)));
        }
        let brings = deb::kernel_of(&package.data).map_err(|e| cx.fail(format!("{}: {e}", package.name)))?;
        version = brings.or(version);
        let path = format!("{PACKAGES}/{}", package.name);
        cx.fs.put(path.as_bytes(), &package.data, None)?;
    }
    let Some(version) = version else {
        let names: Vec<_> = cx.options.kernel_packages.iter().map(|p| p.name.as_str()).collect();
        return Err(cx.fail(format!("none of {} holds a kernel (/boot/vmlinuz-…): add the linux-image package itself", names.join(", "))));
    };
    missing_packages(cx)?;
    let script = format!("{PACKAGES}/install");
    cx.fs.put(script.as_bytes(), INSTALL.as_bytes(), Some(Attributes::root(0o755)))?;
    let mut command = Command::new(["/bin/sh", &script]);
    command.env.push((b"DEBIAN_FRONTEND".to_vec(), b"noninteractive".to_vec()));
    cx.fs.command("installs the kernel packages; their hooks build the initrd", command);
    Ok(Some(Kernel {
        image: format!("/boot/vmlinuz-{version}"),
        initrd: Some(format!("/boot/initrd.img-{version}")),
        version,
        unfit: None,
        pending: true,
    }))
}

/// Says which packages are still missing, before dpkg would.
fn missing_packages(cx: &Context<'_>) -> Result<()> {
    let read = |p: &Package| deb::control(&p.data).map_err(|e| cx.fail(format!("{}: {e}", p.name)));
    let given = cx.options.kernel_packages.iter().map(read).collect::<Result<Vec<_>>>()?;
    let is_there = |name: &String| cx.packages.provides(name) || given.iter().any(|g| &g.package == name || g.provides.contains(name));
    let mut missing: Vec<String> = Vec::new();
    for package in &given {
        for row in package.depends.iter().filter(|row| !row.iter().any(is_there)) {
            missing.push(format!("{} (for {})", row.join(" or "), package.package));
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let (_, os) = os_name(cx);
    Err(cx.fail(format!(
        "the kernel packages need others that the guest lacks: {}. Get them for {os} (apt-get download) and add each with --kernel-package FILE.deb; \
         an initrd is built by initramfs-tools, which comes with initramfs-tools-core, klibc-utils, libklibc, cpio and logsave",
        missing.join(", ")
    )))
}

/// Puts the Xen host's kernel into the guest, under the names that its distribution would give it.
fn from_host(cx: &mut Context<'_>, host: &HostKernel) -> Result<Kernel> {
    if !kernels::is_bzimage(&host.kernel) {
        return Err(cx.fail(format!(
            "{}, the kernel that the Xen host started the guest with, can only be started by Xen (it has no boot header), and the guest has none of \
             its own: add one with --kernel-package FILE.deb",
            host.kernel_name
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
             the guest a kernel of its own with --kernel-package FILE.deb"
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
    use guestfs::Ext;

    use super::*;
    use crate::guest::deb::tests::package;
    use crate::staged::Staged;
    use crate::step::Options;
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
            assert!(cx.fs.exists(b"/var/tmp/guestlift-packages/cpio.deb"));
            let command = &cx.fs.commands()[0];
            assert_eq!(command.shown(), "/bin/sh /var/tmp/guestlift-packages/install");
            assert!(cx.show("/var/tmp/guestlift-packages/install").contains("dpkg -i"));
        });
        let error = failure(&MemFs::new(), &options);
        assert!(error.contains("that the guest lacks: kmod (for cpio.deb). Get them"), "{error}");
        let none = Options { kernel_packages: vec![deb("cpio.deb", &["./bin/cpio"], "")], ..Options::default() };
        assert!(failure(&MemFs::new(), &none).contains("none of cpio.deb holds a kernel"));
        let rpm = Options { kernel_packages: vec![Package { name: "kernel.rpm".into(), data: vec![] }], ..Options::default() };
        assert!(failure(&MemFs::new(), &rpm).contains("kernel.rpm is no package for this guest"));
    }

    #[test]
    fn no_kernel_is_a_named_error() {
        let base = MemFs::new()
            .file("/boot/vmlinuz-2.6.18-6-xen-686", [0x1f; 0x300])
            .file("/etc/debian_version", "12.5\n")
            .file("/etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n")
            .dir("/lib64");
        let options = Options { host_kernel_problem: Some("/boot/vmlinuz-6.1: permission denied".into()), ..Options::default() };
        let error = failure(&base, &options);
        for part in [
            "web: step 'kernel'",
            "/boot/vmlinuz-2.6.18-6-xen-686: only Xen can start it",
            "/boot/vmlinuz-6.1: permission denied",
            "linux-image-amd64 of Debian GNU/Linux 12 (bookworm)",
            "--kernel-package",
        ] {
            assert!(error.contains(part), "{part} in {error}");
        }
        let host = HostKernel { kernel_name: "vmlinuz-2.6.18-xen".into(), kernel: vec![0x1f; 999], ramdisk: None };
        let options = Options { host_kernel: Some(host), ..Options::default() };
        assert!(failure(&MemFs::new().dir("/boot"), &options).contains("vmlinuz-2.6.18-xen, the kernel that the Xen host started"));
    }
}
