//! The highest ids, by epoch, that this replica has appended, seen or told in each recent room. They go with every step, so
//! that a server which has lost one of them is found out in that very step.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::room::{EventId, RoomName};

/// Rooms in a generation; two are kept.
const GENERATION_ROOMS: usize = 50_000;
/// A generation's age. A room is remembered for one to two of them after it was last touched.
const GENERATION_AGE: Duration = Duration::from_mins(5);
/// Epochs remembered of a room, the newest.
const KEPT_EPOCHS: usize = 8;

/// Pause between foreign ids of one room that are passed on: each may begin an epoch. While commands and announcements
/// come from different servers, every announcement is foreign.
const FOREIGN_PAUSE: Duration = Duration::from_secs(1);

/// Ids by room, in two generations: the older one is dropped as a whole, and what is touched moves to the younger.
#[derive(Default)]
pub(super) struct KnownIds(Mutex<Generations>);

struct Generations {
    young: HashMap<RoomName, Known>,
    old: HashMap<RoomName, Known>,
    born: Instant,
}

#[derive(Default)]
struct Known {
    /// The highest of each epoch, in rising order.
    ids: Vec<EventId>,
    /// Heard, and not what was expected; they wait until they may be passed on.
    foreign: Vec<EventId>,
    /// When foreign ids were passed on last.
    passed_on: Option<Instant>,
}

impl Known {
    fn wait(&self) -> Duration {
        self.passed_on.map_or(Duration::ZERO, |at| FOREIGN_PAUSE.saturating_sub(at.elapsed()))
    }
}

impl Default for Generations {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), born: Instant::now() }
    }
}

impl Generations {
    fn touch(&mut self, room: &RoomName) -> &mut Known {
        if self.young.len() >= GENERATION_ROOMS || self.born.elapsed() >= GENERATION_AGE {
            self.old = std::mem::take(&mut self.young);
            self.born = Instant::now();
        }
        let Self { young, old, .. } = self;
        young.entry(room.clone()).or_insert_with(|| old.remove(room).unwrap_or_default())
    }
}

impl KnownIds {
    /// What a step has to carry.
    pub(super) fn of(&self, room: &RoomName) -> Vec<EventId> {
        let mut generations = self.generations();
        let Generations { young, old, .. } = &mut *generations;
        let Some(known) = young.get_mut(room).or_else(|| old.get_mut(room)) else { return Vec::new() };
        if !known.foreign.is_empty() && known.wait().is_zero() {
            known.passed_on = Some(Instant::now());
            for id in std::mem::take(&mut known.foreign) {
                raise(&mut known.ids, id);
            }
        }
        known.ids.clone()
    }

    /// An id that was appended, told, or expected.
    pub(super) fn add(&self, room: &RoomName, id: EventId) {
        raise(&mut self.generations().touch(room).ids, id);
    }

    /// An id that was announced, and is not what was expected.
    pub(super) fn add_foreign(&self, room: &RoomName, id: EventId) {
        raise(&mut self.generations().touch(room).foreign, id);
    }

    /// How long foreign ids of the room still have to wait; nothing if there are none.
    pub(super) fn foreign_wait(&self, room: &RoomName) -> Option<Duration> {
        let generations = self.generations();
        let known = generations.young.get(room).or_else(|| generations.old.get(room))?;
        (!known.foreign.is_empty()).then(|| known.wait())
    }

    /// Remembers the room for longer, if it is known.
    pub(super) fn keep(&self, room: &RoomName) {
        let mut generations = self.generations();
        if generations.young.contains_key(room) || generations.old.contains_key(room) {
            generations.touch(room);
        }
    }

    pub(super) fn rooms(&self) -> Vec<RoomName> {
        let generations = self.generations();
        generations.young.keys().chain(generations.old.keys()).cloned().collect()
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

/// Keeps the highest id of each epoch, and the newest epochs.
fn raise(ids: &mut Vec<EventId>, id: EventId) {
    match ids.binary_search_by_key(&id.epoch, |known| known.epoch) {
        Ok(at) => ids[at] = ids[at].max(id),
        Err(at) => {
            ids.insert(at, id);
            if ids.len() > KEPT_EPOCHS {
                ids.remove(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_id_of_each_epoch_is_known_and_the_oldest_epochs_are_forgotten() {
        let (known, room) = (KnownIds::default(), RoomName::new("a").unwrap());
        known.add(&room, EventId::new(1, 2));
        known.add(&room, EventId::new(1, 1));
        assert_eq!(known.of(&room), [EventId::new(1, 2)]);
        for epoch in (2..=10).rev() {
            known.add(&room, EventId::new(epoch, 1));
        }
        let epochs: Vec<_> = known.of(&room).iter().map(|id| id.epoch).collect();
        assert_eq!(epochs, [3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn memory_is_bounded_and_what_was_touched_last_stays() {
        let known = KnownIds::default();
        let name = |n: usize| RoomName::new(&n.to_string()).unwrap();
        for n in 0..3 * GENERATION_ROOMS {
            known.add(&name(n), EventId::new(1, 1));
        }
        assert!(known.rooms().len() <= 2 * GENERATION_ROOMS);
        assert_eq!(known.of(&name(0)), []);
        assert_eq!(known.of(&name(3 * GENERATION_ROOMS - 1)), [EventId::new(1, 1)]);
    }

    #[test]
    fn foreign_ids_are_passed_on_at_once_and_then_not_for_a_while() {
        let (known, room) = (KnownIds::default(), RoomName::new("a").unwrap());
        known.add_foreign(&room, EventId::new(1, 1));
        assert_eq!(known.foreign_wait(&room), Some(Duration::ZERO));
        assert_eq!(known.of(&room), [EventId::new(1, 1)]);
        assert_eq!(known.foreign_wait(&room), None);
        for epoch in 2..6 {
            known.add_foreign(&room, EventId::new(epoch, 1));
        }
        assert_eq!(known.of(&room), [EventId::new(1, 1)]);
        assert!(known.foreign_wait(&room).is_some_and(|wait| wait > Duration::ZERO));
    }
}
