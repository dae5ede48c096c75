//! Why a call to a broker failed, and what is wrong with the broker.

use std::time::Duration;

/// Why a call to a broker failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// The call certainly had no effect.
    #[error("not done: {0}")]
    Unavailable(Fault),
    /// The call may have had its effect: the answer was lost.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(Fault),
    /// The key holds something other than a log or a hash.
    #[error("the key holds a value of another type")]
    WrongType,
    /// The field's value is not a [`super::Number`], or the sum is out of range.
    #[error("the value is not a number, or the sum is out of range")]
    NotANumber,
    /// The hash would have more fields than [`super::MAX_FIELDS`].
    #[error("the hash would have too many fields")]
    TooManyFields,
    /// The patch would copy more than [`super::MAX_COPIED_BYTES`].
    #[error("the patch would copy too many bytes")]
    CopyTooLarge,
    /// The hash has more fields or bytes than watchers can be told.
    #[error("the hash is too large to be watched")]
    TooLargeToWatch,
    /// The idempotency key was used with other content.
    #[error("the idempotency key was used with other content")]
    KeyReused,
    /// The log has its final message.
    #[error("the room is finished")]
    Finished,
    /// Messages came after every position of the append's condition, or may be missing there.
    #[error("messages came after the positions of the condition")]
    HeadMoved,
    /// No page starts at the given position.
    #[error("after: must be the `next` of an earlier page")]
    UnknownPage,
}

/// What is wrong with a broker.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", kind.name())]
pub struct Fault {
    /// The kind of the fault.
    pub kind: FaultKind,
    /// A text for the log. May name servers, but holds no secrets.
    pub detail: String,
}

/// The kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// There is no connection.
    Unreachable,
    /// No answer came in time.
    TimedOut,
    /// Announcements do not arrive.
    NotReceiving,
    /// No memory is left for writes.
    OutOfMemory,
    /// The server refuses writes because it is a replica.
    ReadOnly,
    /// The server refuses writes because too few replicas follow it.
    NoReplicas,
    /// The server refuses writes because it can't save its data.
    Misconfigured,
    /// The server is still loading its data.
    Loading,
    /// A long script blocks the server, or too many writes wait for the disk.
    Busy,
    /// The server refuses this user.
    NotPermitted,
    /// The disk of the data folder is full.
    DiskFull,
    /// The disk of the data folder fails.
    DiskFailed,
    /// Anything else.
    Failed,
}

impl FaultKind {
    /// The stable name, which problem documents and health reports show.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::TimedOut => "timed_out",
            Self::NotReceiving => "not_receiving",
            Self::OutOfMemory => "out_of_memory",
            Self::ReadOnly => "read_only",
            Self::NoReplicas => "no_replicas",
            Self::Misconfigured => "misconfigured",
            Self::Loading => "loading",
            Self::Busy => "busy",
            Self::NotPermitted => "not_permitted",
            Self::DiskFull => "disk_full",
            Self::DiskFailed => "disk_failed",
            Self::Failed => "failed",
        }
    }

    /// Whether the broker refuses writes only: stored data can be read, and announcements arrive.
    pub const fn affects_only_writes(self) -> bool {
        matches!(
            self,
            Self::OutOfMemory | Self::NoReplicas | Self::Misconfigured | Self::DiskFull | Self::DiskFailed
        )
    }
}

impl Fault {
    /// A fault of this kind.
    pub fn new(kind: FaultKind, detail: impl Into<String>) -> Self {
        Self { kind, detail: detail.into() }
    }
}

/// Whether a publish would be stored and delivered now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Why commands fail, if they do.
    pub commands: Option<Fault>,
    /// Why announcements do not arrive, if they do not.
    pub delivery: Option<Fault>,
    /// The round-trip time of the last probe. None for a broker without probes, or if the probe did not come back.
    pub round_trip: Option<Duration>,
    /// How much the broker holds. None if it does not tell.
    pub memory: Option<MemoryUse>,
}

/// How much a broker holds of what it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Bytes.
    pub used: u64,
    /// Bytes; 0 without a limit.
    pub limit: u64,
}

impl MemoryUse {
    /// Whether the last part of the memory is in use, which is kept for events.
    pub fn is_nearly_full(self) -> bool {
        self.limit > 0 && self.used > self.limit / 10 * 9
    }
}

impl Health {
    /// Whether nothing is wrong.
    pub fn is_well(&self) -> bool {
        self.fault().is_none()
    }

    /// What is wrong; of two faults, that of commands.
    pub fn fault(&self) -> Option<&Fault> {
        self.commands.as_ref().or(self.delivery.as_ref())
    }

    /// Why logs can't be followed, if they can't: they can't be read, or announcements do not arrive.
    pub fn follow_fault(self) -> Option<Fault> {
        self.commands.filter(|fault| !fault.kind.affects_only_writes()).or(self.delivery)
    }
}
