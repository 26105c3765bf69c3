//! From files to a guest that can take its first step.

pub mod bzimage;
mod cpuid;
mod mptable;
mod pvh;

use std::fs::File;
use std::io::{Cursor, Read, Seek};

pub use cpuid::set as set_cpuid;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use linux_loader::loader::{KernelLoader, KernelLoaderResult};
use vm_memory::{Bytes, GuestAddress};

use crate::error::{Error, Result};
use crate::layout;
use crate::sys::Vm;
use crate::virtio::Memory;

/// Bytes of a page.
const PAGE: u64 = 4096;
/// Most bytes of a packed kernel.
const MAX_PACKED: u64 = 64 << 20;

/// What is started.
pub struct Payload {
    /// An ELF file or a bzImage.
    pub kernel: File,
    /// An archive of its first files.
    pub initramfs: File,
    /// The command line.
    pub command_line: String,
}

/// Loads all into memory and sets the processor before the kernel's entry.
pub fn prepare(vm: &Vm, payload: Payload, memory_bytes: u64) -> Result<()> {
    let memory = vm.memory();
    let too_small = |what| Error::Memory { what, memory_mib: memory_bytes >> 20 };
    let (kernel, entry) = load_kernel(memory, payload.kernel)?;
    let initramfs = load_initramfs(memory, payload.initramfs, kernel.kernel_end, memory_bytes).ok_or(too_small("the initramfs"))??;
    mptable::write(memory).ok_or(too_small("the machine's description"))?;
    pvh::write(memory, memory_bytes, &payload.command_line, initramfs).ok_or(too_small("the machine's description"))?;
    pvh::set_registers(vm.vcpu(), entry)?;
    set_cpuid(vm)
}

/// Loads the kernel; tells where its entry for PVH is.
fn load_kernel(memory: &Memory, mut file: File) -> Result<(KernelLoaderResult, u64)> {
    let failed = |e: &dyn std::fmt::Display| Error::Kernel(e.to_string());
    let mut magic = [0; 4];
    file.read_exact(&mut magic).and_then(|()| file.rewind()).map_err(|e| failed(&e))?;
    let high = Some(GuestAddress(layout::HIGH_MEMORY));
    let loaded = if magic == *b"\x7fELF" {
        Elf::load(&**memory, None, &mut file, high)
    } else {
        let mut image = Vec::new();
        file.take(MAX_PACKED).read_to_end(&mut image).map_err(|e| failed(&e))?;
        Elf::load(&**memory, None, &mut Cursor::new(bzimage::unpack(&image).map_err(|e| failed(&e))?), high)
    };
    let loaded = loaded.map_err(|e| failed(&e))?;
    match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => Ok((loaded, entry.0)),
        _ => Err(Error::Kernel("it has no entry for PVH (CONFIG_PVH)".into())),
    }
}

/// Loads the initramfs at the end of low memory, as far from the kernel as can be; tells its address and size. `None` when it
/// does not fit.
fn load_initramfs(memory: &Memory, mut file: File, kernel_end: u64, memory_bytes: u64) -> Option<Result<(u64, u64)>> {
    let failed = |error| Error::Host { what: "cannot read the initramfs", error };
    let size = match file.metadata() {
        Ok(metadata) => metadata.len(),
        Err(e) => return Some(Err(failed(e))),
    };
    let address = memory_bytes.min(layout::DEVICES).checked_sub(size)? / PAGE * PAGE;
    if address < kernel_end.max(layout::HIGH_MEMORY) {
        return None;
    }
    let read = memory.read_exact_volatile_from(GuestAddress(address), &mut file, usize::try_from(size).ok()?);
    Some(read.map(|()| (address, size)).map_err(|e| failed(std::io::Error::other(e))))
}
