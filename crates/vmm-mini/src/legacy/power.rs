//! The keyboard controller (i8042), of which only the line to the processor's reset is there: the machine's way to end.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::bus::BusDevice;

/// The command (port 0x64) that pulses the reset line.
const RESET: u8 = 0xfe;

/// Tells whether the guest has switched itself off.
#[derive(Default)]
pub struct Power {
    off: AtomicBool,
}

impl Power {
    /// Whether it has.
    pub fn is_off(&self) -> bool {
        self.off.load(Ordering::Relaxed)
    }
}

impl BusDevice for Power {
    /// Buffers are empty always: a command may be written.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if data == [RESET] {
            self.off.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_reset_command_switches_off() {
        let power = Power::default();
        for data in [&[0xd1][..], &[0xfe, 0xfe]] {
            power.write(0, data);
            assert!(!power.is_off());
        }
        power.write(0, &[0xfe]);
        assert!(power.is_off());
    }
}
