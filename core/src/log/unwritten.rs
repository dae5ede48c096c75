//! Positions in a log without a head. A log that was never written to needs none: its readers get a position that
//! nothing stores, and resume from it.

use super::EpochHistory;
use crate::names::EventId;

/// Low bits of such a position's epoch, which name the data set. The other bits are a time.
const ID_BITS: u32 = 24;

/// The data set of a server, and how long a position in a log without a head is valid in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DataSet {
    /// A random number that the server keeps as long as it keeps any of its data.
    pub id: u64,
    /// The lifetime of a head in microseconds. A position is valid for half of it: an event that was appended after the
    /// position was given out may have expired with its head, even if the clock had been set back by half a lifetime.
    pub head_lifetime: u64,
}

impl DataSet {
    /// The position in a log that has no head at this time, in microseconds since 1970. Every later epoch is above it.
    pub fn unwritten_position(self, time: u64) -> EventId {
        let before = (time >> ID_BITS).saturating_sub(1) << ID_BITS;
        EventId::start_of(before | self.id_bits())
    }

    fn id_bits(self) -> u64 {
        self.id & ((1 << ID_BITS) - 1)
    }

    fn gave_out(self, position: EventId) -> bool {
        position.offset == 0 && position.epoch & ((1 << ID_BITS) - 1) == self.id_bits()
    }
}

impl EpochHistory {
    /// Whether a position may have been given out while the log had no head. [`Self::resume_from`] decides.
    pub fn may_be_unwritten(&self, position: EventId) -> bool {
        position.offset == 0 && position.epoch < self.epochs()[0].number
    }

    /// The position from which a stream at `position` goes on: the start of this history if the position was given out while
    /// the log had no head and if no event can be lost since, else the position itself.
    ///
    /// `data_set` must have been read after this history.
    pub fn resume_from(&self, position: EventId, data_set: DataSet) -> EventId {
        let oldest = self.epochs()[0];
        let is_unwritten = self.may_be_unwritten(position) && data_set.gave_out(position);
        // If epochs were dropped, the oldest one is not the first above the position.
        let is_next = self.dropped() == 0 && oldest.lost_since.is_none();
        if is_unwritten && is_next && oldest.number - position.epoch < data_set.head_lifetime / 2 {
            EventId::start_of(oldest.number)
        } else {
            position
        }
    }
}
