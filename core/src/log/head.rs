//! A log's head: its history, and the replication_id of the server whose history that history belongs to.

use super::EpochHistory;
use crate::names::EventId;

/// How many epochs a history keeps at least. With two, quiet rooms get false gaps and losses go untold.
pub const KEPT_EPOCHS: usize = 32;

/// A log's head.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    /// Which server's history this is (on Redis `master_replid`).
    pub replication_id: String,
    /// That history.
    pub history: EpochHistory,
}

/// What one atomic step finds, given to it so that it needs no clock and no dice.
#[derive(Clone, Copy, Debug)]
pub struct StepContext<'a> {
    /// The replication_id of the server that runs the step.
    pub replication_id: &'a str,
    /// Its time, microseconds since 1970.
    pub time: u64,
    /// Added to a new epoch that can't be the time, so that two servers don't give out the same one.
    pub random: u64,
    /// The oldest retained entry.
    pub oldest: Option<EventId>,
}

impl Head {
    /// Begins every step that reads or writes a head: one that can't be vouched for gets a new epoch, and ids that
    /// the replica has `watermarks` to exist and that are not on the history are marked as lost.
    ///
    /// Returns the head, and whether it has changed.
    pub fn ensure_epoch(head: Option<Self>, watermarks: &[EventId], moment: StepContext<'_>) -> (Self, bool) {
        let epoch_above = |last: u64| {
            let last = watermarks.iter().map(|id| id.epoch).fold(last, u64::max);
            if moment.time > last { moment.time } else { last + 1 + moment.random }
        };
        let (mut head, mut begun) = match head {
            None => (
                Self { replication_id: moment.replication_id.into(), history: EpochHistory::new(epoch_above(0)) },
                true,
            ),
            Some(mut head) => {
                let foreign = head.replication_id != moment.replication_id;
                if foreign {
                    head.begin(epoch_above(head.history.newest().epoch), moment);
                }
                (head, foreign)
            }
        };
        let lost: Vec<_> = watermarks.iter().copied().filter(|id| head.history.is_unrecorded_loss(*id)).collect();
        if !begun && watermarks.iter().any(|id| head.history.conflicts_with(*id)) {
            head.begin(epoch_above(head.history.newest().epoch), moment);
            begun = true;
        }
        for id in &lost {
            head.history.record(*id);
        }
        (head, begun)
    }

    fn begin(&mut self, epoch: u64, moment: StepContext<'_>) {
        self.replication_id = moment.replication_id.into();
        self.history.begin(epoch, KEPT_EPOCHS, moment.oldest);
    }
}
