//! Logs on Redis: streams, each with a head beside it.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use redis::{RedisResult, Value, pipe};

use super::connections::RedisConn;
use super::error::{read_error, write_error};
use super::{RedisBroker, head, id_texts, random};
use crate::broker::{
    Appended, BrokerError, Fault, FaultKind, IdempotencyKey, LogEntry, LogSlice, LogStore, Peek, ReadLimit,
    ReadRange, Retention,
};
use crate::log::{DataSet, EpochHistory, Head, LogView};
use crate::names::{EventId, Topic};
use crate::timestamp::{self, milliseconds};

/// Attempts of a read: one is repeated if an epoch had to begin.
const READ_ATTEMPTS: usize = 5;
/// New heads of logs that were never written to in an hour, from which on they get a short lifetime: readers alone must
/// not fill Redis.
const MAX_UNWRITTEN_HEADS: u32 = 10_000;
/// That lifetime in milliseconds. Replicas with subscribers renew it several times as often. A client that comes back
/// later gets a gap.
const CROWDED_LIFETIME: u64 = 60_000;
/// What an append depends on and brings, beside the log.
struct AppendCall<'a> {
    /// The keys of head, log and log of presence events, and the channel.
    keys: [String; 4],
    watermarks: &'a [EventId],
    stored: &'a [u8],
    retention: Retention,
    after: Option<&'a [EventId]>,
    /// The key under which the append is remembered, and the digest of its content.
    idempotency: Option<(String, &'a str)>,
}

/// Lifetime of the probe's keys after the replica has stopped.
const PROBE_LIFETIME: Duration = Duration::from_mins(1);
/// Heads that are read in one command.
const BATCH_HEADS: usize = 500;

impl RedisBroker {
    /// Appends a probe. Returns its id, and the connection over which it was appended.
    pub(super) async fn append_probe(&self, nonce: &[u8]) -> Result<(EventId, RedisConn), BrokerError> {
        let keys = ["head", "log", "presence-log", "live"].map(|suffix| self.keys.probe(suffix));
        let retention = Retention {
            events: 0,
            bytes: 0,
            age: PROBE_LIFETIME,
            head: PROBE_LIFETIME,
            idempotency_window: PROBE_LIFETIME,
        };
        let conn = self.connections.for_probe().await?;
        let call = AppendCall { keys, watermarks: &[], stored: nonce, retention, after: None, idempotency: None };
        let appended = self.run_append(conn.clone(), call).await?;
        Ok((appended.id, conn))
    }

    async fn run_append(&self, mut conn: RedisConn, append: AppendCall<'_>) -> Result<Appended, BrokerError> {
        let AppendCall { keys: [head, log, presence_log, live], watermarks, stored, retention, after, idempotency } =
            append;
        let random = random();
        let mut call = self.scripts.append.key(head);
        call.key(log).key(presence_log);
        if after.is_some() {
            call.key(self.keys.data_set());
        }
        let (key, content) = idempotency.unzip();
        if let Some(key) = key {
            call.key(key);
        }
        call.arg(stored).arg(live).arg(retention.events);
        call.arg(milliseconds(retention.age)).arg(milliseconds(retention.age + retention.head)).arg(random);
        call.arg(milliseconds(retention.idempotency_window)).arg(content.unwrap_or_default());
        call.arg(retention.bytes).arg(timestamp::ago(retention.age));
        if let Some(after) = after {
            call.arg(format!("after {}", id_texts(after).join(" ")));
        }
        call.arg(id_texts(watermarks));
        let result: RedisResult<(String, u8, u64)> = call.invoke_async(conn.connection()).await;
        let (id, flag, answered) = conn.check(result, write_error)?;
        if answered != random {
            conn.mark_broken();
            let detail = "Redis's answer belongs to another command";
            return Err(BrokerError::OutcomeUnknown(Fault::new(FaultKind::Failed, detail)));
        }
        if id.is_empty() {
            return Err(match flag {
                0 => BrokerError::KeyReused,
                1 => BrokerError::HeadMoved,
                _ => BrokerError::Finished,
            });
        }
        Ok(Appended { id: parse_id(&id)?, replayed: flag == 1 })
    }

