//! The cache against plain lists, on a server that restarts, loses events and trims its log, while announcements get
//! lost, arrive late, twice or out of order, or are forged, and reads overlap all of that.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::ring::RingLimits;
use super::ring::tests::{
    Answer, PlainHistory, PlainItem, SampleEvent, SampleServer, expected_answer, keep_newest,
};
use super::{AnnouncementOutcome, KEPT_RETRACTIONS, LogCache, Lookup};
use crate::log::EpochHistory;
use crate::names::EventId;

#[derive(Clone, Copy, Debug)]
enum CacheStep {
    /// The server appends and announces an event.
    Append(usize),
    /// An announcement arrives: any that was ever sent, or the oldest that has not arrived yet.
    Receive(Option<prop::sample::Index>),
    /// A forged announcement arrives, with the id of an earlier event or of the next one.
    Forge(prop::sample::Index),
    /// The cache begins a read.
    BeginRead,
    /// The server answers the read.
    AnswerRead,
    /// The answer arrives.
    EndRead,
    GiveUpRead,
    /// The server restarts without its last events.
    Restart(usize),
    /// The log drops its oldest events.
    Trim(usize),
}

fn steps() -> impl Strategy<Value = Vec<CacheStep>> {
    let step = prop_oneof![
        6 => (0..40usize).prop_map(CacheStep::Append),
        8 => Just(CacheStep::Receive(None)),
        2 => any::<prop::sample::Index>().prop_map(|which| CacheStep::Receive(Some(which))),
        1 => any::<prop::sample::Index>().prop_map(CacheStep::Forge),
        3 => Just(CacheStep::BeginRead),
        3 => Just(CacheStep::AnswerRead),
        4 => Just(CacheStep::EndRead),
        1 => Just(CacheStep::GiveUpRead),
        1 => (0..4usize).prop_map(CacheStep::Restart),
        1 => (1..6usize).prop_map(CacheStep::Trim),
    ];
    proptest::collection::vec(step, 0..80)
}

/// The expected state of a cache, as lists.
struct PlainCache {
    limits: RingLimits,
    /// The history of the log, by the last read and the announcements since.
    history: Option<PlainHistory>,
    held: Vec<SampleEvent>,
    deferred: Option<Vec<SampleEvent>>,
    overflowed: bool,
    announced_to: Option<EventId>,
    conflicts: Vec<SampleEvent>,
}

impl PlainCache {
    fn new(limits: RingLimits) -> Self {
        Self {
            limits,
            history: None,
            held: Vec::new(),
            deferred: None,
            overflowed: false,
            announced_to: None,
            conflicts: Vec::new(),
        }
    }

    fn receive(&mut self, event: SampleEvent) -> AnnouncementOutcome {
        if let Some(deferred) = &mut self.deferred {
            if deferred.len() < self.limits.events {
                deferred.push(event);
            } else {
                self.overflowed = true;
            }
            return AnnouncementOutcome::Deferred;
        }
        let Some(history) = &mut self.history else { return AnnouncementOutcome::Duplicate };
        if history.has(event.id) {
            match self.held.iter().find(|held| held.id == event.id) {
                Some(held) if *held == event => return AnnouncementOutcome::Duplicate,
                Some(held) => {
                    self.conflicts.push(*held);
                    self.conflicts.truncate(KEPT_RETRACTIONS);
                    self.held.clear();
                    return AnnouncementOutcome::Conflict;
                }
                None if !self.conflicts.is_empty() || !self.follows_held(event.id) => {
                    return AnnouncementOutcome::Duplicate;
                }
                None => {}
            }
        } else {
            let end = history.end();
            if event.id != EventId::new(end.epoch, end.offset + 1) {
                return AnnouncementOutcome::Unexpected;
            }
            history.0.push(PlainItem::Event(event.id));
            if !self.follows_held(event.id) {
                self.held.clear();
            }
        }
        self.held.push(event);
        self.announced_to = None;
        keep_newest(&mut self.held, self.limits);
        AnnouncementOutcome::Added
    }

