//! Shared hashes as plain Redis hashes.

use std::borrow::Cow;
use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{Cmd, RedisError, RedisResult, Script, Value};

use super::connections::RedisConn;
use super::error::{read_error, write_error};
use super::script_call::ScriptCall;
use super::{RedisBroker, id_texts, random};
use crate::broker::{
    BrokerError, Fault, FaultKind, FieldPage, HashExpiry, HashStore, HashWrite, MAX_LOOKED_AT, NamePage,
    NamesQuery, OtherClients, REPLY_BYTES, WriteContext, WriteEffect, WriteOutcome, encoded_bytes,
};
use crate::names::{EventId, FieldName, HashName, Topic, change_header};
use crate::timestamp::{self, milliseconds};

/// Bytes of values after which a command that reads several stops. Redis does nothing else meanwhile.
const COMMAND_BYTES: usize = 256 * 1024;
/// Fields that one command reads at most. A thousand of them take Redis 2 to 4 ms on a busy machine.
const COMMAND_FIELDS: usize = 1000;
/// Fields that are larger on average are read by commands of their own: a script takes 290 µs of Redis's time for a value
/// of 250 KB, a command 9 µs.
const LARGE_BYTES: usize = 16 * 1024;
/// Fields whose values are appended in one step.
const APPENDED_FIELDS: usize = 500;

/// Keys that one command looks at. Redis does nothing else meanwhile.
const COMMAND_KEYS: usize = 1000;

type RawFields = Vec<(Vec<u8>, Vec<u8>)>;
/// The cursor of the next page, and the fields of this one.
pub(super) type RawPage = (Option<String>, RawFields);

/// Parses the script's text of what was done: four counts, and after an increment the sum.
fn parse_effect(text: &str) -> Option<WriteEffect> {
    let mut words = text.split(' ');
    let mut count = || words.next()?.parse().ok();
    let (created, replaced, removed, copied) = (count()?, count()?, count()?, count()?);
    Some(WriteEffect { created, replaced, removed, copied, sum: words.next().map(Box::from) })
}

/// The answer of a script that writes.
enum WriteAnswer {
    Outcome(Result<WriteOutcome, BrokerError>),
    /// The hash is watched: the script that appends to its log has to make the write.
    IsWatched,
}

/// Parses a script's answer. None if it is another command's.
fn parse_answer(answer: Value) -> Option<WriteAnswer> {
    let words = match answer {
        Value::BulkString(done) => {
            let effect = parse_effect(str::from_utf8(&done).ok()?)?;
            return Some(WriteAnswer::Outcome(Ok(WriteOutcome::Done(effect, false))));
        }
        words => redis::from_redis_value::<Vec<String>>(words).ok()?,
    };
    let outcome = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["watched"] => return Some(WriteAnswer::IsWatched),
        ["replayed", done] => Ok(WriteOutcome::Done(parse_effect(done)?, true)),
        ["reused"] => Err(BrokerError::KeyReused),
        ["refused"] => Ok(WriteOutcome::Refused),
        ["absent"] => Ok(WriteOutcome::Absent(None)),
        ["absent", field] => Ok(WriteOutcome::Absent(Some(FieldName::new(field).ok()?))),
        _ => return None,
    };
    Some(WriteAnswer::Outcome(outcome))
}

fn hash_write_error(error: &RedisError) -> BrokerError {
    let text = error.to_string();
    let has = |refusals: &[&str]| refusals.iter().any(|refusal| text.contains(refusal));
    if has(&["NOTANUMBER", "not an integer", "would overflow"]) {
        BrokerError::NotANumber
    } else if has(&["TOOMANYFIELDS"]) {
        BrokerError::TooManyFields
    } else if has(&["TOOMANYBYTES"]) {
        BrokerError::CopyTooLarge
    } else {
        write_error(error)
    }
}

fn bytes_of(words: &[Cow<'_, [u8]>]) -> usize {
    words.iter().map(|word| word.len()).sum()
}

fn value_bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        _ => None,
    }
}

impl RedisBroker {
    /// About `limit` fields of a hash, from a cursor on.
    pub(super) async fn scan(
        &self,
        mut conn: RedisConn,
        key: String,
        from: Option<&str>,
        limit: usize,
    ) -> Result<RawPage, BrokerError> {
        // Redis's cursors are numbers: other text from the client is not sent to Redis.
        let mut cursor: u64 = from.unwrap_or("0").parse().map_err(|_| BrokerError::UnknownPage)?;
        // The first command shows how large the values are. It reads a small hash whole.
        let (mut found, mut bytes, mut are_large) = (RawFields::new(), 0, true);
        loop {
            let result: RedisResult<(u64, RawFields)> = if are_large {
                let mut command = redis::cmd("HSCAN");
                command.arg(&key).arg(cursor).arg("COUNT").arg(1);
                command.query_async(conn.connection()).await
            } else {
                let mut call = self.scripts.scan.key(&key);
                call.arg(cursor).arg(COMMAND_FIELDS.min(limit - found.len()));
                call.arg(COMMAND_BYTES.min(REPLY_BYTES - bytes));
                call.invoke_async(conn.connection()).await
            };
            let (next, read) = conn.check(result, read_error)?;
            cursor = next;
            let read_bytes: usize =
                read.iter().map(|(field, value)| encoded_bytes(field) + encoded_bytes(value)).sum();
            bytes += read_bytes;
            // The script passes more empty places than one command does.
            let is_empty = read.is_empty() && !are_large;
            are_large = read_bytes > read.len() * LARGE_BYTES;
            found.extend(read);
            if cursor == 0 || is_empty || found.len() >= limit || bytes >= REPLY_BYTES {
                return Ok(((cursor != 0).then(|| cursor.to_string()), found));
            }
        }
    }
}

