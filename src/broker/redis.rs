//! The broker on Redis 7 or later: logs are streams, heads are strings, announcements go over pub/sub.

mod announcement;
mod census;
mod fault;
mod hashes;
mod head;
mod keys;
mod links;
mod probe;
mod pubsub;
mod roster;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{Client, IntoConnectionInfo, ProtocolVersion, RedisError, RedisResult, Script, Value, pipe};

use self::fault::{read_error, write_error};
use self::keys::Keys;
use self::links::{Link, Links};
use self::pubsub::PubSub;
use super::{
    Appended, Broker, BrokerError, Bucket, Buckets, Entry, Fault, FaultKind, Health, Listener, Occupancy, Once,
    Range, Retention, RetentionPolicy, Slice, Taken,
};
use crate::follow::{Chain, Head};
use crate::room::{EventId, RoomName};
use crate::shutdown::Tasks;

/// How often a read is tried again because the head changed meanwhile, or had to be vouched for.
const READ_ATTEMPTS: usize = 5;
/// Lifetime of the probe's keys once a replica is gone.
const PROBE_LIFETIME: Duration = Duration::from_mins(1);
/// Heads compared in one command.
const BATCH_HEADS: usize = 500;

/// Logs and hashes on Redis.
pub struct RedisBroker {
    client: Client,
    keys: Keys,
    links: Links,
    scripts: Scripts,
    pubsub: PubSub,
    retention: RetentionPolicy,
    listener: OnceLock<Arc<dyn Listener>>,
    health: Mutex<Health>,
    told: census::Told,
    lease: Duration,
}

struct Scripts {
    append: Script,
    attend: Script,
    clear: Script,
    vouch: Script,
    hash_set: Script,
    hash_remove: Script,
    hash_patch: Script,
    hash_clear: Script,
    hash_increment: Script,
    remove: Script,
    take: Script,
}

impl Scripts {
    fn new() -> Self {
        let about_heads = |script: &str| Script::new(&[include_str!("redis/scripts/head.lua"), script].concat());
        let conditional =
            |script: &str| Script::new(&[include_str!("redis/scripts/condition.lua"), script].concat());
        Self {
            append: about_heads(include_str!("redis/scripts/append.lua")),
            attend: about_heads(include_str!("redis/scripts/attend.lua")),
            clear: about_heads(include_str!("redis/scripts/clear.lua")),
            vouch: about_heads(include_str!("redis/scripts/vouch.lua")),
            hash_set: conditional(include_str!("redis/scripts/hash_set.lua")),
            hash_remove: conditional(include_str!("redis/scripts/hash_remove.lua")),
            hash_patch: Script::new(include_str!("redis/scripts/hash_patch.lua")),
            hash_clear: Script::new(include_str!("redis/scripts/hash_clear.lua")),
            hash_increment: Script::new(include_str!("redis/scripts/hash_increment.lua")),
            remove: Script::new(include_str!("redis/scripts/remove.lua")),
            take: Script::new(include_str!("redis/scripts/take.lua")),
        }
    }
}

impl RedisBroker {
    /// A broker on the Redis at `url`; connects in the background. A replica that has not reported for `lease` counts as gone. Fails
    /// only on a URL that is none.
    pub fn new(
        url: &str,
        prefix: &str,
        replica: &str,
        lease: Duration,
        retention: RetentionPolicy,
    ) -> Result<Self, RedisError> {
        // A host that has vanished is noticed by the kernel; a hung process only by limits on answers.
        let keepalive = TcpKeepalive::new()
            .with_time(Duration::from_secs(5))
            .with_interval(Duration::from_secs(2))
            .with_retries(3);
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(keepalive)
            .set_user_timeout(Duration::from_secs(5));
        let address = url.into_connection_info()?.set_tcp_settings(tcp);
        // RESP3 tells the end of a connection at once, and has announcements and answers come over one.
        let settings = address.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
        let client = Client::open(address.set_redis_settings(settings))?;
        let keys = Keys::new(prefix, replica);
        Ok(Self {
            links: Links::new(&client),
            pubsub: PubSub::new(keys.clone()),
            client,
            keys,
            scripts: Scripts::new(),
            retention,
            listener: OnceLock::new(),
            health: Mutex::new(Health {
                commands: Some(Fault::new(FaultKind::Unreachable, "not connected yet")),
                delivery: Some(Fault::new(FaultKind::Deaf, "not connected yet")),
                round_trip: None,
            }),
            told: census::Told::default(),
            lease,
        })
    }