    /// Whether no event and no loss lies between the last held event and this one. If none is held, whether this is the
    /// last event of the log, or its announcement may still be missing.
    fn follows_held(&self, id: EventId) -> bool {
        let history = self.history.as_ref().unwrap();
        match self.held.last() {
            None => history.end() == id || self.announced_to.is_some_and(|end| id > end),
            Some(last) => {
                let rest = history.after(last.id).unwrap_or_default();
                rest.iter().find(|item| !matches!(item, PlainItem::EpochStart(_))) == Some(&PlainItem::Event(id))
            }
        }
    }

    /// Drops delivered events that the log does not have.
    fn compare(&mut self, history: &PlainHistory, entries: &[SampleEvent]) {
        let conflicts = std::mem::take(&mut self.conflicts);
        let last = self.held.last().copied();
        for delivered in conflicts.iter().chain(&last).filter(|delivered| history.has(delivered.id)) {
            let has_entry = entries.iter().any(|event| event.id == delivered.id);
            if entries.last().is_some_and(|last| last.id < delivered.id) {
                self.conflicts.push(*delivered);
                self.held.clear();
            } else if !entries.contains(delivered) && (has_entry || conflicts.contains(delivered)) {
                self.held.clear();
            }
        }
    }

    fn end_read(&mut self, answer: Option<(PlainHistory, Vec<SampleEvent>)>) -> bool {
        let has_result = answer.is_some();
        if let Some((history, entries)) = answer {
            self.held.retain(|event| history.has(event.id));
            let end_before = self.history.as_ref().unwrap_or(&history).end();
            self.history = Some(history);
            for event in entries {
                if self.held.last().is_some_and(|last| event.id <= last.id) {
                    continue;
                }
                if !self.held.is_empty() && !self.follows_held(event.id) {
                    self.held.clear();
                }
                self.held.push(event);
                keep_newest(&mut self.held, self.limits);
            }
            self.announced_to = self.held.is_empty().then_some(end_before);
        }
        let deferred = self.deferred.take().unwrap_or_default();
        let overflowed = std::mem::take(&mut self.overflowed);
        let has = |history: &Option<PlainHistory>, id| history.as_ref().is_some_and(|history| history.has(id));
        let mut outcomes = Vec::new();
        for event in deferred {
            if !overflowed || has(&self.history, event.id) {
                outcomes.push(self.receive(event));
            }
        }
        overflowed
            || outcomes
                .iter()
                .any(|outcome| matches!(outcome, AnnouncementOutcome::Unexpected | AnnouncementOutcome::Conflict))
            || has_result && !self.conflicts.is_empty()
    }
}

/// Reads as a live topic does: one page forward from the position from which to compare, and then the newest page,
/// unless the first one ends with the end of the log.
fn pages(log: &[SampleEvent], end: EventId, from: Option<EventId>, limit: usize) -> [Vec<SampleEvent>; 2] {
    let newest = || log[log.len().saturating_sub(limit)..].to_vec();
    let Some(from) = from else { return [newest(), newest()] };
    let page: Vec<_> = log.iter().copied().filter(|event| event.id > from).take(limit).collect();
    let rest = if page.last().is_some_and(|event| event.id != end) { newest() } else { page.clone() };
    [page, rest]
}

/// A subscriber of the cache from its first read on.
#[derive(Default)]
struct Reader {
    start: Option<EventId>,
    position: Option<EventId>,
    retractions: u64,
    received: Vec<SampleEvent>,
    /// The start and the end of each gap that it got for a retraction.
    gaps: Vec<(EventId, EventId)>,
}

