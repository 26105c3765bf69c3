//! The entropy device (VIRTIO 1.2, section 5.4): the host's random numbers.

use std::io::{self, Write};

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Running, VirtioDevice, config_bytes, ring, worker};

/// Bytes that the host gives whole, and without being interrupted (getrandom(2)). A driver that wants more asks again.
const MOST: usize = 256;

/// A source of entropy.
#[derive(Default)]
pub struct Rng;

impl Rng {
    /// It has nothing to be told.
    pub fn new() -> Self {
        Rng
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn features(&self) -> u64 {
        0
    }

    fn config(&self, offset: u64, data: &mut [u8]) {
        config_bytes(&[], offset, data);
    }

    fn start(&self, running: Running) -> io::Result<Box<dyn Send + Sync>> {
        worker::spawn("entropy", running, |running, wakes| {
            ring::serve(running, wakes, |_, writer| {
                let mut bytes = [0; MOST];
                let len = writer.available_bytes().min(MOST);
                let got = getrandom(&mut bytes[..len], GetRandomFlags::empty()).unwrap_or(0);
                // At most as much as there is room for: it is written whole.
                Some(writer.write(&bytes[..got]).map_or(0, |written| written as u32))
            })
        })
    }
}
