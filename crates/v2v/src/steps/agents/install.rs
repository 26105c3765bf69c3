//! KVM's agent from packages that the user gives.

use guestfs::engine::Command;

use super::GUEST_AGENTS;
use crate::Result;
use crate::family::PackageSet;
use crate::guest::packages::PackageFile;
use crate::guest::{has_program, sysv};
use crate::step::Context;

/// The option that gives them.
const OPTION: &str = "--install-agent";

/// Those in which an init script starts or stops a service.
const RUNLEVELS: [&str; 7] = ["0", "1", "2", "3", "4", "5", "6"];

/// Has the packages installed, and the agent switched on, if there are any.
pub(super) fn install(cx: &mut Context<'_>) -> Result<()> {
    let options = cx.options;
    if options.agent_packages.is_empty() {
        return Ok(());
    }
    let packages = PackageSet::read(cx, OPTION, &options.agent_packages)?;
    let brings = |place: String| packages.files().any(|file| file.files.contains(&place));
    let unit = |service: &str| ["/lib", "/usr/lib"].iter().any(|lib| brings(format!("{lib}/systemd/system/{service}.service")));
    let script = |service: &str| ["/etc/init.d", "/etc/rc.d/init.d"].iter().any(|dir| brings(format!("{dir}/{service}")));
    let Some(service) = GUEST_AGENTS.into_iter().find(|service| unit(service) || script(service)) else {
        // SUSE's has udev start it.
        if GUEST_AGENTS.into_iter().any(|service| unit(&format!("{service}@"))) {
            packages.install(cx, "installs QEMU's guest agent")?;
            cx.note("the agent starts when its channel is there");
            return Ok(());
        }
        // Alpine's has its service in a package that the other does not name.
        let script = if cx.family.ending == ".apk" { ", with qemu-guest-agent-openrc" } else { "" };
        return Err(cx.fail(format!(
            "none of {} holds QEMU's guest agent (a service called {}): get the package qemu-guest-agent of the guest's own distribution{script}",
            packages.names(),
            GUEST_AGENTS.join(" or ")
        )));
    };
    packages.install(cx, "installs QEMU's guest agent")?;
    // Debian's packages switch on what they bring, for each init that may be there.
    if unit(service) && has_program(&cx.fs, "deb-systemd-helper") {
        cx.fs.makes(["/var/lib/systemd/deb-systemd-helper-enabled/".to_string()]);
    }
    if script(service) && has_program(&cx.fs, "update-rc.d") {
        let places = sysv::places(cx, &RUNLEVELS);
        cx.fs.makes(places);
    }
    let is_static = |file: &PackageFile| file.static_units.iter().any(|unit| unit.ends_with(&format!("/{service}.service")));
    if has_program(&cx.fs, "systemctl") && packages.files().any(is_static) {
        cx.note(format!("{service} starts when its channel is there"));
    } else {
        switch_on(cx, service, unit(service), script(service));
    }
    Ok(())
}

/// Has the guest's own tool switch a service on: its files are not there yet. Most packages do so by themselves; it can be done again.
fn switch_on(cx: &mut Context<'_>, service: &str, has_unit: bool, has_script: bool) {
    const WHY: &str = "KVM's agent";
    let program = |name| has_program(&cx.fs, name);
    if has_unit && program("systemctl") {
        let mut command = Command::new(["systemctl", "enable", service]);
        command.env.push((b"SYSTEMD_OFFLINE".to_vec(), b"1".to_vec()));
        cx.fs.command(WHY, command);
        cx.fs.makes(["/etc/systemd/system/".to_string()]);
    } else if has_script && program("rc-update") {
        cx.fs.command(WHY, Command::new(["rc-update", "add", service, "default"]));
        cx.fs.makes([format!("/etc/runlevels/default/{service}")]);
    } else if has_script && program("update-rc.d") {
        sysv::update_rc(cx, WHY, service, "defaults", &RUNLEVELS);
    } else if has_script && program("chkconfig") {
        // What chkconfig does not know is not switched on by it.
        cx.fs.command(WHY, Command::new(["/bin/sh", "-c", "chkconfig --add \"$1\" && chkconfig \"$1\" on", "sh", service]));
        cx.fs.makes(["2", "3", "4", "5"].map(|level| format!("/etc/rc.d/rc{level}.d/")));
    } else {
        cx.warn(format!("the guest has no tool that is known to switch {service} on: do it when it runs"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::STEP;
    use crate::guest::deb::tests::package;
    use crate::staged::Staged;
    use crate::step::{Context, Options, Package};
    use crate::testing::{MemFs, run_step_with, xen_tools_guest};

    fn agent(files: &[&str]) -> Options {
        let data = package(files, "Package: qemu-guest-agent\nDepends: libc6\n");
        Options { agent_packages: vec![Package { name: "agent.deb".into(), data }], ..Options::default() }
    }

    fn debian() -> MemFs {
        MemFs::new().file("/var/lib/dpkg/status", "Package: libc6\nStatus: install ok installed\nVersion: 2.36\n").dir("/usr/lib")
    }

    #[test]
    fn it_is_installed_and_switched_on_under_any_init() {
        let both = ["./lib/systemd/system/qemu-guest-agent.service", "./etc/init.d/qemu-guest-agent"];
        for (program, files, command, made) in [
            ("/bin/systemctl", &both[..], "systemctl enable qemu-guest-agent", "/etc/systemd/system/"),
            ("/usr/sbin/update-rc.d", &both, "update-rc.d qemu-guest-agent defaults", "/etc/rc2.d/"),
            ("/sbin/rc-update", &both, "rc-update add qemu-guest-agent default", "/etc/runlevels/default/qemu-guest-agent"),
            (
                "/sbin/chkconfig",
                &["./etc/rc.d/init.d/qemu-ga"],
                "/bin/sh -c 'chkconfig --add \"$1\" && chkconfig \"$1\" on' sh qemu-ga",
                "/etc/rc.d/rc2.d/",
            ),
        ] {
            run_step_with(&debian().file(program, ""), &agent(files), &STEP, |cx| {
                let [installs, switches] = cx.fs.commands() else { panic!("{:?}", cx.reports) };
                assert_eq!(installs.shown(), "/bin/sh /var/tmp/guestlift-install-agent/install");
                assert!(installs.makes.contains(&"/var/lib/dpkg/".to_string()), "{:?}", installs.makes);
                assert_eq!(switches.shown(), command);
                assert!(switches.makes.contains(&made.to_string()), "{:?}", switches.makes);
            });
        }
        run_step_with(&debian(), &agent(&["./usr/lib/systemd/system/qemu-ga@.service"]), &STEP, |cx| {
            assert_eq!(
                (cx.fs.commands().len(), cx.reports[0].notes.last().map(String::as_str)),
                (1, Some("the agent starts when its channel is there"))
            );
        });
        run_step_with(&debian(), &agent(&both), &STEP, |cx| {
            assert!(cx.reports[0].warnings[0].contains("no tool that is known to switch qemu-guest-agent on"));
        });
    }

    #[test]
    fn another_package_is_an_error() {
        let (source, layout) = xen_tools_guest();
        let options = agent(&["./usr/sbin/xe-daemon"]);
        let base = debian();
        let mut cx = Context::new(&source, &layout, &options, Staged::new(&base)).unwrap();
        let error = cx.run(&STEP).unwrap_err().to_string();
        assert!(error.contains("none of agent.deb holds QEMU's guest agent (a service called qemu-guest-agent or qemu-ga)"), "{error}");
    }
}
