//! Seconds since 1970 as dates, UTC, as in the appliance.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use guestfs::Time;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// Half a mean year: ls shows the year of what is older.
const HALF_YEAR: i64 = 31_556_952 / 2;

pub(super) fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().try_into().unwrap_or(i64::MAX))
}

/// A guest's time as the system's, as far as that goes.
pub(super) fn system(time: Time) -> SystemTime {
    let seconds = Duration::from_secs(time.sec.unsigned_abs());
    let whole = if time.sec < 0 { UNIX_EPOCH.checked_sub(seconds) } else { UNIX_EPOCH.checked_add(seconds) };
    whole.and_then(|t| t.checked_add(Duration::from_nanos(time.nsec.into()))).unwrap_or(UNIX_EPOCH)
}

/// Year, month from 1 and day from 1 of a day counted from 1970-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    // Years that begin in March, in eras of 400: leap days come last.
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// `2026-11-21 05:34:33`
pub(super) fn text(seconds: i64) -> String {
    let (year, month, day) = date(seconds.div_euclid(86_400));
    let s = seconds.rem_euclid(86_400);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}", s / 3600, s / 60 % 60, s % 60)
}

/// As ls shows it: `Nov 21 05:34`, or `May 25  2023` when that is not recent.
pub(super) fn ls(seconds: i64, now: i64) -> String {
    let (year, month, day) = date(seconds.div_euclid(86_400));
    let month = MONTHS[usize::try_from(month - 1).unwrap_or(0)];
    let s = seconds.rem_euclid(86_400);
    if seconds <= now && seconds > now.saturating_sub(HALF_YEAR) {
        format!("{month} {day:>2} {:02}:{:02}", s / 3600, s / 60 % 60)
    } else {
        format!("{month} {day:>2} {year:>5}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(text(0), "1970-01-01 00:00:00");
        assert_eq!(text(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(text(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(text(-1), "1969-12-31 23:59:59");
        assert_eq!(text(4_107_542_400), "2100-03-01 00:00:00");
        assert_eq!(ls(1_685_023_897, 1_795_241_702), "May 25  2023");
        assert_eq!(ls(1_795_238_473, 1_795_241_702), "Nov 21 05:21");
    }
}