impl RedisBroker {
    /// A call of a script behind `hash_log.lua`, without the arguments about the log.
    fn watched_call<'a>(
        &self,
        script: &'a Script,
        hash: &HashName,
        once: Option<&str>,
        words: &[Cow<'_, [u8]>],
    ) -> ScriptCall<'a> {
        let topic = Topic::from(hash.clone());
        let mut keys =
            vec![self.keys.hash(hash), self.keys.head(&topic), self.keys.log(&topic), self.keys.refresh(hash)];
        keys.extend(once.map(str::to_owned));
        let mut call = ScriptCall::new(script, &keys, words.len(), bytes_of(words));
        call.arg(words.len()).arg(words);
        call
    }

    fn add_log_arguments(&self, call: &mut ScriptCall<'_>, topic: &Topic, context: WriteContext<'_>) {
        let retention = self.retention.for_topic(topic);
        call.arg(change_header(&timestamp::now(), context.by)).arg(self.keys.live(topic));
        call.arg(retention.events).arg(retention.bytes).arg(timestamp::ago(retention.age));
        call.arg(milliseconds(retention.age)).arg(self.head_lifetime(topic)).arg(random());
        call.arg(id_texts(context.watermarks));
    }

    /// Calls a script that changes a hash. `parse` returns none for an answer that is another command's.
    async fn call_hash_script<T>(
        &self,
        call: &ScriptCall<'_>,
        parse: impl FnOnce(Value) -> Option<T>,
    ) -> Result<T, BrokerError> {
        let mut conn = self.connections.for_hashes().await?;
        let result = call.invoke(&mut conn).await;
        let answer = conn.check(result, hash_write_error)?;
        parse(answer).ok_or_else(|| {
            conn.mark_broken();
            let detail = "Redis's answer belongs to another command";
            BrokerError::OutcomeUnknown(Fault::new(FaultKind::Failed, detail))
        })
    }
}

#[async_trait]
impl HashStore for RedisBroker {
    async fn value(&self, hash: &HashName, field: &FieldName) -> Result<Option<Bytes>, BrokerError> {
        let key = self.keys.hash(hash);
        let mut command = Cmd::with_capacity(3, 4 + key.len() + field.as_str().len());
        command.arg("HGET").arg(key).arg(field.as_str());
        let mut conn = self.connections.for_hashes().await?;
        let result = conn.send(&command).await;
        Ok(value_bytes(conn.check(result, read_error)?))
    }

    async fn values(&self, hash: &HashName, fields: &[FieldName]) -> Result<Vec<Option<Bytes>>, BrokerError> {
        if let [field] = fields {
            // See LARGE_BYTES.
            return Ok(vec![self.value(hash, field).await?]);
        }
        let mut conn = self.connections.for_hashes().await?;
        let (mut values, mut bytes) = (Vec::new(), 0);
        while values.len() < fields.len() && bytes < REPLY_BYTES {
            let mut call = self.scripts.hash_values.key(self.keys.hash(hash));
            call.arg(COMMAND_BYTES.min(REPLY_BYTES - bytes));
            call.arg(fields[values.len()..].iter().map(FieldName::as_str).collect::<Vec<_>>());
            let result: RedisResult<Vec<Value>> = call.invoke_async(conn.connection()).await;
            let read = conn.check(result, read_error)?.into_iter().map(value_bytes);
            values.extend(read.inspect(|value| bytes += value.as_ref().map_or(0, |value| encoded_bytes(value))));
        }
        Ok(values)
    }

    async fn page(&self, hash: &HashName, from: Option<&str>, limit: usize) -> Result<FieldPage, BrokerError> {
        let conn = self.connections.for_hashes().await?;
        let (next, found) = self.scan(conn, self.keys.hash(hash), from, limit).await?;
        let total = found.len();
        let is_name = |field: &String| FieldName::new(field).is_ok();
        let named = found
            .into_iter()
            .filter_map(|(field, value)| Some((String::from_utf8(field).ok().filter(is_name)?, value.into())));
        let fields: Vec<_> = named.collect();
        Ok(FieldPage { skipped: total - fields.len(), fields, next })
    }

