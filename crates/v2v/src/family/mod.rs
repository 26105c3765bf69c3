//! Families of distributions: how a guest is known to be of one, how packages are installed in it without a network, and which kernel to ask for.
//!
//! A new one is a new file and a line in [`FAMILIES`]. What all share is in the steps, which ask what a guest has and not what it is called.

mod alpine;
mod arch;
mod debian;
mod redhat;
mod suse;
mod unknown;

use std::collections::BTreeSet;

use guestfs::engine::Command;
use guestfs::inspect::{self, Release};
use guestfs::{Attributes, Ext, GuestFs};

use crate::Result;
use crate::guest;
use crate::guest::kernels::Kernel;
use crate::guest::packages::{PackageFile, Packages};
use crate::step::{Context, Package};

/// Distributions that work alike.
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Whether a guest is of it.
    is: fn(&Signs<'_>) -> bool,
    /// How the names of its packages' files end: `.deb`; empty where none can be installed.
    pub ending: &'static str,
    /// Reads a package's file.
    read: fn(&[u8]) -> std::result::Result<PackageFile, String>,
    /// The shell script that installs the packages in the folders beside it ([`BESIDE`], [`INSTEAD`]), with services kept from starting, and takes
    /// all of it away.
    install: &'static str,
    /// What that changes besides the packages' files; folders end with a `/`.
    records: &'static [&'static str],
    /// The package that brings a kernel for KVM, and how to get its files.
    kernel: fn(&System<'_>) -> Advice,
    /// The initrd that belongs to a kernel's release.
    pub initrd: fn(&Context<'_>, &Kernel) -> String,
}

/// All of them. The last takes whatever is left.
pub const FAMILIES: &[&Family] = &[&debian::FAMILY, &alpine::FAMILY, &arch::FAMILY, &suse::FAMILY, &redhat::FAMILY, &unknown::FAMILY];

/// What a guest's family is known by.
pub struct Signs<'a> {
    /// Its tree.
    pub fs: &'a dyn GuestFs,
    /// Its package database.
    pub packages: &'a Packages,
    /// What it calls itself.
    pub release: &'a Release,
}

impl Signs<'_> {
    /// Its package database is of this format; where none can be read, it says that it is like these distributions, or else has this program.
    fn are(&self, format: &str, program: &str, like: inspect::Family) -> bool {
        match self.packages.format {
            "" if self.release.family == inspect::Family::Other => self.has(program),
            "" => self.release.family == like,
            known => known == format,
        }
    }

    fn has(&self, program: &str) -> bool {
        guest::has_program(self.fs, program)
    }
}

/// The family of a guest.
pub fn of(signs: &Signs<'_>) -> &'static Family {
    FAMILIES.iter().find(|f| (f.is)(signs)).copied().unwrap_or(&unknown::FAMILY)
}

/// Holds packages of which several versions are installed beside each other, as of kernels.
const BESIDE: &str = "beside";
/// Holds packages that take an older version's place.
const INSTEAD: &str = "instead";

/// What advice depends on.
struct System<'a> {
    release: &'a Release,
    /// Its programs are 32-bit ones.
    is_32bit: bool,
}

/// What to get for a guest, and how.
struct Advice {
    /// The package: `linux-image-amd64`.
    package: String,
    /// Words that end a sentence: `with 'apt-get download' on a machine of that release`.
    how: String,
}

/// Says which package brings a kernel to this guest, and how to give it to the conversion.
pub fn kernel_advice(cx: &Context<'_>) -> String {
    let advice = advice(cx);
    let from = "--kernel-from GUEST takes the kernel of another guest of that distribution";
    match cx.family.ending {
        "" => format!("No packages can be installed in {}: {from}", system(cx)),
        ending => format!(
            "Get {} for {}, with what it depends on and the guest lacks ({}), and add each file with --kernel-package FILE{ending}; or {from}",
            advice.package,
            system(cx),
            advice.how
        ),
    }
}

fn advice(cx: &Context<'_>) -> Advice {
    (cx.family.kernel)(&System { release: &cx.release, is_32bit: cx.arch == "i386" })
}

/// What the guest calls itself, for people.
fn system(cx: &Context<'_>) -> String {
    match (cx.release.product_name.as_str(), cx.release.major) {
        ("", 0) => format!("the guest's {} system", cx.family.name),
        ("", major) => format!("{} {major}", cx.release.id),
        (name, _) => name.into(),
    }
}

