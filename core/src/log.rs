//! What follows a position: an event, a gap, or nothing yet. Pure: no I/O, no clock, so that it can be tested by
//! properties and checked exhaustively.
//!
//! The log's past is described by its [`EpochHistory`]: its epochs in order, each with its last offset, and where events are
//! watermarks to have been lost. [`next`] decides from a history and the retained entries; [`Head`] changes a history. Every
//! step that reads or writes a room's head begins with [`Head::ensure_epoch`], in whichever broker keeps it.

mod head;
mod history;

pub use head::{Head, KEPT_EPOCHS, StepContext};
pub use history::{Epoch, EpochHistory, LateLoss, ReportedLoss};

use crate::names::EventId;

/// Entries of a log in the order of their ids, as far as they are at hand.
pub trait Retained {
    /// The first entry above a position.
    fn first_after(&self, position: EventId) -> Option<EventId>;
}

impl Retained for [EventId] {
    fn first_after(&self, position: EventId) -> Option<EventId> {
        self.get(self.partition_point(|id| *id <= position)).copied()
    }
}

/// What follows a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This event, and it is at hand.
    Event(EventId),
    /// Nothing yet: the position is the log's end.
    Nothing,
    /// Events may be missing. To be told only where history and entries were read together just now, never from memory.
    Gap(Gap),
}

/// What may be missing lies after `from`, up to and with `to`; the stream goes on from `to`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gap {
    /// The last position that certainly holds.
    pub from: EventId,
    /// The position from which the stream goes on.
    pub to: EventId,
    /// Why.
    pub reason: GapReason,
}

/// Why events may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GapReason {
    /// The log no longer reaches back that far.
    Trimmed,
    /// The log's entries have aged out, or were deleted.
    Expired,
    /// The log was lost as a whole after this position was given out.
    LogLost,
    /// Events after this position were acknowledged and then lost.
    LostTail,
    /// Events up to this position were lost after they had been delivered; the log goes on differently.
    Diverged,
    /// The log never gave out this position, or has forgotten that it did.
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

impl From<Gap> for ReportedLoss {
    fn from(gap: Gap) -> Self {
        // Of a position that the log does not know, all that came before is in doubt.
        let is_known = gap.reason != GapReason::UnknownPosition;
        Self { from: if is_known { gap.from } else { EventId::start_of(0) }, to: gap.to }
    }
}

impl ReportedLoss {
    /// What is reported for a stream once it has been told a gap.
    pub fn with(before: Option<Self>, gap: Gap) -> Self {
        let told = Self::from(gap);
        // Only without an event between: one that the stream was given may be lost later, and has to be told then.
        let joined = before.filter(|before| told.from <= before.to);
        Self { from: joined.map_or(told.from, |before| before.from.min(told.from)), ..told }
    }
}

/// Decides what follows `position`, for a stream to which part of the past may be `reported`.
pub fn next(
    history: &EpochHistory,
    entries: &(impl Retained + ?Sized),
    position: EventId,
    reported: Option<ReportedLoss>,
) -> Next {
    let gap = |to, reason| gap(history, position, reported, to, reason);
    let above = history.start_from(position.epoch + 1);
    let Some(epoch) = history.epoch(position.epoch) else {
        let lost_since = history.above(position.epoch).first().and_then(|epoch| epoch.lost_since);
        if lost_since.is_none_or(|since| since > position) {
            return gap(above, GapReason::UnknownPosition);
        }
        // The history's older epochs, if it has any, may have parted from the stream's past anywhere.
        let oldest = history.epochs()[0];
        let held = oldest.missing_since(reported).unwrap_or(position).min(EventId::start_of(oldest.epoch));
        return self::gap(history, position.min(held), reported, above, GapReason::LogLost);
    };
    if position.offset > epoch.end {
        let held = EventId::new(epoch.epoch, epoch.end);
        return self::gap(history, held, reported, above, GapReason::Diverged);
    }
    let wanted = if position.offset < epoch.end {
        EventId::new(position.epoch, position.offset + 1)
    } else {
        let mut later = history.above(position.epoch).iter();
        loop {
            match later.next() {
                None => return Next::Nothing,
                Some(epoch) if epoch.missing_since(reported).is_some() => {
                    return gap(history.start_from(epoch.epoch), GapReason::LostTail);
                }
                Some(epoch) if epoch.end > 0 => break EventId::new(epoch.epoch, 1),
                Some(_) => {}
            }
        }
    };
    match entries.first_after(position) {
        Some(held) if held == wanted => Next::Event(wanted),
        Some(later) => gap(later.before(), GapReason::Trimmed),
        None => gap(history.end(), GapReason::Expired),
    }
}

/// The gap from `position` to `to`, told from where loss is watermarks to begin in any epoch that it enters.
fn gap(
    history: &EpochHistory,
    position: EventId,
    reported: Option<ReportedLoss>,
    to: EventId,
    reason: GapReason,
) -> Next {
    let entered = history.above(position.epoch).iter().take_while(|epoch| epoch.epoch <= to.epoch);
    let missing_since = entered.filter_map(|epoch| epoch.missing_since(reported)).min();
    let from = missing_since.map_or(position, |since| since.min(position));
    let reason = match reason {
        // Had it been past the loss, it has what the log no longer has.
        GapReason::LostTail if from < position => GapReason::Diverged,
        reason => reason,
    };
    Next::Gap(Gap { from, to, reason })
}

#[cfg(test)]
mod tests;
