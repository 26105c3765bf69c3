//! Tells the kernel of its processor and of the I/O APIC with its lines (Intel MultiProcessor Specification 1.4, chapter 4).
//! Without it a kernel falls back to a PC's old interrupt controller and timer.

use vm_memory::{Bytes, GuestAddress};

use crate::layout::{IO_APIC, IRQS, LOCAL_APIC, MP_TABLE};
use crate::virtio::Memory;

/// Bytes of the floating pointer structure (section 4.1); the table follows it.
const POINTER: u32 = 16;
/// The I/O APIC's number, after the processor's 0.
const IO_APIC_ID: u8 = 1;

/// Writes it to its place.
pub fn write(memory: &Memory) -> Option<()> {
    let table = [pointer().as_slice(), &table()].concat();
    memory.write_slice(&table, GuestAddress(MP_TABLE)).ok()
}

/// The floating pointer structure, which is how the table is found.
fn pointer() -> [u8; POINTER as usize] {
    let mut pointer = [0; POINTER as usize];
    pointer[..4].copy_from_slice(b"_MP_");
    pointer[4..8].copy_from_slice(&(MP_TABLE as u32 + POINTER).to_le_bytes());
    // Length in paragraphs, revision 1.4.
    (pointer[8], pointer[9]) = (1, 4);
    pointer[10] = checksum(&pointer);
    pointer
}

/// The configuration table (section 4.2) with its entries (section 4.3).
fn table() -> Vec<u8> {
    let mut entries: Vec<Vec<u8>> = Vec::new();
    // Processor 0, with an APIC of version 0x14, enabled, which starts. Its signature and features are told by CPUID.
    entries.push([&[0, 0, 0x14, 0b11][..], &[0; 16]].concat());
    entries.push([&[1, 0][..], b"ISA   "].concat());
    entries.push([&[2, IO_APIC_ID, 0x11, 1][..], &IO_APIC.to_le_bytes()].concat());
    // Each interrupt of the bus goes into the line of its number, as the bus has it: edges, high.
    entries.extend((0..IRQS as u8).map(|line| vec![3, 0, 0, 0, 0, line, IO_APIC_ID, line]));
    // The local APIC's LINT0 is for the old controller (ExtINT), its LINT1 for NMI.
    entries.push(vec![4, 3, 0, 0, 0, 0, 0, 0]);
    entries.push(vec![4, 1, 0, 0, 0, 0, 0xff, 1]);

    let count = entries.len() as u16;
    let entries = entries.concat();
    let length = 44 + entries.len() as u16;
    let mut table = Vec::new();
    table.extend(b"PCMP");
    table.extend(length.to_le_bytes());
    table.extend([4, 0]);
    table.extend(b"GUESTLFTVMM-MINI    ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(LOCAL_APIC.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);
    table
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_zero_and_lengths_are_right() {
        let (pointer, table) = (pointer(), table());
        assert_eq!(checksum(&pointer), 0);
        assert_eq!(checksum(&table), 0);
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        assert_eq!(table.len(), 44 + 20 + 8 + 8 + 24 * 8 + 2 * 8, "sizes of section 4.3");
        assert!(pointer.len() + table.len() <= 1024);
    }
}
