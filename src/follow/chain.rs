//! The chain: a log's epochs in order, and where events are known to have been lost.

use std::collections::BTreeMap;

use crate::room::EventId;

/// One epoch of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// Its number.
    pub epoch: u64,
    /// Its last offset; 0 while it has no events.
    pub end: u64,
    /// Whoever enters this epoch from below may have missed what came after this position.
    pub lost_since: Option<EventId>,
}

/// A log's epochs, oldest first, never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    epochs: Vec<Epoch>,
    recorded: BTreeMap<u64, u64>,
    dropped: u64,
}

impl Chain {
    /// A chain of one empty epoch.
    pub fn new(epoch: u64) -> Self {
        Self::from_parts(vec![Epoch { epoch, end: 0, lost_since: None }], BTreeMap::new(), 0)
            .expect("one epoch is a chain")
    }

    /// Puts together what a broker stored. `None` if the epochs are none or not in rising order.
    ///
    /// `recorded` holds, by epoch, the highest lost offset that is already marked; `dropped` is the newest epoch that
    /// was cut from the chain.
    pub fn from_parts(epochs: Vec<Epoch>, recorded: BTreeMap<u64, u64>, dropped: u64) -> Option<Self> {
        let rising = epochs.is_sorted_by(|a, b| a.epoch < b.epoch);
        (rising && !epochs.is_empty()).then_some(Self { epochs, recorded, dropped })
    }

    /// The epochs, oldest first.
    pub fn epochs(&self) -> &[Epoch] {
        &self.epochs
    }

    /// Lost offsets that are already marked, by epoch.
    pub fn recorded(&self) -> &BTreeMap<u64, u64> {
        &self.recorded
    }

    /// The newest epoch that was cut from the chain, or 0.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The epoch that is being written.
    pub fn newest(&self) -> &Epoch {
        self.epochs.last().expect("a chain is never empty")
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
    pub fn upcoming(&self) -> EventId {
        EventId::new(self.newest().epoch, self.newest().end + 1)
    }

    /// Counts the event that was just appended.
    pub fn extend(&mut self) -> EventId {
        let newest = self.epochs.last_mut().expect("a chain is never empty");
        newest.end += 1;
        EventId::new(newest.epoch, newest.end)
    }

    /// Whether an id that a replica knows to have existed was lost, and is not marked as lost yet.
    pub fn is_unmarked_loss(&self, id: EventId) -> bool {
        id.offset > 0
            && id.epoch > self.dropped
            && !self.holds(id)
            && self.recorded.get(&id.epoch).is_none_or(|offset| *offset < id.offset)
    }

    pub(super) fn epoch(&self, number: u64) -> Option<&Epoch> {
        self.epochs.binary_search_by_key(&number, |epoch| epoch.epoch).ok().map(|index| &self.epochs[index])
    }

    pub(super) fn above(&self, number: u64) -> &[Epoch] {
        &self.epochs[self.epochs.partition_point(|epoch| epoch.epoch <= number)..]
    }

    /// Before the first event of the first epoch above a number; the log's end where there is none.
    pub(super) fn start_above(&self, number: u64) -> EventId {
        self.above(number).first().map_or(self.end(), |epoch| EventId::start_of(epoch.epoch))
    }

    pub(super) fn has_recorded(&self, number: u64) -> bool {
        self.recorded.contains_key(&number)
    }

    /// Marks a loss on the newest epoch, for those already past it, and on the first one above it.
    pub(super) fn record(&mut self, lost: EventId) {
        let end = self.epoch(lost.epoch).map_or(0, |epoch| epoch.end);
        let since = EventId::new(lost.epoch, end);
        let first_above = self.epochs.partition_point(|epoch| epoch.epoch <= lost.epoch);
        let newest = self.epochs.len() - 1;
        for index in [newest, first_above] {
            if let Some(epoch) = self.epochs.get_mut(index) {
                epoch.lost_since = Some(epoch.lost_since.map_or(since, |marked| marked.min(since)));
            }
        }
        let offset = self.recorded.entry(lost.epoch).or_default();
        *offset = lost.offset.max(*offset);
    }

    /// Adds an epoch, and cuts old ones off: at least `keep` stay, and those from `oldest`'s epoch on.
    pub(super) fn begin(&mut self, epoch: u64, keep: usize, oldest: Option<EventId>) {
        self.epochs.push(Epoch { epoch, end: 0, lost_since: None });
        let retained = oldest.map_or(u64::MAX, |id| id.epoch);
        let spare = self.epochs.len().saturating_sub(keep);
        let cut = self.epochs[..spare].iter().take_while(|epoch| epoch.epoch < retained).count();
        if let Some(last) = self.epochs.drain(..cut).next_back() {
            self.dropped = last.epoch;
            self.recorded = self.recorded.split_off(&(last.epoch + 1));
        }
    }
}