    /// Head, replication id and entries as of one moment, whatever state the head is in.
    async fn read_as_is(
        &self,
        topic: &Topic,
        range: ReadRange,
        view: LogView,
        limit: ReadLimit,
    ) -> Result<StoredLog, BrokerError> {
        type Reply = (Option<String>, String, u64, Option<String>, Value, bool);
        let (command, from, to) = match range {
            ReadRange::After(position) => ("XRANGE", format!("({position}"), "+".into()),
            ReadRange::Oldest => ("XRANGE", "-".into(), "+".into()),
            ReadRange::Before(id) => ("XREVRANGE", format!("({id}"), "-".into()),
            ReadRange::Newest => ("XREVRANGE", "+".into(), String::from("-")),
        };
        let mut conn = self.connections.for_read().await?;
        let mut call = self.scripts.read.key(self.keys.head(topic));
        call.key(self.keys.log(topic)).key(self.keys.presence_log(topic));
        call.arg(command).arg(from).arg(to).arg(limit.entries).arg(limit.bytes);
        call.arg(u8::from(view == LogView::Messages));
        let result = call.invoke_async(conn.connection()).await;
        let (head, replication_id, retained, oldest, entries, is_cut_short): Reply =
            conn.check(result, read_error)?;
        let is_end = !is_cut_short && entries_in(&entries) < limit.entries;
        let mut entries = parse_entries(entries);
        if range.is_backward() {
            entries.reverse();
        }
        Ok(StoredLog {
            head: head.as_deref().and_then(head::parse),
            stored_head: head,
            replication_id,
            view,
            retained,
            oldest: oldest.and_then(|id| id.parse().ok()),
            entries,
            is_end,
        })
    }

    /// Lifetime of a topic's head in milliseconds: longer than that of its log.
    pub(super) fn head_lifetime(&self, topic: &Topic) -> u64 {
        let retention = self.retention.for_topic(topic);
        milliseconds(retention.age + retention.head)
    }

    /// Lifetime in milliseconds of what presence stores about a room without messages. Replicas with streams in the room
    /// renew it several times as often.
    pub(super) fn quiet_lifetime(&self, topic: &Topic) -> u64 {
        self.head_lifetime(topic).min(CROWDED_LIFETIME.max(2 * milliseconds(self.lease)))
    }

    /// Renews the lifetimes of heads. That of a log without messages gets no longer than it needs until the next time.
    async fn renew_heads(&self, heads: impl Iterator<Item = (&Topic, &Option<Head>)>) -> Result<(), BrokerError> {
        let mut pipeline = pipe();
        // A Redis that refuses writes can still be read.
        pipeline.ignore_errors();
        for (topic, head) in heads {
            let command = pipeline.cmd("PEXPIRE").arg(self.keys.head(topic));
            if head.as_ref().is_none_or(Head::has_messages) {
                command.arg(self.head_lifetime(topic));
            } else {
                // It may have been written to meanwhile: a lifetime never becomes shorter.
                command.arg(self.quiet_lifetime(topic)).arg("GT");
            }
        }
        let mut conn = self.connections.for_read().await?;
        let result: RedisResult<Vec<RedisResult<Value>>> = pipeline.query_async(conn.connection()).await;
        conn.check(result, read_error).map(|_| ())
    }

    /// Checks a topic's head, and begins a new epoch if it does not match. `malformed` is a stored head that
    /// [`head::parse`] rejects: the script then replaces it even if it can parse it.
    async fn ensure_epoch(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        malformed: Option<&str>,
    ) -> Result<(), BrokerError> {
        let mut conn = self.connections.for_write().await?;
        let mut call = self.scripts.ensure_epoch.key(self.keys.head(topic));
        call.key(self.keys.log(topic)).key(self.keys.presence_log(topic));
        if let Topic::Hash(hash) = topic {
            call.key(self.keys.hash(hash));
        }
        let lifetime = self.head_lifetime(topic);
        call.arg(lifetime).arg(random()).arg(malformed.unwrap_or_default());
        call.arg(if self.unwritten_heads.may_live() { lifetime } else { lifetime.min(CROWDED_LIFETIME) });
        call.arg(id_texts(watermarks));
        let result = call.invoke_async(conn.connection()).await;
        let is_unwritten: bool = conn.check(result, read_error)?;
        if is_unwritten {
            self.unwritten_heads.count();
        }
        Ok(())
    }