impl Reader {
    fn poll(&mut self, cache: &LogCache<SampleEvent>) {
        let Some(end) = cache.end() else { return };
        let start = *self.start.get_or_insert(end);
        let position = self.position.get_or_insert(end);
        let retracted = cache.retracted_after(self.retractions, start).filter(|id| *id <= *position);
        self.gaps.extend(retracted.map(|id| (id.before(), *position)));
        self.retractions = cache.retractions();
        if let Lookup::Events(events) = cache.after(*position, None, usize::MAX) {
            *position = events.last().unwrap().id;
            self.received.extend(events);
        }
    }
}

/// One whole read. Returns whether another one is needed.
fn read_log(cache: &mut LogCache<SampleEvent>, server: &SampleServer, limit: usize) -> bool {
    cache.begin_read();
    let [first, page] = pages(&server.log, server.history_list.end(), cache.read_from(), limit);
    cache.compare(server.history(), &first);
    cache.end_read(server.history(), page)
}

#[test]
fn a_conflict_beyond_the_page_is_compared_with_the_next_one() {
    let limits = RingLimits { events: 2, bytes: usize::MAX };
    let (mut server, mut cache) = (SampleServer::new(), LogCache::new(limits));
    read_log(&mut cache, &server, limits.events);
    let forge = |id| SampleEvent { id, bytes: 1, content: 1_000_000 };
    let mut append = |cache: &mut LogCache<SampleEvent>| {
        let event = server.append(1);
        (event.id, cache.receive(event))
    };
    append(&mut cache);
    let (second, _) = append(&mut cache);
    assert_eq!(cache.receive(forge(second)), AnnouncementOutcome::Conflict);
    append(&mut cache);
    let (fourth, _) = append(&mut cache);
    let fifth = EventId::new(fourth.epoch, fourth.offset + 1);
    assert_eq!(cache.receive(forge(fifth)), AnnouncementOutcome::Added, "subscribers receive the forged event");
    assert_eq!(append(&mut cache), (fifth, AnnouncementOutcome::Conflict));
    assert!(read_log(&mut cache, &server, limits.events), "the page ends with the third event");
    assert_eq!(cache.retractions(), 0);
    assert!(!read_log(&mut cache, &server, limits.events));
    assert_eq!((cache.retractions(), cache.retracted_after(0, fifth)), (1, Some(fifth)));
}

#[test]
fn announcements_during_a_read_are_delivered_even_if_the_log_retains_nothing() {
    let limits = RingLimits { events: 2, bytes: usize::MAX };
    let (mut server, mut cache) = (SampleServer::new(), LogCache::new(limits));
    read_log(&mut cache, &server, limits.events);
    let start = cache.end().unwrap();
    cache.begin_read();
    let events = [server.append(1), server.append(1)];
    for event in events {
        assert_eq!(cache.receive(event), AnnouncementOutcome::Deferred);
    }
    assert!(!cache.end_read(server.history(), Vec::new()));
    assert_eq!(answer(&cache, start, usize::MAX), Answer::Events(events.to_vec()));
}

#[test]
fn a_cache_forgets_a_final_event_with_the_events_up_to_which_the_log_was_cleared() {
    let limits = RingLimits { events: 2, bytes: usize::MAX };
    let (mut server, mut cache) = (SampleServer::new(), LogCache::new(limits));
    let is_finished = |cache: &LogCache<SampleEvent>| cache.history().unwrap().finished().is_some();
    let first = server.append(1);
    let open = server.history().clone();
    let mut finished = open.clone();
    finished.finish();
    let read = |cache: &mut LogCache<SampleEvent>, history: &EpochHistory| {
        cache.begin_read();
        cache.end_read(history, vec![first]);
    };
    read(&mut cache, &finished);
    cache.clear_to(first.id.before());
    assert!(is_finished(&cache), "an earlier clear, of which the replica hears late");
    cache.clear_to(first.id);
    assert!(!is_finished(&cache));
    // A read that began before the clear, and ends after it.
    cache.begin_read();
    cache.clear_to(first.id);
    cache.end_read(&finished, vec![first]);
    assert!(!is_finished(&cache));
    // Only what a read shows is final.
    read(&mut cache, &finished);
    assert!(is_finished(&cache));
    read(&mut cache, &open);
    assert!(!is_finished(&cache));
}

