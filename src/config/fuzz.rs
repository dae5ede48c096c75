//! Fuzz targets: settings with a syntax of their own.

use super::RetentionRule;
use super::parse::{duration, lifetime};
use super::retention::MAX_EVENTS;
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
