//! Checks the record of a load exactly: every acknowledged event was received once and in order, or a gap covers
//! precisely the missing events. No id names two events. A refused event never appears. An event that was repeated
//! with one key appears once.

use std::collections::{BTreeMap, BTreeSet};

use roomcast::names::EventId;

use super::load::{Received, Record};
use super::publisher::{LAST, Publish};

/// The gap that covers the subscriber's whole past: everything up to `to` may be missing.
const WHOLE_PAST: &str = "unknown_position";
/// Gaps that come from the log's limits, not from a loss.
const LIMITS: [&str; 2] = ["trimmed", "expired"];

/// Room and id of an event.
pub type EventKey = (String, EventId);

/// Everything that is known when the load has ended.
pub struct Evidence {
    pub published: Vec<Publish>,
    pub records: Vec<Record>,
    /// Events of the rooms' logs at the end, with their content.
    pub log: BTreeMap<EventKey, String>,
    /// The same for other servers that held the logs for a while.
    pub other_logs: Vec<BTreeMap<EventKey, String>>,
    /// Ids that were announced without an append. Another event may have been delivered under such an id.
    pub forged: BTreeSet<EventKey>,
    /// Most gaps that one stream may receive in one room.
    pub max_gaps: usize,
}

/// Figures of a load that passed the check.
#[derive(Debug, Default)]
pub struct Account {
    pub acknowledged: usize,
    pub refused: usize,
    pub unknown: usize,
    pub subscribers: usize,
    pub delivered: usize,
    /// Streams that ended at once with the reason `unavailable`.
    pub refused_streams: usize,
    /// Acknowledged events that the log no longer has.
    pub lost: usize,
    /// Deliveries of forged events.
    pub forged_deliveries: usize,
    /// Those of them with an id that the log gave to a real event. Their subscribers received a gap.
    pub forged_conflicts: usize,
    /// Gaps that subscribers received, by reason.
    pub gaps: BTreeMap<String, usize>,
}

impl Evidence {
    /// Panics at the first entry that breaks a promise.
    pub fn check(&self) -> Account {
        self.check_ids();
        let acknowledged: BTreeSet<EventKey> = self.acknowledged().collect();
        let existed: BTreeSet<EventKey> =
            acknowledged.iter().cloned().chain(self.delivered().map(|(key, _)| key)).collect();
        let lost: BTreeSet<EventKey> = existed.iter().filter(|key| self.is_lost(key)).cloned().collect();
        let mut account = Account { subscribers: self.records.len(), ..Account::default() };
        for (subscriber, record) in self.records.iter().enumerate() {
            account.refused_streams += record.refused_streams;
            for (room, start) in &record.starts {
                let subscriber = format!("subscriber {subscriber} in {room}");
                let view = RoomView::new(record, room, *start, &subscriber);
                account.delivered += view.seen.len();
                let gaps = &view.gaps;
                assert!(gaps.len() <= self.max_gaps, "{subscriber} received too many gaps: {gaps:?}");
                for gap in gaps {
                    *account.gaps.entry(gap.reason.clone()).or_default() += 1;
                    let is_needed = self.needs_gap(room, gap, &view, &existed, &lost);
                    assert!(is_needed, "{subscriber} received {gap:?} and had missed nothing");
                    // A subscriber that received a forgery does not receive the real event with the same id as
                    // well.
                    let is_real = |key: &&EventKey| !self.is_lost(key) && !self.forged.contains(*key);
                    let skipped = self.log.keys().filter(is_real).find(|key| gap.skips(room, key, &view));
                    assert_eq!(skipped, None, "{subscriber} received {gap:?}, which skips an event of the log");
                }
                for (_, id) in acknowledged.iter().filter(|(event_room, id)| event_room == room && id > start) {
                    let is_covered = view.seen.contains(id) || gaps.iter().any(|gap| gap.covers(*id));
                    assert!(is_covered, "{subscriber}: {id} was lost without a gap; gaps: {gaps:?}");
                }
            }
        }
        account.acknowledged = acknowledged.len();
        account.lost = acknowledged.iter().filter(|key| !self.log.contains_key(*key)).count();
        let forgeries = self.delivered().filter(|(key, content)| self.forged.contains(key) && is_forged(content));
        for (key, _) in forgeries {
            account.forged_deliveries += 1;
            account.forged_conflicts += usize::from(self.log.contains_key(&key));
        }
        account.refused = self.published.iter().map(|publish| publish.refused).sum();
        account.unknown = self.published.iter().map(|publish| publish.unknown).sum();
        account
    }