    fn data_set_with(&self, topic: &Topic, id: u64) -> DataSet {
        DataSet { id, head_lifetime: self.head_lifetime(topic) * 1000 }
    }
}

/// How many heads this replica has made in the present hour of logs that were never written to.
#[derive(Default)]
pub(super) struct UnwrittenHeads(Mutex<Option<(Instant, u32)>>);

impl UnwrittenHeads {
    /// Whether another one may have the lifetime of other heads.
    fn may_live(&self) -> bool {
        self.with_count(|count| *count < MAX_UNWRITTEN_HEADS)
    }

    fn count(&self) {
        self.with_count(|count| *count = count.saturating_add(1));
    }

    fn with_count<T>(&self, run: impl FnOnce(&mut u32) -> T) -> T {
        let mut hour = self.0.lock().expect("no holder of the lock panics");
        let (began, count) = hour.get_or_insert_with(|| (Instant::now(), 0));
        if began.elapsed() >= Duration::from_hours(1) {
            (*began, *count) = (Instant::now(), 0);
        }
        run(count)
    }
}

/// A log as Redis has it.
struct StoredLog {
    head: Option<Head>,
    /// The head as it is stored, malformed or not.
    stored_head: Option<String>,
    replication_id: String,
    view: LogView,
    retained: u64,
    oldest: Option<EventId>,
    entries: Vec<LogEntry>,
    is_end: bool,
}

impl StoredLog {
    /// What was read, if the head is this server's and does not conflict with the watermarks. The error is the stored
    /// head if it can't be parsed.
    fn into_slice(self, watermarks: &[EventId]) -> Result<LogSlice, Option<String>> {
        let Self { head, stored_head, replication_id, view, retained, oldest, mut entries, is_end } = self;
        let Some(head) = head else { return Err(stored_head) };
        if head.replication_id != replication_id || head.history.conflicts_with(watermarks) {
            return Err(None);
        }
        let Head { history, last_message, .. } = head;
        entries.retain(|entry| history.holds(entry.id));
        Ok(LogSlice { history, last_message, view, oldest, retained, entries, is_end })
    }
}

/// How many entries a stream's reply has.
fn entries_in(reply: &Value) -> usize {
    if let Value::Array(entries) = reply { entries.len() } else { 0 }
}

/// The entries in a stream's reply. Entries without a valid id or without the field `e` are another client's, and left
/// out.
fn parse_entries(reply: Value) -> Vec<LogEntry> {
    type EntryFields = Vec<(Vec<u8>, Vec<u8>)>;
    let Value::Array(reply) = reply else { return Vec::new() };
    let entry = |entry| {
        let (id, mut fields): (String, EntryFields) = redis::from_redis_value(entry).ok()?;
        let (_, stored) = fields.pop().filter(|(field, _)| field == b"e")?;
        Some(LogEntry { id: id.parse().ok()?, stored: stored.into() })
    };
    reply.into_iter().filter_map(entry).collect()
}

/// Parses the id that a script has returned after it had written.
fn parse_id(answer: &str) -> Result<EventId, BrokerError> {
    answer.parse().map_err(|_| {
        let detail = format!("Redis returned {answer:?} instead of an event id");
        BrokerError::OutcomeUnknown(Fault::new(FaultKind::Failed, detail))
    })
}

#[async_trait]
impl LogStore for RedisBroker {
    async fn append(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        stored: Bytes,
        after: Option<&[EventId]>,
        key: Option<&IdempotencyKey>,
    ) -> Result<Appended, BrokerError> {
        let keys =
            [self.keys.head(topic), self.keys.log(topic), self.keys.presence_log(topic), self.keys.live(topic)];
        let idempotency = key.map(|key| (self.keys.idempotency(topic, &key.key), key.content.as_str()));
        let conn = self.connections.for_write().await?;
        let retention = self.retention.for_topic(topic);
        self.run_append(conn, AppendCall { keys, watermarks, stored: &stored, retention, after, idempotency }).await
    }

