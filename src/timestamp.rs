//! The time by the clock. As text it is RFC 3339 in UTC with milliseconds, so that texts compare as their times do.

use std::time::{Duration, SystemTime};

/// The time since 1970.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}

/// Whole milliseconds.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The time now.
pub fn now() -> String {
    format(SystemTime::now())
}

/// A time from 1970 to 9999.
pub fn format(time: SystemTime) -> String {
    humantime::format_rfc3339_millis(time).to_string()
}

/// A time in milliseconds since 1970, or the last one of the year 9999 if it is later.
pub fn from_milliseconds(milliseconds: u64) -> String {
    const LAST: u64 = 253_402_300_799_999;
    format(SystemTime::UNIX_EPOCH + Duration::from_millis(milliseconds.min(LAST)))
}

/// The time `age` ago, but not before 1970.
pub fn ago(age: Duration) -> String {
    format(SystemTime::UNIX_EPOCH + since_1970().saturating_sub(age))
}

/// How far a time is from now, by this machine's clock. It may be to come if another machine's clock wrote it.
pub fn age(text: &str) -> Option<Duration> {
    let time = humantime::parse_rfc3339(text).ok()?;
    Some(SystemTime::now().duration_since(time).unwrap_or_else(|ahead| ahead.duration()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_milliseconds_and_are_read_back() {
        assert_eq!(format(SystemTime::UNIX_EPOCH + Duration::from_millis(1_234)), "1970-01-01T00:00:01.234Z");
        assert_eq!(from_milliseconds(u64::MAX), "9999-12-31T23:59:59.999Z");
        assert_eq!(ago(Duration::MAX), "1970-01-01T00:00:00.000Z");
        assert!(age(&ago(Duration::from_mins(1))).unwrap() >= Duration::from_mins(1));
        assert!(now() > ago(Duration::from_secs(1)));
        assert_eq!(age("yesterday"), None);
    }
}
