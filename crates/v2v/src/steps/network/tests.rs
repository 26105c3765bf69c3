//! Names by the configuration files of distributions, as they write them.

use super::*;
use crate::testing::{MemFs, run_step};

const XEN_TOOLS: &str =
    "auto lo\niface lo inet loopback\n\n# The primary network interface\nauto eth0\niface eth0 inet static\n address 192.168.77.10\n";

fn status(package: &str, version: &str) -> String {
    format!("Package: {package}\nStatus: install ok installed\nVersion: {version}\n")
}

#[test]
fn bookworm_keeps_eth0_by_a_link_file() {
    let base = MemFs::new().file("/etc/network/interfaces", XEN_TOOLS).file("/var/lib/dpkg/status", status("udev", "252.39-1~deb12u1"));
    run_step(&base, &STEP, |cx| {
        assert_eq!(
            cx.show("/etc/systemd/network/10-eth0.link"),
            "[Match]\nMACAddress=00:16:3e:00:00:01\nDriver=virtio_net\n\n[Link]\nName=eth0\n"
        );
        assert!(cx.facts.kernel_nic_names);
        assert_eq!(cx.reports[0].changed, ["/etc/systemd/network/10-eth0.link"]);
    });
}

#[test]
fn trixie_keeps_enx0_where_its_configuration_says_so() {
    let netplan = "network:\n  ethernets:\n    enX0:\n      match:\n        driver: xen_netfront\n      dhcp4: true\n";
    let base = MemFs::new().file("/etc/netplan/01.yaml", netplan).file("/var/lib/dpkg/status", status("systemd", "257.8-1"));
    run_step(&base, &STEP, |cx| {
        assert!(cx.show("/etc/systemd/network/10-enX0.link").ends_with("Name=enX0\n"));
        assert!(!cx.facts.kernel_nic_names);
        assert_eq!(cx.show("/etc/netplan/01.yaml"), netplan.replace("xen_netfront", "virtio_net"));
    });
    let base = MemFs::new().file("/etc/network/interfaces", XEN_TOOLS).file("/var/lib/dpkg/status", status("systemd", "257.8-1"));
    run_step(&base, &STEP, |cx| assert!(cx.show("/etc/systemd/network/10-eth0.link").ends_with("Name=eth0\n")));
    // Debian 12's knows them too.
    let base = MemFs::new().file("/etc/network/interfaces", "auto lo\n").file("/var/lib/dpkg/status", status("udev", "252.39-1~deb12u2"));
    run_step(&base, &STEP, |cx| assert!(cx.show("/etc/systemd/network/10-enX0.link").ends_with("Name=enX0\n")));
}

#[test]
fn wheezy_and_jessie_get_a_rule() {
    let base = MemFs::new()
        .file("/etc/network/interfaces", XEN_TOOLS)
        .file("/lib/udev/rules.d/75-persistent-net-generator.rules", "")
        .file(RULES, "# kept\nSUBSYSTEM==\"net\", ATTR{address}==\"00:0c:29:00:00:09\", NAME=\"eth0\"\nSUBSYSTEM==\"net\", ATTR{address}==\"00:0c:29:00:00:08\", NAME=\"eth7\"\n");
    run_step(&base, &STEP, |cx| {
        let rules = cx.show(RULES);
        assert!(rules.starts_with("# kept\n") && rules.contains("eth7") && !rules.contains("00:0c:29:00:00:09"), "{rules}");
        assert!(rules.ends_with("ATTR{address}==\"00:16:3e:00:00:01\", ATTR{type}==\"1\", KERNEL==\"eth*\", NAME=\"eth0\"\n"), "{rules}");
    });
}

#[test]
fn a_rule_of_the_guest_says_the_name() {
    let rule = "SUBSYSTEM==\"net\", DRIVERS==\"?*\", ATTRS{address}==\"00:16:3E:00:00:01\", NAME=\"eth3\"\n";
    let base = MemFs::new().file(RULES, rule).file("/lib/udev/rules.d/75-persistent-net-generator.rules", "");
    run_step(&base, &STEP, |cx| {
        assert!(cx.fs.is_unchanged());
        assert_eq!(cx.reports[0].notes, ["eth3 is the NIC with 00:16:3e:00:00:01"]);
    });
}

#[test]
fn a_rule_may_say_any_name() {
    let rule = "SUBSYSTEM==\"net\", ATTR{address}==\"00:16:3e:00:00:01\", NAME=\"net-ext\"\n";
    let base = MemFs::new().file(RULES, rule).file("/lib/udev/rules.d/75-persistent-net-generator.rules", "");
    run_step(&base, &STEP, |cx| {
        assert!(cx.fs.is_unchanged());
        assert_eq!(cx.reports[0].notes, ["net-ext is the NIC with 00:16:3e:00:00:01"]);
    });
}

