//! The history: a log's epochs in order, and where events are watermarks to have been lost.

use crate::names::EventId;

/// One epoch of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// Its number.
    pub epoch: u64,
    /// Its last offset; 0 while it has no events.
    pub end: u64,
    /// Whoever enters this epoch from below may have missed what came after this position.
    pub lost_since: Option<EventId>,
    /// A loss below an older epoch that was found out only now.
    pub late: Option<LateLoss>,
}

/// A loss that was found out late: some had entered the epoch above it by then, and had not been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LateLoss {
    /// What came after this position may be missing.
    pub since: EventId,
    /// Whoever enters this epoch from now on is told there, and need not be told again.
    pub entered: u64,
}

/// A stretch of the past of which a stream needs to be told nothing more: it has been, or it began after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReportedLoss {
    /// Where it begins.
    pub from: EventId,
    /// Where it ends.
    pub to: EventId,
}

impl ReportedLoss {
    fn covers(self, late: LateLoss) -> bool {
        self.from <= late.since && self.to >= EventId::start_of(late.entered)
    }
}

impl Epoch {
    /// An epoch that is being entered without a loss.
    pub fn new(epoch: u64, end: u64) -> Self {
        Self { epoch, end, lost_since: None, late: None }
    }

    /// Since when something may be missing to a stream that enters it from below.
    pub(super) fn missing_since(&self, reported: Option<ReportedLoss>) -> Option<EventId> {
        let late = self.late.filter(|late| !reported.is_some_and(|reported| reported.covers(*late)));
        let since = self.lost_since.into_iter().chain(late.map(|late| late.since)).min()?;
        // A new loss is not told from where an older one began of which the stream has been told.
        let told = reported.filter(|reported| reported.from <= since && since < reported.to);
        Some(told.map_or(since, |told| told.to))
    }
}

/// A log's epochs, oldest first, never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EpochHistory {
    epochs: Vec<Epoch>,
    dropped: u64,
    cleared: EventId,
}

impl EpochHistory {
    /// A history of one empty epoch.
    pub fn new(epoch: u64) -> Self {
        Self::from_parts(vec![Epoch::new(epoch, 0)], 0, EventId::start_of(0)).expect("one epoch is a history")
    }

    /// Puts together what a broker stored. `None` if the epochs are none or not in rising order.
    ///
    /// `dropped` is the newest epoch that was cut from the history, or 0; `cleared` the position up to which the log was
    /// emptied on purpose, or 0-0.
    pub fn from_parts(epochs: Vec<Epoch>, dropped: u64, cleared: EventId) -> Option<Self> {
        let rising = epochs.is_sorted_by(|a, b| a.epoch < b.epoch);
        (rising && !epochs.is_empty()).then_some(Self { epochs, dropped, cleared })
    }

    /// The epochs, oldest first.
    pub fn epochs(&self) -> &[Epoch] {
        &self.epochs
    }

    /// The newest epoch that was cut from the history, or 0.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Up to where the log was emptied on purpose: no copy may give out what lies there.
    pub fn cleared(&self) -> EventId {
        self.cleared
    }

    /// Notes that the log is being emptied.
    pub fn clear(&mut self) {
        self.cleared = self.end();
    }

    /// The epoch that is being written.
    pub fn newest(&self) -> &Epoch {
        self.epochs.last().expect("a history is never empty")
    }

    /// The last position of the log, `<epoch>-0` where its newest epoch has no events.
    pub fn end(&self) -> EventId {
        EventId::new(self.newest().epoch, self.newest().end)
    }

    /// Whether the log's history has this position.
    pub fn holds(&self, id: EventId) -> bool {
        self.epoch(id.epoch).is_some_and(|epoch| id.offset <= epoch.end)
    }

    /// The id that the next event gets if no new epoch begins.
    pub fn next_id(&self) -> EventId {
        EventId::new(self.newest().epoch, self.newest().end + 1)
    }

    /// Counts the event that was just appended.
    pub fn extend(&mut self) -> EventId {
        let newest = self.epochs.last_mut().expect("a history is never empty");
        newest.end += 1;
        EventId::new(newest.epoch, newest.end)
    }

    /// Whether an id that a replica knows to have been given out, as an event's or as a position, calls for a new epoch:
    /// it is a loss that is not marked yet, or lies above the history, on which no stream could go on from it.
    pub fn conflicts_with(&self, watermarks: EventId) -> bool {
        watermarks.epoch > self.newest().epoch || self.is_unrecorded_loss(watermarks)
    }

    /// Whether an event that existed was lost, and those who come past it are not told so yet.
    pub(super) fn is_unrecorded_loss(&self, id: EventId) -> bool {
        let is_told = || {
            let above = self.above(id.epoch).first().and_then(|epoch| epoch.lost_since);
            above.is_some_and(|since| since <= self.lost_from(id))
        };
        id.offset > 0 && id.epoch > self.dropped && !self.holds(id) && !is_told()
    }

    /// The last position before a lost id that is not lost.
    fn lost_from(&self, lost: EventId) -> EventId {
        EventId::new(lost.epoch, self.epoch(lost.epoch).map_or(0, |epoch| epoch.end))
    }

    pub(super) fn epoch(&self, number: u64) -> Option<&Epoch> {
        self.epochs.binary_search_by_key(&number, |epoch| epoch.epoch).ok().map(|index| &self.epochs[index])
    }

    pub(super) fn above(&self, number: u64) -> &[Epoch] {
        &self.epochs[self.epochs.partition_point(|epoch| epoch.epoch <= number)..]
    }

    /// Where a stream goes on that enters an epoch of this number or above: before its first event. Epochs without
    /// events are passed over; the log's end, if there is nothing else.
    pub(super) fn start_from(&self, number: u64) -> EventId {
        let mut entered = self.epochs[self.epochs.partition_point(|epoch| epoch.epoch < number)..].iter();
        entered.find(|epoch| epoch.end > 0).map_or(self.end(), |epoch| EventId::start_of(epoch.epoch))
    }

    /// Marks a loss on the first epoch above it, and, for those who have entered that one already, on the newest.
    pub(super) fn record(&mut self, lost: EventId) {
        let since = self.lost_from(lost);
        let above = self.epochs.partition_point(|epoch| epoch.epoch <= lost.epoch);
        let Some(first) = self.epochs.get_mut(above) else { return };
        first.lost_since = Some(first.lost_since.map_or(since, |marked| marked.min(since)));
        let entered = first.epoch;
        let newest = self.epochs.last_mut().expect("a history is never empty");
        if newest.epoch != entered {
            let late = newest.late.unwrap_or(LateLoss { since, entered });
            newest.late = Some(LateLoss { since: late.since.min(since), entered: late.entered.max(entered) });
        }
    }

    /// Adds an epoch, and cuts old ones off: at least `keep` stay, and those from `oldest`'s epoch on.
    pub(super) fn begin(&mut self, epoch: u64, keep: usize, oldest: Option<EventId>) {
        self.epochs.push(Epoch::new(epoch, 0));
        let retained = oldest.map_or(u64::MAX, |id| id.epoch);
        let spare = self.epochs.len().saturating_sub(keep);
        let cut = self.epochs[..spare].iter().take_while(|epoch| epoch.epoch < retained).count();
        if let Some(last) = self.epochs.drain(..cut).next_back() {
            self.dropped = last.epoch;
        }
    }
}
