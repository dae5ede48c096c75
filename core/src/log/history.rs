//! The epoch history of a log: its epochs in order, and the recorded losses.

use super::ReportedLoss;
use crate::names::EventId;

/// One epoch of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// Its number.
    pub number: u64,
    /// Its last offset; 0 while it has no events.
    pub end: u64,
    /// A stream that enters this epoch from below may have missed the events after this position.
    pub lost_since: Option<EventId>,
    /// A loss below an older epoch that was discovered when this epoch was the newest.
    pub late_loss: Option<LateLoss>,
}

/// A loss that was discovered late: by then, streams had passed the epoch above it without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LateLoss {
    /// Events after this position may be missing.
    pub since: EventId,
    /// The number of the epoch above the loss, which has it in `lost_since` by now. A stream that enters that epoch
    /// from now on gets its gap there, and needs no second one.
    pub entered: u64,
}

impl ReportedLoss {
    fn covers(self, late: LateLoss) -> bool {
        self.from <= late.since && self.to >= EventId::start_of(late.entered)
    }
}

impl Epoch {
    /// An epoch without a recorded loss.
    pub fn new(number: u64, end: u64) -> Self {
        Self { number, end, lost_since: None, late_loss: None }
    }

    /// The position after which a stream that enters this epoch from below may miss events. `None` if it misses none,
    /// or only what was reported.
    pub(super) fn missing_since(&self, reported: Option<ReportedLoss>) -> Option<EventId> {
        let late = self.late_loss.filter(|late| !reported.is_some_and(|reported| reported.covers(*late)));
        let since = self.lost_since.into_iter().chain(late.map(|late| late.since)).min()?;
        // If the loss begins in the reported part, only the rest is new to the stream.
        let overlap = reported.filter(|reported| reported.from <= since && since < reported.to);
        Some(overlap.map_or(since, |overlap| overlap.to))
    }
}

/// The epochs of a log, oldest first. There is always at least one.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EpochHistory {
    epochs: Vec<Epoch>,
    dropped: u64,
    cleared: EventId,
    /// 0-0 if there is no final message: smaller than an option.
    finished: EventId,
}

impl EpochHistory {
    /// A history of one empty epoch.
    pub fn new(epoch: u64) -> Self {
        Self::from_parts(vec![Epoch::new(epoch, 0)], 0, EventId::start_of(0)).expect("one epoch is a history")
    }

    /// A history of the parts that a broker stored. `None` if there are no epochs, or they are not in rising order.
    ///
    /// `dropped` is the newest epoch that was dropped from the history, or 0. `cleared` is the position up to which the
    /// log was cleared on request, or 0-0.
    pub fn from_parts(epochs: Vec<Epoch>, dropped: u64, cleared: EventId) -> Option<Self> {
        let rising = epochs.is_sorted_by(|a, b| a.number < b.number);
        (rising && !epochs.is_empty()).then_some(Self { epochs, dropped, cleared, finished: EventId::start_of(0) })
    }

    /// The history of a log that was finished by an event with this id, if there is one.
    #[must_use]
    pub fn with_finished(self, finished: Option<EventId>) -> Self {
        Self { finished: finished.unwrap_or(EventId::start_of(0)), ..self }
    }

    /// The epochs, oldest first.
    pub fn epochs(&self) -> &[Epoch] {
        &self.epochs
    }

    /// The number of the newest epoch that was dropped from the history, or 0.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The position up to which the log was cleared on request. No cache may deliver events up to there.
    pub fn cleared(&self) -> EventId {
        self.cleared
    }

    /// Records that the log is cleared up to its end. It takes messages again.
    pub fn clear(&mut self) {
        self.cleared = self.end();
        self.finished = EventId::start_of(0);
    }

    /// The id of the final message. The log takes no further message; presence events may follow.
    pub fn finished(&self) -> Option<EventId> {
        Some(self.finished).filter(|finished| finished.offset > 0)
    }

    /// Records that the log's last event is its final message.
    pub fn finish(&mut self) {
        self.finished = self.end();
    }

    /// Forgets a final message at or before a position. Only a later read of the log can tell of another one.
    pub fn reopen(&mut self, position: EventId) {
        if self.finished <= position {
            self.finished = EventId::start_of(0);
        }
    }

    /// Whether no message follows a position, because it is at the final one or after it.
    pub fn is_finished_at(&self, position: EventId) -> bool {
        self.finished().is_some_and(|finished| finished <= position)
    }

    /// The newest epoch, to which events are appended.
    pub fn newest(&self) -> &Epoch {
        self.epochs.last().expect("a history is never empty")
    }

    /// The last position of the log: `<epoch>-0` if its newest epoch has no events.
    pub fn end(&self) -> EventId {
        EventId::new(self.newest().number, self.newest().end)
    }

    /// The id of the last event that was appended; the start of the history if there was none.
    pub(super) fn last_entry(&self) -> EventId {
        let newest = self.epochs.iter().rev().find(|epoch| epoch.end > 0);
        newest.map_or(EventId::start_of(self.epochs[0].number), |epoch| EventId::new(epoch.number, epoch.end))
    }