#[test]
fn red_hats_and_suses_files_say_the_name() {
    let mac = "00:16:3E:00:00:01";
    let centos7 = MemFs::new()
        .file("/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nHWADDR=00:16:3E:00:00:09\n")
        .file("/etc/sysconfig/network-scripts/ifcfg-eth2", format!("DEVICE=eth2\nHWADDR=\"{mac}\"\nIPADDR=10.0.0.2\n"))
        .file("/lib/systemd/systemd-udevd", "");
    run_step(&centos7, &STEP, |cx| {
        assert!(cx.show("/etc/systemd/network/10-eth2.link").ends_with("Name=eth2\n"));
        assert!(cx.facts.kernel_nic_names);
    });
    let centos5 = MemFs::new().dir("/etc/udev/rules.d").file("/etc/sysconfig/network-scripts/ifcfg-eth0", "DEVICE=eth0\nBOOTPROTO=dhcp\n");
    run_step(&centos5, &STEP, |cx| assert!(cx.show(RULES).ends_with("NAME=\"eth0\"\n")));
    // Where systemd knows Xen's NICs, a configuration for eth0 says that it did not name them.
    for (file, name) in [("/etc/sysconfig/network/ifcfg-eth0", "eth0"), ("/etc/sysconfig/network/config", "enX0")] {
        let tumbleweed = MemFs::new().file(file, "BOOTPROTO='dhcp'\n").file("/usr/lib/systemd/libsystemd-shared-257.so", "");
        run_step(&tumbleweed, &STEP, |cx| assert!(cx.show(&format!("/etc/systemd/network/10-{name}.link")).contains(name)));
    }
}

#[test]
fn rules_by_xens_bus_become_rules_by_mac() {
    let base = MemFs::new()
        .file("/etc/udev/rules.d/10-net.rules", "SUBSYSTEM==\"net\", KERNELS==\"vif-0\", NAME=\"lan\"\n")
        .file("/etc/systemd/network/a.network", "[Match]\nDriver=vif\n")
        .file("/var/lib/dpkg/status", status("udev", "247.3-7"));
    run_step(&base, &STEP, |cx| {
        assert_eq!(cx.show("/etc/udev/rules.d/10-net.rules"), "SUBSYSTEM==\"net\", ATTR{address}==\"00:16:3e:00:00:01\", NAME=\"lan\"\n");
        assert_eq!(cx.show("/etc/systemd/network/a.network"), "[Match]\nDriver=virtio_net\n");
        assert!(cx.show("/etc/systemd/network/10-lan.link").contains("Name=lan"));
    });
}

/// The installer's file, of every Debian and of Ubuntu until 17.04.
fn interfaces(name: &str) -> String {
    format!(
        "# This file describes the network interfaces available on your system\n# and how to activate them. For more information, see interfaces(5).\n\n\
         # The loopback network interface\nauto lo\niface lo inet loopback\n\n# The primary network interface\nallow-hotplug {name}\n\
         iface {name} inet static\n\taddress 192.168.1.10\n\tnetmask 255.255.255.0\n\tnetwork 192.168.1.0\n\tbroadcast 192.168.1.255\n\
         \tgateway 192.168.1.1\n\tdns-nameservers 192.168.1.1\n"
    )
}

/// What the installer of Ubuntu from 17.10 and cloud-init write.
fn cloud_init(name: &str, matching: &str) -> String {
    format!(
        "# This file is generated from information provided by\n# the datasource.  Changes to it will not persist across an instance.\n\
         # To disable cloud-init's network configuration capabilities, write a file\n# /etc/cloud/cloud.cfg.d/99-disable-network-config.cfg with the following:\n\
         # network: {{config: disabled}}\nnetwork:\n    ethernets:\n        {name}:\n            addresses:\n            - 10.0.0.5/24\n            gateway4: 10.0.0.1\n\
         {matching}            nameservers:\n                addresses:\n                - 10.0.0.1\n    version: 2\n"
    )
}

