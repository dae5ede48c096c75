//! Logs on Redis: streams, each with a head beside it. Scripts write them; reads take no script.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{RedisResult, Value, pipe};

use super::connections::RedisConn;
use super::error::{read_error, write_error};
use super::{RedisBroker, head, id_texts, random};
use crate::broker::{
    Appended, BrokerError, Fault, FaultKind, IdempotencyKey, LogEntry, LogSlice, LogStore, ReadRange, Retention,
};
use crate::log::{EpochHistory, Head};
use crate::names::{EventId, Topic};
use crate::timestamp::{self, milliseconds};

/// Attempts of a read: one is repeated if the head has changed meanwhile, or if an epoch had to begin.
const READ_ATTEMPTS: usize = 5;
/// Lifetime of the probe's keys after the replica has stopped.
const PROBE_LIFETIME: Duration = Duration::from_mins(1);
/// Heads that are read in one command.
const BATCH_HEADS: usize = 500;

impl RedisBroker {
    /// Appends a probe. Returns its id, and the connection over which it was appended.
    pub(super) async fn append_probe(&self, nonce: &[u8]) -> Result<(EventId, RedisConn), BrokerError> {
        let keys = ["head", "log", "live"].map(|suffix| self.keys.probe(suffix));
        let retention = Retention {
            events: 0,
            bytes: 0,
            age: PROBE_LIFETIME,
            head: PROBE_LIFETIME,
            idempotency_window: PROBE_LIFETIME,
        };
        let conn = self.connections.for_probe().await?;
        let appended = self.run_append(conn.clone(), keys, &[], nonce, retention, None).await?;
        Ok((appended.id, conn))
    }

    async fn run_append(
        &self,
        mut conn: RedisConn,
        [head, log, live]: [String; 3],
        watermarks: &[EventId],
        stored: &[u8],
        retention: Retention,
        idempotency: Option<(String, &str)>,
    ) -> Result<Appended, BrokerError> {
        let random = random();
        let mut call = self.scripts.append.key(head);
        call.key(log);
        let (key, content) = idempotency.unzip();
        if let Some(key) = key {
            call.key(key);
        }
        call.arg(stored).arg(live).arg(retention.events);
        call.arg(milliseconds(retention.age)).arg(milliseconds(retention.age + retention.head)).arg(random);
        call.arg(milliseconds(retention.idempotency_window)).arg(content.unwrap_or_default());
        call.arg(retention.bytes).arg(timestamp::ago(retention.age)).arg(id_texts(watermarks));
        let result: RedisResult<(String, bool, u64)> = call.invoke_async(conn.connection()).await;
        let (id, replayed, answered) = conn.check(result, write_error)?;
        if answered != random {
            conn.mark_broken();
            let detail = "Redis's answer belongs to another command";
            return Err(BrokerError::OutcomeUnknown(Fault::new(FaultKind::Failed, detail)));
        }
        if id.is_empty() {
            return Err(BrokerError::KeyReused);
        }
        Ok(Appended { id: parse_id(&id)?, replayed })
    }

    /// Head, replication id and entries as of one moment; `None` if the head has changed meanwhile. Takes no script:
    /// this costs least, and is enough if no epoch has to begin.
    ///
    /// Every append changes the head, so all that is read between two equal heads belongs together. (`MULTI` would
    /// ensure the same, but a Redis without memory left refuses even reads in it.)
    async fn read_once(
        &self,
        topic: &Topic,
        range: ReadRange,
        limit: usize,
    ) -> Result<Option<PlainRead>, BrokerError> {
        type Reply = (Option<String>, String, u64, Value, Value, Option<String>);
        let log = self.keys.log(topic);
        let (command, from, to) = match range {
            ReadRange::After(position) => ("XRANGE", format!("({position}"), "+".into()),
            ReadRange::Oldest => ("XRANGE", "-".into(), "+".into()),
            ReadRange::Before(id) => ("XREVRANGE", format!("({id}"), "-".into()),
            ReadRange::Newest => ("XREVRANGE", "+".into(), String::from("-")),
        };
        let mut conn = self.connections.for_read().await?;
        let mut pipeline = pipe();
        pipeline.cmd("GET").arg(self.keys.head(topic));
        pipeline.cmd("INFO").arg("replication");
        pipeline.cmd("XLEN").arg(&log);
        pipeline.cmd("XRANGE").arg(&log).arg("-").arg("+").arg("COUNT").arg(1);
        pipeline.cmd(command).arg(&log).arg(from).arg(to).arg("COUNT").arg(limit.max(1));
        pipeline.cmd("GET").arg(self.keys.head(topic));
        let result = pipeline.query_async(conn.connection()).await;
        let (head, info, retained, oldest, entries, head_after): Reply = conn.check(result, read_error)?;
        if head != head_after {
            return Ok(None);
        }
        let mut entries = parse_entries(entries);
        if matches!(range, ReadRange::Before(_) | ReadRange::Newest) {
            entries.reverse();
        }
        Ok(Some(PlainRead {
            head: head.as_deref().and_then(head::parse),
            stored_head: head,
            replication_id: head::server_replication_id(&info).unwrap_or_default().to_owned(),
            retained,
            oldest: parse_entries(oldest).first().map(|entry| entry.id),
            entries,
        }))
    }

