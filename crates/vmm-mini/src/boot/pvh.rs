//! The PVH boot protocol (Xen's `docs/misc/pvh.pandoc` and `hvm/start_info.h`): a 32-bit entry that gets a description of
//! memory, command line and initramfs.

use kvm_bindings::{kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress};

use crate::error::{Context, Result};
use crate::layout;
use crate::virtio::Memory;

/// Marks `hvm_start_info`.
const MAGIC: u32 = 0x336e_c578;
/// Types of memory.
const RAM: u32 = 1;
const RESERVED: u32 = 2;

/// Writes what the kernel is told. The initramfs is given by its address and size.
pub fn write(memory: &Memory, memory_bytes: u64, command_line: &str, initramfs: (u64, u64)) -> Option<()> {
    let mut map = vec![entry(0, layout::MP_TABLE, RAM), entry(layout::MP_TABLE, 1024, RESERVED)];
    for (start, len) in layout::memory(memory_bytes) {
        let start = start.0;
        let from = start.max(layout::HIGH_MEMORY);
        map.push(entry(from, (start + len).checked_sub(from)?, RAM));
    }
    let start_info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: 1,
        modlist_paddr: layout::MODULES,
        cmdline_paddr: layout::COMMAND_LINE,
        memmap_paddr: layout::MEMORY_MAP,
        memmap_entries: u32::try_from(map.len()).ok()?,
        ..Default::default()
    };
    let module = hvm_modlist_entry { paddr: initramfs.0, size: initramfs.1, ..Default::default() };
    memory.write_obj(start_info, GuestAddress(layout::START_INFO)).ok()?;
    memory.write_obj(module, GuestAddress(layout::MODULES)).ok()?;
    for (n, entry) in (0..).zip(map) {
        memory.write_obj(entry, GuestAddress(layout::MEMORY_MAP + n * size_of::<hvm_memmap_table_entry>() as u64)).ok()?;
    }
    memory.write_slice(&[command_line.as_bytes(), &[0]].concat(), GuestAddress(layout::COMMAND_LINE)).ok()
}

fn entry(addr: u64, size: u64, type_: u32) -> hvm_memmap_table_entry {
    hvm_memmap_table_entry { addr, size, type_, reserved: 0 }
}

/// Sets the processor's state at `entry`: protected mode, flat segments, no paging, the description's address in EBX.
pub fn set_registers(vcpu: &VcpuFd, entry: u64) -> Result<()> {
    let mut sregs = vcpu.get_sregs().kvm("tell the processor's registers")?;
    let flat =
        |selector: u16, type_: u8| kvm_segment { limit: 0xffff_ffff, selector, type_, present: 1, db: 1, s: 1, g: 1, ..Default::default() };
    // Execute and read, accessed; read and write, accessed.
    sregs.cs = flat(0x08, 0xb);
    let data = flat(0x10, 0x3);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
    // A busy 32-bit task state segment.
    sregs.tr = kvm_segment { limit: 0x67, selector: 0x18, type_: 0xb, present: 1, ..Default::default() };
    // Protection enabled; the bit for an x87, which is always one.
    sregs.cr0 = 0x11;
    sregs.cr4 = 0;
    vcpu.set_sregs(&sregs).kvm("set the processor's registers")?;
    // Bit 1 of the flags is always one.
    let regs = kvm_regs { rip: entry, rbx: layout::START_INFO, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs).kvm("set the processor's registers")
}
