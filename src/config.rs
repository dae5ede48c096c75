//! Every setting: its meaning, default, environment name and limits. The only place that reads the environment.

mod access;
mod limits;
mod presence;

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use redis::IntoConnectionInfo;
use url::Url;
use wildmatch::WildMatch;

pub use self::access::{AccessSettings, Origin, TokenArguments};
pub use self::limits::CallerLimits;
pub use self::presence::{PresenceGroup, PresenceInfo};

use crate::broker::memory::{DataFolder, SyncPolicy};
use crate::broker::{Retention, RetentionPolicy};
use crate::delivery::DeliverySettings;
use crate::live::LiveSettings;
use crate::names::{RoomName, SubscriberId};

/// More events than any log should keep, and still a number that every part can count.
const MAX_RETENTION_EVENTS: u64 = 1_000_000_000;
/// As with events: a tebibyte.
const MAX_RETENTION_BYTES: u64 = 1 << 40;

/// HTTP gateway for realtime rooms and shared values.
///
/// Publishers POST events to rooms; browsers and services read them as Server-Sent Events; anyone may set and get
/// values in shared hashes. Without a command it serves.
#[derive(Debug, Parser)]
#[command(name = "roomcast", version, args_conflicts_with_subcommands = true)]
#[command(after_help = "Every flag is also a ROOMCAST_* variable. Durations: 30 (seconds), 500ms, 5m, 24h.")]
pub struct CommandLine {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub settings: Settings,
}

/// What the binary does beside serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the OpenAPI document.
    Openapi {
        /// Which version of OpenAPI; 3.2 describes the items of streams too.
        #[arg(long, value_enum, default_value = "3.1")]
        version: OpenApiVersion,
    },
    /// Ask a running gateway whether it is ready; exit 0 if it is. For containers' health checks.
    Health {
        /// Where it listens.
        #[arg(long, env = "ROOMCAST_HEALTH_URL", default_value = "http://127.0.0.1:8080")]
        url: String,
    },
    /// Make a token, signed with HS256, for development.
    Token(Box<TokenArguments>),
}

/// Versions of the OpenAPI document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OpenApiVersion {
    /// What most generators read.
    #[value(name = "3.1")]
    V31,
    /// With the items of streams.
    #[value(name = "3.2")]
    V32,
}

