//! The rules against a naive model, and one test for each trace that made a simpler rule lose or repeat events.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

/// A server with one room's head and log; everything that a snapshot or a replica would have.
#[derive(Clone, Default)]
struct Server {
    replication_id: String,
    head: Option<Head>,
    log: Vec<EventId>,
    time: u64,
    steps: u64,
}

/// About a second, never twice the same microseconds: a clock that was set back does not strike them again.
const TICK: u64 = 1_000_000;

impl Server {
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
        let moment = StepContext { replication_id: &self.replication_id, time: self.time, random: jitter, oldest };
        let (head, _) = Head::ensure_epoch(self.head.take(), watermarks, moment);
        self.head.insert(head)
    }

    fn append(&mut self, watermarks: &mut Vec<EventId>) -> EventId {
        let id = self.ensure_epoch(watermarks).history.extend();
        self.log.push(id);
        watermarks.push(id);
        id
    }

    fn join(&mut self, watermarks: &[EventId]) -> EventId {
        self.ensure_epoch(watermarks).history.end()
    }

    fn serve(&mut self, watermarks: &[EventId], position: EventId) -> Next {
        let history = self.ensure_epoch(watermarks).history.clone();
        next(&history, self.log.as_slice(), position, None)
    }

    /// Comes back as it was at some earlier time.
    fn restart_as(&mut self, earlier: &Self, replication_id: &str) {
        self.head.clone_from(&earlier.head);
        self.log.clone_from(&earlier.log);
        self.replication_id = replication_id.into();
    }
}

fn gap(from: EventId, to: EventId, reason: GapReason) -> Next {
    Next::Gap(Gap { from, to, reason })
}

#[test]
fn trace_1_a_loss_at_the_seam_of_a_restart_is_told() {
    let (mut server, mut publisher) = (Server::new(), Vec::new());
    let joined = server.join(&[]);
    let before = server.clone();
    server.append(&mut publisher);
    server.restart_as(&before, "b");
    let id = server.append(&mut publisher);
    assert!(id.epoch > joined.epoch);
    let to = EventId::start_of(id.epoch);
    assert_eq!(server.serve(&[], joined), gap(joined, to, GapReason::LostTail));
    assert_eq!(server.serve(&[], to), Next::Event(id));
}

#[test]
fn trace_2_whoever_reads_after_a_restart_begins_the_new_epoch_at_once() {
    let (mut server, mut replica) = (Server::new(), Vec::new());
    let first = server.append(&mut replica);
    let before = server.clone();
    let second = server.append(&mut replica);
    server.restart_as(&before, "b");
    let Next::Gap(told) = server.serve(&replica, second) else { panic!("it had been past the loss") };
    assert_eq!((told.from, told.reason), (first, GapReason::Diverged));
    // The queued announcement of the lost event is not what the history expects next.
    assert_ne!(server.head.as_ref().unwrap().history.next_id(), second);
    assert!(told.to.epoch > second.epoch);
}

#[test]
fn trace_3_restarts_that_lose_nothing_cost_a_quiet_room_no_gap() {
    let (mut server, mut replica) = (Server::new(), Vec::new());
    let id = server.append(&mut replica);
    for replication_id in ["b", "c", "d"] {
        let same = server.clone();
        server.restart_as(&same, replication_id);
        assert_eq!(server.serve(&replica, id), Next::Nothing);
    }
    let after = server.append(&mut replica);
    assert_eq!(server.serve(&replica, id), Next::Event(after));
}

#[test]
fn trace_4_a_gap_goes_on_before_the_oldest_event_so_none_is_jumped_or_repeated() {
    let (mut server, mut replica) = (Server::new(), Vec::new());
    let ids: Vec<_> = (0..5).map(|_| server.append(&mut replica)).collect();
    server.log.drain(..3);
    assert_eq!(server.serve(&replica, ids[0]), gap(ids[0], ids[2], GapReason::Trimmed));
    assert_eq!(server.serve(&replica, ids[2]), Next::Event(ids[3]));
    server.log.clear();
    assert_eq!(server.serve(&replica, ids[0]), gap(ids[0], ids[4], GapReason::Expired));
    assert_eq!(server.serve(&replica, ids[4]), Next::Nothing);
}

