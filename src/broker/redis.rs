//! The broker on Redis 7 or later: logs are streams, heads are strings, and announcements go over pub/sub.

mod announcement;
mod connections;
mod error;
mod hash;
mod hash_key;
mod head;
mod keys;
mod log;
mod moderation;
mod presence;
mod probe;
mod pubsub;
mod rate;
mod registry;
mod script_call;
mod socket;
mod url;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::{ConnectionInfo, IntoConnectionInfo, ProtocolVersion, RedisError, RedisResult, Script};

use self::connections::RedisConnections;
pub use self::hash_key::{HashKeyError, HashKeyTemplate};
use self::keys::Keys;
use self::pubsub::PubSub;
pub use self::url::RedisUrl;
use super::{
    Broker, Fault, FaultKind, Health, Listeners, MAX_COPIED_BYTES, MAX_DIGITS, MAX_FIELDS, MAX_NUMBER_BYTES,
    RetentionPolicy,
};
use crate::names::EventId;
use crate::shutdown::Tasks;

/// The fault before the first probe.
const NOT_CONNECTED: &str = "not connected yet";

/// A broker on one Redis server.
pub struct RedisBroker {
    server: ConnectionInfo,
    keys: Keys,
    connections: RedisConnections,
    scripts: Scripts,
    pubsub: PubSub,
    retention: RetentionPolicy,
    health: Mutex<Health>,
    registry: registry::RegistryState,
    unwritten_heads: log::UnwrittenHeads,
    lease: Duration,
}

struct Scripts {
    append: Script,
    read: Script,
    update_presence: Script,
    clear: Script,
    ensure_epoch: Script,
    unwritten: Script,
    scan: Script,
    hash_values: Script,
    hash_write: Script,
    watched_hash_write: Script,
    hash_external: Script,
    remove: Script,
    rate_limit: Script,
    lease: Script,
}

/// Bytes of the largest value that an entity tag can stand for in a condition. The digest of such a value takes Redis some
/// 8 ms. Only other clients can store larger ones.
const MAX_TAGGED_BYTES: usize = 2 * 1024 * 1024;

impl Scripts {
    fn new() -> Self {
        let with_log = |script: &str| Script::new(&[include_str!("redis/scripts/log.lua"), script].concat());
        let with_hash_log = |script: &str| with_log(&[include_str!("redis/scripts/hash_log.lua"), script].concat());
        let hash_limits = format!(
            "local MAX_FIELDS, MAX_COPIED_BYTES = {MAX_FIELDS}, {MAX_COPIED_BYTES}\n\
             local MAX_DIGITS, MAX_NUMBER_BYTES = {MAX_DIGITS}, {MAX_NUMBER_BYTES}\n\
             local MAX_TAGGED_BYTES = {MAX_TAGGED_BYTES}\n"
        );
        let hash_write = [&hash_limits, include_str!("redis/scripts/hash_write.lua")].concat();
        let unwatched = include_str!("redis/scripts/hash_unwatched.lua");
        Self {
            append: with_log(include_str!("redis/scripts/append.lua")),
            read: with_log(include_str!("redis/scripts/read.lua")),
            update_presence: with_log(include_str!("redis/scripts/update_presence.lua")),
            clear: with_log(include_str!("redis/scripts/clear.lua")),
            ensure_epoch: with_log(include_str!("redis/scripts/ensure_epoch.lua")),
            unwritten: Script::new(include_str!("redis/scripts/unwritten.lua")),
            scan: Script::new(include_str!("redis/scripts/scan.lua")),
            hash_values: Script::new(include_str!("redis/scripts/hash_values.lua")),
            hash_write: Script::new(&[unwatched, &*hash_write].concat()),
            watched_hash_write: with_hash_log(&hash_write),
            hash_external: with_hash_log(include_str!("redis/scripts/hash_external.lua")),
            remove: Script::new(include_str!("redis/scripts/remove.lua")),
            rate_limit: Script::new(include_str!("redis/scripts/rate_limit.lua")),
            lease: Script::new(include_str!("redis/scripts/lease.lua")),
        }
    }
}