/// How a gateway serves.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Address to listen on. Off loopback only with keys for tokens, or with --insecure-allow-anonymous.
    #[arg(long, env = "ROOMCAST_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Redis 7 or later that carries events between replicas and keeps logs and hashes. Without it the embedded broker
    /// does, in this process's memory and, with --data-dir, on its disk.
    #[arg(long, env = "ROOMCAST_REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub redis_url: Option<RedisUrl>,

    /// Where the names of this deployment's keys and channels on Redis begin.
    #[arg(long, env = "ROOMCAST_REDIS_PREFIX", default_value = "roomcast", value_parser = prefix)]
    pub redis_prefix: String,

    /// Folder in which the embedded broker keeps logs and hashes over a restart. Without it, they are in memory alone.
    #[arg(long, env = "ROOMCAST_DATA_DIR", value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,

    /// When what is in --data-dir is forced to the disk: always, before anything is answered; or everysec, which can lose
    /// the last second when the machine stops, and nothing when the process does.
    #[arg(long, env = "ROOMCAST_DATA_SYNC", value_enum, default_value = "always", value_name = "POLICY")]
    pub data_sync: SyncPolicy,

    /// This replica's name, unlike any other's. Random by default.
    #[arg(long, env = "ROOMCAST_REPLICA_ID", value_name = "NAME", value_parser = replica)]
    pub replica_id: Option<String>,

    /// Serve anyone who can reach the address, off loopback too, and leave out the guard that keeps foreign web pages
    /// from a gateway on loopback.
    #[arg(long, env = "ROOMCAST_INSECURE_ALLOW_ANONYMOUS", value_parser = BoolishValueParser::new())]
    pub insecure_allow_anonymous: bool,

    /// Who may do what.
    #[command(flatten)]
    pub access: AccessSettings,

    /// Connections at one time, streams among them; more are told to come back later. Never more than the system allows
    /// open files.
    #[arg(long, env = "ROOMCAST_MAX_CONNECTIONS", default_value_t = 50_000, value_name = "COUNT", value_parser = count)]
    pub max_connections: usize,

    /// Bytes of a request's body, a batch's included.
    #[arg(long, env = "ROOMCAST_MAX_BODY_BYTES", default_value_t = 1024 * 1024, value_name = "BYTES")]
    pub max_body_bytes: usize,

    /// Bytes of one event's data.
    #[arg(long, env = "ROOMCAST_MAX_EVENT_BYTES", default_value_t = 64 * 1024, value_name = "BYTES")]
    pub max_event_bytes: usize,

    /// Bytes of a value in a hash.
    #[arg(long, env = "ROOMCAST_MAX_VALUE_BYTES", default_value_t = 256 * 1024, value_name = "BYTES")]
    pub max_value_bytes: usize,

    /// Events in a batch, and fields in a patch.
    #[arg(long, env = "ROOMCAST_MAX_BATCH_ITEMS", default_value_t = 1000, value_name = "COUNT", value_parser = count)]
    pub max_batch_items: usize,

    /// Rooms on one stream.
    #[arg(long, env = "ROOMCAST_MAX_ROOMS_PER_STREAM", default_value_t = 20, value_name = "COUNT",
        value_parser = clap::value_parser!(u16).range(1..=100))]
    pub max_rooms_per_stream: u16,

    /// Time for a connection's first bytes, then for a request's head to arrive, and between requests on a connection.
    #[arg(long, env = "ROOMCAST_HEADER_TIMEOUT", default_value = "10s", value_parser = interval, value_name = "TIME")]
    pub header_timeout: Duration,

    /// Time for a request's body to arrive.
    #[arg(long, env = "ROOMCAST_REQUEST_TIMEOUT", default_value = "15s", value_parser = interval, value_name = "TIME")]
    pub request_timeout: Duration,

    /// A reader that takes nothing for this long is cut off.
    #[arg(long, env = "ROOMCAST_STALL_TIMEOUT", default_value = "30s", value_parser = stall, value_name = "TIME")]
    pub stall_timeout: Duration,

    /// Kernel memory for what a reader has not taken yet.
    #[arg(long, env = "ROOMCAST_SEND_BUFFER_BYTES", default_value_t = 64 * 1024, value_name = "BYTES")]
    pub send_buffer_bytes: usize,

    /// Pause after which an idle stream gets a comment.
    #[arg(long, env = "ROOMCAST_HEARTBEAT", default_value = "15s", value_parser = interval, value_name = "TIME")]
    pub heartbeat: Duration,

    /// After this long a stream ends, and its client comes back, to another replica perhaps; jittered by a quarter.
    #[arg(long, env = "ROOMCAST_STREAM_LIFETIME", default_value = "6h", value_parser = lifetime, value_name = "TIME")]
    pub stream_lifetime: Duration,

    /// How long clients wait before they reconnect.
    #[arg(long, env = "ROOMCAST_RETRY", default_value = "2s", value_parser = pause, value_name = "TIME")]
    pub retry: Duration,

    /// Events that a room's log keeps (Redis may keep some more); 0 keeps none.
    #[arg(long, env = "ROOMCAST_RETENTION_EVENTS", default_value_t = 1000, value_name = "COUNT",
        value_parser = clap::value_parser!(u64).range(..=MAX_RETENTION_EVENTS))]
    pub retention_events: u64,

    /// Bytes that a room's log takes (Redis may keep half more); the newest event is kept whatever its size.
    #[arg(long, env = "ROOMCAST_RETENTION_BYTES", default_value_t = 1024 * 1024, value_name = "BYTES",
        value_parser = clap::value_parser!(u64).range(..=MAX_RETENTION_BYTES))]
    pub retention_bytes: u64,

    /// Events older than this are dropped, with the room's next events, or once there were none for so long.
    #[arg(long, env = "ROOMCAST_RETENTION_AGE", default_value = "1h", value_parser = lifetime, value_name = "TIME")]
    pub retention_age: Duration,

    /// Other limits for rooms whose name matches a pattern with `*`: `chat.*=events:100,age:10m`, `big.*=bytes:8000000`, or
    /// `cursor.*=none` for rooms whose events are not kept. May be repeated; the first that matches decides. In the variable, rules have a
    /// space between them.
    #[arg(long, env = "ROOMCAST_RETENTION", value_name = "PATTERN=LIMITS", value_delimiter = ' ')]
    pub retention: Vec<RetentionRule>,

    /// A room's position outlives its events by this, so that quiet rooms cost nobody a gap.
    #[arg(long, env = "ROOMCAST_RETENTION_HEAD", default_value = "24h", value_parser = head, value_name = "TIME")]
    pub retention_head: Duration,

    /// How long an idempotency key is remembered.
    #[arg(long, env = "ROOMCAST_IDEMPOTENCY_WINDOW", default_value = "5m", value_parser = lifetime, value_name = "TIME")]
    pub idempotency_window: Duration,

    /// Bytes of events and values that the embedded broker holds; beyond them it refuses writes.
    #[arg(long, env = "ROOMCAST_EMBEDDED_MAX_BYTES", default_value_t = 512 * 1024 * 1024, value_name = "BYTES")]
    pub embedded_max_bytes: usize,

    /// Recent events kept ready for each room that has subscribers here.
    #[arg(long, env = "ROOMCAST_RING_EVENTS", default_value_t = 256, value_name = "COUNT", value_parser = count)]
    pub ring_events: usize,

    /// Bytes of them.
    #[arg(long, env = "ROOMCAST_RING_BYTES", default_value_t = 1024 * 1024, value_name = "BYTES")]
    pub ring_bytes: usize,

    /// How much a caller may take.
    #[command(flatten)]
    pub limits: CallerLimits,

    /// Who is known to be where.
    #[command(flatten)]
    pub presence: PresenceGroup,

    /// How long a room stays ready after its last subscriber has left.
    #[arg(long, env = "ROOMCAST_ROOM_IDLE_TTL", default_value = "10s", value_parser = pause, value_name = "TIME")]
    pub room_idle_ttl: Duration,

    /// After SIGTERM: how long the replica goes on answering while the balancer notices that it is unready.
    #[arg(long, env = "ROOMCAST_DRAIN_DELAY", default_value = "5s", value_parser = pause, value_name = "TIME")]
    pub drain_delay: Duration,

    /// Then: the time over which the ends of its streams are spread.
    #[arg(long, env = "ROOMCAST_DRAIN_WINDOW", default_value = "10s", value_parser = pause, value_name = "TIME")]
    pub drain_window: Duration,

    /// Address on which /metrics is served to whoever reaches it, and nothing else is. Without it, /metrics is served with everything
    /// else, and with keys takes a token with `admin`.
    #[arg(long, env = "ROOMCAST_METRICS_LISTEN", value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,

    /// Address on which the routes that take `admin` are served (removals, revocations, replicas), and nothing else is; they are not
    /// served with everything else then. Off loopback only with keys, or with --insecure-allow-anonymous.
    #[arg(long, env = "ROOMCAST_ADMIN_LISTEN", value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,

    /// OpenTelemetry collector that traces are sent to, with OTLP over HTTP, as in `http://127.0.0.1:4318`. Without it, none are.
    #[arg(long, env = "ROOMCAST_OTLP_ENDPOINT", value_name = "URL", value_parser = collector)]
    pub otlp_endpoint: Option<Url>,

    /// Part of the traces that is sent, 0 to 1, by their ids: of one, all replicas send all or nothing.
    #[arg(long, env = "ROOMCAST_TRACE_RATIO", default_value_t = 1.0, value_name = "PART", value_parser = part)]
    pub trace_ratio: f64,

    /// What to log: a level (error, warn, info, debug, trace), or levels by module.
    #[arg(long, env = "ROOMCAST_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,

    /// How log lines look.
    #[arg(long, env = "ROOMCAST_LOG_FORMAT", value_enum, default_value = "text")]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one object a line.
    Json,
}