#[test]
fn trace_5_a_failback_to_a_master_that_never_restarted_is_found_by_what_is_known() {
    let (mut old_master, mut replica) = (Server::new(), Vec::new());
    let shared = old_master.append(&mut replica);
    let mut other = old_master.clone();
    other.replication_id = "b".into();
    let lost = other.append(&mut replica);
    // Back on the old master, whose replication_id equals its head's.
    let id = old_master.append(&mut replica);
    assert!(id.epoch > lost.epoch);
    let Next::Gap(told) = old_master.serve(&replica, shared) else { panic!("the other side's event is missing") };
    assert_eq!((told.to, told.reason), (EventId::start_of(id.epoch), GapReason::LostTail));
    let Next::Gap(told) = old_master.serve(&replica, lost) else { panic!("it has what the log has not") };
    assert_eq!(told.to, EventId::start_of(id.epoch));
}

#[test]
fn trace_6_a_clock_set_back_never_leads_to_an_epoch_below_a_known_one() {
    let (mut server, mut replica) = (Server::new(), Vec::new());
    let first = server.append(&mut replica);
    let before = server.clone();
    server.time += 500 * TICK;
    server.replication_id = "b".into();
    let lost = server.append(&mut replica);
    server.restart_as(&before, "c");
    server.time = 10;
    let id = server.append(&mut replica);
    assert!(id.epoch > lost.epoch && lost.epoch > first.epoch);
    // Two servers in this plight do not both take the next number.
    assert!(id.epoch > lost.epoch + 1);
}

#[test]
fn trace_7_a_room_whose_head_lives_on_costs_its_quiet_subscribers_nothing() {
    let (mut server, mut replica) = (Server::new(), Vec::new());
    let id = server.append(&mut replica);
    server.log.clear();
    assert_eq!(server.serve(&replica, id), Next::Nothing);
    // Had the head expired too, the same subscriber would have to be told.
    server.head = None;
    assert!(matches!(server.serve(&replica, id), Next::Gap(Gap { reason: GapReason::LogLost, .. })));
}

#[test]
fn trace_8_back_from_a_lost_side_the_gap_covers_what_the_other_side_had_appended_before() {
    let (mut server, mut here, mut there) = (Server::new(), Vec::new(), Vec::new());
    let joined = server.join(&[]);
    let mut copy = server.clone();
    copy.replication_id = "b".into();
    let missed = server.append(&mut here);
    copy.time = server.time;
    let seen = copy.append(&mut there);
    assert_eq!(copy.serve(&there, joined), Next::Event(seen));
    server.time = copy.time;
    let Next::Gap(told) = server.serve(&there, seen) else { panic!("it was on the other side") };
    assert!(told.from < missed && missed <= told.to, "{told:?} does not cover {missed}");
}

#[test]
fn trace_9_one_loss_is_told_once_to_a_stream_and_to_those_who_have_passed_it_too() {
    let (mut server, mut replica) = (Server::new(), Vec::new());
    let first = server.append(&mut replica);
    let before = server.clone();
    server.append(&mut replica);
    let lost = replica.clone();
    server.append(&mut replica);
    server.restart_as(&before, "b");
    // One that knows of no loss goes on, and a stream passes by unknowing.
    let after = server.append(&mut Vec::new());
    assert_eq!(server.serve(&[], first), Next::Event(after));
    // One that knows a part of it finds it out, and tells those who have passed.
    let Next::Gap(told) = server.serve(&lost, after) else { panic!("it has passed the loss") };
    assert_eq!((told.from, told.reason), (first, GapReason::Diverged));
    let Next::Gap(late) = server.serve(&lost, first) else { panic!("it comes to the loss now") };
    assert_eq!((late.from, late.to), (first, EventId::start_of(after.epoch)));
    let history = server.head.clone().unwrap().history;
    let log = server.log.as_slice();
    assert_eq!(next(&history, log, after, Some(late.into())), Next::Nothing);
    // One that knows more of the same loss begins nothing.
    server.serve(&replica, after);
    assert_eq!(server.head.unwrap().history, history);
}