    /// Whether at least one of the logs does not have the event.
    fn is_lost(&self, key: &EventKey) -> bool {
        !self.log.contains_key(key) || self.other_logs.iter().any(|log| !log.contains_key(key))
    }

    fn acknowledged(&self) -> impl Iterator<Item = EventKey> {
        let keys = |publish: &Publish| -> Vec<EventKey> {
            publish.stored.iter().map(|id| (publish.room.clone(), *id)).collect()
        };
        self.published.iter().flat_map(keys)
    }

    /// Every event that a subscriber received, with its content.
    fn delivered(&self) -> impl Iterator<Item = (EventKey, &str)> {
        self.records.iter().flat_map(|record| &record.received).filter_map(|received| match received {
            Received::Event { room, id, content } => Some(((room.clone(), *id), content.as_str())),
            Received::Gap { .. } => None,
        })
    }

    /// Each id names one event, and each event has one id.
    fn check_ids(&self) {
        let published = self.published.iter().flat_map(|publish| {
            publish.stored.iter().map(|id| ("a publish", (publish.room.clone(), *id), publish.content.as_str()))
        });
        let delivered = self.delivered().map(|(key, content)| ("a delivery", key, content));
        let logged = self.log.iter().map(|(key, content)| ("the log", key.clone(), content.as_str()));
        let mut contents: BTreeMap<EventKey, (&str, &str)> = BTreeMap::new();
        let mut ids_by_content: BTreeMap<(String, &str), BTreeSet<EventId>> = BTreeMap::new();
        for (source, key, content) in published.chain(delivered).chain(logged) {
            if self.forged.contains(&key) {
                continue;
            }
            let (first_source, first) = *contents.entry(key.clone()).or_insert((source, content));
            assert_eq!(first, content, "{key:?} names two events, for {first_source} and {source}");
            let (room, id) = key;
            ids_by_content.entry((room, content)).or_default().insert(id);
        }
        for publish in self.published.iter().filter(|publish| publish.content != LAST) {
            let ids = ids_by_content.remove(&(publish.room.clone(), &publish.content)).unwrap_or_default();
            let certain: BTreeSet<_> = publish.stored.iter().copied().collect();
            let possible = certain.len() + usize::from(certain.is_empty() && publish.unknown > 0);
            if publish.has_key {
                // If the key was lost together with its event, the repeated publish stores the event again, in a
                // new epoch. One epoch never has it twice.
                let epochs: BTreeSet<_> = ids.iter().map(|id| id.epoch).collect();
                assert_eq!(epochs.len(), ids.len(), "one key, two events: {ids:?} of {publish:?}");
                let lost = ids.iter().filter(|id| !self.log.contains_key(&(publish.room.clone(), **id))).count();
                assert!(ids.len() <= 1 + lost, "one key, two events: {ids:?} of {publish:?}");
                let may_exist = possible > 0 || publish.unknown > 0;
                assert!(may_exist || ids.is_empty(), "refused, and stored: {publish:?}");
            } else {
                assert!(ids.len() <= possible, "stored too often, {ids:?}: {publish:?}");
            }
        }
        ids_by_content.retain(|(_, content), _| *content != LAST);
        assert!(ids_by_content.is_empty(), "no publisher sent {ids_by_content:?}");
    }

    /// Whether the subscriber had missed something, or had received something that was lost.
    fn needs_gap(
        &self,
        room: &str,
        gap: &Gap,
        view: &RoomView,
        existed: &BTreeSet<EventKey>,
        lost: &BTreeSet<EventKey>,
    ) -> bool {
        let covers_forgery = |(event_room, id): &EventKey| event_room == room && gap.from < *id && *id <= gap.to;
        if existed.iter().any(|key| gap.skips(room, key, view)) || self.forged.iter().any(covers_forgery) {
            return true;
        }
        if LIMITS.contains(&gap.reason.as_str()) {
            return self.may_have_lost_unknown(room);
        }
        // An event that the subscriber received is lost; or an event that no subscriber received may be.
        let is_before_end = |(event_room, id): &EventKey| event_room == room && *id > view.start && *id <= gap.to;
        lost.iter().chain(&self.forged).any(is_before_end) || self.may_have_lost_unknown(room)
    }