    /// Starts the pub/sub connection and the probe. After [`Broker::listen`].
    pub fn start(self: &Arc<Self>, tasks: &Tasks) {
        let listener = self.listener.get().expect("a listener comes first").clone();
        let (broker, heard) = (self.clone(), listener.clone());
        tasks.supervise("redis pub/sub", async move {
            broker.pubsub.run(broker.client.clone(), heard).await;
        });
        tasks.supervise("redis probe", probe::run(self.clone(), listener));
        let broker = self.clone();
        tasks.spawn(async move { broker.warn_of_eviction().await });
    }

    /// A Redis that evicts keys loses logs and heads without a word.
    async fn warn_of_eviction(&self) {
        let Ok(mut link) = self.links.for_read().await else { return };
        let policy: RedisResult<HashMap<String, String>> =
            redis::cmd("CONFIG").arg("GET").arg("maxmemory-policy").query_async(link.connection()).await;
        if let Some(policy) = policy.ok().and_then(|mut settings| settings.remove("maxmemory-policy"))
            && policy != "noeviction"
        {
            tracing::warn!(%policy, "Redis's maxmemory-policy should be noeviction: any other drops rooms' events");
        }
    }

    fn note(&self, now: Health) {
        let mut health = self.health.lock().expect("no holder of the lock panics");
        let before = std::mem::replace(&mut *health, now);
        match (before.is_well(), health.commands.as_ref().or(health.delivery.as_ref())) {
            (false, None) => tracing::info!("Redis is well: a probe went through and came back"),
            (true, Some(fault)) => tracing::warn!(%fault, "Redis is ill"),
            (false, Some(_)) | (true, None) => {}
        }
    }

    /// The probe's id, and the link that it went over.
    async fn append_probe(&self, nonce: &[u8]) -> Result<(EventId, Link), BrokerError> {
        let keys = ["head", "log", "live"].map(|part| self.keys.probe(part));
        let lifetimes =
            Retention { events: 0, bytes: 0, age: PROBE_LIFETIME, head: PROBE_LIFETIME, once: PROBE_LIFETIME };
        let link = self.links.for_probe().await?;
        let appended = self.append_to(link.clone(), keys, &[], nonce, lifetimes, None).await?;
        Ok((appended.id, link))
    }

    async fn append_to(
        &self,
        mut link: Link,
        [head, log, live]: [String; 3],
        known: &[EventId],
        stored: &[u8],
        retention: Retention,
        once: Option<(String, &str)>,
    ) -> Result<Appended, BrokerError> {
        let mut call = self.scripts.append.key(head);
        call.key(log);
        let (key, content) = once.unzip();
        if let Some(key) = key {
            call.key(key);
        }
        call.arg(stored).arg(live).arg(retention.events);
        call.arg(milliseconds(retention.age)).arg(milliseconds(retention.age + retention.head)).arg(random());
        call.arg(milliseconds(retention.once)).arg(content.unwrap_or_default());
        call.arg(retention.bytes).arg(too_old(retention.age)).arg(texts(known));
        let result: RedisResult<Option<(String, bool)>> = call.invoke_async(link.connection()).await;
        let (id, replayed) = link.judge(result, write_error)?.ok_or(BrokerError::KeyReused)?;
        Ok(Appended { id: id_of(&id)?, replayed })
    }

    /// Head, mark and entries as of one moment, without a script: the cheapest way, good wherever no epoch has to begin.
    ///
    /// Every append changes the head, so what lies between two equal ones was read together. (`MULTI` would say the same,
    /// and a Redis without memory left refuses even reads in it.)
    async fn read_plainly(
        &self,
        room: &RoomName,
        range: Range,
        limit: usize,
    ) -> Result<Option<Plain>, BrokerError> {
        type Reply = (Option<String>, String, u64, Value, Value, Option<String>);
        let log = self.keys.log(room);
        let (command, from, to) = match range {
            Range::After(position) => ("XRANGE", format!("({position}"), "+".into()),
            Range::Oldest => ("XRANGE", "-".into(), "+".into()),
            Range::Before(id) => ("XREVRANGE", format!("({id}"), "-".into()),
            Range::Newest => ("XREVRANGE", "+".into(), String::from("-")),
        };
        let mut link = self.links.for_read().await?;
        let mut step = pipe();
        step.cmd("GET").arg(self.keys.head(room));
        step.cmd("INFO").arg("replication");
        step.cmd("XLEN").arg(&log);
        step.cmd("XRANGE").arg(&log).arg("-").arg("+").arg("COUNT").arg(1);
        step.cmd(command).arg(&log).arg(from).arg(to).arg("COUNT").arg(limit.max(1));
        step.cmd("GET").arg(self.keys.head(room));
        let result = step.query_async(link.connection()).await;
        let (head, info, retained, oldest, entries, after): Reply = link.judge(result, read_error)?;
        if head != after {
            return Ok(None);
        }
        let mut entries = entries_of(entries);
        if matches!(range, Range::Before(_) | Range::Newest) {
            entries.reverse();
        }
        Ok(Some(Plain {
            head: head.as_deref().and_then(head::parse),
            text: head,
            mark: head::server_mark(&info).unwrap_or_default().to_owned(),
            retained,
            oldest: entries_of(oldest).first().map(|entry| entry.id),
            entries,
        }))
    }