fn answer(cache: &LogCache<SampleEvent>, position: EventId, max_bytes: usize) -> Answer {
    match cache.after(position, None, max_bytes) {
        Lookup::Events(events) => Answer::Events(events),
        Lookup::Nothing => Answer::Nothing,
        Lookup::Unknown => Answer::Other,
    }
}

proptest! {
    #[test]
    fn a_cache_gives_the_same_answers_as_plain_lists_and_none_that_contradicts_the_log(
        steps in steps(), events in 1..8usize, bytes in 0..200usize, max_bytes in 1..100usize
    ) {
        let limits = RingLimits { events, bytes };
        let (mut server, mut cache) = (SampleServer::new(), LogCache::new(limits));
        let mut lists = PlainCache::new(limits);
        let mut reader = Reader::default();
        let (mut sent, mut arrived, mut forged) = (Vec::new(), 0, Vec::new());
        let mut reading: Option<Option<EventId>> = None;
        let mut result = None;
        for step in steps {
            match step {
                CacheStep::Append(bytes) => sent.push(server.append(bytes)),
                CacheStep::Receive(which) => {
                    let event = match which {
                        Some(_) if sent.is_empty() => continue,
                        Some(which) => *which.get(&sent),
                        None if arrived == sent.len() => continue,
                        None => {
                            arrived += 1;
                            sent[arrived - 1]
                        }
                    };
                    prop_assert_eq!(cache.receive(event), lists.receive(event));
                }
                CacheStep::Forge(which) => {
                    let mut ids = server.appended.clone();
                    ids.push(server.history().next_id());
                    let content = 1_000_000 + u32::try_from(forged.len()).unwrap();
                    let event = SampleEvent { id: *which.get(&ids), bytes: 7, content };
                    forged.push(event);
                    prop_assert_eq!(cache.receive(event), lists.receive(event));
                }
                CacheStep::BeginRead if reading.is_none() => {
                    cache.begin_read();
                    lists.deferred = Some(Vec::new());
                    reading = Some(cache.read_from());
                }
                CacheStep::AnswerRead => {
                    if let Some(from) = reading {
                        let pages = pages(&server.log, server.history_list.end(), from, limits.events);
                        result = Some((server.history().clone(), server.history_list.clone(), pages));
                    }
                }
                CacheStep::EndRead => {
                    if let Some((history, list, [first, page])) = result.take() {
                        reading = None;
                        cache.compare(&history, &first);
                        lists.compare(&list, &first);
                        prop_assert_eq!(cache.end_read(&history, page.clone()), lists.end_read(Some((list, page))));
                    }
                }
                CacheStep::GiveUpRead if reading.is_some() => {
                    (reading, result) = (None, None);
                    prop_assert_eq!(cache.give_up_read(), lists.end_read(None));
                }
                CacheStep::BeginRead | CacheStep::GiveUpRead => {}
                CacheStep::Restart(lost) => server.restart(lost),
                CacheStep::Trim(count) => drop(server.log.drain(..count.min(server.log.len()))),
            }
            prop_assert_eq!(cache.end(), lists.history.as_ref().map(PlainHistory::end));
            let conflict = lists.conflicts.iter().min_by_key(|event| event.id);
            let last = conflict.or(lists.held.last());
            prop_assert_eq!(cache.read_from(), last.map(|event| event.id.before()));
            reader.poll(&cache);
            for position in server.positions() {
                let answer = answer(&cache, position, max_bytes);
                let expected = lists.history.as_ref().map_or(Answer::Other, |history| {
                    expected_answer(history, &lists.held, position, max_bytes)
                });
                prop_assert_eq!(&answer, &expected, "after {}", position);
                // In any case, every delivered event was announced, by the server or by a forger.
                if let Answer::Events(events) = answer {
                    prop_assert!(events.iter().all(|event| sent.contains(event) || forged.contains(event)));
                }
            }
        }
        // If nothing was forged and nothing gets lost meanwhile, the cache equals the log after one more read.
        if reading.is_none() && forged.is_empty() {
            read_log(&mut cache, &server, limits.events);
            prop_assert_eq!(cache.retractions(), 0);
            for position in server.positions() {
                let expected = expected_answer(&server.history_list, &server.log, position, usize::MAX);
                match answer(&cache, position, usize::MAX) {
                    Answer::Nothing => prop_assert_eq!(expected, Answer::Nothing, "after {}", position),
                    // The cache may still have events that the log has dropped.
                    Answer::Events(events) if server.log.first().is_some_and(|first| first.id <= events[0].id) => {
                        prop_assert_eq!(expected, Answer::Events(events), "after {}", position);
                    }
                    Answer::Events(_) | Answer::Other => {}
                }
            }
        }
    }

    /// Announcements arrive in order, as they do on one connection. Forged ones with the next id arrive between them.
    #[test]
    fn a_reader_that_received_a_forged_event_gets_a_gap(
        steps in proptest::collection::vec(0..8u8, 0..60), events in 2..6usize
    ) {
        let limits = RingLimits { events, bytes: usize::MAX };
        let (mut server, mut cache) = (SampleServer::new(), LogCache::new(limits));
        let mut reader = Reader::default();
        let (mut inbox, mut forged) = (VecDeque::new(), Vec::new());
        let mut read = None;
        let requires_read =
            |outcome| matches!(outcome, AnnouncementOutcome::Unexpected | AnnouncementOutcome::Conflict);
        let mut needs_read = true;
        // In the end, all announcements arrive, and the log is read.
        let count = steps.len() + 10;
        let last_steps = (0..count).flat_map(|_| [2, 4, 5, 6]);
        for step in steps.into_iter().chain(last_steps) {
            match step {
                0 | 1 => inbox.push_back(server.append(1)),
                2 => needs_read |= inbox.pop_front().is_some_and(|event| requires_read(cache.receive(event))),
                3 => {
                    let content = 1_000_000 + u32::try_from(forged.len()).unwrap();
                    let event = SampleEvent { id: server.history().next_id(), bytes: 1, content };
                    forged.push(event);
                    inbox.push_back(event);
                }
                4 if read.is_none() && needs_read => {
                    needs_read = false;
                    let from = cache.read_from();
                    cache.begin_read();
                    read = Some((from, None));
                }
                5 => {
                    if let Some((from, result @ None)) = &mut read {
                        server.ensure_epoch(cache.end());
                        let pages = pages(&server.log, server.history_list.end(), *from, events);
                        *result = Some((server.history().clone(), pages));
                    }
                }
                6 if read.as_ref().is_some_and(|(_, result)| result.is_some()) => {
                    let (history, [first, page]) = read.take().unwrap().1.unwrap();
                    cache.compare(&history, &first);
                    needs_read |= cache.end_read(&history, page);
                }
                _ => {}
            }
            reader.poll(&cache);
        }
        let is_confused = |event: &&SampleEvent| forged.contains(event) && server.history_list.has(event.id);
        for event in reader.received.iter().filter(is_confused) {
            let is_covered = reader.gaps.iter().any(|(from, to)| *from < event.id && event.id <= *to);
            prop_assert!(is_covered, "{event:?} of {:?}, gaps {:?}", reader.received, reader.gaps);
        }
        // Nobody can tell which of the two events a reader received, so readers of the right one get a gap, too; but a
        // gap always begins at a forged id.
        let is_forged = |(from, _): &&(EventId, EventId)| forged.iter().any(|event| event.id.before() == *from);
        prop_assert!(reader.gaps.iter().all(|gap| is_forged(&gap)), "{:?}", reader.gaps);
    }
}