impl RedisBroker {
    /// A broker on the Redis at `url`; it connects in the background. A replica that has not reported for `lease`
    /// counts as dead. The keys of hashes must [keep clear](HashKeyTemplate::keeps_clear_of) of the prefix. The only
    /// error is an invalid URL.
    pub fn new(
        url: &str,
        prefix: &str,
        hash_key: &HashKeyTemplate,
        replica: &str,
        lease: Duration,
        retention: RetentionPolicy,
    ) -> Result<Self, RedisError> {
        let address = url.into_connection_info()?;
        // RESP3 reports the end of a connection at once, and carries announcements and answers over one connection.
        let settings = address.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        // The library would send CLIENT SETINFO with each connection. A user with few rights may not, and Redis would
        // log each refusal.
        let settings = settings.set_skip_set_lib_name();
        let settings_database = settings.db();
        let server = address.set_redis_settings(settings);
        let keys = Keys::new(prefix, hash_key, replica);
        Ok(Self {
            connections: RedisConnections::new(&server),
            pubsub: PubSub::new(keys.clone(), settings_database),
            server,
            keys,
            scripts: Scripts::new(),
            retention,
            health: Mutex::new(Health {
                commands: Some(Fault::new(FaultKind::Unreachable, NOT_CONNECTED)),
                delivery: Some(Fault::new(FaultKind::NotReceiving, NOT_CONNECTED)),
                round_trip: None,
                memory: None,
            }),
            registry: registry::RegistryState::default(),
            unwritten_heads: log::UnwrittenHeads::default(),
            lease,
        })
    }

    /// A Redis that evicts keys loses logs and heads, and reports no error.
    async fn warn_of_eviction(&self) {
        let Ok(mut conn) = self.connections.for_read().await else { return };
        let policy: RedisResult<HashMap<String, String>> =
            redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").query_async(conn.connection()).await;
        if let Some(policy) = policy.ok().and_then(|mut settings| settings.remove("maxmemory-policy"))
            && policy != "noeviction"
        {
            tracing::warn!(
                %policy,
                "Redis may evict events and values when its memory is full: set its maxmemory-policy to noeviction"
            );
        }
    }

    /// Logs each change from one kind of fault to another.
    fn set_health(&self, now: Health) {
        let mut health = self.health.lock().expect("no holder of the lock panics");
        let before = std::mem::replace(&mut *health, now);
        match (before.fault(), health.fault()) {
            (Some(_), None) => tracing::info!("Redis is well: a probe was appended and its announcement received"),
            // At the start the first announcement comes before the subscription.
            (Some(before), Some(fault))
                if before.kind == fault.kind && before.detail != NOT_CONNECTED
                    || before.detail == NOT_CONNECTED && fault.kind == FaultKind::NotReceiving => {}
            (_, Some(fault)) => tracing::warn!(%fault, "Redis is degraded"),
            (None, None) => {}
        }
    }
}

fn id_texts(ids: &[EventId]) -> Vec<String> {
    ids.iter().map(EventId::to_string).collect()
}

/// A random number. Scripts add it to a new epoch if it can't be the time, so that two servers do not give out the same
/// epoch; and an answer that repeats it belongs to its command.
fn random() -> u64 {
    fastrand::u64(..1 << 20)
}

impl Broker for RedisBroker {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn start(self: Arc<Self>, listeners: Listeners, tasks: &Tasks) {
        let (broker, log) = (self.clone(), listeners.log.clone());
        tasks.supervise("redis pub/sub", async move {
            broker.pubsub.run(broker.server.clone(), listeners).await;
        });
        tasks.supervise("redis probe", probe::run(self.clone(), log));
        tasks.spawn(async move { self.warn_of_eviction().await });
    }

    fn health(&self) -> Health {
        self.health.lock().expect("no holder of the lock panics").clone()
    }
}

#[cfg(test)]
mod fuzz;