/// Package files that were read, and fit the guest.
pub struct PackageSet<'a> {
    files: Vec<(&'a Package, PackageFile)>,
    option: &'static str,
}

impl<'a> PackageSet<'a> {
    /// Reads package files that came by an option of the command line.
    ///
    /// # Errors
    /// A file of another kind, one that is damaged, or something that they need and the guest lacks.
    pub fn read(cx: &Context<'_>, option: &'static str, packages: &'a [Package]) -> Result<Self> {
        let ending = cx.family.ending;
        let mut files = Vec::new();
        for package in packages {
            let name = &package.name;
            if ending.is_empty() {
                return Err(cx.fail(format!("{name}: packages cannot be installed in {}: leave {option} away", system(cx))));
            }
            if !name.ends_with(ending) || name.contains('/') {
                return Err(cx.fail(format!("{name} is no package for this guest: {} takes {ending} files", system(cx))));
            }
            files.push((package, (cx.family.read)(&package.data).map_err(|e| cx.fail(format!("{name}: {e}")))?));
        }
        let set = PackageSet { files, option };
        set.check_complete(cx)?;
        Ok(set)
    }

    /// What the files say of themselves.
    pub fn files(&self) -> impl Iterator<Item = &PackageFile> {
        self.files.iter().map(|(_, file)| file)
    }

