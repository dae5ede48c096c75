//! A log's head: its chain, and the mark of the server whose history that chain belongs to.

use super::Chain;
use crate::room::EventId;

/// How many epochs a chain keeps at least. With two, quiet rooms get false gaps and losses go untold.
pub const KEPT_EPOCHS: usize = 32;

/// A log's head.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    /// Which server's history this is (on Redis `master_replid`).
    pub mark: String,
    /// That history.
    pub chain: Chain,
}

/// What one atomic step finds, given to it so that it needs no clock and no dice.
#[derive(Clone, Copy, Debug)]
pub struct Moment<'a> {
    /// The mark of the server that runs the step.
    pub mark: &'a str,
    /// Its time, microseconds since 1970.
    pub time: u64,
    /// Added to a new epoch that can't be the time, so that two servers don't give out the same one.
    pub random: u64,
    /// The oldest retained entry.
    pub oldest: Option<EventId>,
}

impl Head {
    /// Begins every step that reads or writes a head: one that can't be vouched for gets a new epoch, and ids that
    /// the replica has `known` to exist and that are not on the chain are marked as lost.
    ///
    /// Returns the head, and whether it has changed.
    pub fn vouch(head: Option<Self>, known: &[EventId], moment: Moment<'_>) -> (Self, bool) {
        let epoch_above = |last: u64| {
            let last = known.iter().map(|id| id.epoch).fold(last, u64::max);
            if moment.time > last { moment.time } else { last + 1 + moment.random }
        };
        let (mut head, mut begun) = match head {
            None => (Self { mark: moment.mark.into(), chain: Chain::new(epoch_above(0)) }, true),
            Some(mut head) => {
                let foreign = head.mark != moment.mark;
                if foreign {
                    head.begin(epoch_above(head.chain.newest().epoch), moment);
                }
                (head, foreign)
            }
        };
        let lost: Vec<_> = known.iter().copied().filter(|id| head.chain.is_unmarked_loss(*id)).collect();
        if !begun && known.iter().any(|id| head.chain.is_contradicted_by(*id)) {
            head.begin(epoch_above(head.chain.newest().epoch), moment);
            begun = true;
        }
        for id in &lost {
            head.chain.record(*id);
        }
        (head, begun)
    }

    fn begin(&mut self, epoch: u64, moment: Moment<'_>) {
        self.mark = moment.mark.into();
        self.chain.begin(epoch, KEPT_EPOCHS, moment.oldest);
    }
}
