//! Why a broker could not do what was asked, and what is wrong with it.

use std::time::Duration;

/// Why a broker could not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// It surely was not done.
    #[error("not done: {0}")]
    Unavailable(Fault),
    /// It may have been done: the answer was lost.
    #[error("outcome unknown: {0}")]
    OutcomeUnknown(Fault),
    /// The key holds something else than a log or a hash.
    #[error("the key holds a value of another type")]
    WrongType,
    /// The field's value is not a whole number, or the sum is out of range.
    #[error("the value is not a whole number, or the sum does not fit")]
    NotANumber,
    /// The idempotency key was used for something else.
    #[error("the idempotency key was used for something else")]
    KeyReused,
    /// No page starts there.
    #[error("after: no page starts there; it has to be the `next` of the page before")]
    UnknownPage,
}

/// What is wrong, by name and in detail.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", kind.name())]
pub struct Fault {
    /// Its kind.
    pub kind: FaultKind,
    /// For the log; may name servers, never secrets.
    pub detail: String,
}

/// Kinds of faults of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// No connection.
    Unreachable,
    /// No answer in time.
    TimedOut,
    /// Announcements do not arrive.
    NotReceiving,
    /// No memory left for writes.
    OutOfMemory,
    /// The server takes no writes: it is a replica.
    ReadOnly,
    /// The server takes no writes: too few replicas follow it.
    NoReplicas,
    /// The server takes no writes: it can't save.
    Misconfigured,
    /// The server is still loading its data.
    Loading,
    /// The server is held by a long script.
    Busy,
    /// The server refuses this user.
    NotPermitted,
    /// No space left on the disk of the data folder.
    DiskFull,
    /// The disk of the data folder fails.
    DiskFailed,
    /// Anything else.
    Failed,
}

impl FaultKind {
    /// The stable name.
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

    /// Whether only writes are refused: what is stored can be read, and announcements arrive.
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

/// Whether a publish would be delivered now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// What is wrong with commands.
    pub commands: Option<Fault>,
    /// What is wrong with hearing announcements.
    pub delivery: Option<Fault>,
    /// How long the last probe took there and back, where there is one and it came back.
    pub round_trip: Option<Duration>,
}

impl Health {
    /// Whether all is well.
    pub fn is_well(&self) -> bool {
        self.commands.is_none() && self.delivery.is_none()
    }
}