    /// Their names, for messages.
    pub fn names(&self) -> String {
        self.files.iter().map(|(package, _)| package.name.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// Puts them into the guest and has them installed when the changes are written: `why` says what for.
    pub fn install(&self, cx: &mut Context<'_>, why: &str) -> Result<()> {
        let folder = format!("/var/tmp/guestlift-{}", self.option.trim_start_matches('-'));
        cx.fs.passing(folder.as_bytes());
        let beside = self.beside(cx);
        for ((package, _), beside) in self.files.iter().zip(beside) {
            let kind = if beside { BESIDE } else { INSTEAD };
            cx.fs.put(format!("{folder}/{kind}/{}", package.name).as_bytes(), &package.data, None)?;
        }
        let script = format!("{folder}/install");
        cx.fs.put(script.as_bytes(), cx.family.install.as_bytes(), Some(Attributes::root(0o755)))?;
        let mut command = Command::new(["/bin/sh", &script]);
        command.env.push((b"DEBIAN_FRONTEND".to_vec(), b"noninteractive".to_vec()));
        // Scripts of packages that ask systemd hear that none runs.
        command.env.push((b"SYSTEMD_OFFLINE".to_vec(), b"1".to_vec()));
        cx.fs.command(why, command);
        let makes = self.makes(cx);
        cx.fs.makes(makes);
        Ok(())
    }

    /// Which of them are installed beside older versions: kernels, and what needs one of these that nothing else has, as it comes after them.
    fn beside(&self, cx: &Context<'_>) -> Vec<bool> {
        let mut beside: Vec<bool> = self.files().map(|file| file.kernel.is_some() || file.beside_others).collect();
        loop {
            let needs_one = |file: &PackageFile| {
                let has = |name: &String, which: bool| self.files().zip(&beside).any(|(f, beside)| *beside == which && f.is(name));
                file.depends.iter().any(|row| {
                    row.iter().any(|name| has(name, true)) && !row.iter().any(|name| cx.packages.provides(name) || has(name, false))
                })
            };
            let next: Vec<bool> = self.files().zip(&beside).map(|(file, beside)| *beside || needs_one(file)).collect();
            if next == beside {
                return beside;
            }
            beside = next;
        }
    }

    /// The paths that come with them: a folder that is new stands for all below it.
    fn makes(&self, cx: &Context<'_>) -> Vec<String> {
        let records = cx.family.records.iter().filter(|path| cx.fs.exists(path.trim_end_matches('/').as_bytes()));
        let mut places: Vec<String> = records.map(|path| path.to_string()).collect();
        let files: BTreeSet<&String> = self.files().flat_map(|file| &file.files).collect();
        for file in files {
            let is_named = places.last().is_some_and(|last| last.ends_with('/') && file.starts_with(last.as_str()));
            if !is_named {
                let mut folders = file.match_indices('/').skip(1).map(|(at, _)| &file[..at]);
                match folders.find(|folder| !cx.fs.exists(folder.as_bytes())) {
                    Some(new) => places.push(format!("{new}/")),
                    None if file.ends_with('/') => {}
                    None => places.push(file.clone()),
                }
            }
        }
        if self.files().flat_map(|file| &file.files).any(|file| is_library(file)) {
            let caches = ["/etc/ld.so.cache", "/var/cache/ldconfig/"].into_iter();
            places.extend(caches.filter(|path| cx.fs.exists(path.trim_end_matches('/').as_bytes())).map(String::from));
        }
        places
    }

    /// Says which packages are still missing, before the tool would, where the guest's database tells.
    fn check_complete(&self, cx: &Context<'_>) -> Result<()> {
        if cx.packages.format.is_empty() {
            return Ok(());
        }
        let is_there = |name: &String| {
            let file = name.starts_with('/') && cx.fs.exists(name.as_bytes());
            file || cx.packages.provides(name) || self.files().any(|f| f.is(name))
        };
        let mut missing: Vec<String> = Vec::new();
        for file in self.files() {
            for row in file.depends.iter().filter(|row| !row.iter().any(is_there)) {
                missing.push(format!("{} (for {})", row.join(" or "), file.name));
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        missing.dedup();
        Err(cx.fail(format!(
            "the packages need others that the guest lacks: {}. Get them for {} ({}) and add each with {} FILE{}",
            missing.join(", "),
            system(cx),
            advice(cx).how,
            self.option,
            cx.family.ending
        )))
    }
}

/// Whether the loader's cache has it: a shared library in one of the folders that are searched.
fn is_library(file: &str) -> bool {
    let Some((folder, name)) = file.rsplit_once('/') else { return false };
    let lib = folder.strip_prefix("/usr").unwrap_or(folder);
    let searched =
        matches!(lib, "/lib" | "/lib64") || lib.strip_prefix("/lib/").is_some_and(|l| l.contains("-linux-gnu") && !l.contains('/'));
    searched && (name.ends_with(".so") || name.contains(".so."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::rpm::tests::package;
    use crate::step::{Options, Step};
    use crate::testing::{MemFs, run_step, run_step_with};

    const NOTHING: Step = Step { name: "nothing", about: "", run: |_| Ok(()) };

    #[test]
    fn the_table_names_every_file() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/family");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap().replace(".rs", "")).collect();
        files.retain(|f| f != "mod");
        let mut names: Vec<String> = FAMILIES.iter().map(|f| f.name.to_ascii_lowercase().replace(' ', "")).collect();
        files.sort();
        names.sort();
        assert_eq!(files, names);
    }

    /// A guest by its own release file, as the distribution writes it, and which kernel to get for it.
    #[test]
    fn every_distribution_has_its_family_and_its_kernel() {
        let release = |path: &str, text: &str| MemFs::new().file(path, text);
        let os = |text: &str| release("/etc/os-release", text);
        let redhat = |text: &str| release("/etc/redhat-release", text);
        let elf32 = {
            let mut head = vec![0x7f, b'E', b'L', b'F', 1, 1, 1];
            head.resize(18, 0);
            [head, vec![3, 0, 0, 0]].concat()
        };
        for (fs, family, advice) in [
            (
                os("ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
                "Debian",
                "linux-image-amd64 (the linux-image-VERSION-amd64",
            ),
            (release("/etc/debian_version", "4.0\n").file("/bin/bash", &elf32), "Debian", "Get linux-image-2.6.26-2-686 of Debian 5,"),
            (release("/etc/debian_version", "5.0.10\n"), "Debian", "linux-image-2.6-amd64"),
            (release("/etc/debian_version", "6.0.10\n"), "Debian", "'apt-get --download-only install'"),
            (release("/etc/debian_version", "7.11\n"), "Debian", "'apt-get download'"),
            (release("/etc/debian_version", "5.0.10\n").file("/bin/bash", &elf32), "Debian", "linux-image-2.6-686"),
            (os("ID=debian\nVERSION_ID=\"8\"\n").file("/bin/bash", &elf32), "Debian", "linux-image-686-pae"),
            (os("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"22.04\"\n"), "Debian", "linux-image-generic"),
            (os("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"10.04\"\n"), "Debian", "leaves them in /var/cache/apt/archives"),
            (os("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"12.04\"\n"), "Debian", "'apt-get download'"),
            (os("ID=pop\nID_LIKE=\"ubuntu debian\"\nVERSION_ID=\"22.04\"\n"), "Debian", "linux-image-amd64"),
            (redhat("CentOS release 5.11 (Final)\n"), "Red Hat", "Get kernel (not kernel-xen) for CentOS release 5.11 (Final)"),
            (redhat("Red Hat Enterprise Linux Server release 6.10 (Santiago)\n"), "Red Hat", "'yumdownloader --resolve'"),
            (
                os("ID=\"centos\"\nID_LIKE=\"rhel fedora\"\nVERSION_ID=\"7\"\n")
                    .file("/etc/centos-release", "CentOS Linux release 7.9.2009 (Core)\n"),
                "Red Hat",
                "Get kernel for",
            ),
            (
                os("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.4\"\nPRETTY_NAME=\"Rocky Linux 9.4 (Blue Onyx)\"\n"),
                "Red Hat",
                "Get kernel-core and kernel-modules for Rocky Linux 9.4 (Blue Onyx)",
            ),
            (os("ID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"10.0\"\n"), "Red Hat", "'dnf download --resolve'"),
            (os("ID=\"ol\"\nID_LIKE=\"fedora\"\nVERSION_ID=\"8.9\"\n"), "Red Hat", "kernel-core"),
            (os("ID=fedora\nVERSION_ID=40\n"), "Red Hat", "kernel-core"),
            (redhat("Fedora release 14 (Laughlin)\n"), "Red Hat", "yumdownloader"),
            (os("ID=\"amzn\"\nID_LIKE=\"centos rhel fedora\"\nVERSION_ID=\"2\"\n"), "Red Hat", "Get kernel"),
            (
                release("/etc/SuSE-release", "SUSE Linux Enterprise Server 10 (x86_64)\nVERSION = 10\nPATCHLEVEL = 4\n"),
                "SUSE",
                "installation medium",
            ),
            (
                release("/etc/SuSE-release", "SUSE Linux Enterprise Server 11 (x86_64)\nVERSION = 11\nPATCHLEVEL = 4\n"),
                "SUSE",
                "'zypper install --download-only'",
            ),
            (
                release("/etc/SuSE-release", "openSUSE 11.4 (x86_64)\nVERSION = 11.4\nCODENAME = Celadon\n"),
                "SUSE",
                "'zypper install --download-only'",
            ),
            (os("ID=\"sles\"\nID_LIKE=\"suse\"\nVERSION_ID=\"15.5\"\n"), "SUSE", "'zypper download'"),
            (os("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\nVERSION_ID=\"15.6\"\n"), "SUSE", "'zypper download'"),
            (os("ID=\"opensuse-tumbleweed\"\nID_LIKE=\"opensuse suse\"\nVERSION_ID=\"20240101\"\n"), "SUSE", "kernel-default"),
            (os("ID=alpine\nVERSION_ID=3.19.1\n"), "Alpine", "Get linux-virt for"),
            (os("ID=alpine\nVERSION_ID=3.4.6\n"), "Alpine", "linux-virtgrsec"),
            (os("ID=arch\nID_LIKE=archlinux\nPRETTY_NAME=\"Arch Linux\"\n"), "Arch", "Get linux for Arch Linux"),
            (os("ID=gentoo\n"), "unknown", "--kernel-from GUEST takes"),
            (MemFs::new(), "unknown", "No packages can be installed in the guest's unknown system"),
        ] {
            run_step(&fs, &NOTHING, |cx| {
                let found = kernel_advice(cx);
                assert_eq!(cx.family.name, family, "{found}");
                assert!(found.contains(advice), "{advice} in {found}");
                assert!(found.contains("--kernel-from GUEST") && !found.contains("  "), "{found}");
            });
        }
    }

    #[test]
    fn a_package_database_says_more_than_a_name() {
        // Debian's tools in Red Hat's system, and the other way round.
        let status = "Package: rpm\nStatus: install ok installed\nVersion: 4\n";
        for (fs, family) in [
            (MemFs::new().file("/usr/bin/rpm", "").file("/var/lib/dpkg/status", status).file("/etc/redhat-release", "x 7"), "Debian"),
            (MemFs::new().file("/usr/bin/rpm", "").file("/usr/bin/dpkg", "").file("/etc/redhat-release", "x 7"), "Red Hat"),
            (MemFs::new().file("/usr/bin/rpm", "").file("/usr/bin/zypper", ""), "SUSE"),
            (MemFs::new().file("/sbin/apk", "").file("/etc/os-release", "ID=postmarketos\n"), "Alpine"),
            (MemFs::new().file("/usr/bin/pacman", "").file("/etc/os-release", "ID=artix\n"), "Arch"),
        ] {
            run_step(&fs, &NOTHING, |cx| assert_eq!(cx.family.name, family));
        }
    }

    #[test]
    fn packages_are_put_and_told_apart() {
        let given = |name: &str, data| Package { name: name.into(), data };
        let packages = vec![
            given(
                "kernel-core.rpm",
                package("kernel-core", &["/lib/modules/5.14.0-70.el9.x86_64/vmlinuz"], &["/bin/sh", "kernel-modules"], &[]),
            ),
            given("kernel-modules.rpm", package("kernel-modules", &[], &[], &["installonlypkg(kernel-module)"])),
            given("linux-firmware.rpm", package("linux-firmware", &["/lib/firmware/x"], &[], &[])),
            given("kernel.rpm", package("kernel", &[], &["kernel-modules"], &[])),
        ];
        let fs = MemFs::new().file("/etc/os-release", "ID=rocky\nVERSION_ID=9.4\n").file("/usr/bin/rpm", "");
        let fs = fs.dir("/var/lib/rpm").dir("/var/tmp").dir("/lib/modules/4.18");
        run_step_with(&fs, &Options::default(), &NOTHING, |cx| {
            let set = PackageSet::read(cx, "--kernel-package", &packages).unwrap();
            set.install(cx, "test").unwrap();
            for file in
                ["beside/kernel-core.rpm", "beside/kernel-modules.rpm", "beside/kernel.rpm", "instead/linux-firmware.rpm", "install"]
            {
                assert!(cx.fs.exists(format!("/var/tmp/guestlift-kernel-package/{file}").as_bytes()), "{file}");
            }
            assert!(cx.show("/var/tmp/guestlift-kernel-package/install").contains("rpm -i"));
            assert_eq!(cx.fs.commands()[0].makes, ["/var/lib/rpm/", "/lib/firmware/", "/lib/modules/5.14.0-70.el9.x86_64/"]);
            assert!(cx.fs.diff().is_empty(), "what is taken away again is no change");
            let agent = [given("qemu-guest-agent.deb", Vec::new())];
            let error = PackageSet::read(cx, "--install-agent", &agent).err().unwrap().to_string();
            assert!(error.contains("qemu-guest-agent.deb is no package for this guest: rocky 9 takes .rpm files"), "{error}");
        });
        run_step(&MemFs::new(), &NOTHING, |cx| {
            let error = PackageSet::read(cx, "--kernel-package", &packages).err().unwrap().to_string();
            assert!(error.contains("packages cannot be installed in the guest's unknown system"), "{error}");
        });
    }

    #[test]
    fn libraries_are_what_the_loader_finds() {
        for (file, is) in [
            ("/usr/lib/x86_64-linux-gnu/libglib-2.0.so.0.7400.6", true),
            ("/lib64/libnuma.so", true),
            ("/usr/lib/x86_64-linux-gnu/gio/modules/x.so", false),
            ("/lib/modules/6.1/vdso/vdso64.so", false),
            ("/usr/lib/x86_64-linux-gnu/", false),
            ("/usr/lib/x.sources", false),
        ] {
            assert_eq!(is_library(file), is, "{file}");
        }
    }

    #[test]
    fn what_the_database_tells_is_missing() {
        let guest = MemFs::new().file("/lib/apk/db/installed", "P:busybox\nV:1\np:/bin/sh\n\n").file("/usr/bin/env", "");
        run_step(&guest, &NOTHING, |cx| {
            let file = PackageFile {
                name: "linux-virt".into(),
                depends: [&["/bin/sh"][..], &["/usr/bin/env"], &["initramfs-generator"], &["a", "b"]]
                    .map(|row| row.iter().map(|n| n.to_string()).collect())
                    .to_vec(),
                ..PackageFile::default()
            };
            let given = Package { name: "linux-virt.apk".into(), data: Vec::new() };
            let set = PackageSet { files: vec![(&given, file)], option: "--kernel-package" };
            let error = set.check_complete(cx).unwrap_err().to_string();
            assert!(error.contains("lacks: initramfs-generator (for linux-virt), a or b (for linux-virt). Get them"), "{error}");
        });
    }
}