#[test]
fn trace_10_a_second_loss_is_told_from_where_it_began_and_not_from_where_the_first_did() {
    let (mut server, mut replica) = (Server::new(), Vec::new());
    let first = server.append(&mut replica);
    server.head = None;
    let second = server.append(&mut replica);
    let Next::Gap(told) = server.serve(&replica, first) else { panic!("everything is lost") };
    assert_eq!((told.from, told.to), (EventId::start_of(first.epoch), EventId::start_of(second.epoch)));
    server.head = None;
    let history = server.ensure_epoch(&replica).history.clone();
    let Next::Gap(again) = next(&history, server.log.as_slice(), second, Some(told.into())) else {
        panic!("everything is lost again")
    };
    assert_eq!(again.from, told.to);
    // To one that comes back, all of it may be news.
    let Next::Gap(again) = next(&history, server.log.as_slice(), second, None) else { panic!("as above") };
    assert_eq!(again.from, told.from);
}

#[test]
fn a_position_that_the_log_never_gave_out_is_a_gap_and_never_nothing_new() {
    let (mut server, mut replica) = (Server::new(), Vec::new());
    let id = server.append(&mut replica);
    let foreign = EventId::new(5, 5);
    let to = EventId::start_of(id.epoch);
    assert_eq!(server.serve(&replica, foreign), gap(foreign, to, GapReason::UnknownPosition));
    let future = EventId::new(id.epoch + 1, 0);
    assert_eq!(server.serve(&replica, future), gap(future, id, GapReason::UnknownPosition));
    let beyond = EventId::new(id.epoch, 9);
    assert_eq!(server.serve(&replica, beyond), gap(id, id, GapReason::Diverged));
}

#[test]
fn a_chain_keeps_its_newest_epochs_and_those_with_retained_entries() {
    let (mut server, mut replica) = (Server::new(), Vec::new());
    let id = server.append(&mut replica);
    for restart in 0..3 * KEPT_EPOCHS {
        server.replication_id = restart.to_string();
        server.ensure_epoch(&replica);
    }
    assert_eq!(server.serve(&replica, EventId::start_of(id.epoch)), Next::Event(id));
    server.log.clear();
    server.replication_id = "last".into();
    let history = &server.ensure_epoch(&replica).history;
    assert_eq!(history.epochs().len(), KEPT_EPOCHS);
    assert!(history.dropped() >= id.epoch);
}

