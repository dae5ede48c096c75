//! The rules of a log against a naive list, and one test for each trace on which a simpler rule lost or repeated
//! events.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::names::EventId;

/// A server with the head and the log of one room. A clone is a snapshot or a replica of it.
#[derive(Clone, Default)]
struct TestServer {
    replication_id: String,
    head: Option<Head>,
    log: Vec<EventId>,
    /// The presence events among the entries.
    presence: BTreeSet<EventId>,
    /// By entry: the last message before it, if presence events lie between.
    last_messages: BTreeMap<EventId, EventId>,
    time: u64,
    steps: u64,
}

/// The entries of a server as a reader sees them.
struct Viewed<'a>(&'a TestServer, LogView);

impl Retained for Viewed<'_> {
    fn first_after(&self, position: EventId) -> Option<EventId> {
        let is_seen = |id: &&EventId| self.1 == LogView::All || !self.0.presence.contains(id);
        self.0.log.iter().filter(is_seen).find(|id| **id > position).copied()
    }

    fn complete_since(&self, id: EventId) -> EventId {
        let last_message = self.0.last_messages.get(&id).filter(|_| self.1 == LogView::Messages);
        last_message.copied().unwrap_or(id.before())
    }

    fn complete_to_end(&self) -> Option<EventId> {
        self.0.head.as_ref()?.last_message.filter(|_| self.1 == LogView::Messages)
    }
}

/// Microseconds between two steps, about. Jitter keeps a clock that was set back from showing the same time twice.
const TICK: u64 = 1_000_000;

impl TestServer {
    fn new() -> Self {
        Self { replication_id: "a".into(), time: 1000 * TICK, ..Self::default() }
    }

    fn ensure_epoch(&mut self, watermarks: &[EventId]) -> &mut Head {
        self.steps += 1;
        let jitter = self.steps.wrapping_mul(0x9e37_79b9_7f4a_7c15) % TICK;
        self.time += TICK + jitter;
        if self.head.is_none() {
            self.log.clear();
        }
        let oldest = self.log.first().copied();
        let context = StepContext { replication_id: &self.replication_id, time: self.time, random: jitter, oldest };
        let (head, _) = Head::ensure_epoch(self.head.take(), watermarks, context);
        self.head.insert(head)
    }

    fn append(&mut self, watermarks: &mut Vec<EventId>) -> EventId {
        self.append_kind(watermarks, EntryKind::Message)
    }

    fn append_kind(&mut self, watermarks: &mut Vec<EventId>, kind: EntryKind) -> EventId {
        let (id, last_message) = self.ensure_epoch(watermarks).extend(kind);
        self.log.push(id);
        self.last_messages.extend(last_message.map(|last_message| (id, last_message)));
        if kind == EntryKind::Presence {
            self.presence.insert(id);
        }
        watermarks.push(id);
        id
    }

    /// Drops the oldest entries of a kind, all but `keep` of them.
    fn trim(&mut self, kind: EntryKind, keep: usize) {
        let presence = &self.presence;
        let is_due = |id: &EventId| presence.contains(id) == (kind == EntryKind::Presence);
        let mut surplus = self.log.iter().filter(|id| is_due(id)).count().saturating_sub(keep);
        self.log.retain(|id| {
            let is_dropped = surplus > 0 && is_due(id);
            surplus -= usize::from(is_dropped);
            !is_dropped
        });
    }

    /// The position of a new stream.
    fn join(&mut self, watermarks: &[EventId]) -> EventId {
        self.ensure_epoch(watermarks).history.end()
    }

    fn next_after(&mut self, watermarks: &[EventId], position: EventId) -> Next {
        self.next_in(watermarks, position, LogView::All)
    }

    fn next_in(&mut self, watermarks: &[EventId], position: EventId, view: LogView) -> Next {
        let history = self.ensure_epoch(watermarks).history.clone();
        history.next_after(position, &Viewed(self, view), None)
    }