    /// Lifetime of a topic's head in milliseconds: longer than that of its log.
    pub(super) fn head_lifetime(&self, topic: &Topic) -> u64 {
        let retention = self.retention.for_topic(topic);
        milliseconds(retention.age + retention.head)
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
        call.key(self.keys.log(topic));
        call.arg(self.head_lifetime(topic)).arg(random());
        call.arg(malformed.unwrap_or_default()).arg(id_texts(watermarks));
        let result: RedisResult<Value> = call.invoke_async(conn.connection()).await;
        conn.check(result, read_error).map(|_| ())
    }
}

/// What a read without a script has found.
struct PlainRead {
    head: Option<Head>,
    /// The head as it is stored, malformed or not.
    stored_head: Option<String>,
    replication_id: String,
    retained: u64,
    oldest: Option<EventId>,
    entries: Vec<LogEntry>,
}

impl PlainRead {
    /// The history, if the head is this server's and does not conflict with the watermarks.
    fn history(&self, watermarks: &[EventId]) -> Option<&EpochHistory> {
        let head = self.head.as_ref().filter(|head| head.replication_id == self.replication_id)?;
        (!head.history.conflicts_with(watermarks)).then_some(&head.history)
    }
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
        key: Option<&IdempotencyKey>,
    ) -> Result<Appended, BrokerError> {
        let keys = [self.keys.head(topic), self.keys.log(topic), self.keys.live(topic)];
        let idempotency = key.map(|key| (self.keys.idempotency(topic, &key.key), key.content.as_str()));
        let conn = self.connections.for_write().await?;
        self.run_append(conn, keys, watermarks, &stored, self.retention.for_topic(topic), idempotency).await
    }

    async fn read(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        range: ReadRange,
        limit: usize,
    ) -> Result<LogSlice, BrokerError> {
        for _ in 0..READ_ATTEMPTS {
            let Some(read) = self.read_once(topic, range, limit).await? else { continue };
            let Some(history) = read.history(watermarks).cloned() else {
                let malformed = read.head.is_none().then_some(read.stored_head).flatten();
                self.ensure_epoch(topic, watermarks, malformed.as_deref()).await?;
                continue;
            };
            let mut entries = read.entries;
            entries.retain(|entry| history.holds(entry.id));
            entries.truncate(limit);
            return Ok(LogSlice { history, oldest: read.oldest, retained: read.retained, entries });
        }
        let detail = format!("the head of {topic} has changed during each of {READ_ATTEMPTS} reads");
        Err(BrokerError::Unavailable(Fault::new(FaultKind::Failed, detail)))
    }

    async fn clear(&self, topic: &Topic, watermarks: &[EventId]) -> Result<EventId, BrokerError> {
        let mut conn = self.connections.for_write().await?;
        let mut call = self.scripts.clear.key(self.keys.head(topic));
        call.key(self.keys.log(topic));
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
            // GET and PEXPIRE are separate commands, since a Redis that refuses writes can still be read.
            for topic in batch {
                pipeline.cmd("PEXPIRE").arg(self.keys.head(topic)).arg(self.head_lifetime(topic));
            }
            let mut conn = self.connections.for_read().await?;
            let result = pipeline.query_async(conn.connection()).await;
            let reply: Vec<RedisResult<Value>> = conn.check(result, read_error)?;
            let text = |value: RedisResult<Value>| redis::from_redis_value::<Option<String>>(value.ok()?).ok()?;
            let mut reply = reply.into_iter().take(1 + batch.len()).map(text);
            let info = reply.next().flatten().unwrap_or_default();
            let replication_id = head::server_replication_id(&info).unwrap_or_default();
            histories.extend(reply.map(|head| {
                let head = head::parse(head.as_deref()?)?;
                (head.replication_id == replication_id).then_some(head.history)
            }));
        }
        Ok(histories)
    }
}