/// Why settings can't be used together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Open to a network without anyone having said so.
    #[error(
        "{flag} {address} can be reached from other machines, and there are no keys: listen on 127.0.0.1, give a key (such as \
         --jwt-hs256-secret) so that tokens say who may do what, or say --insecure-allow-anonymous to serve anyone who can \
         reach it"
    )]
    OpenOffLoopback {
        /// Which listener.
        flag: &'static str,
        /// Its address.
        address: SocketAddr,
    },
    /// Open and closed at once.
    #[error("--insecure-allow-anonymous lets everyone do everything, and keys for tokens do not: leave one out")]
    KeysInOpenGateway,
    /// TokenRules that would change nothing.
    #[error(
        "--anonymous says what callers without a token may do, and without keys that is everything: give a key"
    )]
    AnonymousWithoutKeys,
    /// Two places for the same.
    #[error(
        "--data-dir is for the embedded broker, and with --redis-url Redis keeps logs and hashes: leave one out"
    )]
    DataBesideRedis,
    /// An event that no body could carry.
    #[error("--max-event-bytes {event} is more than --max-body-bytes {body} lets through")]
    EventAboveBody {
        /// The event's limit.
        event: usize,
        /// The body's limit.
        body: usize,
    },
}

impl Settings {
    /// The defaults, whatever the environment says.
    pub fn defaults() -> Self {
        #[derive(Parser)]
        struct Only {
            #[command(flatten)]
            settings: Settings,
        }
        use clap::{CommandFactory, FromArgMatches};
        let command = Only::command().mut_args(|arg| arg.env(None::<&str>));
        let matches = command.get_matches_from(["roomcast"]);
        Only::from_arg_matches(&matches).expect("the defaults are valid").settings
    }