    /// Restarts with the data of an earlier time.
    fn restart_as(&mut self, earlier: &Self, replication_id: &str) {
        self.head.clone_from(&earlier.head);
        self.log.clone_from(&earlier.log);
        self.presence.clone_from(&earlier.presence);
        self.last_messages.clone_from(&earlier.last_messages);
        self.replication_id = replication_id.into();
    }
}

fn gap(from: EventId, to: EventId, reason: GapReason) -> Next {
    Next::Gap(Gap { from, to, reason })
}

#[test]
fn trace_1_a_loss_at_a_restart_is_a_gap() {
    let (mut server, mut publisher_watermarks) = (TestServer::new(), Vec::new());
    let joined = server.join(&[]);
    let before = server.clone();
    server.append(&mut publisher_watermarks);
    server.restart_as(&before, "b");
    let id = server.append(&mut publisher_watermarks);
    assert!(id.epoch > joined.epoch);
    let to = EventId::start_of(id.epoch);
    assert_eq!(server.next_after(&[], joined), gap(joined, to, GapReason::LostTail));
    assert_eq!(server.next_after(&[], to), Next::Event(id));
}

#[test]
fn trace_2_the_first_read_after_a_restart_begins_the_new_epoch() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let first = server.append(&mut watermarks);
    let before = server.clone();
    let second = server.append(&mut watermarks);
    server.restart_as(&before, "b");
    let Next::Gap(found) = server.next_after(&watermarks, second) else { panic!("the position is past the loss") };
    assert_eq!((found.from, found.reason), (first, GapReason::Diverged));
    // The lost event, whose announcement may still be queued, is not the next one that the history expects.
    assert_ne!(server.head.as_ref().unwrap().history.next_id(), second);
    assert!(found.to.epoch > second.epoch);
}

#[test]
fn trace_3_restarts_that_lose_nothing_cost_a_quiet_room_no_gap() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let id = server.append(&mut watermarks);
    for replication_id in ["b", "c", "d"] {
        let same = server.clone();
        server.restart_as(&same, replication_id);
        assert_eq!(server.next_after(&watermarks, id), Next::Nothing);
    }
    let after = server.append(&mut watermarks);
    assert_eq!(server.next_after(&watermarks, id), Next::Event(after));
}

#[test]
fn trace_4_a_gap_ends_before_the_oldest_event_so_none_is_skipped_or_repeated() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let ids: Vec<_> = (0..5).map(|_| server.append(&mut watermarks)).collect();
    server.log.drain(..3);
    assert_eq!(server.next_after(&watermarks, ids[0]), gap(ids[0], ids[2], GapReason::Trimmed));
    assert_eq!(server.next_after(&watermarks, ids[2]), Next::Event(ids[3]));
    server.log.clear();
    assert_eq!(server.next_after(&watermarks, ids[0]), gap(ids[0], ids[4], GapReason::Expired));
    assert_eq!(server.next_after(&watermarks, ids[4]), Next::Nothing);
}

#[test]
fn trace_5_a_failback_to_a_master_that_never_restarted_is_found_by_the_watermarks() {
    let (mut old_master, mut watermarks) = (TestServer::new(), Vec::new());
    let shared = old_master.append(&mut watermarks);
    let mut other = old_master.clone();
    other.replication_id = "b".into();
    let lost = other.append(&mut watermarks);
    // Back on the old master, whose replication id is still the one in its head.
    let id = old_master.append(&mut watermarks);
    assert!(id.epoch > lost.epoch);
    let Next::Gap(found) = old_master.next_after(&watermarks, shared) else {
        panic!("the other master's event is missing")
    };
    assert_eq!((found.to, found.reason), (EventId::start_of(id.epoch), GapReason::LostTail));
    let Next::Gap(found) = old_master.next_after(&watermarks, lost) else {
        panic!("the log does not have this event")
    };
    assert_eq!(found.to, EventId::start_of(id.epoch));
}

