//! Every setting of the gateway, in groups: flag, variable, default, range and help text. `docs/configuration.md` is
//! generated from these definitions. Only this module and [`crate::cli`] read the environment.

mod access;
mod embedded;
mod parse;
mod presence;
mod rate_limits;
mod redis;
mod requests;
mod retention;
mod server;
mod shutdown;
mod streams;
mod telemetry;

use std::net::SocketAddr;

use clap::{Args, Parser, ValueEnum};

pub use self::access::{AccessArgs, IssuerKeys, Origin, Secret};
pub use self::embedded::EmbeddedArgs;
pub use self::parse::is_loopback_host;
pub(crate) use self::parse::{lifetime, listen_address};
pub use self::presence::{PresenceArgs, PresenceInfo};
pub use self::rate_limits::RateLimitArgs;
pub use self::redis::RedisArgs;
pub use self::requests::RequestArgs;
pub use self::retention::{RetentionArgs, RetentionRule};
pub use self::server::ServerArgs;
pub use self::shutdown::ShutdownArgs;
pub use self::streams::StreamArgs;
pub use self::telemetry::{LogFormat, TelemetryArgs};
use crate::broker::redis::HashKeyTemplate;
use crate::live::LiveSettings;

/// Versions of the OpenAPI document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OpenApiVersion {
    /// For generators that read no other version.
    #[value(name = "3.0")]
    V30,
    /// Most generators read this version.
    #[value(name = "3.1")]
    V31,
    /// Describes the items of streams, too.
    #[value(name = "3.2")]
    V32,
}

/// The settings of a gateway.
#[derive(Args, Clone, Debug)]
pub struct Settings {
    /// Addresses, and the replica's name.
    #[command(flatten)]
    pub server: ServerArgs,
    /// The Redis that replicas share.
    #[command(flatten)]
    pub redis: RedisArgs,
    /// The broker without Redis.
    #[command(flatten)]
    pub embedded: EmbeddedArgs,
    /// Keys, tokens, and callers without a token.
    #[command(flatten)]
    pub access: AccessArgs,
    /// Limits of connections and of single requests.
    #[command(flatten)]
    pub requests: RequestArgs,
    /// Limits of callers.
    #[command(flatten)]
    pub limits: RateLimitArgs,
    /// Streams, and the live rooms behind them.
    #[command(flatten)]
    pub streams: StreamArgs,
    /// How much of a log is kept, and for how long.
    #[command(flatten)]
    pub retention: RetentionArgs,
    /// Members of rooms.
    #[command(flatten)]
    pub presence: PresenceArgs,
    /// The end of the process.
    #[command(flatten)]
    pub shutdown: ShutdownArgs,
    /// Logs and traces.
    #[command(flatten)]
    pub telemetry: TelemetryArgs,
}

/// Why settings can't be used together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Other machines can reach the gateway, there are no keys, and the operator has not allowed that explicitly.
    #[error(
        "{flag} {address} can be reached from other machines, but no keys for tokens are set: listen on 127.0.0.1, set \
         a key (for example with --jwt-hs256-secret), or serve every caller with --insecure-allow-anonymous"
    )]
    OpenOffLoopback {
        /// The listener's flag.
        flag: &'static str,
        /// The listener's address.
        address: SocketAddr,
    },
    /// The settings ask for an open gateway and for a closed one.
    #[error("--insecure-allow-anonymous serves every caller, but keys for tokens are set: remove one of the two")]
    KeysInOpenGateway,
    /// Permissions without a token that restrict nothing.
    #[error(
        "--anonymous sets the permissions of callers without a token, but without keys every caller may do everything: \
         set a key (for example with --jwt-hs256-secret) or remove --anonymous"
    )]
    AnonymousWithoutKeys,
    /// Two brokers.
    #[error("--data-dir is for the embedded broker, but --redis-url selects Redis: remove one of the two")]
    DataBesideRedis,
    /// A hash's name could lead to another key of the gateway.
    #[error(
        "with --hash-key {hash_key} the name of a hash could lead to other keys of the gateway, which begin with \
         \"{prefix}:\": begin it with other characters, as in user:{{hash}}, or with {{prefix}}:hash:"
    )]
    HashKeyReachesOthers {
        /// The template of hashes' keys.
        hash_key: HashKeyTemplate,
        /// The prefix of the gateway's keys.
        prefix: String,
    },
    /// No request body could carry an event of the allowed size.
    #[error(
        "--max-event-bytes {event} is larger than --max-body-bytes {body}: make it smaller, or the other larger"
    )]
    EventAboveBody {
        /// The limit of an event.
        event: usize,
        /// The limit of a body.
        body: usize,
    },
    /// A caller could not send a body of the allowed size.
    #[error(
        "--max-body-bytes {body} is more than half of --max-total-body-bytes {total}: make it smaller, or the other larger"
    )]
    BodyAboveTotal {
        /// The limit of a body.
        body: usize,
        /// The limit of all bodies.
        total: usize,
    },
}

