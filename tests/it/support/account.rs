//! The exact account of a load: everything acknowledged came once and in order, or a gap covers precisely what is missing;
//! no id names two events; what was refused never appears, and what was repeated under one key appears once.

use std::collections::{BTreeMap, BTreeSet};

use roomcast::names::EventId;

use super::load::{Record, Told};
use super::publisher::{LAST, Publish};

/// A gap that puts all of the subscriber's past in doubt, so that everything up to `to` may be missing.
const WHOLE_PAST: &str = "unknown_position";
/// Gaps that are about the log's limits, not about a loss.
const LIMITS: [&str; 2] = ["trimmed", "expired"];

/// An event's place: room and id.
pub type Place = (String, EventId);

/// All that is known when the load has ended.
pub struct Evidence {
    pub published: Vec<Publish>,
    pub records: Vec<Record>,
    /// What the log still has.
    pub log: BTreeMap<Place, String>,
    /// What other logs have that were the room's for a while.
    pub other_logs: Vec<BTreeMap<Place, String>>,
    /// Ids that were announced without having been appended, under which something else may have been delivered.
    pub forged: BTreeSet<Place>,
    /// Most gaps that one stream may be told in one room.
    pub most_gaps: usize,
}

/// What the account came to.
#[derive(Debug, Default)]
pub struct Account {
    pub acknowledged: usize,
    pub refused: usize,
    pub unknown: usize,
    pub subscribers: usize,
    pub delivered: usize,
    /// Streams that were told to come back later.
    pub refusals: usize,
    /// Acknowledged, and not in the log any more.
    pub lost: usize,
    /// Events that were delivered under a forged id, and may stand in for the one that the log gave it to.
    pub stand_ins: usize,
    /// Of these, those whose id the log gave to an event: whoever got one was told of a gap.
    pub mistaken: usize,
    /// Gaps that subscribers were told, by reason.
    pub gaps: BTreeMap<String, usize>,
}

impl Evidence {
    /// Panics at the first entry that does not fit.
    pub fn check(&self) -> Account {
        self.check_names();
        let acknowledged: BTreeSet<Place> = self.acknowledged().collect();
        let existed: BTreeSet<Place> =
            acknowledged.iter().cloned().chain(self.delivered().map(|(at, _)| at)).collect();
        let lost: BTreeSet<Place> = existed.iter().filter(|at| self.lacks(at)).cloned().collect();
        let mut account = Account { subscribers: self.records.len(), ..Account::default() };
        for (subscriber, record) in self.records.iter().enumerate() {
            account.refusals += record.refusals;
            for (room, start) in &record.starts {
                let who = format!("subscriber {subscriber} in {room}");
                let view = View::of(record, room, *start, &who);
                account.delivered += view.seen.len();
                assert!(view.gaps.len() <= self.most_gaps, "{who} was told too often: {:?}", view.gaps);
                for gap in &view.gaps {
                    *account.gaps.entry(gap.reason.clone()).or_default() += 1;
                    let need = self.need(room, gap, &view, &existed, &lost);
                    assert!(need, "{who} was told {gap:?} and had missed nothing");
                    // Who was given a forgery under an id is not given the log's event of that id as well.
                    let real = |at: &&Place| !self.lacks(at) && !self.forged.contains(*at);
                    let jumped = self.log.keys().filter(real).find(|at| gap.skips(room, at, &view));
                    assert_eq!(jumped, None, "{who} was told {gap:?}, which jumps what the log has");
                }
                for (_, id) in acknowledged.iter().filter(|(of, id)| of == room && id > start) {
                    let covered = view.seen.contains(id) || view.gaps.iter().any(|gap| gap.covers(*id));
                    assert!(covered, "{who}: {id} was lost unsaid; told {:?}", view.gaps);
                }
            }
        }
        account.acknowledged = acknowledged.len();
        account.lost = acknowledged.iter().filter(|at| !self.log.contains_key(*at)).count();
        let stand_ins = self.delivered().filter(|(at, content)| self.forged.contains(at) && is_forged(content));
        for (at, _) in stand_ins {
            account.stand_ins += 1;
            account.mistaken += usize::from(self.log.contains_key(&at));
        }
        account.refused = self.published.iter().map(|publish| publish.refused).sum();
        account.unknown = self.published.iter().map(|publish| publish.unknown).sum();
        account
    }