    /// Checks what a single value can't tell.
    pub fn check(&self) -> Result<(), SettingsError> {
        let has_keys = self.access.has_keys();
        let open = [("--listen", Some(self.listen)), ("--admin-listen", self.admin_listen)];
        for (flag, address) in open {
            let off_loopback = address.filter(|address| !address.ip().is_loopback());
            if let Some(address) = off_loopback.filter(|_| !self.insecure_allow_anonymous && !has_keys) {
                return Err(SettingsError::OpenOffLoopback { flag, address });
            }
        }
        if has_keys && self.insecure_allow_anonymous {
            return Err(SettingsError::KeysInOpenGateway);
        }
        if !has_keys && !self.access.anonymous.is_empty() {
            return Err(SettingsError::AnonymousWithoutKeys);
        }
        if self.data_dir.is_some() && self.redis_url.is_some() {
            return Err(SettingsError::DataBesideRedis);
        }
        if self.max_event_bytes > self.max_body_bytes {
            return Err(SettingsError::EventAboveBody { event: self.max_event_bytes, body: self.max_body_bytes });
        }
        Ok(())
    }

    /// What a replica keeps of live topics.
    pub fn live(&self) -> LiveSettings {
        LiveSettings {
            ring_events: self.ring_events,
            ring_bytes: self.ring_bytes,
            idle_ttl: self.room_idle_ttl,
            report_every: self.presence.report_every(),
        }
    }

    /// How streams are delivered.
    pub fn delivery(&self) -> DeliverySettings {
        DeliverySettings { heartbeat: self.heartbeat, retry: self.retry, lifetime: self.stream_lifetime }
    }

