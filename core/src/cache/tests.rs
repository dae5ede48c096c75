//! The copy against plain lists, on a server that restarts, loses and trims, while announcements are lost, late, repeated,
//! out of order or forged, and reads overlap all of that.

use proptest::prelude::*;

use super::ring::RingLimits;
use super::ring::tests::{Item, Past, Sample, Server, Told, keep_newest, told};
use super::{AnnouncementOutcome, KEPT_RETRACTIONS, LogCache, Lookup};
use crate::names::EventId;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The server appends, and announces it.
    Append(usize),
    /// An announcement arrives: any of those that were ever sent, or the oldest that has not come yet.
    Hear(Option<prop::sample::Index>),
    /// Someone announces an event that is none, under an id that there was, or that comes next.
    Forge(prop::sample::Index),
    /// The copy begins to read.
    Begin,
    /// The server answers the read.
    Answer,
    /// The answer arrives.
    End,
    GiveUp,
    /// The server comes back without its last events.
    Restart(usize),
    /// The log lets go of its oldest events.
    Trim(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..40usize).prop_map(Step::Append),
        8 => Just(Step::Hear(None)),
        2 => any::<prop::sample::Index>().prop_map(|which| Step::Hear(Some(which))),
        1 => any::<prop::sample::Index>().prop_map(Step::Forge),
        3 => Just(Step::Begin),
        3 => Just(Step::Answer),
        4 => Just(Step::End),
        1 => Just(Step::GiveUp),
        1 => (0..4usize).prop_map(Step::Restart),
        1 => (1..6usize).prop_map(Step::Trim),
    ];
    proptest::collection::vec(step, 0..80)
}

/// What the copy should have, as lists.
struct Lists {
    limits: RingLimits,
    /// The log's past as far as it was read or heard.
    past: Option<Past>,
    held: Vec<Sample>,
    deferred: Option<Vec<Sample>>,
    overflowed: bool,
    announced_to: Option<EventId>,
    conflicts: Vec<Sample>,
}

impl Lists {
    fn announce(&mut self, event: Sample) -> AnnouncementOutcome {
        if let Some(deferred) = &mut self.deferred {
            if deferred.len() < self.limits.events {
                deferred.push(event);
            } else {
                self.overflowed = true;
            }
            return AnnouncementOutcome::Deferred;
        }
        let Some(past) = &mut self.past else { return AnnouncementOutcome::Duplicate };
        if past.has(event.id) {
            match self.held.iter().find(|held| held.id == event.id) {
                Some(held) if *held == event => return AnnouncementOutcome::Duplicate,
                Some(held) => {
                    self.conflicts.push(*held);
                    self.conflicts.truncate(KEPT_RETRACTIONS);
                    self.held.clear();
                    return AnnouncementOutcome::Conflict;
                }
                None if !self.conflicts.is_empty() || !self.comes_after_held(event.id) => {
                    return AnnouncementOutcome::Duplicate;
                }
                None => {}
            }
        } else {
            let end = past.end();
            if event.id != EventId::new(end.epoch, end.offset + 1) {
                return AnnouncementOutcome::Unexpected;
            }
            past.0.push(Item::Event(event.id));
            if !self.comes_after_held(event.id) {
                self.held.clear();
            }
        }
        self.held.push(event);
        self.announced_to = None;
        keep_newest(&mut self.held, self.limits);
        AnnouncementOutcome::Added
    }

    /// Whether no event and no loss lies between the last one held and this one; if none is held, whether it is the last.
    fn comes_after_held(&self, id: EventId) -> bool {
        let past = self.past.as_ref().unwrap();
        match self.held.last() {
            None => past.end() == id || self.announced_to.is_some_and(|end| id > end),
            Some(last) => {
                let rest = past.after(last.id).unwrap_or_default();
                rest.iter().find(|item| !matches!(item, Item::Seam(_))) == Some(&Item::Event(id))
            }
        }
    }

    /// Drops what was given out and is not the log's.
    fn compare(&mut self, log: &Past, entries: &[Sample]) {
        let conflicts = std::mem::take(&mut self.conflicts);
        let last = self.held.last().copied();
        for given in conflicts.iter().chain(&last).filter(|given| log.has(given.id)) {
            let is_there = entries.iter().any(|event| event.id == given.id);
            if entries.last().is_some_and(|last| last.id < given.id) {
                self.conflicts.push(*given);
                self.held.clear();
            } else if !entries.contains(given) && (is_there || conflicts.contains(given)) {
                self.held.clear();
            }
        }
    }