    async fn read(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        range: ReadRange,
        view: LogView,
        limit: ReadLimit,
    ) -> Result<LogSlice, BrokerError> {
        for _ in 0..READ_ATTEMPTS {
            match self.read_as_is(topic, range, view, limit).await?.into_slice(watermarks) {
                Ok(slice) => return Ok(slice),
                Err(malformed) => self.ensure_epoch(topic, watermarks, malformed.as_deref()).await?,
            }
        }
        let detail = format!("the head of {topic} was another one after each of {READ_ATTEMPTS} reads");
        Err(BrokerError::Unavailable(Fault::new(FaultKind::Failed, detail)))
    }

    async fn peek(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        range: ReadRange,
        view: LogView,
        limit: ReadLimit,
    ) -> Result<Peek, BrokerError> {
        let read = self.read_as_is(topic, range, view, limit).await?;
        if read.stored_head.is_none() && watermarks.is_empty() {
            let mut conn = self.connections.for_read().await?;
            let mut call = self.scripts.unwritten.key(self.keys.head(topic));
            call.key(self.keys.data_set()).arg(fastrand::u64(..1 << 24));
            let result: RedisResult<Option<(u64, u64)>> = call.invoke_async(conn.connection()).await;
            let Some((time, id)) = conn.check(result, read_error)? else { return Ok(Peek::NeedsRead) };
            let position = self.data_set_with(topic, id).unwritten_position(time);
            return Ok(Peek::Unwritten(position));
        }
        Ok(read.into_slice(watermarks).map_or(Peek::NeedsRead, Peek::Slice))
    }

    async fn data_set(&self, topic: &Topic) -> Result<DataSet, BrokerError> {
        let mut conn = self.connections.for_read().await?;
        let result = redis::cmd("GET").arg(self.keys.data_set()).query_async(conn.connection()).await;
        let id: Option<u64> = conn.check(result, read_error)?;
        // Without an id, no position of this data set was told, and none is valid.
        Ok(id.map_or(DataSet { id: 0, head_lifetime: 0 }, |id| self.data_set_with(topic, id)))
    }

    async fn clear(&self, topic: &Topic, watermarks: &[EventId]) -> Result<EventId, BrokerError> {
        let mut conn = self.connections.for_write().await?;
        let mut call = self.scripts.clear.key(self.keys.head(topic));
        call.key(self.keys.log(topic)).key(self.keys.presence_log(topic));
        call.arg(self.keys.live(topic)).arg(self.head_lifetime(topic)).arg(random()).arg(id_texts(watermarks));
        let result: RedisResult<String> = call.invoke_async(conn.connection()).await;
        parse_id(&conn.check(result, write_error)?)
    }

    async fn subscribe(&self, topic: &Topic) {
        self.pubsub.subscribe(topic).await;
    }

    fn unsubscribe(&self, topic: &Topic) {
        self.pubsub.unsubscribe(topic);
    }

    async fn histories(&self, topics: &[Topic]) -> Result<Vec<Option<EpochHistory>>, BrokerError> {
        let mut histories = Vec::with_capacity(topics.len());
        for batch in topics.chunks(BATCH_HEADS) {
            let mut pipeline = pipe();
            // A key of another type is an error of its own topic alone.
            pipeline.ignore_errors();
            pipeline.cmd("INFO").arg("replication");
            for topic in batch {
                pipeline.cmd("GET").arg(self.keys.head(topic));
            }
            let mut conn = self.connections.for_read().await?;
            let result = pipeline.query_async(conn.connection()).await;
            let reply: Vec<RedisResult<Value>> = conn.check(result, read_error)?;
            let text = |value: RedisResult<Value>| redis::from_redis_value::<Option<String>>(value.ok()?).ok()?;
            let mut reply = reply.into_iter().map(text);
            let info = reply.next().flatten().unwrap_or_default();
            let replication_id = head::server_replication_id(&info).unwrap_or_default();
            let found: Vec<_> = reply
                .map(|head| {
                    let head = head::parse(head.as_deref()?)?;
                    (head.replication_id == replication_id).then_some(head)
                })
                .collect();
            self.renew_heads(batch.iter().zip(&found)).await?;
            histories.extend(found.into_iter().map(|head| head.map(|head| head.history)));
        }
        Ok(histories)
    }
}