impl Settings {
    /// The defaults, without a look at the environment.
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

    /// Checks the rules that concern several settings.
    pub fn check(&self) -> Result<(), SettingsError> {
        let has_keys = self.access.has_keys();
        let is_open = self.access.insecure_allow_anonymous;
        let listeners = [("--listen", Some(self.server.listen)), ("--admin-listen", self.server.admin_listen)];
        for (flag, address) in listeners {
            let off_loopback = address.filter(|address| !address.ip().is_loopback());
            if let Some(address) = off_loopback.filter(|_| !is_open && !has_keys) {
                return Err(SettingsError::OpenOffLoopback { flag, address });
            }
        }
        if has_keys && is_open {
            return Err(SettingsError::KeysInOpenGateway);
        }
        if !has_keys && !self.access.anonymous.is_empty() {
            return Err(SettingsError::AnonymousWithoutKeys);
        }
        if self.embedded.data_dir.is_some() && self.redis.url.is_some() {
            return Err(SettingsError::DataBesideRedis);
        }
        let RedisArgs { prefix, hash_key, .. } = &self.redis;
        if !hash_key.keeps_clear_of(prefix) {
            let (hash_key, prefix) = (hash_key.clone(), prefix.clone());
            return Err(SettingsError::HashKeyReachesOthers { hash_key, prefix });
        }
        let (event, body) = (self.requests.max_event_bytes, self.requests.max_body_bytes);
        if event > body {
            return Err(SettingsError::EventAboveBody { event, body });
        }
        let total = self.requests.max_total_body_bytes;
        if body > total / 2 {
            return Err(SettingsError::BodyAboveTotal { body, total });
        }
        Ok(())
    }

    /// The settings of live topics.
    pub fn live(&self) -> LiveSettings {
        LiveSettings {
            ring_events: self.streams.ring_events,
            ring_bytes: self.streams.ring_bytes,
            idle_ttl: self.streams.room_idle_ttl,
            report_every: self.presence.report_every(),
        }
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_loopback_nothing_is_served_unless_the_operator_says_so() {
        let mut settings = Settings::defaults();
        assert_eq!(settings.check(), Ok(()));
        settings.server.listen = "0.0.0.0:8080".parse().unwrap();
        assert!(settings.check().is_err());
        settings.access.insecure_allow_anonymous = true;
        assert_eq!(settings.check(), Ok(()));
        settings.access.jwt_hs256_secret = vec!["x".repeat(32).parse().unwrap()];
        assert_eq!(settings.check(), Err(SettingsError::KeysInOpenGateway));
        settings.access.insecure_allow_anonymous = false;
        assert_eq!(settings.check(), Ok(()));
        settings.access.jwt_hs256_secret.clear();
        settings.access.anonymous = vec!["read=*".parse().unwrap()];
        settings.server.listen = "127.0.0.1:8080".parse().unwrap();
        assert_eq!(settings.check(), Err(SettingsError::AnonymousWithoutKeys));
    }
}