#[test]
fn trace_6_a_clock_that_is_set_back_never_makes_an_epoch_below_a_watermark() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let first = server.append(&mut watermarks);
    let before = server.clone();
    server.time += 500 * TICK;
    server.replication_id = "b".into();
    let lost = server.append(&mut watermarks);
    server.restart_as(&before, "c");
    server.time = 10;
    let id = server.append(&mut watermarks);
    assert!(id.epoch > lost.epoch && lost.epoch > first.epoch);
    // Two servers whose clocks are both set back do not both choose the next number.
    assert!(id.epoch > lost.epoch + 1);
}

#[test]
fn trace_7_a_quiet_subscriber_gets_no_gap_while_the_head_outlives_the_log() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let id = server.append(&mut watermarks);
    server.log.clear();
    assert_eq!(server.next_after(&watermarks, id), Next::Nothing);
    // Once the head has expired, too, the same subscriber gets a gap.
    server.head = None;
    assert!(matches!(server.next_after(&watermarks, id), Next::Gap(Gap { reason: GapReason::LogLost, .. })));
}

#[test]
fn trace_8_a_subscriber_that_fails_back_gets_a_gap_that_covers_what_this_server_appended_before() {
    let (mut server, mut watermarks, mut copy_watermarks) = (TestServer::new(), Vec::new(), Vec::new());
    let joined = server.join(&[]);
    let mut copy = server.clone();
    copy.replication_id = "b".into();
    let missed = server.append(&mut watermarks);
    copy.time = server.time;
    let seen = copy.append(&mut copy_watermarks);
    assert_eq!(copy.next_after(&copy_watermarks, joined), Next::Event(seen));
    server.time = copy.time;
    let Next::Gap(found) = server.next_after(&copy_watermarks, seen) else {
        panic!("only the copy had this event")
    };
    assert!(found.from < missed && missed <= found.to, "{found:?} does not cover {missed}");
}

#[test]
fn trace_9_every_stream_gets_one_gap_for_a_loss_even_if_it_has_passed_it() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let first = server.append(&mut watermarks);
    let before = server.clone();
    server.append(&mut watermarks);
    let lost = watermarks.clone();
    server.append(&mut watermarks);
    server.restart_as(&before, "b");
    // A replica without watermarks does not notice the loss, and its stream passes it without a gap.
    let after = server.append(&mut Vec::new());
    assert_eq!(server.next_after(&[], first), Next::Event(after));
    // A replica with a watermark of the loss discovers it, and a stream that has passed it gets a gap.
    let Next::Gap(found) = server.next_after(&lost, after) else { panic!("the position is past the loss") };
    assert_eq!((found.from, found.reason), (first, GapReason::Diverged));
    let Next::Gap(first_gap) = server.next_after(&lost, first) else { panic!("the position is before the loss") };
    assert_eq!((first_gap.from, first_gap.to), (first, EventId::start_of(after.epoch)));
    let history = server.head.clone().unwrap().history;
    let log = server.log.as_slice();
    assert_eq!(history.next_after(after, log, Some(first_gap.into())), Next::Nothing);
    // A replica with a higher watermark of the same loss begins no other epoch.
    server.next_after(&watermarks, after);
    assert_eq!(server.head.unwrap().history, history);
}

#[test]
fn trace_10_the_gap_for_a_second_loss_does_not_cover_the_first_one_again() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let first = server.append(&mut watermarks);
    server.head = None;
    let second = server.append(&mut watermarks);
    let Next::Gap(earlier) = server.next_after(&watermarks, first) else { panic!("everything is lost") };
    assert_eq!((earlier.from, earlier.to), (EventId::start_of(first.epoch), EventId::start_of(second.epoch)));
    server.head = None;
    let history = server.ensure_epoch(&watermarks).history.clone();
    let log = server.log.as_slice();
    let Next::Gap(found) = history.next_after(second, log, Some(earlier.into())) else {
        panic!("everything is lost again")
    };
    assert_eq!(found.from, earlier.to);
    // A client that reconnects shows only its position: the gap covers both losses.
    let Next::Gap(found) = history.next_after(second, log, None) else { panic!("everything is lost again") };
    assert_eq!(found.from, earlier.from);
}

