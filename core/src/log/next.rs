//! What follows a position: an event, a gap, or nothing yet.

use super::{EpochHistory, Gap, GapReason, ReportedLoss};
use crate::names::EventId;

/// What a reader gets of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LogView {
    /// Messages and presence events.
    All,
    /// Messages only.
    Messages,
}

/// Some entries of a log, in the order of their ids.
pub trait Retained {
    /// The id of the first entry above a position.
    fn first_after(&self, position: EventId) -> Option<EventId>;

    /// The position from which a reader misses nothing on its way to this entry, even if there are no entries between.
    fn complete_since(&self, id: EventId) -> EventId {
        id.before()
    }

    /// The position from which a reader misses nothing on its way to the end of the log, if the log's last events are none
    /// that it gets.
    fn complete_to_end(&self) -> Option<EventId> {
        None
    }
}

impl Retained for [EventId] {
    fn first_after(&self, position: EventId) -> Option<EventId> {
        self.get(self.partition_point(|id| *id <= position)).copied()
    }
}

/// What follows a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// This event, which is among the entries.
    Event(EventId),
    /// Nothing yet: the position is the end of the log.
    Nothing,
    /// Events may be missing. Only valid if history and entries were just read from the log in one step: a stream must
    /// not receive a gap that was decided from a cache.
    Gap(Gap),
}

impl EpochHistory {
    /// Decides what follows `position` in a log that has this history and retains these `entries`.
    ///
    /// `reported` is the part of the past about which the stream needs no gap.
    pub fn next_after(
        &self,
        position: EventId,
        entries: &(impl Retained + ?Sized),
        reported: Option<ReportedLoss>,
    ) -> Next {
        let gap_to = |to, reason| Next::Gap(self.gap(position, to, reason, reported));
        let later_start = self.start_from(position.epoch + 1);
        let Some(epoch) = self.epoch(position.epoch) else {
            let lost_since = self.above(position.epoch).first().and_then(|epoch| epoch.lost_since);
            if lost_since.is_none_or(|since| since > position) {
                return gap_to(later_start, GapReason::UnknownPosition);
            }
            // This history and the stream's past may differ in any of the older epochs, so the gap begins before them.
            let oldest = self.epochs()[0];
            let shared = oldest.missing_since(reported).unwrap_or(position).min(EventId::start_of(oldest.number));
            return Next::Gap(self.gap(position.min(shared), later_start, GapReason::LogLost, reported));
        };
        if position.offset > epoch.end {
            let shared = EventId::new(epoch.number, epoch.end);
            return Next::Gap(self.gap(shared, later_start, GapReason::Diverged, reported));
        }
        let expected = if position.offset < epoch.end {
            EventId::new(position.epoch, position.offset + 1)
        } else {
            let mut later_epochs = self.above(position.epoch).iter();
            loop {
                match later_epochs.next() {
                    None => return Next::Nothing,
                    Some(epoch) if epoch.missing_since(reported).is_some() => {
                        return gap_to(self.start_from(epoch.number), GapReason::LostTail);
                    }
                    Some(epoch) if epoch.end > 0 => break EventId::new(epoch.number, 1),
                    Some(_) => {}
                }
            }
        };
        match entries.first_after(position) {
            Some(first) if first == expected => Next::Event(expected),
            Some(first) if entries.complete_since(first) <= position => {
                self.loss_before(position, first.epoch, reported).unwrap_or(Next::Event(first))
            }
            Some(later) => gap_to(later.before(), GapReason::Trimmed),
            None if entries.complete_to_end().is_some_and(|since| since <= position) => {
                self.loss_before(position, self.end().epoch, reported).unwrap_or(Next::Nothing)
            }
            None => gap_to(self.end(), GapReason::Expired),
        }
    }

    /// The gap of a stream that goes on from `position` to an epoch, if it has to be told about the loss of one that it
    /// enters.
    fn loss_before(&self, position: EventId, epoch: u64, reported: Option<ReportedLoss>) -> Option<Next> {
        let mut entered = self.above(position.epoch).iter().take_while(|entered| entered.number <= epoch);
        let lossy = entered.find(|entered| entered.missing_since(reported).is_some())?;
        Some(Next::Gap(self.gap(position, self.start_from(lossy.number), GapReason::LostTail, reported)))
    }

    /// The gap from `position` to `to`. It begins earlier if it enters an epoch whose recorded loss began earlier.
    fn gap(&self, position: EventId, to: EventId, reason: GapReason, reported: Option<ReportedLoss>) -> Gap {
        let entered = self.above(position.epoch).iter().take_while(|epoch| epoch.number <= to.epoch);
        let missing_since = entered.filter_map(|epoch| epoch.missing_since(reported)).min();
        let from = missing_since.map_or(position, |since| since.min(position));
        let reason = match reason {
            // The loss began before the stream's position: the stream has received events that the log no longer has.
            GapReason::LostTail if from < position => GapReason::Diverged,
            reason => reason,
        };
        Gap { from, to, reason }
    }
}
