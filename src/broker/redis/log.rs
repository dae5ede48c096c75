//! Logs on Redis: streams, with a head beside each; appended to by scripts, read without.

use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{RedisResult, Value, pipe};

use super::connections::RedisConn;
use super::error::{read_error, write_error};
use super::{RedisBroker, head, id_texts, milliseconds, random, too_old};
use crate::broker::{
    Appended, BrokerError, Fault, FaultKind, IdempotencyKey, LogEntry, LogSlice, LogStore, ReadRange, Retention,
};
use crate::log::{EpochHistory, Head};
use crate::names::{EventId, Topic};

/// How often a read is tried again because the head changed meanwhile, or had to begin an epoch.
const READ_ATTEMPTS: usize = 5;
/// Lifetime of the probe's keys once a replica is gone.
const PROBE_LIFETIME: Duration = Duration::from_mins(1);
/// Heads compared in one command.
const BATCH_HEADS: usize = 500;

impl RedisBroker {
    /// The probe's id, and the conn that it went over.
    pub(super) async fn append_probe(&self, nonce: &[u8]) -> Result<(EventId, RedisConn), BrokerError> {
        let keys = ["head", "log", "live"].map(|part| self.keys.probe(part));
        let lifetimes = Retention {
            events: 0,
            bytes: 0,
            age: PROBE_LIFETIME,
            head: PROBE_LIFETIME,
            idempotency_window: PROBE_LIFETIME,
        };
        let conn = self.connections.for_probe().await?;
        let appended = self.append_to(conn.clone(), keys, &[], nonce, lifetimes, None).await?;
        Ok((appended.id, conn))
    }

    async fn append_to(
        &self,
        mut conn: RedisConn,
        [head, log, live]: [String; 3],
        watermarks: &[EventId],
        stored: &[u8],
        retention: Retention,
        key: Option<(String, &str)>,
    ) -> Result<Appended, BrokerError> {
        let mut call = self.scripts.append.key(head);
        call.key(log);
        let (key, content) = key.unzip();
        if let Some(key) = key {
            call.key(key);
        }
        call.arg(stored).arg(live).arg(retention.events);
        call.arg(milliseconds(retention.age)).arg(milliseconds(retention.age + retention.head)).arg(random());
        call.arg(milliseconds(retention.idempotency_window)).arg(content.unwrap_or_default());
        call.arg(retention.bytes).arg(too_old(retention.age)).arg(id_texts(watermarks));
        let result: RedisResult<Option<(String, bool)>> = call.invoke_async(conn.connection()).await;
        let (id, replayed) = conn.check(result, write_error)?.ok_or(BrokerError::KeyReused)?;
        Ok(Appended { id: parse_id(&id)?, replayed })
    }

    /// Head, replication_id and entries as of one moment, without a script: the cheapest way, good wherever no epoch has to begin.
    ///
    /// Every append changes the head, so what lies between two equal ones was read together. (`MULTI` would say the same,
    /// and a Redis without memory left refuses even reads in it.)
    async fn read_without_script(
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
        let mut step = pipe();
        step.cmd("GET").arg(self.keys.head(topic));
        step.cmd("INFO").arg("replication");
        step.cmd("XLEN").arg(&log);
        step.cmd("XRANGE").arg(&log).arg("-").arg("+").arg("COUNT").arg(1);
        step.cmd(command).arg(&log).arg(from).arg(to).arg("COUNT").arg(limit.max(1));
        step.cmd("GET").arg(self.keys.head(topic));
        let result = step.query_async(conn.connection()).await;
        let (head, info, retained, oldest, entries, after): Reply = conn.check(result, read_error)?;
        if head != after {
            return Ok(None);
        }
        let mut entries = parse_entries(entries);
        if matches!(range, ReadRange::Before(_) | ReadRange::Newest) {
            entries.reverse();
        }
        Ok(Some(PlainRead {
            head: head.as_deref().and_then(head::parse),
            text: head,
            replication_id: head::server_replication_id(&info).unwrap_or_default().to_owned(),
            retained,
            oldest: parse_entries(oldest).first().map(|entry| entry.id),
            entries,
        }))
    }

    /// Milliseconds that a head lives: longer than its log.
    pub(super) fn head_lifetime(&self, topic: &Topic) -> u64 {
        let retention = self.retention.for_topic(topic);
        milliseconds(retention.age + retention.head)
    }

    /// `malformed` is a head that can't be read here, so that it counts as none there too.
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

/// What a plain read found.
struct PlainRead {
    head: Option<Head>,
    /// The head as it is stored, malformed or not.
    text: Option<String>,
    replication_id: String,
    retained: u64,
    oldest: Option<EventId>,
    entries: Vec<LogEntry>,
}

impl PlainRead {
    /// Whether the head stands as it is: the same server's, and nothing watermarks is missing.
    fn history(&self, watermarks: &[EventId]) -> Option<&EpochHistory> {
        let head = self.head.as_ref().filter(|head| head.replication_id == self.replication_id)?;
        let contradicted = watermarks.iter().any(|id| head.history.conflicts_with(*id));
        (!contradicted).then_some(&head.history)
    }
}

/// The entries of a stream's reply. What has no id of ours, or not our one field, is not ours.
fn parse_entries(reply: Value) -> Vec<LogEntry> {
    type Fields = Vec<(Vec<u8>, Vec<u8>)>;
    let Value::Array(reply) = reply else { return Vec::new() };
    let entry = |entry| {
        let (id, mut fields): (String, Fields) = redis::from_redis_value(entry).ok()?;
        let (_, stored) = fields.pop().filter(|(field, _)| field == b"e")?;
        Some(LogEntry { id: id.parse().ok()?, stored: stored.into() })
    };
    reply.into_iter().filter_map(entry).collect()
}

/// The id that a script has answered once it had written.
fn parse_id(answer: &str) -> Result<EventId, BrokerError> {
    answer.parse().map_err(|_| {
        BrokerError::OutcomeUnknown(Fault::new(FaultKind::Failed, format!("Redis answered {answer:?} for an id")))
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
        let key = key.map(|key| (self.keys.idempotency(topic, &key.key), key.content.as_str()));
        let conn = self.connections.for_write().await?;
        self.append_to(conn, keys, watermarks, &stored, self.retention.for_topic(topic), key).await
    }

    async fn read(
        &self,
        topic: &Topic,
        watermarks: &[EventId],
        range: ReadRange,
        limit: usize,
    ) -> Result<LogSlice, BrokerError> {
        for _ in 0..READ_ATTEMPTS {
            let Some(plain) = self.read_without_script(topic, range, limit).await? else { continue };
            let Some(history) = plain.history(watermarks).cloned() else {
                let malformed = plain.head.is_none().then_some(plain.text).flatten();
                self.ensure_epoch(topic, watermarks, malformed.as_deref()).await?;
                continue;
            };
            let mut entries = plain.entries;
            entries.retain(|entry| history.holds(entry.id));
            entries.truncate(limit);
            return Ok(LogSlice { history, oldest: plain.oldest, retained: plain.retained, entries });
        }
        let detail = "the room's head changed at every attempt to read it";
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
            let mut step = pipe();
            // A key of another type is that room's trouble alone.
            step.ignore_errors();
            step.cmd("INFO").arg("replication");
            for topic in batch {
                step.cmd("GET").arg(self.keys.head(topic));
            }
            // Of its own, since a Redis that refuses writes can be read.
            for topic in batch {
                step.cmd("PEXPIRE").arg(self.keys.head(topic)).arg(self.head_lifetime(topic));
            }
            let mut conn = self.connections.for_read().await?;
            let result = step.query_async(conn.connection()).await;
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