#[test]
fn a_position_that_the_log_never_gave_out_is_a_gap_and_never_nothing_new() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let id = server.append(&mut watermarks);
    let unknown = EventId::new(5, 5);
    let to = EventId::start_of(id.epoch);
    assert_eq!(server.next_after(&watermarks, unknown), gap(unknown, to, GapReason::UnknownPosition));
    let future = EventId::new(id.epoch + 1, 0);
    assert_eq!(server.next_after(&watermarks, future), gap(future, id, GapReason::UnknownPosition));
    let beyond = EventId::new(id.epoch, 9);
    assert_eq!(server.next_after(&watermarks, beyond), gap(id, id, GapReason::Diverged));
}

#[test]
fn a_position_of_a_log_without_a_head_goes_on_at_its_start_only_if_nothing_can_be_missed() {
    let data_set = DataSet { id: 7, head_lifetime: 1 << 40 };
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let position = data_set.unwritten_position(server.time);
    assert!(position.offset == 0 && position.epoch < server.time);
    let id = server.append(&mut watermarks);
    let history = server.head.clone().unwrap().history;
    let start = EventId::start_of(id.epoch);
    assert_eq!(history.resume_from(position, data_set), start);
    assert_eq!(history.next_after(start, server.log.as_slice(), None), Next::Event(id));
    // Another data set, an event's id, a later position, and one that is too old.
    for (other, data_set) in [
        (position, DataSet { id: 8, ..data_set }),
        (EventId::new(position.epoch, 1), data_set),
        (DataSet::unwritten_position(data_set, server.time << 2), data_set),
        (position, DataSet { head_lifetime: 1 << 24, ..data_set }),
    ] {
        assert_eq!(history.resume_from(other, data_set), other);
    }
    // A loss that is recorded on the oldest epoch has to be told.
    let (head, _) = Head::ensure_epoch(
        None,
        &[EventId::new(1, 1)],
        StepContext { replication_id: "a", time: server.time, random: 0, oldest: None },
    );
    assert_eq!(head.history.resume_from(position, data_set), position);
    // Epochs that were dropped may have had events.
    for restart in 0..2 * KEPT_EPOCHS {
        server.replication_id = restart.to_string();
        server.log.clear();
        server.ensure_epoch(&watermarks);
    }
    let history = server.head.clone().unwrap().history;
    assert!(history.dropped() > 0);
    let far = DataSet { head_lifetime: u64::MAX, ..data_set };
    assert_eq!(history.resume_from(position, far), position);
}

#[test]
fn a_position_is_at_the_end_unless_a_message_came_after_it_or_may_be_missing_there() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let start = server.join(&watermarks);
    let at_end = |server: &mut TestServer, watermarks: &[EventId], position| {
        server.ensure_epoch(watermarks).is_at_end(position)
    };
    assert!(at_end(&mut server, &watermarks, start));
    let first = server.append(&mut watermarks);
    assert!(!at_end(&mut server, &watermarks, start));
    // Neither presence events nor epochs that begin without a loss count.
    let joined = server.append_kind(&mut watermarks, EntryKind::Presence);
    server.replication_id = "b".into();
    let left = server.append_kind(&mut watermarks, EntryKind::Presence);
    for position in [first, joined, left] {
        assert!(at_end(&mut server, &watermarks, position), "{position}");
    }
    assert!(!at_end(&mut server, &watermarks, EventId::new(left.epoch, left.offset + 1)));
    // An event of which only a watermark tells.
    let before = server.clone();
    let lost = server.append(&mut watermarks);
    server.restart_as(&before, "c");
    for position in [first, joined, left, lost] {
        assert!(!at_end(&mut server, &watermarks, position), "{position}");
    }
    let end = server.join(&watermarks);
    assert!(at_end(&mut server, &watermarks, end));
}

