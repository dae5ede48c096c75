//! Gaps: reports to a stream that events may be missing.

use crate::names::EventId;

/// A report that events after `from`, up to and including `to`, may be missing. The stream continues after `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gap {
    /// The last position up to which the stream is surely complete.
    pub from: EventId,
    /// The position after which the stream continues.
    pub to: EventId,
    /// Why events may be missing.
    pub reason: GapReason,
}

/// Why events may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The log was trimmed: it no longer reaches back to this position.
    Trimmed,
    /// The entries of the log have aged out or were deleted.
    Expired,
    /// The whole log was lost after a server had given out this position.
    LogLost,
    /// Events after this position were acknowledged and then lost.
    LostTail,
    /// Events up to this position were delivered and then lost; the log continues with other events.
    Diverged,
    /// The log has never given out this position, or no longer remembers it.
    UnknownPosition,
}

impl GapReason {
    /// The name in `stream.gap`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Trimmed => "trimmed",
            Self::Expired => "expired",
            Self::LogLost => "log_lost",
            Self::LostTail => "lost_tail",
            Self::Diverged => "diverged",
            Self::UnknownPosition => "unknown_position",
        }
    }
}

/// A part of the past about which a stream needs no further gap: an earlier gap covered it, or the stream began after
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReportedLoss {
    /// The position at which it begins.
    pub from: EventId,
    /// The position at which it ends.
    pub to: EventId,
}

impl From<Gap> for ReportedLoss {
    fn from(gap: Gap) -> Self {
        // If the log does not know the stream's position, everything before it may be missing.
        let is_known = gap.reason != GapReason::UnknownPosition;
        Self { from: if is_known { gap.from } else { EventId::start_of(0) }, to: gap.to }
    }
}

impl ReportedLoss {
    /// The reported part of a stream's past once the stream has received `gap`, and had an `earlier` reported part.
    pub fn after_gap(earlier: Option<Self>, gap: Gap) -> Self {
        let reported = Self::from(gap);
        // Two parts are joined only if no event lies between them: the stream has received such an event, and if that
        // is lost later, the stream has to get a gap for it.
        let joined = earlier.filter(|earlier| reported.from <= earlier.to);
        Self { from: joined.map_or(reported.from, |earlier| earlier.from.min(reported.from)), ..reported }
    }
}