    /// Milliseconds that a head lives: longer than its log.
    fn head_lifetime(&self, room: &RoomName) -> u64 {
        let retention = self.retention.of(room);
        milliseconds(retention.age + retention.head)
    }

    /// `junk` is a head that can't be read here, so that it counts as none there too.
    async fn vouch(&self, room: &RoomName, known: &[EventId], junk: Option<&str>) -> Result<(), BrokerError> {
        let mut link = self.links.for_write().await?;
        let mut call = self.scripts.vouch.key(self.keys.head(room));
        call.key(self.keys.log(room));
        call.arg(self.head_lifetime(room)).arg(random());
        call.arg(junk.unwrap_or_default()).arg(texts(known));
        let result: RedisResult<Value> = call.invoke_async(link.connection()).await;
        link.judge(result, read_error).map(|_| ())
    }
}

/// What a plain read found.
struct Plain {
    head: Option<Head>,
    /// The head as it is stored, junk or not.
    text: Option<String>,
    mark: String,
    retained: u64,
    oldest: Option<EventId>,
    entries: Vec<Entry>,
}

impl Plain {
    /// Whether the head stands as it is: the same server's, and nothing known is missing.
    fn chain(&self, known: &[EventId]) -> Option<&Chain> {
        let head = self.head.as_ref().filter(|head| head.mark == self.mark)?;
        let contradicted = known.iter().any(|id| head.chain.is_contradicted_by(*id));
        (!contradicted).then_some(&head.chain)
    }
}

/// The entries of a stream's reply. What has no id of ours, or not our one field, is not ours.
fn entries_of(reply: Value) -> Vec<Entry> {
    type Fields = Vec<(Vec<u8>, Vec<u8>)>;
    let Value::Array(reply) = reply else { return Vec::new() };
    let entry = |entry| {
        let (id, mut fields): (String, Fields) = redis::from_redis_value(entry).ok()?;
        let (_, stored) = fields.pop().filter(|(field, _)| field == b"e")?;
        Some(Entry { id: id.parse().ok()?, stored: stored.into() })
    };
    reply.into_iter().filter_map(entry).collect()
}

