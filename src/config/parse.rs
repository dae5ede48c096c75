//! Parsers of settings that several groups share. Those with a range in their name accept that range only.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use url::Url;

use crate::names::{NameError, RoomName};

/// The longest lifetime.
pub(super) const YEAR: Duration = Duration::from_hours(24 * 365);

/// A duration: seconds without a unit, or anything that humantime reads.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().map(Duration::try_from_secs_f64);
    match seconds {
        Some(seconds) => seconds.map_err(|error| error.to_string()),
        None => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }
}

/// A duration within a range, bounds included.
pub(super) fn duration_between(least: Duration, most: Duration, text: &str) -> Result<Duration, String> {
    match duration(text)? {
        fine if (least..=most).contains(&fine) => Ok(fine),
        _ => Err(format!("it must be {} to {}", shown(least), shown(most))),
    }
}

/// In a form that [`duration`] reads. humantime's own form counts a year as 365.25 days.
fn shown(duration: Duration) -> String {
    if duration == YEAR { "365d".into() } else { humantime::format_duration(duration).to_string() }
}

/// 1 s to a year: a lifetime in Redis, which refuses 0 and counts whole milliseconds.
pub(crate) fn lifetime(text: &str) -> Result<Duration, String> {
    duration_between(Duration::from_secs(1), YEAR, text)
}

/// 10 ms to an hour: an interval that repeats, or a time limit that has to leave time for the thing it limits.
pub(super) fn interval(text: &str) -> Result<Duration, String> {
    duration_between(Duration::from_millis(10), Duration::from_hours(1), text)
}

/// 0 to an hour.
pub(super) fn pause(text: &str) -> Result<Duration, String> {
    duration_between(Duration::ZERO, Duration::from_hours(1), text)
}

/// A whole number above 0.
pub(super) fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("it must be a whole number".into()),
    }
}

/// Fails if no room's name can match a pattern.
pub(super) fn check_room_pattern(pattern: &str) -> Result<(), NameError> {
    RoomName::new(&pattern.replace('*', "x")).map(|_| ())
}

/// Whether a host name or an address can only be this machine. A name may end in the dot of the root.
pub fn is_loopback_host(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// An address to listen on. Of host names only `localhost` is known.
pub(crate) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let local = |port: &str| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port.parse().ok()?)));
    let address = text.parse().ok().or_else(|| text.strip_prefix("localhost:").and_then(local));
    address.ok_or_else(|| "expected an IP address and a port, such as 127.0.0.1:8080 or 0.0.0.0:8080".into())
}

/// Whether a URL has a user name or a password.
pub(super) fn has_login(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_have_a_unit() {
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("24h"), Ok(Duration::from_hours(24)));
        assert!(duration("-1").is_err());
        assert!(duration("soon").is_err());
        assert!(lifetime("0").is_err());
        assert_eq!(lifetime("0").unwrap_err(), "it must be 1s to 365d");
        assert_eq!(lifetime("365d"), Ok(YEAR));
    }

    #[test]
    fn only_names_of_this_machine_are_loopback() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.1.2.3", "::1", "[::1]"] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in ["", "evil.example", "localhost.evil.example", "10.0.0.1", "127.0.0.1.nip.io", "0.0.0.0"] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }
}
