//! A whole machine: its firmware starts the first disk, and the serial port carries both ways.

use std::sync::Arc;
use std::time::{Duration, Instant};

use guestfs::machine::{Machine, MachineRunner, MachineSpec};
use guestfs_appliance::Appliance;
use imgcore::ImageMut;
use imgcore::raw::Raw;
use imgcore::storage::FileStorage;

use crate::common::*;

/// A boot sector in real mode. It says "boot" on COM1 and answers every byte by the next one, 'a' by 'b':
/// `mov al,'b'; call put; …; again: wait for bit 0 of 3fdh; in al,3f8h; inc al; call put; jmp again;
/// put: wait for bit 5 of 3fdh; out 3f8h,al; ret`.
#[rustfmt::skip]
const ECHO: &[u8] = &[
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xb0, 0x62, 0xe8, 0x21, 0x00, 0xb0,
    0x6f, 0xe8, 0x1c, 0x00, 0xb0, 0x6f, 0xe8, 0x17, 0x00, 0xb0, 0x74, 0xe8, 0x12, 0x00, 0xba, 0xfd,
    0x03, 0xec, 0xa8, 0x01, 0x74, 0xfb, 0xb2, 0xf8, 0xec, 0xfe, 0xc0, 0xe8, 0x02, 0x00, 0xeb, 0xee,
    0x88, 0xc4, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, 0xb2, 0xf8, 0x88, 0xe0, 0xee, 0xc3,
];

#[test]
fn a_boot_sector_speaks_and_hears() {
    let mut sector = ECHO.to_vec();
    sector.resize(510, 0);
    sector.extend([0x55, 0xaa]);
    let dir = scratch();
    let path = empty(dir.path(), "disk", 1);
    std::fs::write(&path, [sector, vec![0; (1 << 20) - 512]].concat()).unwrap();
    let disk: Arc<dyn ImageMut> = Arc::new(Raw::open(Arc::new(FileStorage::open_writable(&path).unwrap())).unwrap());
    let spec =
        MachineSpec { memory_mib: 64, vcpus: 1, disks: vec![disk], macs: vec!["52:54:00:00:00:01".into()], uefi: false, emulated: false };
    let mut machine = MachineRunner::start(&Appliance::new(), &spec).unwrap_or_else(|e| panic!("{e}"));
    expect(machine.as_mut(), b"boot");
    machine.write_console(b"a").unwrap();
    expect(machine.as_mut(), b"b");

    let bad = MachineSpec { macs: vec!["52:54:00:00:00:01,x=y".into()], ..spec };
    assert!(MachineRunner::start(&Appliance::new(), &bad).is_err(), "an address that would be an option");
}

fn expect(machine: &mut dyn Machine, text: &[u8]) {
    let (mut seen, until) = (Vec::new(), Instant::now() + Duration::from_secs(60));
    while !seen.windows(text.len()).any(|w| w == text) {
        assert!(Instant::now() < until, "{}", String::from_utf8_lossy(&seen));
        seen.extend(machine.read_console(Duration::from_secs(1)).unwrap());
    }
}