    /// Where the embedded broker keeps what it holds, if anywhere.
    pub fn data_folder(&self) -> Option<DataFolder> {
        self.data_dir.clone().map(|path| DataFolder { path, sync: self.data_sync })
    }

    /// How long logs are kept.
    pub fn retention(&self) -> RetentionPolicy {
        let default = Retention {
            events: self.retention_events,
            bytes: self.retention_bytes,
            age: self.retention_age,
            head: self.retention_head,
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
        RetentionPolicy { default, rules: self.retention.iter().map(rule).collect() }
    }
}

/// Other limits for some rooms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionRule {
    pattern: String,
    events: Option<u64>,
    bytes: Option<u64>,
    age: Option<Duration>,
}

impl FromStr for RetentionRule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (pattern, limits) = text.split_once('=').ok_or("a rule reads like chat.*=events:100,age:10m")?;
        let without_stars = pattern.replace('*', "x");
        RoomName::new(&without_stars).map_err(|why| format!("the pattern {pattern:?} names no rooms: {why}"))?;
        let mut rule = Self { pattern: pattern.into(), events: None, bytes: None, age: None };
        for limit in limits.split(',') {
            match limit.split_once(':') {
                None if limit == "none" => rule.events = Some(0),
                Some(("events", count)) => rule.events = Some(at_most(MAX_RETENTION_EVENTS, "events", count)?),
                Some(("bytes", count)) => rule.bytes = Some(at_most(MAX_RETENTION_BYTES, "bytes", count)?),
                Some(("age", age)) => rule.age = Some(lifetime(age)?),
                _ => return Err(format!("{limit:?} is no limit; events:100, bytes:100000, age:10m and none are")),
            }
        }
        Ok(rule)
    }
}

fn at_most(most: u64, what: &str, count: &str) -> Result<u64, String> {
    count.parse().ok().filter(|count| *count <= most).ok_or_else(|| format!("{what} is a number up to {most}"))
}

/// A Redis URL, which may hold a password: `Debug` and `Display` leave that out.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    whole: String,
    shown: String,
}