/// The one file that is written, by Debian's and Ubuntu's releases; what has the addresses stays as it is.
#[test]
fn releases_of_debian_and_ubuntu() {
    const GENERATOR: &str = "/lib/udev/rules.d/75-persistent-net-generator.rules";
    let rule = |name: &str| Some((RULES.to_string(), format!("NAME=\"{name}\"\n")));
    let link = |name: &str| Some((format!("/etc/systemd/network/10-{name}.link"), format!("Name={name}\n")));
    for (release, udev, generator, file, content, wanted) in [
        ("squeeze", "164-3", true, "/etc/network/interfaces", interfaces("eth0"), rule("eth0")),
        ("wheezy", "175-7.2", true, "/etc/network/interfaces", interfaces("eth0"), rule("eth0")),
        ("jessie", "215-17+deb8u13", true, "/etc/network/interfaces", interfaces("eth0"), rule("eth0")),
        ("stretch", "232-25+deb9u14", false, "/etc/network/interfaces", interfaces("eth0"), link("eth0")),
        ("buster", "241-7~deb10u10", false, "/etc/network/interfaces", interfaces("eth0"), link("eth0")),
        ("bullseye", "247.3-7+deb11u6", false, "/etc/network/interfaces.d/eth0", interfaces("eth0"), link("eth0")),
        ("trixie", "257.8-1~deb13u2", false, "/etc/network/interfaces", interfaces("enX0"), link("enX0")),
        ("trixie, upgraded", "257.8-1~deb13u2", false, "/etc/network/interfaces", interfaces("eth0"), link("eth0")),
        ("bookworm, emulated NIC", "252.39-1~deb12u1", false, "/etc/network/interfaces", interfaces("ens3"), link("ens3")),
        ("buster, emulated NIC", "241-7~deb10u10", false, "/etc/network/interfaces", interfaces("enp0s4"), link("enp0s4")),
        ("lucid", "151-12", true, "/etc/network/interfaces", interfaces("eth0"), rule("eth0")),
        ("precise", "175-0ubuntu9", true, "/etc/network/interfaces", interfaces("eth0"), rule("eth0")),
        ("trusty", "204-5ubuntu20.31", true, "/etc/network/interfaces", interfaces("eth0"), rule("eth0")),
        ("xenial", "229-4ubuntu21.31", false, "/etc/network/interfaces.d/50-cloud-init.cfg", interfaces("eth0"), link("eth0")),
        ("bionic", "237-3ubuntu10.57", false, "/etc/netplan/01-netcfg.yaml", cloud_init("eth0", ""), link("eth0")),
        (
            "focal, named by netplan",
            "245.4-4ubuntu3.23",
            false,
            "/etc/netplan/50-cloud-init.yaml",
            cloud_init("ens3", "            match:\n                macaddress: 00:16:3e:00:00:01\n            set-name: ens3\n"),
            None,
        ),
        (
            "jammy, found by netplan",
            "249.11-0ubuntu3.12",
            false,
            "/etc/netplan/00-installer-config.yaml",
            cloud_init("lan", "            match:\n                macaddress: \"00:16:3E:00:00:01\"\n"),
            link("eth0"),
        ),
        ("noble", "255.4-1ubuntu8.4", false, "/etc/netplan/50-cloud-init.yaml", cloud_init("enX0", ""), link("enX0")),
    ] {
        let mut base = MemFs::new().file(file, &content).file("/var/lib/dpkg/status", status("udev", udev));
        if generator {
            base = base.file(GENERATOR, "");
        }
        run_step(&base, &STEP, |cx| match wanted {
            Some((path, end)) => {
                assert_eq!(cx.reports[0].changed, std::slice::from_ref(&path), "{release}");
                let written = cx.show(&path);
                assert!(written.ends_with(&end) && written.contains("00:16:3e:00:00:01"), "{release}: {written}");
            }
            None => assert!(cx.fs.is_unchanged(), "{release}: {:?}", cx.reports[0].changed),
        });
    }
}

/// systemd calls a NIC by Xen's number, and the kernel counts.
#[test]
fn numbers_of_nics_that_were_taken_away_stay_free() {
    for (udev, wanted) in [("252.39-1~deb12u1", ["enX0", "enX2"]), ("247.3-7", ["eth0", "eth1"])] {
        let base = MemFs::new().file("/var/lib/dpkg/status", status("udev", udev));
        let (mut source, layout) = crate::testing::xen_tools_guest();
        let second = crate::source::Nic { mac: Some("00:16:3e:00:00:02".into()), device: Some(2), ..source.nics[0].clone() };
        source.nics.push(second);
        let options = crate::step::Options::default();
        let mut cx = Context::new(&source, &layout, &options, crate::staged::Staged::new(&base)).unwrap();
        cx.run(&STEP).unwrap();
        let links = wanted.map(|name| format!("/etc/systemd/network/10-{name}.link"));
        assert_eq!(cx.reports[0].changed, links);
    }
}