    async fn expiry(&self, hash: &HashName) -> Result<Option<HashExpiry>, BrokerError> {
        let refresh = self.keys.refresh(hash);
        let mut pipeline = redis::pipe();
        pipeline.cmd("PEXPIRETIME").arg(self.keys.hash(hash));
        pipeline.cmd("PEXPIRETIME").arg(&refresh).cmd("GET").arg(&refresh);
        let mut conn = self.connections.for_hashes().await?;
        let result = pipeline.query_async(conn.connection()).await;
        let (at, refresh_at, refresh): (i64, i64, Option<u64>) = conn.check(result, read_error)?;
        // See hash_write.lua. The time is below 0 if there is no expiry, or no hash.
        let refresh = refresh.filter(|_| refresh_at == at);
        Ok(u64::try_from(at).ok().map(|at| HashExpiry { at, refresh }))
    }

    async fn names(&self, query: NamesQuery<'_>) -> Result<NamePage, BrokerError> {
        let mut cursor: u64 = query.from.unwrap_or("0").parse().map_err(|_| BrokerError::UnknownPage)?;
        let pattern = self.keys.hash_pattern(query.prefix);
        let mut conn = self.connections.for_hashes().await?;
        let (mut names, mut matched, mut looked_at) = (BTreeSet::new(), 0, 0);
        loop {
            // As many keys as should hold the names that are missing, going by those before.
            let missing = (query.limit - names.len()).min(query.most_compared - matched);
            let count = if looked_at == 0 { missing } else { missing * looked_at / matched.max(1) };
            let count = count.clamp(1, COMMAND_KEYS.min(MAX_LOOKED_AT - looked_at));
            let mut command = redis::cmd("SCAN");
            command.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(count).arg("TYPE").arg("hash");
            let result = command.query_async(conn.connection()).await;
            let (next, keys): (u64, Vec<Vec<u8>>) = conn.check(result, read_error)?;
            (cursor, looked_at) = (next, looked_at + count);
            for key in keys {
                matched += 1;
                let hash = str::from_utf8(&key).ok().and_then(|key| self.keys.hash_of_key(key));
                names.extend(hash.filter(query.is_visible));
            }
            if cursor == 0
                || names.len() >= query.limit
                || matched >= query.most_compared
                || looked_at >= MAX_LOOKED_AT
            {
                let next = (cursor != 0).then(|| cursor.to_string());
                return Ok(NamePage { names: names.into_iter().collect(), next, looked_at });
            }
        }
    }

    async fn write(
        &self,
        hash: &HashName,
        write: &HashWrite,
        context: WriteContext<'_>,
    ) -> Result<WriteOutcome, BrokerError> {
        let topic = Topic::from(hash.clone());
        let window = || milliseconds(self.retention.for_topic(&topic).idempotency_window).to_string();
        let once = context.key.map(|key| self.keys.idempotency(&topic, &key.key));
        let mut words = write.words();
        if let Some(key) = context.key {
            words.extend([key.content.as_bytes().into(), window().into_bytes().into()]);
        }
        // A replica that knows ids of the log knows that the hash has one, or had one.
        let mut is_watched = !context.watermarks.is_empty();
        loop {
            let call = if is_watched {
                let script = &self.scripts.watched_hash_write;
                let mut call = self.watched_call(script, hash, once.as_deref(), &words);
                self.add_log_arguments(&mut call, &topic, context);
                call
            } else {
                let mut keys = vec![self.keys.hash(hash), self.keys.head(&topic), self.keys.refresh(hash)];
                keys.extend(once.clone());
                let mut call = ScriptCall::new(&self.scripts.hash_write, &keys, words.len(), bytes_of(&words));
                call.arg(&words[..]);
                call
            };
            let is_answer = |answer: &WriteAnswer| !is_watched || matches!(answer, WriteAnswer::Outcome(_));
            let parse = |answer| parse_answer(answer).filter(is_answer);
            match self.call_hash_script(&call, parse).await? {
                WriteAnswer::Outcome(outcome) => return outcome,
                WriteAnswer::IsWatched => is_watched = true,
            }
        }
    }

    fn other_clients(&self) -> OtherClients {
        if self.pubsub.has_notifications() { OtherClients::Notified } else { OtherClients::Unnoticed }
    }

    async fn append_external(
        &self,
        hash: &HashName,
        watermarks: &[EventId],
        end: Option<EventId>,
        fields: &[Box<str>],
    ) -> Result<Option<usize>, BrokerError> {
        let (has_any_end, end) =
            (if end.is_some() { "0" } else { "1" }, end.map_or(String::new(), |end| end.to_string()));
        let step = &fields[..fields.len().min(APPENDED_FIELDS)];
        let words = [&*end, has_any_end].into_iter().chain(step.iter().map(|field| &**field));
        let words: Vec<Cow<'_, [u8]>> = words.map(|word| word.as_bytes().into()).collect();
        let mut call = self.watched_call(&self.scripts.hash_external, hash, None, &words);
        let context = WriteContext { watermarks, ..WriteContext::default() };
        self.add_log_arguments(&mut call, &Topic::from(hash.clone()), context);
        let parse = |answer| redis::from_redis_value::<i64>(answer).ok();
        let appended = usize::try_from(self.call_hash_script(&call, parse).await?).ok();
        // If the hash is gone, all fields are.
        Ok(appended.map(|count| if count == 0 { fields.len() } else { count }))
    }
}
