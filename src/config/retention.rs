//! Settings of how much of a log is kept, and for how long.

use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use wildmatch::WildMatch;

use super::parse::{YEAR, check_room_pattern, duration_between, lifetime};
use crate::broker::{Retention, RetentionPolicy};

/// More events than any log should keep, and few enough for every number type that counts them.
pub(super) const MAX_EVENTS: u64 = 1_000_000_000;
/// A tebibyte, for the same reasons.
const MAX_BYTES: u64 = 1 << 40;

/// How much of a log is kept, and for how long.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Retention")]
pub struct RetentionArgs {
    /// Events that a room's log keeps, at most 1000000000; Redis may keep some more. 0: none; a client that has missed
    /// an event then gets a gap.
    #[arg(
        id = "retention-events",
        long,
        env = "ROOMCAST_RETENTION_EVENTS",
        default_value_t = 1000,
        value_name = "COUNT",
        value_parser = clap::value_parser!(u64).range(..=MAX_EVENTS)
    )]
    pub events: u64,

    /// Bytes that a room's log takes, at most 1099511627776; Redis may keep half more. The newest event is kept at any
    /// size.
    #[arg(
        id = "retention-bytes",
        long,
        env = "ROOMCAST_RETENTION_BYTES",
        default_value_t = 1024 * 1024,
        value_name = "BYTES",
        value_parser = clap::value_parser!(u64).range(..=MAX_BYTES)
    )]
    pub bytes: u64,

    /// Age at which events are dropped, 1s to 365d: with the room's next event, or once the room has had none for this
    /// time.
    #[arg(
        id = "retention-age",
        long,
        env = "ROOMCAST_RETENTION_AGE",
        default_value = "1h",
        value_parser = lifetime,
        value_name = "TIME"
    )]
    pub age: Duration,

    /// Other limits for rooms that match a pattern with `*`, as in `chat.*=events:100,age:10m`, `big.*=bytes:8000000`,
    /// or `cursor.*=none` to keep no events. Repeatable; the first pattern that matches decides.
    #[arg(
        id = "retention",
        long,
        env = "ROOMCAST_RETENTION",
        value_name = "PATTERN=LIMITS",
        value_delimiter = ' '
    )]
    pub rules: Vec<RetentionRule>,

    /// Time that a room's position outlives its events, 1m to 365d. A client that resumes in a quiet room within this
    /// time gets no gap.
    #[arg(
        id = "retention-head",
        long,
        env = "ROOMCAST_RETENTION_HEAD",
        default_value = "24h",
        value_parser = head_lifetime,
        value_name = "TIME"
    )]
    pub head: Duration,

    /// Time for which an `Idempotency-Key` is remembered, 1s to 365d.
    #[arg(
        long,
        env = "ROOMCAST_IDEMPOTENCY_WINDOW",
        default_value = "5m",
        value_parser = lifetime,
        value_name = "TIME"
    )]
    pub idempotency_window: Duration,
}

impl RetentionArgs {
    /// The retention of every room.
    pub fn policy(&self) -> RetentionPolicy {
        let default = Retention {
            events: self.events,
            bytes: self.bytes,
            age: self.age,
            head: self.head,
            idempotency_window: self.idempotency_window,
        };
        let rule = |rule: &RetentionRule| {
            let retention = Retention {
                events: rule.events.unwrap_or(default.events),
                bytes: rule.bytes.unwrap_or(default.bytes),
                age: rule.age.unwrap_or(default.age),
                ..default
            };
            (WildMatch::new(&rule.pattern), retention)
        };
        RetentionPolicy { default, rules: self.rules.iter().map(rule).collect() }
    }
}

/// Other limits for rooms whose names match a pattern.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionRule {
    pub(super) pattern: String,
    pub(super) events: Option<u64>,
    pub(super) bytes: Option<u64>,
    pub(super) age: Option<Duration>,
}

impl FromStr for RetentionRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, limits) =
            text.split_once('=').ok_or("expected a pattern and limits, such as chat.*=events:100,age:10m")?;
        check_room_pattern(pattern)
            .map_err(|why| format!("the pattern {pattern:?} can't match a room name: {why}"))?;
        let mut rule = Self { pattern: pattern.into(), events: None, bytes: None, age: None };
        for limit in limits.split(',') {
            match limit.split_once(':') {
                None if limit == "none" => rule.events = Some(0),
                Some(("events", count)) => rule.events = Some(at_most(MAX_EVENTS, "events", count)?),
                Some(("bytes", count)) => rule.bytes = Some(at_most(MAX_BYTES, "bytes", count)?),
                Some(("age", age)) => rule.age = Some(lifetime(age)?),
                _ => {
                    let expected = "expected events:100, bytes:100000, age:10m or none";
                    return Err(format!("{limit:?} is not a limit: {expected}"));
                }
            }
        }
        Ok(rule)
    }
}

fn at_most(most: u64, limit: &str, count: &str) -> Result<u64, String> {
    let count = count.parse().ok().filter(|count| *count <= most);
    count.ok_or_else(|| format!("{limit} must be a whole number up to {most}"))
}

/// A minute or more: heads of rooms with subscribers are renewed at least four times within their lifetime.
fn head_lifetime(text: &str) -> Result<Duration, String> {
    duration_between(Duration::from_mins(1), YEAR, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_for_retention_has_a_pattern_and_limits() {
        let rule: RetentionRule = "chat.*=events:100,bytes:2000,age:10m".parse().unwrap();
        assert_eq!(rule.pattern, "chat.*");
        assert_eq!((rule.events, rule.bytes, rule.age), (Some(100), Some(2000), Some(Duration::from_mins(10))));
        assert_eq!("cursor.*=none".parse::<RetentionRule>().unwrap().events, Some(0));
        for wrong in [
            "",
            "chat",
            "=none",
            "a b=none",
            "a=",
            "a=events",
            "a=events:x",
            "a=age:0",
            "a=bytes:x",
            "a=size:1",
            "a={}",
        ] {
            assert!(wrong.parse::<RetentionRule>().is_err(), "{wrong}");
        }
    }
}
