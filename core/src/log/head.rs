//! The head of a log: its epoch history, and the replication id of the server to which that history belongs.

use super::{EpochHistory, Next, Retained};
use crate::names::EventId;

/// The fewest epochs that a history keeps. With two, quiet rooms would get false gaps, and some losses no gap.
pub const KEPT_EPOCHS: usize = 32;

/// The head of a log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Head {
    /// The replication id of the server whose history this is (on Redis `master_replid`).
    pub replication_id: String,
    /// The history.
    pub history: EpochHistory,
    /// The position of the last message, if presence events follow it.
    pub last_message: Option<EventId>,
}

/// The end of a log as a reader of messages sees it from the head alone.
struct NoEntries {
    last_message: Option<EventId>,
}

impl Retained for NoEntries {
    fn first_after(&self, _: EventId) -> Option<EventId> {
        None
    }

    fn complete_to_end(&self) -> Option<EventId> {
        self.last_message
    }
}

/// What an entry is. Each kind is retained by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EntryKind {
    /// What a publisher sent.
    Message,
    /// Members of the room have joined or left.
    Presence,
}

/// What one atomic step reads from its server. It is passed in, so that the rules need no clock and no random numbers.
#[derive(Clone, Copy, Debug)]
pub struct StepContext<'a> {
    /// The replication id of the server that runs the step.
    pub replication_id: &'a str,
    /// The server's time, in microseconds since 1970.
    pub time: u64,
    /// Added to the number of a new epoch that can't be the time, so that two servers do not choose the same number.
    pub random: u64,
    /// The id of the oldest retained entry.
    pub oldest: Option<EventId>,
}

impl Head {
    /// Adds an entry to the newest epoch. Returns its id, and the position of the last message before it if presence
    /// events lie between: only that tells a reader without presence that it misses nothing where they were dropped.
    pub fn extend(&mut self, kind: EntryKind) -> (EventId, Option<EventId>) {
        let last_message = self.last_message;
        self.last_message = match kind {
            EntryKind::Message => None,
            EntryKind::Presence => Some(last_message.unwrap_or(self.history.last_entry())),
        };
        (self.history.extend(), last_message)
    }

    /// Whether the log may ever have had a message.
    pub fn has_messages(&self) -> bool {
        !self.history.is_unwritten() && self.last_message.is_none_or(|last| last.offset > 0)
    }

    /// Whether no message came after a position, and none can be missing there.
    pub fn is_at_end(&self, position: EventId) -> bool {
        self.history.next_after(position, &NoEntries { last_message: self.last_message }, None) == Next::Nothing
    }

    /// Begins every step that reads or writes a head: checks that the head belongs to this server's history and agrees
    /// with the replica's `watermarks`, and begins a new epoch if it does not.
    ///
    /// Watermarks are the highest ids, by epoch, that the replica has appended or seen. Events among them that the
    /// history lacks are recorded as lost.
    ///
    /// Returns the head, and whether it has changed.
    pub fn ensure_epoch(head: Option<Self>, watermarks: &[EventId], context: StepContext<'_>) -> (Self, bool) {
        let epoch_above = |last: u64| {
            let last = watermarks.iter().map(|id| id.epoch).fold(last, u64::max);
            if context.time > last { context.time } else { last + 1 + context.random }
        };
        let (mut head, mut has_begun) = match head {
            None => {
                let history = EpochHistory::new(epoch_above(0));
                (Self { replication_id: context.replication_id.into(), history, last_message: None }, true)
            }
            Some(mut head) => {
                let is_another_servers = head.replication_id != context.replication_id;
                if is_another_servers {
                    head.begin_epoch(epoch_above(head.history.newest().number), context);
                }
                (head, is_another_servers)
            }
        };
        let lost: Vec<_> = watermarks.iter().copied().filter(|id| head.history.is_unrecorded_loss(*id)).collect();
        if !has_begun && head.history.conflicts_with(watermarks) {
            head.begin_epoch(epoch_above(head.history.newest().number), context);
            has_begun = true;
        }
        for id in &lost {
            head.history.record_loss(*id);
        }
        (head, has_begun)
    }

    fn begin_epoch(&mut self, epoch: u64, context: StepContext<'_>) {
        self.replication_id = context.replication_id.into();
        self.history.begin(epoch, KEPT_EPOCHS, context.oldest);
    }
}
