//! What the processor reaches by addresses: ranges of ports or of memory, each with a device behind it.

use std::sync::Arc;

/// A device on a bus. Accesses have 1, 2, 4 or 8 bytes, little endian, at an offset into the device's range.
///
/// What the guest does wrong is the guest's own harm: a read that means nothing gives what the hardware would (mostly ones), and a
/// write is ignored. Neither is an error of the host's.
pub trait BusDevice: Send + Sync {
    /// Fills `data` with what lies at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes `data` for `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// Devices by address, in order.
#[derive(Clone, Default)]
pub struct Bus {
    ranges: Vec<(u64, u64, Arc<dyn BusDevice>)>,
}

impl Bus {
    /// Puts a device at `len` addresses from `start`, which no other may have.
    pub fn add(&mut self, start: u64, len: u64, device: Arc<dyn BusDevice>) {
        assert!(self.ranges.iter().all(|(s, l, _)| start >= s + l || start + len <= *s), "two devices at {start:#x}");
        let place = self.ranges.partition_point(|(other, ..)| *other < start);
        self.ranges.insert(place, (start, len, device));
    }

    /// The device at `address` that has all of `len` bytes, and the offset in it.
    fn find(&self, address: u64, len: usize) -> Option<(u64, &dyn BusDevice)> {
        let place = self.ranges.partition_point(|(start, ..)| *start <= address).checked_sub(1)?;
        let (start, size, device) = self.ranges.get(place)?;
        let offset = address - start;
        (offset.checked_add(len as u64)? <= *size).then_some((offset, device.as_ref()))
    }

    /// Reads; ones where nothing is.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Writes; into nothing where nothing is.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }
}