#[test]
fn a_log_is_finished_at_its_final_message_until_it_is_cleared() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let first = server.append(&mut watermarks);
    let last = server.append(&mut watermarks);
    server.ensure_epoch(&watermarks).history.finish();
    // Neither presence events, nor the loss of entries, nor an epoch that begins changes it.
    server.append_kind(&mut watermarks, EntryKind::Presence);
    server.log.clear();
    for restart in 0..2 * KEPT_EPOCHS {
        server.replication_id = restart.to_string();
        let history = &server.ensure_epoch(&watermarks).history;
        assert_eq!(history.finished(), Some(last));
        assert!(!history.is_finished_at(first) && !history.is_finished_at(EventId::start_of(first.epoch)));
        assert!(history.is_finished_at(last) && history.is_finished_at(history.end()));
    }
    server.ensure_epoch(&watermarks).history.clear();
    let history = &server.ensure_epoch(&watermarks).history;
    assert!(history.finished().is_none() && !history.is_finished_at(history.end()));
}

#[test]
fn a_log_that_has_lost_its_final_message_is_not_finished() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    server.append(&mut watermarks);
    let before = server.clone();
    let lost = server.append(&mut watermarks);
    server.ensure_epoch(&watermarks).history.finish();
    server.restart_as(&before, "b");
    let history = &server.ensure_epoch(&watermarks).history;
    assert!(history.finished().is_none() && !history.is_finished_at(history.end()));
    assert!(matches!(server.next_after(&watermarks, lost), Next::Gap(Gap { reason: GapReason::Diverged, .. })));
}

#[test]
fn a_history_keeps_its_newest_epochs_and_those_with_retained_entries() {
    let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
    let id = server.append(&mut watermarks);
    for restart in 0..3 * KEPT_EPOCHS {
        server.replication_id = restart.to_string();
        server.ensure_epoch(&watermarks);
    }
    assert_eq!(server.next_after(&watermarks, EventId::start_of(id.epoch)), Next::Event(id));
    server.log.clear();
    server.replication_id = "last".into();
    let history = &server.ensure_epoch(&watermarks).history;
    assert_eq!(history.epochs().len(), KEPT_EPOCHS);
    assert!(history.dropped() >= id.epoch);
}

/// What each of two subscribers gets.
const VIEWS: [LogView; 2] = [LogView::All, LogView::Messages];

/// Reads from a position to the end of the log: the events, the gaps, and the position at the end.
fn drain(
    server: &mut TestServer,
    watermarks: &[EventId],
    mut position: EventId,
    view: LogView,
) -> (Vec<EventId>, Vec<Gap>, EventId) {
    let (mut events, mut gaps) = (Vec::new(), Vec::new());
    loop {
        position = match server.next_in(watermarks, position, view) {
            Next::Event(id) => {
                events.push(id);
                id
            }
            Next::Gap(gap) => {
                gaps.push(gap);
                gap.to
            }
            Next::Nothing => return (events, gaps, position),
        };
        assert!(events.len() + gaps.len() < 10_000, "reading never ends");
    }
}

