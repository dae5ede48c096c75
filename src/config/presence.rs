//! Settings of presence.

use std::time::Duration;

use clap::{Args, ValueEnum};
use wildmatch::WildMatch;

use super::parse::{check_room_pattern, duration_between, pause};
use crate::presence::PresenceSettings;

/// A replica reports this many times within its lease.
const REPORTS_PER_LEASE: u32 = 3;
/// Given instead of a pattern: no room.
const NO_ROOMS: &str = "none";

/// Members of rooms.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Presence")]
pub struct PresenceArgs {
    /// Rooms that have a member list, as a pattern with `*`; `none` for no room. Repeatable. In these rooms a
    /// subscriber name belongs to one caller; in others, names are neither listed nor reserved.
    #[arg(id = "presence", long, env = "ROOMCAST_PRESENCE", default_value = "*", value_name = "PATTERN",
        value_delimiter = ' ', value_parser = room_pattern)]
    pub rooms: Vec<String>,

    /// Time in which a member whose stream has ended may reconnect before `presence.leave` is sent, 0 to 1h.
    #[arg(
        id = "presence-grace",
        long,
        env = "ROOMCAST_PRESENCE_GRACE",
        default_value = "10s",
        value_parser = pause,
        value_name = "TIME"
    )]
    pub grace: Duration,

    /// Profile that other members see. `token`: the claim `roomcast.info`. `query`: the claim, or the parameter `info`
    /// if there is none. `none`: no profile.
    #[arg(
        id = "presence-info",
        long,
        env = "ROOMCAST_PRESENCE_INFO",
        value_enum,
        default_value = "token",
        value_name = "SOURCE",
        hide_possible_values = true
    )]
    pub info: PresenceInfo,

    /// Time without a report after which a replica and its members count as gone, 1s to 1h. A replica reports three
    /// times as often.
    #[arg(long, env = "ROOMCAST_REPLICA_LEASE", default_value = "15s", value_parser = lease, value_name = "TIME")]
    pub replica_lease: Duration,
}

/// The source of the profile that other members see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PresenceInfo {
    /// No profiles.
    None,
    /// The token's claim.
    Token,
    /// The token's claim, or, where there is none, the query.
    Query,
}

impl PresenceArgs {
    /// The settings of presence in rooms.
    pub fn presence(&self) -> PresenceSettings {
        let patterns = self.rooms.iter().filter(|pattern| *pattern != NO_ROOMS);
        let rooms = patterns.map(|pattern| WildMatch::new(pattern)).collect();
        PresenceSettings { rooms, grace: self.grace, compare_every: self.report_every() }
    }

    /// The interval at which a replica reports.
    pub fn report_every(&self) -> Duration {
        self.replica_lease / REPORTS_PER_LEASE
    }
}

fn room_pattern(pattern: &str) -> Result<String, String> {
    check_room_pattern(pattern).map_err(|why| format!("it can't match a room name: {why}"))?;
    Ok(pattern.into())
}

fn lease(text: &str) -> Result<Duration, String> {
    duration_between(Duration::from_secs(1), Duration::from_hours(1), text)
}
