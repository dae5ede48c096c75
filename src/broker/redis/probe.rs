//! The probe: appended through a command conn, expected back on the live conn, every second.
//!
//! This one check finds half-open connections, connections that reach different servers after a failover, and a Redis that answers
//! PING but refuses writes. IdempotencyKey it has come back, writes may go over the live conn. The epoch of the probe's own log
//! tells when the server's history has become another one.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, interval, timeout};

use super::RedisBroker;
use crate::broker::{BrokerError, Fault, FaultKind, Health, LogListener};

const PAUSE: Duration = Duration::from_secs(1);
/// Longest way from the append's answer to the announcement.
const RETURN_LIMIT: Duration = Duration::from_millis(1500);

/// Probes for ever.
pub(super) async fn run(broker: Arc<RedisBroker>, listener: Arc<dyn LogListener>) {
    let mut returns = broker.pubsub.probes();
    let mut ticks = interval(PAUSE);
    let mut epoch = None;
    for count in 0u64.. {
        ticks.tick().await;
        let nonce = format!("{count} {:x}", fastrand::u64(..)).into_bytes();
        let live = broker.pubsub.conn();
        let is_up = || live.as_ref().is_some_and(|live| !live.is_broken());
        let began = Instant::now();
        let appended = broker.append_probe(&nonce).await;
        // Without a probe to come back, nothing is known to be wrong with a connection that is up.
        let mut heard = appended.is_err() && is_up();
        if let Ok((id, _)) = &appended {
            if epoch.replace(id.epoch).is_some_and(|before| before != id.epoch) {
                tracing::warn!("Redis has another history than before: restarted, failed over, or emptied");
                listener.history_changed();
            }
            heard = timeout(RETURN_LIMIT, returns.wait_for(|probe| *probe == nonce)).await.is_ok();
            // A connection that came up meanwhile has had no chance to carry it.
            if !heard && is_up() {
                broker.pubsub.reset();
            }
        }
        let round_trip = (heard && appended.is_ok()).then(|| began.elapsed());
        match (&appended, live) {
            (Ok((_, by)), Some(live)) if heard => broker.connections.promote(live, by.clone()).await,
            _ => broker.connections.demote(),
        }
        broker.note(Health {
            round_trip,
            commands: appended.err().as_ref().map(fault),
            delivery: (!heard)
                .then(|| Fault::new(FaultKind::NotReceiving, "a probe did not come back on the pub/sub conn")),
        });
        ticks.reset();
    }
}

fn fault(error: &BrokerError) -> Fault {
    match error {
        BrokerError::Unavailable(fault) | BrokerError::OutcomeUnknown(fault) => fault.clone(),
        other => Fault::new(FaultKind::Failed, other.to_string()),
    }
}