    /// Whether some log lacks an event that existed.
    fn lacks(&self, at: &Place) -> bool {
        !self.log.contains_key(at) || self.other_logs.iter().any(|log| !log.contains_key(at))
    }

    fn acknowledged(&self) -> impl Iterator<Item = Place> {
        let ids = |publish: &Publish| -> Vec<Place> {
            publish.stored.iter().map(|id| (publish.room.clone(), *id)).collect()
        };
        self.published.iter().flat_map(ids)
    }

    /// Everything that anyone was given, with its content.
    fn delivered(&self) -> impl Iterator<Item = (Place, &str)> {
        self.records.iter().flat_map(|record| &record.told).filter_map(|told| match told {
            Told::Event { room, id, content } => Some(((room.clone(), *id), content.as_str())),
            Told::Gap { .. } => None,
        })
    }

    /// Each id names one event, and each event has one id.
    fn check_names(&self) {
        let published = self.published.iter().flat_map(|publish| {
            publish.stored.iter().map(|id| ((publish.room.clone(), *id), publish.content.as_str()))
        });
        let logged = self.log.iter().map(|(at, content)| (at.clone(), content.as_str()));
        let mut names: BTreeMap<Place, &str> = BTreeMap::new();
        let mut places: BTreeMap<(String, &str), BTreeSet<EventId>> = BTreeMap::new();
        for (at, content) in published.chain(self.delivered()).chain(logged) {
            if self.forged.contains(&at) {
                continue;
            }
            let before = *names.entry(at.clone()).or_insert(content);
            assert_eq!(before, content, "{at:?} names two events");
            let (room, id) = at;
            places.entry((room, content)).or_default().insert(id);
        }
        for publish in self.published.iter().filter(|publish| publish.content != LAST) {
            let ids = places.remove(&(publish.room.clone(), &publish.content)).unwrap_or_default();
            let certain: BTreeSet<_> = publish.stored.iter().copied().collect();
            let possible = certain.len() + usize::from(certain.is_empty() && publish.unknown > 0);
            if publish.has_key {
                // A key that was lost with its event stores it again, in a new epoch; never twice in one.
                let epochs: BTreeSet<_> = ids.iter().map(|id| id.epoch).collect();
                assert_eq!(epochs.len(), ids.len(), "one key, two events: {ids:?} of {publish:?}");
                let lost = ids.iter().filter(|id| !self.log.contains_key(&(publish.room.clone(), **id))).count();
                assert!(ids.len() <= 1 + lost, "one key, two events: {ids:?} of {publish:?}");
                assert!(possible > 0 || publish.unknown > 0 || ids.is_empty(), "refused, and here: {publish:?}");
            } else {
                assert!(ids.len() <= possible, "it appears too often, {ids:?}: {publish:?}");
            }
        }
        places.retain(|(_, content), _| *content != LAST);
        assert!(places.is_empty(), "nobody has published {places:?}");
    }

    /// Whether there was something to tell this subscriber.
    fn need(&self, room: &str, gap: &Gap, view: &View, existed: &BTreeSet<Place>, lost: &BTreeSet<Place>) -> bool {
        let believed_lost = |(of, id): &Place| of == room && gap.from < *id && *id <= gap.to;
        if existed.iter().any(|at| gap.skips(room, at, view)) || self.forged.iter().any(believed_lost) {
            return true;
        }
        if LIMITS.contains(&gap.reason.as_str()) {
            return self.may_have_been_lost(room);
        }
        // What it has seen is not there any more; or what nobody saw may have been.
        lost.iter().chain(&self.forged).any(|(of, id)| of == room && *id > view.start && *id <= gap.to)
            || self.may_have_been_lost(room)
    }

    /// An event whose publisher got no answer, and that is nowhere to be found: it may have been stored, and lost.
    fn may_have_been_lost(&self, room: &str) -> bool {
        let found = |publish: &Publish| {
            self.log.iter().any(|((of, _), content)| of == room && *content == publish.content)
                || self.delivered().any(|((of, _), content)| of == room && *content == publish.content)
        };
        self.published.iter().any(|publish| {
            publish.room == room && publish.unknown > 0 && publish.stored.is_empty() && !found(publish)
        })
    }
}

