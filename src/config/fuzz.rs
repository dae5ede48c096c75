//! Fuzz targets: settings with a syntax of their own.

use redis::IntoConnectionInfo;

use super::parse::{duration, lifetime};
use super::retention::MAX_EVENTS;
use super::{RedisUrl, RetentionRule};
use crate::fuzz::shaped_text;

#[test]
fn fuzz_retention_rules() {
    let samples = ["chat.*=events:100,age:10m", "cursor.*=none", "*=events:1000000000,age:1s"];
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = shaped_text(&samples, bytes);
        match text.parse::<RetentionRule>() {
            Ok(rule) => {
                assert!(text.starts_with(&format!("{}=", rule.pattern)));
                assert!(!rule.pattern.contains(['{', '}', '?', ' ', '/']) && !rule.pattern.is_empty());
                assert!(rule.events.is_none_or(|events| events <= MAX_EVENTS));
                assert!(rule.age.is_none_or(|age| lifetime(&format!("{}s", age.as_secs())).is_ok()));
            }
            Err(why) => assert!(!why.is_empty()),
        }
    });
}

#[test]
fn fuzz_durations() {
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = shaped_text(&["30", "0.5", "500ms", "5m", "24h", "1h 30m"], bytes);
        match duration(&text) {
            Ok(duration) => assert!(duration.as_secs_f64() >= 0.0),
            Err(why) => assert!(!why.is_empty()),
        }
    });
}

/// The shown form of a valid URL has only the server, and the error of an invalid one has no password.
#[test]
fn fuzz_redis_urls() {
    let samples = [
        "redis://:PASSWORD@host:6379/0",
        "redis://user:PASSWORD@host",
        "unix:///run/redis.sock?pass=PASSWORD",
        "valkey://[::1]",
    ];
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = shaped_text(&samples, bytes);
        match text.parse::<RedisUrl>() {
            Ok(url) => {
                assert_eq!(url.expose(), text);
                let server = url.expose().into_connection_info().expect("the URL is valid").addr().to_string();
                let shown = url.to_string();
                assert!(shown.ends_with(&server) && shown == format!("{url:?}"));
                let rest = shown[..shown.len() - server.len()].trim_end_matches("***@");
                assert!(["redis://", "redis+unix://", "unix://", "valkey://", "valkey+unix://"].contains(&rest));
            }
            Err(why) => assert!(!why.contains("PASSWORD"), "{why}"),
        }
    });
}
