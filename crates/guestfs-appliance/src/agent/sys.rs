//! The system calls that rustix has no safe form of.
#![allow(unsafe_code)]

use std::os::fd::AsFd;

use rustix::ffi::c_void;
use rustix::io;
use rustix::ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, ioctl};

/// `BLKRRPART` of linux/fs.h: makes the kernel read a disk's partition table again.
const BLKRRPART: Opcode = 0x125f;
/// `RNDADDENTROPY` of linux/random.h, `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: Opcode = 0x4008_5203;
/// `RNDRESEEDCRNG` of linux/random.h, `_IO('R', 0x07)`.
const RNDRESEEDCRNG: Opcode = 0x5207;
/// Bytes of seed that the pool is given at most.
const SEED: usize = 64;

/// Reads a block device's partition table again.
pub fn reread_partitions(device: impl AsFd) -> io::Result<()> {
    // SAFETY: BLKRRPART takes no argument and gives nothing back.
    unsafe { ioctl(device, NoArg::<BLKRRPART>::new()) }
}

/// `struct rand_pool_info` with its buffer.
#[repr(C)]
struct RandPoolInfo {
    entropy_count: i32,
    buf_size: i32,
    buf: [u8; SEED],
}

// SAFETY: the kernel reads `buf_size` bytes of `buf`, which lie within the struct, and writes nothing.
unsafe impl Ioctl for RandPoolInfo {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        RNDADDENTROPY
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> io::Result<()> {
        Ok(())
    }
}

/// Mixes a seed into the random pool, counts it as entropy, and makes all that the kernel gives out from now on depend
/// on it.
pub fn reseed(random: impl AsFd, seed: &[u8]) -> io::Result<()> {
    let mut buf = [0; SEED];
    let size = seed.len().min(SEED);
    buf[..size].copy_from_slice(&seed[..size]);
    let info = RandPoolInfo { entropy_count: size as i32 * 8, buf_size: size as i32, buf };
    // SAFETY: the struct is the one that this request takes, and `buf_size` is at most the buffer's length.
    unsafe { ioctl(&random, info) }?;
    // SAFETY: RNDRESEEDCRNG takes no argument and gives nothing back.
    unsafe { ioctl(random, NoArg::<RNDRESEEDCRNG>::new()) }
}

/// `SIOCSIFFLAGS` of linux/sockios.h: sets an interface's flags.
const SIOCSIFFLAGS: Opcode = 0x8914;
/// `IFF_UP` of linux/if.h.
const IFF_UP: u16 = 1;

/// `struct ifreq` of linux/if.h with flags in it.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

// SAFETY: the struct has `struct ifreq`'s size of 40 bytes, the kernel reads it and writes nothing.
unsafe impl Ioctl for InterfaceFlags {
    type Output = ();
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        SIOCSIFFLAGS
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::from_mut(self).cast()
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> io::Result<()> {
        Ok(())
    }
}

/// Makes 127.0.0.1 work: the kernel gives the loopback its address by itself.
pub fn loopback_up() -> io::Result<()> {
    let mut name = [0; 16];
    name[..2].copy_from_slice(b"lo");
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: the struct is the one that this request takes.
    unsafe { ioctl(socket, InterfaceFlags { name, flags: IFF_UP, rest: [0; 22] }) }
}