impl RedisUrl {
    /// The whole URL, password included.
    pub fn expose(&self) -> &str {
        &self.whole
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = redis::parse_redis_url(text).and_then(|url| {
            let scheme = url.scheme().to_owned();
            Some((scheme, url.into_connection_info().ok()?))
        });
        // The library's words may quote the URL, password and all: say it in our own.
        let (scheme, server) = url
            .filter(|(scheme, _)| !matches!(scheme.as_str(), "rediss" | "valkeys"))
            .ok_or("it does not read like redis://[user:password@]host[:port][/database]")?;
        let login = server.redis_settings();
        let hidden = if login.username().or(login.password()).is_some() { "***@" } else { "" };
        Ok(Self { whole: text.to_owned(), shown: format!("{scheme}://{hidden}{}", server.addr()) })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whether an address, or a name, can only be this machine.
pub fn is_loopback_host(host: &str) -> bool {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn duration(text: &str) -> Result<Duration, String> {
    let plain = text.parse::<f64>().ok().map(Duration::try_from_secs_f64);
    match plain {
        Some(seconds) => seconds.map_err(|error| error.to_string()),
        None => humantime::parse_duration(text).map_err(|error| error.to_string()),
    }
}

fn between(least: Duration, most: Duration, text: &str) -> Result<Duration, String> {
    let say = humantime::format_duration;
    match duration(text)? {
        fine if (least..=most).contains(&fine) => Ok(fine),
        _ => Err(format!("it must be {} to {}", say(least), say(most))),
    }
}

/// Redis refuses a lifetime of zero, and counts in milliseconds.
fn lifetime(text: &str) -> Result<Duration, String> {
    between(Duration::from_secs(1), Duration::from_hours(24 * 365), text)
}

/// Heads of rooms that have subscribers are renewed four times as often at least.
fn head(text: &str) -> Result<Duration, String> {
    between(Duration::from_mins(1), Duration::from_hours(24 * 365), text)
}

/// The kernel counts keep-alive in whole seconds, up to 32,767 of them.
fn stall(text: &str) -> Result<Duration, String> {
    between(Duration::from_secs(1), Duration::from_hours(1), text)
}

/// What happens again and again, or has to leave time for something to happen.
fn interval(text: &str) -> Result<Duration, String> {
    between(Duration::from_millis(10), Duration::from_hours(1), text)
}

fn pause(text: &str) -> Result<Duration, String> {
    between(Duration::ZERO, Duration::from_hours(1), text)
}

fn collector(text: &str) -> Result<Url, String> {
    let url: Url = text.parse().map_err(|_| "it reads like http://127.0.0.1:4318")?;
    match url.scheme() {
        "http" if url.username().is_empty() && url.password().is_none() => Ok(url),
        _ => Err("it is http, without a name or a password: a collector beside the gateway, which sends on".into()),
    }
}

fn part(text: &str) -> Result<f64, String> {
    let part: f64 = text.parse().map_err(|_| "it is no number")?;
    if (0.0..=1.0).contains(&part) { Ok(part) } else { Err("it is 0 to 1".into()) }
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(count) => Ok(count),
        Err(_) => Err("it is not a whole number".into()),
    }
}

fn prefix(text: &str) -> Result<String, String> {
    let fine = !text.is_empty()
        && text.len() <= 64
        && text.chars().all(|c| c.is_ascii_graphic() && !"{}*?[]\\".contains(c));
    if fine {
        Ok(text.into())
    } else {
        Err("1 to 64 visible ASCII characters, without braces and wildcards".into())
    }
}

fn replica(text: &str) -> Result<String, String> {
    SubscriberId::new(text).map(|name| name.to_string()).map_err(|why| why.to_string())
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for (url, expected) in [
            ("redis://:secret@host:6379/0", "redis://***@host:6379"),
            ("redis://user:secret@host", "redis://***@host:6379"),
            ("redis://secret@host", "redis://***@host:6379"),
            ("unix:///run/redis.sock?pass=secret", "unix://***@/run/redis.sock"),
            ("redis://host", "redis://host:6379"),
        ] {
            let url: RedisUrl = url.parse().unwrap();
            assert_eq!((url.to_string().as_str(), format!("{url:?}").as_str()), (expected, expected));
        }
        for wrong in ["redis://:secret@", "redis:/:secret@host", "redis://:secret@host/x", "rediss://:secret@host"]
        {
            assert!(!wrong.parse::<RedisUrl>().unwrap_err().contains("secret"));
        }
    }

    #[test]
    fn off_loopback_nothing_is_served_unless_the_operator_says_so() {
        let mut settings = Settings::defaults();
        assert_eq!(settings.check(), Ok(()));
        settings.listen = "0.0.0.0:8080".parse().unwrap();
        assert!(settings.check().is_err());
        settings.insecure_allow_anonymous = true;
        assert_eq!(settings.check(), Ok(()));
        settings.access.jwt_hs256_secret = vec!["x".repeat(32).parse().unwrap()];
        assert_eq!(settings.check(), Err(SettingsError::KeysInOpenGateway));
        settings.insecure_allow_anonymous = false;
        assert_eq!(settings.check(), Ok(()));
        settings.access.jwt_hs256_secret.clear();
        settings.access.anonymous = vec!["read=*".parse().unwrap()];
        settings.listen = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(settings.check(), Err(SettingsError::AnonymousWithoutKeys));
    }

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

    #[test]
    fn durations_are_seconds_or_have_a_unit() {
        assert_eq!(duration("5"), Ok(Duration::from_secs(5)));
        assert_eq!(duration("0.5"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("24h"), Ok(Duration::from_hours(24)));
        assert!(duration("-1").is_err());
        assert!(duration("soon").is_err());
        assert!(lifetime("0").is_err());
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
