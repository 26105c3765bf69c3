//! The CMOS clock (MC146818): the host's time. A kernel that finds none waits a second for it.

use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::bus::BusDevice;

/// Register A: no update in progress, the usual divider.
const REGISTER_A: u8 = 0x26;
/// Register B: 24 hours, decimal digits.
const REGISTER_B: u8 = 0x02;
/// Register D: the battery is good.
const REGISTER_D: u8 = 0x80;

/// The clock.
#[derive(Default)]
pub struct Cmos {
    index: AtomicU8,
}

impl BusDevice for Cmos {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (1, [byte]) = (offset, data) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
            *byte = register(self.index.load(Ordering::Relaxed), now);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, [index]) = (offset, data) {
            // The highest bit masks non-maskable interrupts.
            self.index.store(index & 0x7f, Ordering::Relaxed);
        }
    }
}

/// What a register holds at a time in seconds since 1970, in UTC.
fn register(index: u8, now: u64) -> u8 {
    let (year, month, day) = date(now / 86400);
    let value = match index {
        0x00 => now % 60,
        0x02 => now / 60 % 60,
        0x04 => now / 3600 % 24,
        // The first of January 1970 was a Thursday; Sunday is 1.
        0x06 => (now / 86400 + 4) % 7 + 1,
        0x07 => day,
        0x08 => month,
        0x09 => year % 100,
        0x32 => year / 100,
        0x0a => return REGISTER_A,
        0x0b => return REGISTER_B,
        0x0d => return REGISTER_D,
        _ => return 0,
    };
    u8::try_from(value / 10 % 10 * 16 + value % 10).unwrap_or(0)
}

/// Year, month and day of the Gregorian calendar, of days since 1970. Years are counted from March, so that the day that is
/// not always there comes last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_clock_agrees_with_date() {
        for time in [0, 951_782_400, 951_868_799, 1_709_164_800, 1_767_225_599, 4_107_542_400] {
            let output = Command::new("date").args(["-u", "-d", &format!("@{time}"), "+%S %M %H %u %d %m %y %C"]).output().unwrap();
            let said = String::from_utf8(output.stdout).unwrap();
            let said: Vec<u8> = said.split_whitespace().map(|n| u8::from_str_radix(n, 16).unwrap()).collect();
            let mut ours: Vec<u8> = [0, 2, 4, 6, 7, 8, 9, 0x32].map(|index| register(index, time)).into();
            // For `date` Monday is 1 and Sunday 7.
            ours[3] = (ours[3] + 5) % 7 + 1;
            assert_eq!(ours, said, "{time}");
        }
    }

    #[test]
    fn the_index_selects_and_other_accesses_give_ones() {
        let cmos = Cmos::default();
        cmos.write(0, &[0x8b]);
        let mut byte = [0];
        cmos.read(1, &mut byte);
        assert_eq!(byte, [REGISTER_B]);
        let mut word = [0; 2];
        cmos.read(1, &mut word);
        assert_eq!(word, [0xff; 2]);
    }
}
