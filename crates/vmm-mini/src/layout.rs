//! Where things lie in the guest's physical memory, and which interrupts they have.

use vm_memory::GuestAddress;

/// Where PVH's `hvm_start_info` goes, with its lists behind it.
pub const START_INFO: u64 = 0x6000;
/// Where its list of modules goes.
pub const MODULES: u64 = 0x6100;
/// Where its map of the memory goes.
pub const MEMORY_MAP: u64 = 0x6200;
/// Where the command line goes.
pub const COMMAND_LINE: u64 = 0x7000;
/// The longest command line that Linux reads on x86, with a zero at its end.
pub const COMMAND_LINE_SIZE: usize = 2048;
/// The MP table, in the last KiB of base memory, where kernels look for one.
pub const MP_TABLE: u64 = 0x9fc00;
/// What a PC has between base and high memory is not there: nothing is told of it.
pub const HIGH_MEMORY: u64 = 0x10_0000;
/// Devices begin here, and memory ends here or goes on above 4 GiB.
pub const DEVICES: u64 = 0xd000_0000;
/// Addresses that each virtio device has.
pub const DEVICE_SIZE: u64 = 0x200;
/// Memory that does not fit below the devices goes here.
pub const ABOVE_DEVICES: u64 = 1 << 32;
/// The I/O APIC, where KVM has it.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APIC, where processors have it.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// Pages that KVM takes on Intel's processors: three for a task state segment, after one for a map of identity.
pub const KVM_PAGES: u64 = 0xfffb_c000;

/// The serial port's first port and interrupt.
pub const SERIAL: (u64, u32) = (0x3f8, 4);
/// Lines of the I/O APIC.
pub const IRQS: u32 = 24;
/// The first of them that virtio devices have; the ones before are a PC's own.
const FIRST_VIRTIO_IRQ: u32 = 5;

/// Address and interrupt of a virtio device. After the last line they begin anew: virtio's interrupts can be shared.
pub fn device(number: u32) -> (u64, u32) {
    (DEVICES + u64::from(number) * DEVICE_SIZE, FIRST_VIRTIO_IRQ + number % (IRQS - FIRST_VIRTIO_IRQ))
}

/// The pieces of a memory of `bytes`.
pub fn memory(bytes: u64) -> Vec<(GuestAddress, u64)> {
    let low = bytes.min(DEVICES);
    let mut pieces = vec![(GuestAddress(0), low)];
    if bytes > low {
        pieces.push((GuestAddress(ABOVE_DEVICES), bytes - low));
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_leaves_room_for_devices() {
        assert_eq!(memory(256 << 20), [(GuestAddress(0), 256 << 20)]);
        assert_eq!(memory(4 << 30), [(GuestAddress(0), 0xd000_0000), (GuestAddress(1 << 32), 0x3000_0000)]);
    }

    #[test]
    fn lines_are_shared_only_by_many_devices() {
        let lines: Vec<u32> = (0..20).map(|n| device(n).1).collect();
        assert_eq!(lines, (5..24).chain([5]).collect::<Vec<_>>());
        assert_eq!(device(19).0, 0xd000_2600);
    }
}