    fn end_read(&mut self, answer: Option<(Past, Vec<Sample>)>) -> bool {
        let is_read = answer.is_some();
        if let Some((past, entries)) = answer {
            self.held.retain(|event| past.has(event.id));
            let before = self.past.as_ref().unwrap_or(&past).end();
            self.past = Some(past);
            for event in entries {
                if self.held.last().is_some_and(|last| event.id <= last.id) {
                    continue;
                }
                if !self.held.is_empty() && !self.comes_after_held(event.id) {
                    self.held.clear();
                }
                self.held.push(event);
                keep_newest(&mut self.held, self.limits);
            }
            self.announced_to = self.held.is_empty().then_some(before);
        }
        let deferred = self.deferred.take().unwrap_or_default();
        let overflowed = std::mem::take(&mut self.overflowed);
        let is_sure = |past: &Option<Past>, id| past.as_ref().is_some_and(|past| past.has(id));
        let mut taken = Vec::new();
        for event in deferred {
            if !overflowed || is_sure(&self.past, event.id) {
                taken.push(self.announce(event));
            }
        }
        overflowed
            || taken
                .iter()
                .any(|taken| matches!(taken, AnnouncementOutcome::Unexpected | AnnouncementOutcome::Conflict))
            || is_read && !self.conflicts.is_empty()
    }
}

/// Reads as a room does: forward from where it has to compare, and then the newest page if that is not the end.
fn pages(log: &[Sample], end: EventId, from: Option<EventId>, limit: usize) -> [Vec<Sample>; 2] {
    let newest = || log[log.len().saturating_sub(limit)..].to_vec();
    let Some(from) = from else { return [newest(), newest()] };
    let page: Vec<_> = log.iter().copied().filter(|event| event.id > from).take(limit).collect();
    let rest = if page.last().is_some_and(|event| event.id != end) { newest() } else { page.clone() };
    [page, rest]
}

/// A subscriber of the copy from its first read on.
#[derive(Default)]
struct Reader {
    start: Option<EventId>,
    position: Option<EventId>,
    retractions: u64,
    got: Vec<Sample>,
    /// Where gaps began that it was told, and its position then.
    told: Vec<(EventId, EventId)>,
}

impl Reader {
    fn look(&mut self, mirror: &LogCache<Sample>) {
        let Some(end) = mirror.end() else { return };
        let start = *self.start.get_or_insert(end);
        let position = self.position.get_or_insert(end);
        let retracted = mirror.retracted_after(self.retractions, start).filter(|id| *id <= *position);
        self.told.extend(retracted.map(|id| (id.before(), *position)));
        self.retractions = mirror.retractions();
        if let Lookup::Events(events) = mirror.after(*position, None, usize::MAX) {
            *position = events.last().unwrap().id;
            self.got.extend(events);
        }
    }
}

fn after(mirror: &LogCache<Sample>, position: EventId, most_bytes: usize) -> Told {
    match mirror.after(position, None, most_bytes) {
        Lookup::Events(events) => Told::Events(events),
        Lookup::Nothing => Told::Nothing,
        Lookup::Unknown => Told::Else,
    }
}