fn is_forged(content: &str) -> bool {
    content.starts_with("forged")
}

/// What one subscriber saw of one room.
struct View {
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
    /// Whether it leads over an event that came after the subscriber, who has not seen it.
    fn skips(&self, room: &str, (of, id): &Place, view: &View) -> bool {
        of == room && *id > self.from.max(view.start) && *id <= self.to && !view.seen.contains(id)
    }

    fn covers(&self, id: EventId) -> bool {
        id <= self.to && (id > self.from || self.reason == WHOLE_PAST)
    }
}

impl View {
    fn of(record: &Record, room: &str, start: EventId, who: &str) -> Self {
        let (mut position, mut view) = (start, Self { start, seen: BTreeSet::new(), gaps: Vec::new() });
        for told in &record.told {
            match told {
                Told::Event { room: of, id, content } if of == room => {
                    assert!(*id > position, "{who}: {id} came after {position}");
                    position = *id;
                    // What a forger announced is not the event of that id.
                    if !is_forged(content) {
                        view.seen.insert(*id);
                    }
                }
                Told::Gap { room: of, from, to, reason } if of == room => {
                    assert!(from <= to && *from <= position, "{who}: a gap from {from} to {to} at {position}");
                    assert!(*to >= position, "{who}: a gap back to {to} at {position}");
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

    fn event(at: &str, content: &str) -> Told {
        Told::Event { room: "red".into(), id: id(at), content: content.into() }
    }

    fn gap(from: &str, to: &str, reason: &str) -> Told {
        Told::Gap { room: "red".into(), from: id(from), to: id(to), reason: reason.into() }
    }

    fn publish(content: &str, stored: &[&str]) -> Publish {
        Publish {
            room: "red".into(),
            content: content.into(),
            has_key: false,
            stored: stored.iter().map(|at| id(at)).collect(),
            refused: 0,
            unknown: 0,
        }
    }

    /// Three events were stored, and are in the log; one subscriber was told this.
    fn evidence(told: Vec<Told>) -> Evidence {
        let events = [("1-1", "a"), ("1-2", "b"), ("1-3", "c")];
        Evidence {
            published: events.iter().map(|(at, content)| publish(content, &[at])).collect(),
            records: vec![Record { starts: [("red".into(), id("1-0"))].into(), told, refusals: 0 }],
            log: events.iter().map(|(at, content)| (("red".into(), id(at)), (*content).into())).collect(),
            other_logs: Vec::new(),
            forged: BTreeSet::new(),
            most_gaps: 1,
        }
    }

    fn all() -> Vec<Told> {
        vec![event("1-1", "a"), event("1-2", "b"), event("1-3", "c")]
    }

    #[test]
    fn a_whole_record_is_in_order() {
        let account = evidence(all()).check();
        assert_eq!((account.acknowledged, account.delivered, account.lost), (3, 3, 0));
    }

    #[test]
    #[should_panic(expected = "1-2 was lost unsaid")]
    fn an_event_that_did_not_come_is_found() {
        evidence(vec![event("1-1", "a"), event("1-3", "c")]).check();
    }

    #[test]
    fn a_gap_covers_what_did_not_come() {
        let told = vec![event("1-1", "a"), gap("1-1", "1-2", "trimmed"), event("1-3", "c")];
        let mut evidence = evidence(told);
        evidence.log.remove(&("red".into(), id("1-2")));
        assert_eq!(evidence.check().gaps["trimmed"], 1);
    }

    #[test]
    #[should_panic(expected = "jumps what the log has")]
    fn a_gap_may_not_lead_over_what_the_log_has() {
        let told = vec![event("1-1", "a"), gap("1-1", "1-3", "trimmed")];
        let mut evidence = evidence(told);
        evidence.log.remove(&("red".into(), id("1-2")));
        evidence.check();
    }

    #[test]
    #[should_panic(expected = "1-3 was lost unsaid")]
    fn a_gap_that_ends_too_early_does_not_cover_the_rest() {
        let mut evidence = evidence(vec![event("1-1", "a"), gap("1-1", "1-2", "lost_tail")]);
        evidence.log.clear();
        evidence.check();
    }

    #[test]
    #[should_panic(expected = "had missed nothing")]
    fn a_gap_with_nothing_in_it_is_false() {
        let told = [all(), vec![gap("1-3", "2-0", "lost_tail")]].concat();
        evidence(told).check();
    }

    #[test]
    #[should_panic(expected = "had missed nothing")]
    fn a_trimmed_log_takes_nothing_back_from_someone_who_has_it_all() {
        let mut evidence = evidence([all(), vec![gap("1-3", "1-3", "trimmed")]].concat());
        evidence.log.pop_first();
        evidence.check();
    }

    #[test]
    fn someone_who_has_what_was_lost_may_be_told_that_it_is() {
        let mut evidence = evidence([all(), vec![gap("1-2", "2-0", "diverged")]].concat());
        evidence.log.pop_last();
        assert_eq!(evidence.check().lost, 1);
    }

    #[test]
    #[should_panic(expected = "told too often")]
    fn one_loss_is_told_once() {
        let again = vec![gap("1-2", "2-0", "diverged"), gap("2-0", "3-0", "diverged")];
        let mut evidence = evidence([all(), again].concat());
        evidence.log.pop_last();
        evidence.check();
    }

    #[test]
    #[should_panic(expected = "came after")]
    fn an_event_that_comes_twice_is_found() {
        evidence([all(), vec![event("1-3", "c")]].concat()).check();
    }

    #[test]
    #[should_panic(expected = "a gap back")]
    fn a_gap_that_leads_back_is_found() {
        evidence([all(), vec![gap("1-1", "1-2", "lost_tail")]].concat()).check();
    }

    #[test]
    #[should_panic(expected = "names two events")]
    fn an_id_that_names_two_events_is_found() {
        evidence(vec![event("1-1", "a"), event("1-2", "other"), event("1-3", "c")]).check();
    }

    #[test]
    #[should_panic(expected = "nobody has published")]
    fn an_event_from_nowhere_is_found() {
        evidence([all(), vec![event("1-4", "x")]].concat()).check();
    }

    #[test]
    #[should_panic(expected = "it appears too often")]
    fn an_event_that_was_refused_and_came_all_the_same_is_found() {
        let mut evidence = evidence([all(), vec![event("1-4", "d")]].concat());
        evidence.published.push(Publish { refused: 1, ..publish("d", &[]) });
        evidence.check();
    }

    #[test]
    fn an_event_whose_outcome_is_unknown_may_come_once() {
        let mut evidence = evidence([all(), vec![event("1-4", "d")]].concat());
        evidence.published.push(Publish { unknown: 1, ..publish("d", &[]) });
        evidence.check();
    }

    #[test]
    #[should_panic(expected = "it appears too often")]
    fn an_event_whose_outcome_is_unknown_may_not_come_twice() {
        let mut evidence = evidence([all(), vec![event("1-4", "d"), event("1-5", "d")]].concat());
        evidence.published.push(Publish { unknown: 1, ..publish("d", &[]) });
        evidence.check();
    }

    #[test]
    #[should_panic(expected = "one key, two events")]
    fn a_key_that_stored_two_events_is_found() {
        let mut evidence = evidence([all(), vec![event("1-4", "d"), event("2-1", "d")]].concat());
        for at in ["1-4", "2-1"] {
            evidence.log.insert(("red".into(), id(at)), "d".into());
        }
        evidence.published.push(Publish { has_key: true, unknown: 1, ..publish("d", &["2-1"]) });
        evidence.check();
    }

    #[test]
    fn a_key_that_was_lost_with_its_event_stores_it_again() {
        let told = vec![event("1-4", "d"), gap("1-3", "2-0", "diverged"), event("2-1", "d")];
        let mut evidence = evidence([all(), told].concat());
        evidence.log.insert(("red".into(), id("2-1")), "d".into());
        evidence.published.push(Publish { has_key: true, unknown: 1, ..publish("d", &["2-1"]) });
        evidence.check();
    }
}
