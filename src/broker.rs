//! The contracts of a broker, one a file: it keeps logs and shared hashes, and carries announcements to the replicas.
//!
//! Duties of every implementation:
//! - A write is one atomic step, and success means that it is stored (P8).
//! - A step that reads or writes a log's head begins with [`crate::log::Head::ensure_epoch`].
//! - Appended entries reach every listener that has subscribed, in the order of their ids, or the listener is told that its
//!   copy may be incomplete. Announcements are hints; the log is the truth.
//! - Every call ends within [`CALL_LIMIT`], whatever the network does.

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

pub use self::error::{BrokerError, Fault, FaultKind, Health};
pub use self::hash::{Condition, FieldPage, HashStore, Patched, Removed, Written, entity_tag, sha1_hex};
pub use self::log::{
    Appended, IdempotencyKey, LogEntry, LogListener, LogSlice, LogStore, ReadRange, Retention, RetentionPolicy,
};
pub use self::moderation::{ModerationListener, ModerationStore, REMOVAL_LIFETIME, Removal, StoredRemoval};
pub use self::presence::{
    Generation, Member, MemberChange, MemberOutcome, MemberPage, MemberView, PresenceListener, PresenceStore,
    PresenceSummary, PresenceUpdate, Profile,
};
pub use self::rate::{RateGrant, RateLimit, RateStore};
pub use self::registry::{Replica, ReplicaRegistry, SubscriberCounts};
use crate::shutdown::Tasks;

/// No call to a broker takes longer.
pub const CALL_LIMIT: Duration = Duration::from_secs(5);

/// The parts of a replica that receive a broker's announcements.
#[derive(Clone)]
pub struct Listeners {
    /// Entries of logs.
    pub log: Arc<dyn LogListener>,
    /// Presence sessions that began elsewhere.
    pub presence: Arc<dyn PresenceListener>,
    /// Removals.
    pub moderation: Arc<dyn ModerationListener>,
}

/// Everything that a broker does.
pub trait Broker: LogStore + HashStore + PresenceStore + ModerationStore + ReplicaRegistry + RateStore {
    /// `embedded` or `redis`.
    fn kind(&self) -> &'static str;

    /// Starts what runs in the background, and announces to these listeners from now on. Called once.
    fn start(self: Arc<Self>, listeners: Listeners, tasks: &Tasks);

    /// What the broker knows of its own state, without asking a server.
    fn health(&self) -> Health;
}
