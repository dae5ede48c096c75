//! What a broker does, one contract a file. A broker keeps logs and shared hashes, and announces changes to all
//! replicas.
//!
//! Duties of every implementation:
//! - A write is one atomic step, and success means that it is stored (P8).
//! - A step that reads or writes a log's head begins with [`crate::log::Head::ensure_epoch`].
//! - Every listener that has subscribed receives the appended entries in the order of their ids. If it may have missed
//!   some, the broker invalidates its copy. Announcements are hints; the log is the truth.
//! - Every call ends within [`CALL_LIMIT`], whatever the network does. Only [`LogStore::subscribe`] waits while the
//!   broker is away, until its caller gives up.

mod error;
mod hash;
mod log;
mod moderation;
mod presence;
mod rate;
mod registry;

pub mod memory;
pub mod redis;

use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use tokio::time::{sleep, timeout};

pub use self::error::{BrokerError, Fault, FaultKind, Health, MemoryUse};
pub use self::hash::{
    Condition, FieldPage, HashExpiry, HashLifetime, HashStore, HashWrite, MAX_COPIED_BYTES, MAX_DIGITS, MAX_FIELDS,
    MAX_LIFETIME_SECONDS, MAX_LOOKED_AT, MAX_NUMBER_BYTES, NamePage, NamesQuery, Number, NumberError, OtherClients,
    PatchStep, REPLY_BYTES, WriteContext, WriteEffect, WriteOutcome, encoded_bytes, entity_tag,
};
pub use self::log::{
    Appended, IdempotencyKey, LogEntry, LogListener, LogSlice, LogStore, Peek, ReadLimit, ReadRange, Retention,
    RetentionPolicy,
};
pub use self::moderation::{
    MAX_REMOVALS, ModerationListener, ModerationStore, REMOVAL_LIFETIME, Removal, StoredRemoval,
};
pub use self::presence::{
    Generation, Member, MemberChange, MemberOutcome, MemberPage, MemberView, PresenceListener, PresenceStore,
    PresenceSummary, PresenceUpdate, Profile,
};
pub use self::rate::{RateGrant, RateLimit, RateStore};
pub use self::registry::{Replica, ReplicaRegistry, SubscriberCounts};
use crate::shutdown::Tasks;

/// The longest time that a call to a broker takes.
pub const CALL_LIMIT: Duration = Duration::from_secs(5);

/// How long a stream that opens waits for a broker that is unavailable. A lost connection is replaced, and a probe has
/// shown that it works, within 2.5 s.
const READ_PATIENCE: Duration = Duration::from_millis(3500);
/// First pause before a call is repeated; jittered up to twice as long.
const MIN_READ_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause before a call is repeated.
const MAX_READ_PAUSE: Duration = Duration::from_millis(250);

/// Waits for a call that only reads, at most [`CALL_LIMIT`]. `detail` is the error's detail after that.
pub async fn read_with_deadline<T>(
    detail: &str,
    call: impl Future<Output = Result<T, BrokerError>>,
) -> Result<T, BrokerError> {
    let timed_out = || BrokerError::Unavailable(Fault::new(FaultKind::TimedOut, detail));
    timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| Err(timed_out()))
}

/// Repeats a call that only reads while the broker is unavailable, for about [`READ_PATIENCE`]: most interruptions are
/// over in a moment.
pub async fn read_with_patience<T, F: Future<Output = Result<T, BrokerError>>>(
    call: impl FnMut() -> F,
) -> Result<T, BrokerError> {
    let pauses = ExponentialBuilder::new()
        .with_min_delay(MIN_READ_PAUSE)
        .with_max_delay(MAX_READ_PAUSE)
        .without_max_times()
        .with_total_delay(Some(READ_PATIENCE))
        .with_jitter();
    let is_unavailable = |error: &BrokerError| matches!(error, BrokerError::Unavailable(_));
    call.retry(pauses).sleep(sleep).when(is_unavailable).await
}

/// Waits for a call that changes something, at most [`CALL_LIMIT`]. After that the outcome is unknown: the broker may
/// have done it. `name` is the call's name in the error.
pub async fn write_with_deadline<T>(
    name: &str,
    call: impl Future<Output = Result<T, BrokerError>>,
) -> Result<T, BrokerError> {
    let timed_out = || BrokerError::OutcomeUnknown(Fault::new(FaultKind::TimedOut, format!("no answer to {name}")));
    timeout(CALL_LIMIT, call).await.unwrap_or_else(|_| Err(timed_out()))
}

/// The parts of a replica that receive a broker's announcements.
#[derive(Clone)]
pub struct Listeners {
    /// Receives entries of logs.
    pub log: Arc<dyn LogListener>,
    /// Receives presence sessions that began on other replicas.
    pub presence: Arc<dyn PresenceListener>,
    /// Receives removals.
    pub moderation: Arc<dyn ModerationListener>,
}

/// All contracts of a broker in one trait.
pub trait Broker: LogStore + HashStore + PresenceStore + ModerationStore + ReplicaRegistry + RateStore {
    /// `embedded` or `redis`.
    fn kind(&self) -> &'static str;

    /// Starts the background tasks, and announces to these listeners from now on. Must be called once.
    fn start(self: Arc<Self>, listeners: Listeners, tasks: &Tasks);

    /// What the broker knows of its own state. Does not ask a server.
    fn health(&self) -> Health;
}