proptest! {
    /// Each kind keeps its newest entries. A reader gets a gap exactly where entries that it would get were dropped.
    #[test]
    fn dropped_presence_events_are_a_gap_for_readers_that_get_them_and_for_no_others(
        steps in proptest::collection::vec((0..8u8, 0..5usize), 1..40)
    ) {
        let (mut server, mut watermarks) = (TestServer::new(), Vec::new());
        let start = server.join(&watermarks);
        let mut all = Vec::new();
        for (number, (step, keep)) in steps.into_iter().enumerate() {
            match step {
                0 | 1 => all.push(server.append_kind(&mut watermarks, EntryKind::Message)),
                2..=4 => all.push(server.append_kind(&mut watermarks, EntryKind::Presence)),
                5 => server.trim(EntryKind::Presence, keep),
                6 => server.trim(EntryKind::Message, keep),
                // Another server's, which has lost nothing.
                _ => server.replication_id = number.to_string(),
            }
        }
        let (kept, presence) = (server.log.clone(), server.presence.clone());
        if let Some(oldest) = Viewed(&server, LogView::Messages).first_after(start) {
            let (_, gaps, _) = drain(&mut server, &watermarks, oldest.before(), LogView::Messages);
            prop_assert!(gaps.is_empty(), "{:?} from the oldest message on", gaps);
        }
        for view in VIEWS {
            let wanted: Vec<_> =
                all.iter().filter(|id| view == LogView::All || !presence.contains(id)).copied().collect();
            for from in std::iter::once(start).chain(all.iter().copied()) {
                let (events, gaps, _) = drain(&mut server, &watermarks, from, view);
                for id in wanted.iter().filter(|id| **id > from) {
                    let is_reported = gaps.iter().any(|gap| gap.from < *id && *id <= gap.to);
                    prop_assert_eq!(kept.contains(id), events.contains(id), "{} after {}", id, from);
                    prop_assert!(kept.contains(id) || is_reported, "{} was dropped without a gap after {}", id, from);
                }
                let is_complete = wanted.iter().filter(|id| **id > from).all(|id| kept.contains(id));
                prop_assert!(!is_complete || gaps.is_empty(), "{:?} after {}, which missed nothing", gaps, from);
            }
        }
    }

    #[test]
    fn what_follows_is_what_a_naive_list_says(
        ends in proptest::collection::vec(0u64..6, 1..6),
        trimmed in 0usize..30,
        position in any::<prop::sample::Index>(),
    ) {
        let epoch = |(n, end): (usize, &u64)| Epoch::new(10 * (n as u64 + 1), *end);
        let epochs: Vec<_> = ends.iter().enumerate().map(epoch).collect();
        let all: Vec<_> = epochs.iter().flat_map(|e| (1..=e.end).map(|offset| EventId::new(e.number, offset))).collect();
        let positions: Vec<_> =
            epochs.iter().flat_map(|e| (0..=e.end).map(|offset| EventId::new(e.number, offset))).collect();
        let position = *position.get(&positions);
        let retained = &all[trimmed.min(all.len())..];
        let history = EpochHistory::from_parts(epochs, 0, EventId::start_of(0)).unwrap();
        let following: Vec<_> = all.iter().copied().filter(|id| *id > position).collect();

        let next = history.next_after(position, retained, None);
        match following.first() {
            None => prop_assert_eq!(next, Next::Nothing),
            Some(first) if retained.contains(first) => prop_assert_eq!(next, Next::Event(*first)),
            Some(_) => {
                let Next::Gap(gap) = next else { panic!("{next:?}") };
                prop_assert_eq!(gap.from, position);
                prop_assert!(gap.to > position);
                let missed = following.iter().filter(|id| **id <= gap.to);
                prop_assert!(missed.clone().all(|id| !retained.contains(id)) && missed.count() > 0);
                let after_gap = retained.first().map_or(Next::Nothing, |oldest| Next::Event(*oldest));
                prop_assert_eq!(history.next_after(gap.to, retained, None), after_gap);
            }
        }
    }

    /// Two replicas, two subscribers of which one gets no presence events, and a server that restarts, loses data, fails
    /// over and back, trims and loses its log. Its clock is never set back: if it were, and a replica without watermarks of the loss asked next, the
    /// server could begin an epoch below a lost one, and subscribers of the lost one would get a gap that begins too
    /// late.
    #[test]
    fn through_any_faults_no_event_is_lost_without_a_gap_repeated_or_confused(
        steps in proptest::collection::vec(any::<(u8, u8)>(), 1..60)
    ) {
        let mut server = TestServer::new();
        let (mut saved, mut is_new_copy) = (server.clone(), true);
        let mut watermarks: [Vec<EventId>; 2] = Default::default();
        let mut appended = BTreeSet::new();
        let (mut positions, mut expected) = (Vec::new(), [BTreeSet::new(), BTreeSet::new()]);
        let (mut received, mut gaps): ([Vec<EventId>; 2], [Vec<Gap>; 2]) = Default::default();
        for replica in &mut watermarks {
            let joined = server.join(replica);
            replica.push(joined);
            positions.push(joined);
        }
        for (step, (action, choice)) in steps.into_iter().enumerate() {
            let replica = usize::from(choice % 2);
            let subscriber = usize::from(choice / 2 % 2);
            match action % 10 {
                0..=3 => {
                    let kind = if action > 100 { EntryKind::Presence } else { EntryKind::Message };
                    let id = server.append_kind(&mut watermarks[replica], kind);
                    prop_assert!(appended.insert(id), "{} was given out twice", id);
                    for (expected, view) in expected.iter_mut().zip(VIEWS) {
                        if kind == EntryKind::Message || view == LogView::All {
                            expected.insert(id);
                        }
                    }
                }
                4 | 5 => {
                    let (watermarks_now, from) = (&watermarks[replica], positions[subscriber]);
                    let (events, found, position) = drain(&mut server, watermarks_now, from, VIEWS[subscriber]);
                    watermarks[replica].extend(&events);
                    watermarks[replica].push(position);
                    received[subscriber].extend(events);
                    gaps[subscriber].extend(found);
                    positions[subscriber] = position;
                }
                6 => (saved, is_new_copy) = (server.clone(), true),
                7 => {
                    let earlier = saved.clone();
                    server.restart_as(&earlier, &step.to_string());
                }
                8 => {
                    let kind = if action > 100 { EntryKind::Presence } else { EntryKind::Message };
                    server.trim(kind, usize::from(choice % 4));
                }
                _ if choice % 4 < 2 => { server.head = None; server.log.clear(); }
                // A copy is promoted and gets a new replication id. The next time, this fails back to the server that
                // never restarted: it has its old replication id and lacks the events of the other one.
                _ => {
                    std::mem::swap(&mut server, &mut saved);
                    (server.time, server.steps) = (saved.time, saved.steps);
                    if std::mem::take(&mut is_new_copy) {
                        server.replication_id = step.to_string();
                    }
                }
            }
        }
        // In the end, every replica reaches the server with its watermarks.
        for replica in &watermarks {
            server.ensure_epoch(replica);
        }
        for subscriber in 0..2 {
            let from = positions[subscriber];
            let (events, found, _) = drain(&mut server, &watermarks[subscriber], from, VIEWS[subscriber]);
            received[subscriber].extend(events);
            gaps[subscriber].extend(found);
            let unique: BTreeSet<_> = received[subscriber].iter().collect();
            // Only a subscriber of the other master of a split brain can move backwards, and it gets a gap.
            let moved_back = gaps[subscriber].iter().any(|gap| gap.to <= gap.from);
            prop_assert!(
                moved_back || unique.len() == received[subscriber].len(),
                "repeated: {:?}",
                received[subscriber]
            );
            let reported: Vec<_> = gaps[subscriber].iter().map(|gap| ReportedLoss::from(*gap)).collect();
            let covered = |id: &EventId| reported.iter().any(|reported| reported.from < *id && *id <= reported.to);
            for id in &expected[subscriber] {
                prop_assert!(
                    unique.contains(id) || covered(id),
                    "{} was lost without a gap: {:?}",
                    id,
                    gaps[subscriber]
                );
            }
        }
    }
}
