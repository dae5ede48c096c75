//! Removals on Redis: a stream, and the times until which its entries are kept, written by a script.

use std::time::Duration;

use async_trait::async_trait;
use redis::RedisResult;

use super::RedisBroker;
use super::error::{read_error, write_error};
use crate::broker::{BrokerError, MAX_REMOVALS, ModerationStore, REMOVAL_LIFETIME, Removal, StoredRemoval};
use crate::timestamp::{self, milliseconds};

/// Lifetime of the keys after the last removal.
const STREAM_LIFETIME: Duration = Duration::from_hours(31 * 24);
/// Removals in one page.
const PAGE_REMOVALS: usize = 1000;

#[async_trait]
impl ModerationStore for RedisBroker {
    async fn store_removal(&self, removal: &Removal) -> Result<(), BrokerError> {
        let text = serde_json::to_string(removal).expect("names and numbers are JSON");
        let mut conn = self.connections.for_write().await?;
        let now = milliseconds(timestamp::since_1970());
        let kept_until = now.max(removal.until) + milliseconds(REMOVAL_LIFETIME);
        let mut call = self.scripts.remove.key(self.keys.removals());
        call.key(self.keys.removal_ends());
        call.arg(text).arg(self.keys.control()).arg(MAX_REMOVALS).arg(milliseconds(STREAM_LIFETIME));
        call.arg(now).arg(kept_until);
        let result: RedisResult<String> = call.invoke_async(conn.connection()).await;
        conn.check(result, write_error).map(|_| ())
    }

    async fn removals(&self, after: Option<&str>) -> Result<Vec<StoredRemoval>, BrokerError> {
        type Reply = Vec<(String, Vec<(String, String)>)>;
        let mut command = redis::cmd("XRANGE");
        command.arg(self.keys.removals()).arg(after.map_or("-".into(), |after| format!("({after}")));
        command.arg("+").arg("COUNT").arg(PAGE_REMOVALS);
        let mut conn = self.connections.for_read().await?;
        let result: RedisResult<Reply> = command.query_async(conn.connection()).await;
        let page = conn.check(result, read_error)?;
        // An entry that can't be parsed becomes a removal of nothing: reading goes on after it.
        let removal = |fields: Vec<(String, String)>| serde_json::from_str(&fields.into_iter().next()?.1).ok();
        Ok(page.into_iter().map(|(id, fields)| (id, removal(fields).unwrap_or_default())).collect())
    }
}