    /// Whether an event with an unknown outcome is nowhere to be found: it may have been stored and lost.
    fn may_have_lost_unknown(&self, room: &str) -> bool {
        let is_found = |publish: &Publish| {
            let is_it = |key: &EventKey, content: &str| key.0 == room && content == publish.content;
            self.log.iter().any(|(key, content)| is_it(key, content))
                || self.delivered().any(|(key, content)| is_it(&key, content))
        };
        self.published.iter().any(|publish| {
            publish.room == room && publish.unknown > 0 && publish.stored.is_empty() && !is_found(publish)
        })
    }
}

fn is_forged(content: &str) -> bool {
    content.starts_with("forged")
}

/// What one subscriber received of one room.
struct RoomView {
    start: EventId,
    seen: BTreeSet<EventId>,
    gaps: Vec<Gap>,
}

#[derive(Debug)]
struct Gap {
    from: EventId,
    to: EventId,
    reason: String,
}

impl Gap {
    /// Whether the gap covers an event that is newer than the subscriber's start and that it has not received.
    fn skips(&self, room: &str, (event_room, id): &EventKey, view: &RoomView) -> bool {
        event_room == room && *id > self.from.max(view.start) && *id <= self.to && !view.seen.contains(id)
    }

    fn covers(&self, id: EventId) -> bool {
        id <= self.to && (id > self.from || self.reason == WHOLE_PAST)
    }
}