/// Everything that follows a position, by one read after the other.
fn drain(server: &mut Server, watermarks: &[EventId], mut position: EventId) -> (Vec<EventId>, Vec<Gap>, EventId) {
    let (mut events, mut gaps) = (Vec::new(), Vec::new());
    loop {
        position = match server.serve(watermarks, position) {
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
        assert!(events.len() + gaps.len() < 10_000, "it never comes to an end");
    }
}

proptest! {
    #[test]
    fn what_follows_is_what_a_naive_list_says(
        ends in proptest::collection::vec(0u64..6, 1..6),
        trimmed in 0usize..30,
        place in any::<prop::sample::Index>(),
    ) {
        let epoch = |(n, end): (usize, &u64)| Epoch::new(10 * (n as u64 + 1), *end);
        let epochs: Vec<_> = ends.iter().enumerate().map(epoch).collect();
        let all: Vec<_> = epochs.iter().flat_map(|e| (1..=e.end).map(|offset| EventId::new(e.epoch, offset))).collect();
        let positions: Vec<_> =
            epochs.iter().flat_map(|e| (0..=e.end).map(|offset| EventId::new(e.epoch, offset))).collect();
        let position = *place.get(&positions);
        let retained = &all[trimmed.min(all.len())..];
        let history = EpochHistory::from_parts(epochs, 0, EventId::start_of(0)).unwrap();
        let following: Vec<_> = all.iter().copied().filter(|id| *id > position).collect();

        let verdict = next(&history, retained, position, None);
        match following.first() {
            None => prop_assert_eq!(verdict, Next::Nothing),
            Some(first) if retained.contains(first) => prop_assert_eq!(verdict, Next::Event(*first)),
            Some(_) => {
                let Next::Gap(gap) = verdict else { panic!("{verdict:?}") };
                prop_assert_eq!(gap.from, position);
                prop_assert!(gap.to > position);
                let missed = following.iter().filter(|id| **id <= gap.to);
                prop_assert!(missed.clone().all(|id| !retained.contains(id)) && missed.count() > 0);
                let then = retained.first().map_or(Next::Nothing, |oldest| Next::Event(*oldest));
                prop_assert_eq!(next(&history, retained, gap.to, None), then);
            }
        }
    }

    /// Two replicas, two subscribers, and a server that restarts, loses, fails over and back, trims and is emptied. Its
    /// clock runs on: set back, and asked by a replica that knows of no loss, it can begin an epoch below a lost one,
    /// whose subscribers are then told a gap that does not reach back far enough.
    #[test]
    fn through_any_faults_nothing_is_lost_unsaid_repeated_or_mistaken(steps in proptest::collection::vec(any::<(u8, u8)>(), 1..60)) {
        let mut server = Server::new();
        let (mut saved, mut copied) = (server.clone(), true);
        let mut watermarks: [Vec<EventId>; 2] = Default::default();
        let mut given = BTreeSet::new();
        let (mut positions, mut due) = (Vec::new(), [BTreeSet::new(), BTreeSet::new()]);
        let (mut seen, mut gaps): ([Vec<EventId>; 2], [Vec<Gap>; 2]) = Default::default();
        for replica in &mut watermarks {
            let joined = server.join(replica);
            replica.push(joined);
            positions.push(joined);
        }
        for (step, (what, who)) in steps.into_iter().enumerate() {
            let replica = usize::from(who % 2);
            let subscriber = usize::from(who / 2 % 2);
            match what % 10 {
                0..=3 => {
                    let id = server.append(&mut watermarks[replica]);
                    prop_assert!(given.insert(id), "{} was given out twice", id);
                    for due in &mut due {
                        due.insert(id);
                    }
                }
                4 | 5 => {
                    let (events, told, position) = drain(&mut server, &watermarks[replica], positions[subscriber]);
                    watermarks[replica].extend(&events);
                    watermarks[replica].push(position);
                    seen[subscriber].extend(events);
                    gaps[subscriber].extend(told);
                    positions[subscriber] = position;
                }
                6 => (saved, copied) = (server.clone(), true),
                7 => {
                    let earlier = saved.clone();
                    server.restart_as(&earlier, &step.to_string());
                }
                8 => {
                    let keep = usize::from(who % 4).min(server.log.len());
                    server.log.drain(..server.log.len() - keep);
                }
                _ if who % 4 < 2 => { server.head = None; server.log.clear(); }
                // A copy is promoted, which gives it a replication_id of its own; the next time it is back to the side that
                // never restarted, with its old replication_id and without the other's events.
                _ => {
                    std::mem::swap(&mut server, &mut saved);
                    (server.time, server.steps) = (saved.time, saved.steps);
                    if std::mem::take(&mut copied) {
                        server.replication_id = step.to_string();
                    }
                }
            }
        }
        // Every replica that remembers something has reached the server.
        for replica in &watermarks {
            server.ensure_epoch(replica);
        }
        for subscriber in 0..2 {
            let (events, told, _) = drain(&mut server, &watermarks[subscriber], positions[subscriber]);
            seen[subscriber].extend(events);
            gaps[subscriber].extend(told);
            let unique: BTreeSet<_> = seen[subscriber].iter().collect();
            // Only someone who was on the other side of a split brain can be sent back, and is told.
            let sent_back = gaps[subscriber].iter().any(|gap| gap.to <= gap.from);
            prop_assert!(sent_back || unique.len() == seen[subscriber].len(), "repeated: {:?}", seen[subscriber]);
            let reported: Vec<_> = gaps[subscriber].iter().map(|gap| ReportedLoss::from(*gap)).collect();
            let covered = |id: &EventId| reported.iter().any(|reported| reported.from < *id && *id <= reported.to);
            for id in &due[subscriber] {
                prop_assert!(unique.contains(id) || covered(id), "{} was lost unsaid: {:?}", id, gaps[subscriber]);
            }
        }
    }
}
