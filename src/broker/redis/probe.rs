//! The probe: every second an entry is appended over a pooled connection, and its announcement has to arrive on the
//! live connection.
//!
//! This one check finds half-open connections, two connections that lead to different servers after a failover, and a
//! Redis that answers PING but refuses writes. Once a probe's announcement has arrived, writes may use the live
//! connection. A new epoch in the probe's own log shows that the server's history is another one than before.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, interval, timeout};

use super::RedisBroker;
use super::connections::RedisConn;
use super::error::read_error;
use crate::broker::{BrokerError, Fault, FaultKind, Health, LogListener, MemoryUse};
use redis::RedisResult;

const PROBE_EVERY: Duration = Duration::from_secs(1);
/// Longest time from the append's answer to the announcement.
const RETURN_LIMIT: Duration = Duration::from_millis(1500);

/// Probes for ever.
pub(super) async fn run(broker: Arc<RedisBroker>, listener: Arc<dyn LogListener>) {
    let mut received = broker.pubsub.probes();
    let mut ticks = interval(PROBE_EVERY);
    let mut epoch = None;
    let mut conn = broker.pubsub.conn();
    let (mut is_receiving, mut is_replaced) = (false, false);
    for count in 0u64.. {
        // While announcements do not arrive, a new connection is probed at once: streams that open wait for it.
        tokio::select! {
            _ = ticks.tick(), if !is_replaced => {}
            () = until_replaced(&mut conn), if !is_receiving && !is_replaced => {}
            else => {}
        }
        let nonce = format!("{count} {:x}", fastrand::u64(..)).into_bytes();
        let live = conn.borrow_and_update().clone();
        let is_up = || live.as_ref().is_some_and(|live| !live.is_broken());
        let begin = Instant::now();
        let appended = broker.append_probe(&nonce).await;
        // A probe that was not appended can't arrive: a live connection that is up counts as receiving.
        is_receiving = appended.is_err() && is_up();
        is_replaced = false;
        if let Ok((id, _)) = &appended {
            if epoch.replace(id.epoch).is_some_and(|before| before != id.epoch) {
                tracing::warn!("Redis's history has changed: the server was restarted, failed over or emptied");
                listener.history_changed();
            }
            // A connection that comes up after the append can't carry the announcement, and is left alone.
            is_receiving = tokio::select! {
                arrived = timeout(RETURN_LIMIT, received.wait_for(|probe| *probe == nonce)) => arrived.is_ok(),
                () = until_replaced(&mut conn) => {
                    is_replaced = true;
                    false
                }
            };
            if !is_receiving && is_up() {
                broker.pubsub.reset();
            }
        }
        let round_trip = (is_receiving && appended.is_ok()).then(|| begin.elapsed());
        match (&appended, live) {
            (Ok((_, probed)), Some(live)) if is_receiving => broker.connections.promote(live, probed.clone()).await,
            _ => broker.connections.demote(),
        }
        let memory = match &appended {
            Ok((_, conn)) => memory_use(conn.clone()).await,
            Err(_) => None,
        };
        broker.set_health(Health {
            round_trip,
            memory,
            commands: appended.err().as_ref().map(fault),
            delivery: (!is_receiving).then(|| {
                let detail = "a probe's announcement did not arrive on the pub/sub connection";
                let refusal = broker.pubsub.refusal().filter(|fault| fault.kind == FaultKind::NotPermitted);
                refusal.unwrap_or_else(|| Fault::new(FaultKind::NotReceiving, detail))
            }),
        });
        ticks.reset();
    }
}

/// Resolves when there is another connection.
async fn until_replaced(conn: &mut watch::Receiver<Option<RedisConn>>) {
    // The broker owns the sender, so the channel can't close.
    while conn.changed().await.is_ok() && conn.borrow().is_none() {}
}

/// How much the server holds, by `INFO memory`.
async fn memory_use(mut conn: RedisConn) -> Option<MemoryUse> {
    let result: RedisResult<String> = redis::cmd("INFO").arg("memory").query_async(conn.connection()).await;
    let info = conn.check(result, read_error).ok()?;
    let field = |name: &str| {
        let value = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        value.trim().parse().ok()
    };
    Some(MemoryUse { used: field("used_memory")?, limit: field("maxmemory")? })
}

fn fault(error: &BrokerError) -> Fault {
    match error {
        BrokerError::Unavailable(fault) | BrokerError::OutcomeUnknown(fault) => fault.clone(),
        other => Fault::new(FaultKind::Failed, other.to_string()),
    }
}