impl RoomView {
    /// Checks the order of what the subscriber received on the way.
    fn new(record: &Record, room: &str, start: EventId, subscriber: &str) -> Self {
        let (mut position, mut view) = (start, Self { start, seen: BTreeSet::new(), gaps: Vec::new() });
        for received in &record.received {
            match received {
                Received::Event { room: event_room, id, content } if event_room == room => {
                    assert!(*id > position, "{subscriber}: {id} came after {position}");
                    position = *id;
                    // A forged event is not the event with that id.
                    if !is_forged(content) {
                        view.seen.insert(*id);
                    }
                }
                Received::Gap { room: gap_room, from, to, reason } if gap_room == room => {
                    let is_ordered = from <= to && *from <= position;
                    assert!(is_ordered, "{subscriber}: a gap from {from} to {to} at {position}");
                    assert!(*to >= position, "{subscriber}: a gap back to {to} at {position}");
                    position = *to;
                    view.gaps.push(Gap { from: *from, to: *to, reason: reason.clone() });
                }
                _ => {}
            }
        }
        view
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> EventId {
        text.parse().unwrap()
    }

    fn event(id_text: &str, content: &str) -> Received {
        Received::Event { room: "red".into(), id: id(id_text), content: content.into() }
    }

    fn gap(from: &str, to: &str, reason: &str) -> Received {
        Received::Gap { room: "red".into(), from: id(from), to: id(to), reason: reason.into() }
    }

    fn publish(content: &str, stored: &[&str]) -> Publish {
        Publish {
            room: "red".into(),
            content: content.into(),
            has_key: false,
            stored: stored.iter().map(|text| id(text)).collect(),
            refused: 0,
            unknown: 0,
        }
    }

    /// Three events were stored and are in the log; one subscriber received this.
    fn evidence(received: Vec<Received>) -> Evidence {
        let events = [("1-1", "a"), ("1-2", "b"), ("1-3", "c")];
        Evidence {
            published: events.iter().map(|(id, content)| publish(content, &[id])).collect(),
            records: vec![Record { starts: [("red".into(), id("1-0"))].into(), received, refused_streams: 0 }],
            log: events.iter().map(|(text, content)| (("red".into(), id(text)), (*content).into())).collect(),
            other_logs: Vec::new(),
            forged: BTreeSet::new(),
            max_gaps: 1,
        }
    }

    fn all() -> Vec<Received> {
        vec![event("1-1", "a"), event("1-2", "b"), event("1-3", "c")]
    }

    #[test]
    fn a_complete_record_passes() {
        let account = evidence(all()).check();
        assert_eq!((account.acknowledged, account.delivered, account.lost), (3, 3, 0));
    }

    #[test]
    #[should_panic(expected = "1-2 was lost without a gap")]
    fn a_missing_event_is_found() {
        evidence(vec![event("1-1", "a"), event("1-3", "c")]).check();
    }

    #[test]
    fn a_gap_covers_a_missing_event() {
        let received = vec![event("1-1", "a"), gap("1-1", "1-2", "trimmed"), event("1-3", "c")];
        let mut evidence = evidence(received);
        evidence.log.remove(&("red".into(), id("1-2")));
        assert_eq!(evidence.check().gaps["trimmed"], 1);
    }

    #[test]
    #[should_panic(expected = "skips an event of the log")]
    fn a_gap_may_not_skip_an_event_of_the_log() {
        let received = vec![event("1-1", "a"), gap("1-1", "1-3", "trimmed")];
        let mut evidence = evidence(received);
        evidence.log.remove(&("red".into(), id("1-2")));
        evidence.check();
    }

    #[test]
    #[should_panic(expected = "1-3 was lost without a gap")]
    fn a_gap_that_ends_too_early_does_not_cover_the_rest() {
        let mut evidence = evidence(vec![event("1-1", "a"), gap("1-1", "1-2", "lost_tail")]);
        evidence.log.clear();
        evidence.check();
    }

    #[test]
    #[should_panic(expected = "had missed nothing")]
    fn a_gap_without_a_missing_event_is_found() {
        let received = [all(), vec![gap("1-3", "2-0", "lost_tail")]].concat();
        evidence(received).check();
    }

    #[test]
    #[should_panic(expected = "had missed nothing")]
    fn a_trimmed_log_gives_no_gap_to_a_subscriber_with_all_events() {
        let mut evidence = evidence([all(), vec![gap("1-3", "1-3", "trimmed")]].concat());
        evidence.log.pop_first();
        evidence.check();
    }

    #[test]
    fn a_subscriber_with_a_lost_event_may_receive_a_gap() {
        let mut evidence = evidence([all(), vec![gap("1-2", "2-0", "diverged")]].concat());
        evidence.log.pop_last();
        assert_eq!(evidence.check().lost, 1);
    }

    #[test]
    #[should_panic(expected = "received too many gaps")]
    fn a_second_gap_for_one_loss_is_found() {
        let again = vec![gap("1-2", "2-0", "diverged"), gap("2-0", "3-0", "diverged")];
        let mut evidence = evidence([all(), again].concat());
        evidence.log.pop_last();
        evidence.check();
    }

    #[test]
    #[should_panic(expected = "came after")]
    fn a_repeated_event_is_found() {
        evidence([all(), vec![event("1-3", "c")]].concat()).check();
    }

    #[test]
    #[should_panic(expected = "a gap back")]
    fn a_gap_back_is_found() {
        evidence([all(), vec![gap("1-1", "1-2", "lost_tail")]].concat()).check();
    }

    #[test]
    #[should_panic(expected = "names two events")]
    fn an_id_that_names_two_events_is_found() {
        evidence(vec![event("1-1", "a"), event("1-2", "other"), event("1-3", "c")]).check();
    }

    #[test]
    #[should_panic(expected = "no publisher sent")]
    fn an_event_without_a_publisher_is_found() {
        evidence([all(), vec![event("1-4", "x")]].concat()).check();
    }

    #[test]
    #[should_panic(expected = "stored too often")]
    fn a_refused_event_that_was_stored_is_found() {
        let mut evidence = evidence([all(), vec![event("1-4", "d")]].concat());
        evidence.published.push(Publish { refused: 1, ..publish("d", &[]) });
        evidence.check();
    }

    #[test]
    fn an_event_with_an_unknown_outcome_may_be_stored_once() {
        let mut evidence = evidence([all(), vec![event("1-4", "d")]].concat());
        evidence.published.push(Publish { unknown: 1, ..publish("d", &[]) });
        evidence.check();
    }

    #[test]
    #[should_panic(expected = "stored too often")]
    fn an_event_with_an_unknown_outcome_may_not_be_stored_twice() {
        let mut evidence = evidence([all(), vec![event("1-4", "d"), event("1-5", "d")]].concat());
        evidence.published.push(Publish { unknown: 1, ..publish("d", &[]) });
        evidence.check();
    }

    #[test]
    #[should_panic(expected = "one key, two events")]
    fn a_key_that_stored_two_events_is_found() {
        let mut evidence = evidence([all(), vec![event("1-4", "d"), event("2-1", "d")]].concat());
        for text in ["1-4", "2-1"] {
            evidence.log.insert(("red".into(), id(text)), "d".into());
        }
        evidence.published.push(Publish { has_key: true, unknown: 1, ..publish("d", &["2-1"]) });
        evidence.check();
    }

    #[test]
    fn a_key_that_was_lost_with_its_event_may_store_it_again() {
        let received = vec![event("1-4", "d"), gap("1-3", "2-0", "diverged"), event("2-1", "d")];
        let mut evidence = evidence([all(), received].concat());
        evidence.log.insert(("red".into(), id("2-1")), "d".into());
        evidence.published.push(Publish { has_key: true, unknown: 1, ..publish("d", &["2-1"]) });
        evidence.check();
    }
}