#[test]
fn what_gives_names_by_mac_already_stays_so() {
    let udev = status("udev", "252.39-1~deb12u1");
    let link = "[Match]\nMACAddress=00:16:3E:00:00:01\n\n[Link]\nName=lan0\n";
    let base = MemFs::new().file("/etc/systemd/network/70-lan.link", link).file("/var/lib/dpkg/status", &udev);
    run_step(&base, &STEP, |cx| {
        assert!(cx.fs.is_unchanged());
        assert_eq!(cx.reports[0].notes, ["lan0 is the NIC with 00:16:3e:00:00:01"]);
    });
    // Two interfaces in a file: the one with the MAC is meant.
    let two = "network:\n  version: 2\n  ethernets:\n    a:\n      match: {macaddress: 00:16:3e:00:00:09}\n      set-name: wan\n    b:\n      set-name: \"lan\" # x\n      match:\n        macaddress: 00:16:3e:00:00:01\n    c:\n      set-name: dmz\n";
    let base = MemFs::new().file("/etc/netplan/10.yaml", two).file("/var/lib/dpkg/status", &udev);
    run_step(&base, &STEP, |cx| assert_eq!(cx.reports[0].notes, ["lan is the NIC with 00:16:3e:00:00:01"]));
    let inline =
        two.replace("00:16:3e:00:00:09", "00:16:3E:00:00:01").replacen("        macaddress: 00:16:3e:00:00:01", "        driver: x", 1);
    let base = MemFs::new().file("/etc/netplan/10.yaml", inline).file("/var/lib/dpkg/status", &udev);
    run_step(&base, &STEP, |cx| assert_eq!(cx.reports[0].notes, ["wan is the NIC with 00:16:3e:00:00:01"]));
}

#[test]
fn networkmanager_and_networkd() {
    let udev = status("udev", "252.39-1~deb12u1");
    let keyfile = "[connection]\nid=Wired connection 1\nuuid=0b0d5a0a-7d0e-4a57-8a3e-6f6a86f7d002\ntype=ethernet\ninterface-name=eth1\n\n[ethernet]\nmac-address=00:16:3E:00:00:01\n\n\
                   [ipv4]\naddress1=10.0.0.5/24,10.0.0.1\nmethod=manual\n";
    let other = keyfile.replace("eth1", "eth0").replace("00:16:3E:00:00:01", "00:16:3E:00:00:07");
    let base = MemFs::new()
        .file("/etc/NetworkManager/system-connections/Wired connection 1.nmconnection", keyfile)
        .file("/etc/NetworkManager/system-connections/old.nmconnection", other)
        .file("/var/lib/dpkg/status", &udev);
    run_step(&base, &STEP, |cx| assert_eq!(cx.reports[0].changed, ["/etc/systemd/network/10-eth1.link"]));
    for (name, network) in [
        ("eth0", "[Match]\nName=eth0\n\n[Network]\nAddress=10.0.0.5/24\n"),
        ("enX0", "[Match]\nMACAddress=00:16:3e:00:00:01\n\n[Network]\nDHCP=yes\n"),
    ] {
        let base = MemFs::new().file("/etc/systemd/network/20-wired.network", network).file("/var/lib/dpkg/status", &udev);
        run_step(&base, &STEP, |cx| assert_eq!(cx.reports[0].changed, [format!("/etc/systemd/network/10-{name}.link")]));
    }
}

/// Nothing that is known names an interface, and udev would call Xen's enX0; but it is told not to, or what names one is another distribution's.
#[test]
fn the_kernels_names_where_udev_is_told_to_leave_them() {
    let udev = || MemFs::new().file("/var/lib/dpkg/status", status("udev", "254.10"));
    for (base, name) in [
        (udev(), "enX0"),
        (udev().file("/boot/grub/grub.conf", "title x\nkernel /boot/kernel-6.1 root=/dev/xvda1 net.ifnames=0\n"), "eth0"),
        (udev().link_to("/etc/systemd/network/99-default.link", "/dev/null"), "eth0"),
        (udev().link_to("/etc/udev/rules.d/80-net-setup-link.rules", "/dev/null"), "eth0"),
        (udev().file("/etc/conf.d/net", "config_eth0=\"192.168.77.10/24\"\n"), "eth0"),
        (udev().link_to("/etc/init.d/net.eth0", "net.lo"), "eth0"),
        (udev().file("/etc/netctl/lan", "Interface=eth0\nConnection=ethernet\n"), "eth0"),
        (udev().file("/etc/dhcpcd.conf", "interface enX0\nstatic ip_address=10.0.0.5/24\n"), "enX0"),
    ] {
        run_step(&base, &STEP, |cx| assert_eq!(cx.reports[0].notes, [format!("{name} is the NIC with 00:16:3e:00:00:01")]));
    }
}