/// The id that a script has answered once it had written.
fn id_of(answer: &str) -> Result<EventId, BrokerError> {
    answer.parse().map_err(|_| {
        BrokerError::OutcomeUnknown(Fault::new(FaultKind::Failed, format!("Redis answered {answer:?} for an id")))
    })
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn texts(ids: &[EventId]) -> Vec<String> {
    ids.iter().map(EventId::to_string).collect()
}

/// The time before which an event is too old, in the form in which events tell theirs.
fn too_old(age: Duration) -> String {
    let now = jiff::Timestamp::now();
    format!("{:.3}", now.checked_sub(age).unwrap_or(jiff::Timestamp::MIN))
}

/// Keeps two servers from giving out one epoch where neither can use the time.
fn random() -> u64 {
    fastrand::u64(..1 << 20)
}

#[async_trait]
impl Buckets for RedisBroker {
    async fn take(&self, key: &str, bucket: Bucket, least: u64, most: u64) -> Result<Taken, BrokerError> {
        let mut link = self.links.for_write().await?;
        let mut call = self.scripts.take.key(self.keys.bucket(key));
        call.arg(1_000_000 / bucket.per_second.max(1)).arg(bucket.burst).arg(least).arg(most);
        let result: RedisResult<(u64, u64, u64)> = call.invoke_async(link.connection()).await;
        let (granted, remaining, after) = link.judge(result, write_error)?;
        Ok(Taken { granted, remaining, after: Duration::from_micros(after) })
    }
}

#[async_trait]
impl Broker for RedisBroker {
    fn kind(&self) -> &'static str {
        "redis"
    }

    fn listen(&self, listener: Arc<dyn Listener>) {
        assert!(self.listener.set(listener).is_ok(), "a broker has one listener");
    }

    async fn append(
        &self,
        room: &RoomName,
        known: &[EventId],
        stored: Bytes,
        once: Option<&Once>,
    ) -> Result<Appended, BrokerError> {
        let keys = [self.keys.head(room), self.keys.log(room), self.keys.live(room)];
        let once = once.map(|once| (self.keys.once(room, &once.key), once.content.as_str()));
        let link = self.links.for_write().await?;
        self.append_to(link, keys, known, &stored, self.retention.of(room), once).await
    }

    async fn read(
        &self,
        room: &RoomName,
        known: &[EventId],
        range: Range,
        limit: usize,
    ) -> Result<Slice, BrokerError> {
        for _ in 0..READ_ATTEMPTS {
            let Some(plain) = self.read_plainly(room, range, limit).await? else { continue };
            let Some(chain) = plain.chain(known).cloned() else {
                let junk = plain.head.is_none().then_some(plain.text).flatten();
                self.vouch(room, known, junk.as_deref()).await?;
                continue;
            };
            let mut entries = plain.entries;
            entries.retain(|entry| chain.holds(entry.id));
            entries.truncate(limit);
            return Ok(Slice { chain, oldest: plain.oldest, retained: plain.retained, entries });
        }
        let detail = "the room's head changed at every attempt to read it";
        Err(BrokerError::Unavailable(Fault::new(FaultKind::Failed, detail)))
    }

    async fn clear(&self, room: &RoomName, known: &[EventId]) -> Result<(), BrokerError> {
        let mut link = self.links.for_write().await?;
        let mut call = self.scripts.clear.key(self.keys.head(room));
        call.key(self.keys.log(room));
        call.arg(self.keys.live(room)).arg(self.head_lifetime(room)).arg(random()).arg(texts(known));
        let result: RedisResult<String> = call.invoke_async(link.connection()).await;
        let position = id_of(&link.judge(result, write_error)?)?;
        if let Some(listener) = self.listener.get() {
            // Whoever asked for it finds nothing of it here any more.
            listener.cleared(room, position);
        }
        Ok(())
    }

    async fn subscribe(&self, room: &RoomName) {
        self.pubsub.subscribe(room).await;
    }

    fn unsubscribe(&self, room: &RoomName) {
        self.pubsub.unsubscribe(room);
    }

    async fn chains(&self, rooms: &[RoomName]) -> Result<Vec<Option<Chain>>, BrokerError> {
        let mut chains = Vec::with_capacity(rooms.len());
        for batch in rooms.chunks(BATCH_HEADS) {
            let mut step = pipe();
            // A key of another type is that room's trouble alone.
            step.ignore_errors();
            step.cmd("INFO").arg("replication");
            for room in batch {
                step.cmd("GET").arg(self.keys.head(room));
            }
            // Of its own, since a Redis that refuses writes can be read.
            for room in batch {
                step.cmd("PEXPIRE").arg(self.keys.head(room)).arg(self.head_lifetime(room));
            }
            let mut link = self.links.for_read().await?;
            let result = step.query_async(link.connection()).await;
            let reply: Vec<RedisResult<Value>> = link.judge(result, read_error)?;
            let text = |value: RedisResult<Value>| redis::from_redis_value::<Option<String>>(value.ok()?).ok()?;
            let mut reply = reply.into_iter().take(1 + batch.len()).map(text);
            let info = reply.next().flatten().unwrap_or_default();
            let mark = head::server_mark(&info).unwrap_or_default();
            chains.extend(reply.map(|head| {
                let head = head::parse(head.as_deref()?)?;
                (head.mark == mark).then_some(head.chain)
            }));
        }
        Ok(chains)
    }

    async fn report(&self, subscribers: &Occupancy, streams: u64) -> Result<(), BrokerError> {
        self.report_census(subscribers, streams).await
    }

    async fn occupancy(&self) -> Result<Occupancy, BrokerError> {
        self.read_census().await
    }

    async fn occupancy_of(&self, room: &RoomName) -> Result<u64, BrokerError> {
        self.read_census_of(room).await
    }

    fn health(&self) -> Health {
        self.health.lock().expect("no holder of the lock panics").clone()
    }
}

#[cfg(test)]
mod fuzz;