    /// The position `count` events before a position of this history; the start of the history if it has fewer.
    pub fn back(&self, position: EventId, count: u64) -> EventId {
        let mut left = count;
        for epoch in self.epochs.iter().rev().filter(|epoch| epoch.number <= position.epoch) {
            let end = if epoch.number == position.epoch { position.offset.min(epoch.end) } else { epoch.end };
            if left <= end {
                return EventId::new(epoch.number, end - left);
            }
            left -= end;
        }
        EventId::start_of(self.epochs[0].number)
    }

    /// Whether this position is part of the history.
    pub fn holds(&self, id: EventId) -> bool {
        self.epoch(id.epoch).is_some_and(|epoch| id.offset <= epoch.end)
    }

    /// Whether nothing was ever appended to the log.
    pub fn is_unwritten(&self) -> bool {
        self.epochs.len() == 1 && self.newest().end == 0
    }

    /// The id of the next event, unless a new epoch begins before it.
    pub fn next_id(&self) -> EventId {
        EventId::new(self.newest().number, self.newest().end + 1)
    }

    /// Adds one event to the newest epoch. Returns its id.
    pub fn extend(&mut self) -> EventId {
        let newest = self.epochs.last_mut().expect("a history is never empty");
        newest.end += 1;
        EventId::new(newest.number, newest.end)
    }

    /// Whether one of the watermarks, ids of events or positions that a server gave out, requires a new epoch. It does
    /// if it is a loss that is not recorded yet, or if its epoch is above the history: a stream at such a position
    /// could never continue on this history.
    pub fn conflicts_with(&self, watermarks: &[EventId]) -> bool {
        watermarks.iter().any(|id| id.epoch > self.newest().number || self.is_unrecorded_loss(*id))
    }

    /// Whether an event that once existed is lost, and the epoch above it has no record of that loss.
    pub(super) fn is_unrecorded_loss(&self, id: EventId) -> bool {
        let is_recorded = || {
            let lost_since = self.above(id.epoch).first().and_then(|epoch| epoch.lost_since);
            lost_since.is_some_and(|since| since <= self.held_before(id))
        };
        id.offset > 0 && id.epoch > self.dropped && !self.holds(id) && !is_recorded()
    }

    /// The last position of a lost event's epoch that is not lost.
    fn held_before(&self, lost: EventId) -> EventId {
        EventId::new(lost.epoch, self.epoch(lost.epoch).map_or(0, |epoch| epoch.end))
    }

    /// The epoch of this number.
    pub(super) fn epoch(&self, number: u64) -> Option<&Epoch> {
        self.epochs.binary_search_by_key(&number, |epoch| epoch.number).ok().map(|index| &self.epochs[index])
    }

    /// The epochs above this number.
    pub(super) fn above(&self, number: u64) -> &[Epoch] {
        &self.epochs[self.epochs.partition_point(|epoch| epoch.number <= number)..]
    }

    /// The position from which a stream reads epochs of this number and above: the start of the first one that has
    /// events, or the end of the log if none has.
    pub(super) fn start_from(&self, number: u64) -> EventId {
        let mut entered = self.epochs[self.epochs.partition_point(|epoch| epoch.number < number)..].iter();
        entered.find(|epoch| epoch.end > 0).map_or(self.end(), |epoch| EventId::start_of(epoch.number))
    }

    /// Records a loss on the first epoch above it. Streams may have entered that epoch already; for them, the loss is
    /// recorded on the newest epoch, too.
    pub(super) fn record_loss(&mut self, lost: EventId) {
        let since = self.held_before(lost);
        let above = self.epochs.partition_point(|epoch| epoch.number <= lost.epoch);
        let Some(first) = self.epochs.get_mut(above) else { return };
        first.lost_since = Some(first.lost_since.map_or(since, |recorded| recorded.min(since)));
        let entered = first.number;
        let newest = self.epochs.last_mut().expect("a history is never empty");
        if newest.number != entered {
            let late = newest.late_loss.unwrap_or(LateLoss { since, entered });
            newest.late_loss = Some(LateLoss { since: late.since.min(since), entered: late.entered.max(entered) });
        }
    }

    /// Adds an epoch, and drops old ones. At least `keep` epochs stay, and all from the epoch of the oldest retained
    /// entry on.
    pub(super) fn begin(&mut self, epoch: u64, keep: usize, oldest: Option<EventId>) {
        self.epochs.push(Epoch::new(epoch, 0));
        let retained = oldest.map_or(u64::MAX, |id| id.epoch);
        let surplus = self.epochs.len().saturating_sub(keep);
        let count = self.epochs[..surplus].iter().take_while(|epoch| epoch.number < retained).count();
        if let Some(last) = self.epochs.drain(..count).next_back() {
            self.dropped = last.number;
        }
    }
}