proptest! {
    #[test]
    fn a_copy_says_what_plain_lists_say_and_nothing_that_the_log_does_not(
        steps in steps(), events in 1..8usize, bytes in 0..200usize, most_bytes in 1..100usize
    ) {
        let limits = RingLimits { events, bytes };
        let (mut server, mut mirror) = (Server::new(), LogCache::new(limits));
        let (held, conflicts) = (Vec::new(), Vec::new());
        let mut lists = Lists { limits, past: None, held, deferred: None, overflowed: false, announced_to: None, conflicts };
        let mut reader = Reader::default();
        let (mut sent, mut arrived, mut forged) = (Vec::new(), 0, Vec::new());
        let mut reading: Option<Option<EventId>> = None;
        let mut answer = None;
        for step in steps {
            match step {
                Step::Append(bytes) => sent.push(server.append(bytes)),
                Step::Hear(which) => {
                    let event = match which {
                        Some(_) if sent.is_empty() => continue,
                        Some(which) => *which.get(&sent),
                        None if arrived == sent.len() => continue,
                        None => {
                            arrived += 1;
                            sent[arrived - 1]
                        }
                    };
                    prop_assert_eq!(mirror.announce(event), lists.announce(event));
                }
                Step::Forge(which) => {
                    let mut ids = server.given_out.clone();
                    ids.push(server.history().next_id());
                    let content = 1_000_000 + u32::try_from(forged.len()).unwrap();
                    let event = Sample { id: *which.get(&ids), bytes: 7, content };
                    forged.push(event);
                    prop_assert_eq!(mirror.announce(event), lists.announce(event));
                }
                Step::Begin if reading.is_none() => {
                    mirror.begin_read();
                    lists.deferred = Some(Vec::new());
                    reading = Some(mirror.read_from());
                }
                Step::Answer => {
                    if let Some(from) = reading {
                        let pages = pages(&server.log, server.past.end(), from, limits.events);
                        answer = Some((server.history().clone(), server.past.clone(), pages));
                    }
                }
                Step::End => {
                    if let Some((history, past, [first, page])) = answer.take() {
                        reading = None;
                        mirror.compare(&history, &first);
                        lists.compare(&past, &first);
                        prop_assert_eq!(mirror.end_read(&history, page.clone()), lists.end_read(Some((past, page))));
                    }
                }
                Step::GiveUp if reading.is_some() => {
                    (reading, answer) = (None, None);
                    prop_assert_eq!(mirror.give_up_read(), lists.end_read(None));
                }
                Step::Begin | Step::GiveUp => {}
                Step::Restart(lost) => server.restart(lost),
                Step::Trim(count) => drop(server.log.drain(..count.min(server.log.len()))),
            }
            prop_assert_eq!(mirror.end(), lists.past.as_ref().map(Past::end));
            let conflict = lists.conflicts.iter().min_by_key(|event| event.id);
            let last = conflict.or(lists.held.last());
            prop_assert_eq!(mirror.read_from(), last.map(|event| event.id.before()));
            reader.look(&mirror);
            for position in server.positions() {
                let said = after(&mirror, position, most_bytes);
                let expected =
                    lists.past.as_ref().map_or(Told::Else, |past| told(past, &lists.held, position, most_bytes));
                prop_assert_eq!(&said, &expected, "after {}", position);
                // Whatever the lists say, only what was sent by the log or by a forger is given out.
                if let Told::Events(events) = said {
                    prop_assert!(events.iter().all(|event| sent.contains(event) || forged.contains(event)));
                }
            }
        }
        // IdempotencyKey a read has gone through with nothing forged, and nothing lost meanwhile, the copy is the log.
        if reading.is_none() && forged.is_empty() {
            mirror.begin_read();
            let [first, page] = pages(&server.log, server.past.end(), mirror.read_from(), limits.events);
            mirror.compare(server.history(), &first);
            mirror.end_read(server.history(), page);
            prop_assert_eq!(mirror.retractions(), 0);
            for position in server.positions() {
                let log = told(&server.past, &server.log, position, usize::MAX);
                match after(&mirror, position, usize::MAX) {
                    Told::Nothing => prop_assert_eq!(log, Told::Nothing, "after {}", position),
                    // The log may have let go of what the copy still has.
                    Told::Events(events) if server.log.first().is_some_and(|first| first.id <= events[0].id) => {
                        prop_assert_eq!(log, Told::Events(events), "after {}", position);
                    }
                    Told::Events(_) | Told::Else => {}
                }
            }
        }
    }

    /// Announcements come in order, as they do on one connection; between them come forged ones of the next id.
    #[test]
    fn who_was_given_what_the_log_does_not_have_is_told(
        steps in proptest::collection::vec(0..8u8, 0..60), events in 2..6usize
    ) {
        let limits = RingLimits { events, bytes: usize::MAX };
        let (mut server, mut mirror) = (Server::new(), LogCache::new(limits));
        let mut reader = Reader::default();
        let (mut inbox, mut forged) = (std::collections::VecDeque::new(), Vec::new());
        let mut answer = None;
        let calls_for_read = |taken| matches!(taken, AnnouncementOutcome::Unexpected | AnnouncementOutcome::Conflict);
        let mut invalidate = true;
        // In the end everything arrives, and is read.
        let rest = steps.len() + 10;
        let last = (0..rest).flat_map(|_| [2, 4, 5, 6]);
        for step in steps.into_iter().chain(last) {
            match step {
                0 | 1 => inbox.push_back(server.append(1)),
                2 => invalidate |= inbox.pop_front().is_some_and(|event| calls_for_read(mirror.announce(event))),
                3 => {
                    let content = 1_000_000 + u32::try_from(forged.len()).unwrap();
                    let event = Sample { id: server.history().next_id(), bytes: 1, content };
                    forged.push(event);
                    inbox.push_back(event);
                }
                4 if answer.is_none() && invalidate => {
                    invalidate = false;
                    let from = mirror.read_from();
                    mirror.begin_read();
                    answer = Some((from, None));
                }
                5 => {
                    if let Some((from, read @ None)) = &mut answer {
                        server.ensure_epoch(mirror.end());
                        *read = Some((server.history().clone(), pages(&server.log, server.past.end(), *from, events)));
                    }
                }
                6 if answer.as_ref().is_some_and(|(_, read)| read.is_some()) => {
                    let (history, [first, page]) = answer.take().unwrap().1.unwrap();
                    mirror.compare(&history, &first);
                    invalidate |= mirror.end_read(&history, page);
                }
                _ => {}
            }
            reader.look(&mirror);
        }
        let mistaken: Vec<_> = reader.got.iter().filter(|got| forged.contains(got) && server.past.has(got.id)).collect();
        for given in &mistaken {
            let is_told = reader.told.iter().any(|(from, to)| *from < given.id && given.id <= *to);
            prop_assert!(is_told, "{given:?} of {:?}, told {:?}", reader.got, reader.told);
        }
        // Nobody can tell for sure who was given which of the two, so some others are told too; but only of forged ids.
        let is_forged = |(from, _): &&(EventId, EventId)| forged.iter().any(|event| event.id.before() == *from);
        prop_assert!(reader.told.iter().all(|told| is_forged(&told)), "{:?}", reader.told);
    }
}
