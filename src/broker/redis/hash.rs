//! Shared hashes as plain Redis hashes.

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;
use redis::{FromRedisValue, RedisResult, Script, Value};

use super::RedisBroker;
use super::connections::RedisConn;
use super::error::{read_error, write_error};
use crate::broker::{
    BrokerError, Condition, FieldPage, HashStore, PatchOutcome, REPLY_BYTES, RemoveOutcome, SetOutcome,
    encoded_bytes,
};
use crate::names::{FieldName, HashName};

/// Bytes of values after which a command that reads several stops. Redis does nothing else meanwhile.
const COMMAND_BYTES: usize = 256 * 1024;
/// Fields that are larger on average are read by commands of their own: a script takes 290 µs of Redis's time for a value
/// of 250 KB, a command 9 µs.
const LARGE_BYTES: usize = 16 * 1024;

impl Condition {
    fn name(&self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Absent => "absent",
            Self::Present => "present",
            Self::Matches(_) => "matches",
        }
    }

    fn tags(&self) -> &[String] {
        if let Self::Matches(tags) = self { tags } else { &[] }
    }
}

type RawFields = Vec<(Vec<u8>, Vec<u8>)>;
/// The cursor of the next page, and the fields of this one.
pub(super) type RawPage = (Option<String>, RawFields);

/// The answer of a conditional script.
enum ConditionalReply {
    /// The condition held. True if a field was created or removed.
    Done(bool),
    /// The condition did not hold.
    Refused,
}

impl FromRedisValue for ConditionalReply {
    fn from_redis_value(value: Value) -> Result<Self, redis::ParsingError> {
        match value {
            Value::Array(_) => Ok(Self::Refused),
            other => bool::from_redis_value(other).map(Self::Done),
        }
    }
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
        let (mut found, mut bytes, mut are_large) = (RawFields::new(), 0, false);
        loop {
            let result: RedisResult<(u64, RawFields)> = if are_large {
                let mut command = redis::cmd("HSCAN");
                command.arg(&key).arg(cursor).arg("COUNT").arg(1);
                command.query_async(conn.connection()).await
            } else {
                let mut call = self.scripts.scan.key(&key);
                call.arg(cursor).arg(limit - found.len()).arg(COMMAND_BYTES.min(REPLY_BYTES - bytes));
                call.invoke_async(conn.connection()).await
            };
            let (next, read) = conn.check(result, read_error)?;
            cursor = next;
            let read_bytes: usize =
                read.iter().map(|(field, value)| encoded_bytes(field) + encoded_bytes(value)).sum();
            bytes += read_bytes;
            are_large = read_bytes > read.len() * LARGE_BYTES;
            let is_empty = read.is_empty();
            found.extend(read);
            if cursor == 0 || is_empty || found.len() >= limit || bytes >= REPLY_BYTES {
                return Ok(((cursor != 0).then(|| cursor.to_string()), found));
            }
        }
    }

    async fn write_conditionally(
        &self,
        script: &Script,
        hash: &HashName,
        field: &FieldName,
        value: &[u8],
        condition: &Condition,
    ) -> Result<ConditionalReply, BrokerError> {
        let mut conn = self.connections.for_hashes().await?;
        let mut call = script.key(self.keys.hash(hash));
        call.arg(field.as_str()).arg(value).arg(condition.name());
        call.arg(condition.tags());
        let result = call.invoke_async(conn.connection()).await;
        conn.check(result, write_error)
    }
}

#[async_trait]
impl HashStore for RedisBroker {
    async fn value(&self, hash: &HashName, field: &FieldName) -> Result<Option<Bytes>, BrokerError> {
        let mut command = redis::cmd("HGET");
        command.arg(self.keys.hash(hash)).arg(field.as_str());
        let mut conn = self.connections.for_hashes().await?;
        let result = command.query_async(conn.connection()).await;
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

    async fn set(
        &self,
        hash: &HashName,
        field: &FieldName,
        value: Bytes,
        condition: &Condition,
    ) -> Result<SetOutcome, BrokerError> {
        let script = &self.scripts.hash_set;
        Ok(match self.write_conditionally(script, hash, field, &value, condition).await? {
            ConditionalReply::Done(true) => SetOutcome::Created,
            ConditionalReply::Done(false) => SetOutcome::Replaced,
            ConditionalReply::Refused => SetOutcome::Refused,
        })
    }

    async fn remove(
        &self,
        hash: &HashName,
        field: &FieldName,
        condition: &Condition,
    ) -> Result<RemoveOutcome, BrokerError> {
        let script = &self.scripts.hash_remove;
        Ok(match self.write_conditionally(script, hash, field, b"", condition).await? {
            ConditionalReply::Done(true) => RemoveOutcome::Removed,
            ConditionalReply::Done(false) => RemoveOutcome::Absent,
            ConditionalReply::Refused => RemoveOutcome::Refused,
        })
    }

    async fn patch(
        &self,
        hash: &HashName,
        changes: &BTreeMap<FieldName, Option<Bytes>>,
    ) -> Result<PatchOutcome, BrokerError> {
        let mut conn = self.connections.for_hashes().await?;
        let mut call = self.scripts.hash_patch.key(self.keys.hash(hash));
        for (field, value) in changes {
            let verb = if value.is_some() { "set" } else { "remove" };
            call.arg(verb).arg(field.as_str()).arg(value.as_deref().unwrap_or_default());
        }
        let result = call.invoke_async(conn.connection()).await;
        let (created, replaced, removed) = conn.check(result, write_error)?;
        Ok(PatchOutcome { created, replaced, removed })
    }

    async fn delete(&self, hash: &HashName) -> Result<bool, BrokerError> {
        let mut conn = self.connections.for_hashes().await?;
        let result = self.scripts.hash_clear.key(self.keys.hash(hash)).invoke_async(conn.connection()).await;
        conn.check(result, write_error)
    }

    async fn increment(&self, hash: &HashName, field: &FieldName, by: i64) -> Result<i64, BrokerError> {
        let mut conn = self.connections.for_hashes().await?;
        let mut call = self.scripts.hash_increment.key(self.keys.hash(hash));
        let result = call.arg(field.as_str()).arg(by).invoke_async(conn.connection()).await;
        conn.check(result, |error| {
            let text = error.to_string();
            let is_not_a_number = ["not an integer", "would overflow"].iter().any(|refusal| text.contains(refusal));
            if is_not_a_number { BrokerError::NotANumber } else { write_error(error) }
        })
    }
}
