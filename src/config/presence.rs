//! Settings of who is known to be where.

use std::time::Duration;

use clap::{Args, ValueEnum};
use wildmatch::WildMatch;

use super::{between, pause};
use crate::names::RoomName;
use crate::presence::PresenceSettings;

/// A replica says that it is there this often in the time after which it counts as gone.
const REPORTS_A_LEASE: u32 = 3;
/// Instead of a pattern.
const NO_ROOMS: &str = "none";

/// Who is known to be where.
#[derive(Args, Clone, Debug)]
pub struct PresenceGroup {
    /// Rooms, as a pattern with `*`, that know who is in them. In these a stream that names itself is listed, and its name is its own.
    /// May be repeated; in the variable, patterns have a space between them.
    /// `none` for no room.
    #[arg(long, env = "ROOMCAST_PRESENCE", default_value = "*", value_name = "PATTERN", value_delimiter = ' ',
        value_parser = rooms)]
    pub presence: Vec<String>,

    /// How long somebody who has gone may take to come back before others hear of it.
    #[arg(long, env = "ROOMCAST_PRESENCE_GRACE", default_value = "10s", value_parser = pause, value_name = "TIME")]
    pub presence_grace: Duration,

    /// Whose words about somebody others are shown: those of its token (`info` in `roomcast`), or its own too, of its query
    /// (`info=`).
    #[arg(long, env = "ROOMCAST_PRESENCE_INFO", value_enum, default_value = "token", value_name = "SOURCE")]
    pub presence_info: PresenceInfo,

    /// A replica that has not been heard of for this long counts as gone, and with it whoever was in rooms there.
    #[arg(long, env = "ROOMCAST_REPLICA_LEASE", default_value = "15s", value_parser = lease, value_name = "TIME")]
    pub replica_lease: Duration,
}

/// Whose words about somebody others are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PresenceInfo {
    /// Nobody's.
    None,
    /// Those of whoever signed its token.
    Token,
    /// Its own too, where its token has none.
    Query,
}

impl PresenceGroup {
    /// What a hub needs to know.
    pub fn presence(&self) -> PresenceSettings {
        let patterns = self.presence.iter().filter(|pattern| *pattern != NO_ROOMS);
        let rooms = patterns.map(|pattern| WildMatch::new(pattern)).collect();
        PresenceSettings { rooms, grace: self.presence_grace, compare_every: self.report_every() }
    }

    /// How often a replica says that it is there.
    pub fn report_every(&self) -> Duration {
        self.replica_lease / REPORTS_A_LEASE
    }
}

fn rooms(pattern: &str) -> Result<String, String> {
    let without_stars = pattern.replace('*', "x");
    RoomName::new(&without_stars).map_err(|why| format!("it names no rooms: {why}"))?;
    Ok(pattern.into())
}

fn lease(text: &str) -> Result<Duration, String> {
    between(Duration::from_secs(1), Duration::from_hours(1), text)
}
