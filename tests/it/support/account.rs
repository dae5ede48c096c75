//! The exact account of a load: everything acknowledged came once and in order, or a gap covers precisely what is missing;
//! no id names two events; what was refused never appears, and what was repeated under one key appears once.

use std::collections::{BTreeMap, BTreeSet};

use roomcast::room::EventId;

use super::load::{Record, Told};
use super::publisher::{LAST, Publish};

/// Gaps that put the subscriber's own past in doubt, so that everything up to `to` may be missing.
const WHOLE_PAST: [&str; 3] = ["unknown_position", "log_lost", "diverged"];
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
                    let need = self.need(room, *start, gap, &view, &existed, &lost);
                    assert!(need, "{who} was told {gap:?} and had missed nothing");
                }
                for (_, id) in acknowledged.iter().filter(|(of, id)| of == room && id > start) {
                    let covered = view.seen.contains(id) || view.gaps.iter().any(|gap| gap.covers(*id));
                    assert!(covered, "{who}: {id} was lost unsaid; told {:?}", view.gaps);
                }
            }
        }
        account.acknowledged = acknowledged.len();
        account.lost = acknowledged.iter().filter(|at| !self.log.contains_key(*at)).count();
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
    fn need(
        &self,
        room: &str,
        start: EventId,
        gap: &Gap,
        view: &View,
        existed: &BTreeSet<Place>,
        lost: &BTreeSet<Place>,
    ) -> bool {
        let missed = |(of, id): &Place| of == room && gap.from < *id && *id <= gap.to && !view.seen.contains(id);
        if existed.iter().any(missed) || self.log.keys().any(missed) || self.forged.iter().any(missed) {
            return true;
        }
        if LIMITS.contains(&gap.reason.as_str()) {
            return self.may_have_been_lost(room);
        }
        // What it has seen is not there any more; or what nobody saw may have been.
        lost.iter().chain(&self.forged).any(|(of, id)| of == room && *id > start && *id <= gap.to)
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

/// What one subscriber saw of one room.
struct View {
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
    fn covers(&self, id: EventId) -> bool {
        id <= self.to && (id > self.from || WHOLE_PAST.contains(&self.reason.as_str()))
    }
}

impl View {
    fn of(record: &Record, room: &str, start: EventId, who: &str) -> Self {
        let (mut position, mut view) = (start, Self { seen: BTreeSet::new(), gaps: Vec::new() });
        for told in &record.told {
            match told {
                Told::Event { room: of, id, .. } if of == room => {
                    assert!(*id > position, "{who}: {id} came after {position}");
                    position = *id;
                    view.seen.insert(*id);
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
