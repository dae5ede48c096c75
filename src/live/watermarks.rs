//! The highest ids, by epoch, that this replica has appended, seen or told in each recent topic. They go with every step, so
//! that a server which has lost one of them is found out in that very step.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::names::{EventId, Topic};

/// Rooms in a generation; two are kept.
const GENERATION_TOPICS: usize = 50_000;
/// A generation's age. A topic is remembered for one to two of them after it was last touched.
const GENERATION_AGE: Duration = Duration::from_mins(5);
/// Epochs remembered of a topic, the newest.
const KEPT_EPOCHS: usize = 8;

/// Pause between unverified ids of one topic that are passed on: each may begin an epoch. While commands and announcements
/// come from different servers, every announcement is unverified.
const UNVERIFIED_PAUSE: Duration = Duration::from_secs(1);

/// Ids by topic, in two generations: the older one is dropped as a whole, and what is touched moves to the younger.
#[derive(Default)]
pub struct Watermarks(Mutex<Generations>);

struct Generations {
    young: HashMap<Topic, TopicWatermarks>,
    old: HashMap<Topic, TopicWatermarks>,
    born: Instant,
}

#[derive(Default)]
struct TopicWatermarks {
    /// The highest of each epoch, in rising order.
    ids: Vec<EventId>,
    /// Heard, and not what was expected; they wait until they may be passed on.
    unverified: Vec<EventId>,
    /// When unverified ids were passed on last.
    passed_on: Option<Instant>,
}

impl TopicWatermarks {
    fn wait(&self) -> Duration {
        self.passed_on.map_or(Duration::ZERO, |at| UNVERIFIED_PAUSE.saturating_sub(at.elapsed()))
    }
}

impl Default for Generations {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), born: Instant::now() }
    }
}

impl Generations {
    fn touch(&mut self, topic: &Topic) -> &mut TopicWatermarks {
        if self.young.len() >= GENERATION_TOPICS || self.born.elapsed() >= GENERATION_AGE {
            self.old = std::mem::take(&mut self.young);
            self.born = Instant::now();
        }
        let Self { young, old, .. } = self;
        young.entry(topic.clone()).or_insert_with(|| old.remove(topic).unwrap_or_default())
    }
}

impl Watermarks {
    /// What a step has to carry.
    pub fn get(&self, topic: &Topic) -> Vec<EventId> {
        let mut generations = self.generations();
        let Generations { young, old, .. } = &mut *generations;
        let Some(watermarks) = young.get_mut(topic).or_else(|| old.get_mut(topic)) else { return Vec::new() };
        if !watermarks.unverified.is_empty() && watermarks.wait().is_zero() {
            watermarks.passed_on = Some(Instant::now());
            for id in std::mem::take(&mut watermarks.unverified) {
                raise(&mut watermarks.ids, id);
            }
        }
        watermarks.ids.clone()
    }

    /// An id that was appended, told, or expected.
    pub fn add(&self, topic: &Topic, id: EventId) {
        raise(&mut self.generations().touch(topic).ids, id);
    }

    /// An id that was announced, and is not what was expected.
    pub fn add_unverified(&self, topic: &Topic, id: EventId) {
        raise(&mut self.generations().touch(topic).unverified, id);
    }

    /// How long unverified ids of the topic still have to wait; nothing if there are none.
    pub fn unverified_wait(&self, topic: &Topic) -> Option<Duration> {
        let generations = self.generations();
        let watermarks = generations.young.get(topic).or_else(|| generations.old.get(topic))?;
        (!watermarks.unverified.is_empty()).then(|| watermarks.wait())
    }

    /// Remembers the topic for longer, if it is known.
    pub fn keep(&self, topic: &Topic) {
        let mut generations = self.generations();
        if generations.young.contains_key(topic) || generations.old.contains_key(topic) {
            generations.touch(topic);
        }
    }

    pub fn topics(&self) -> Vec<Topic> {
        let generations = self.generations();
        generations.young.keys().chain(generations.old.keys()).cloned().collect()
    }

    fn generations(&self) -> MutexGuard<'_, Generations> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

/// Keeps the highest id of each epoch, and the newest epochs.
fn raise(ids: &mut Vec<EventId>, id: EventId) {
    match ids.binary_search_by_key(&id.epoch, |watermarks| watermarks.epoch) {
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
    use crate::names::RoomName;

    fn topic(name: &str) -> Topic {
        RoomName::new(name).unwrap().into()
    }

    #[test]
    fn the_highest_id_of_each_epoch_is_known_and_the_oldest_epochs_are_forgotten() {
        let (watermarks, topic) = (Watermarks::default(), topic("a"));
        watermarks.add(&topic, EventId::new(1, 2));
        watermarks.add(&topic, EventId::new(1, 1));
        assert_eq!(watermarks.get(&topic), [EventId::new(1, 2)]);
        for epoch in (2..=10).rev() {
            watermarks.add(&topic, EventId::new(epoch, 1));
        }
        let epochs: Vec<_> = watermarks.get(&topic).iter().map(|id| id.epoch).collect();
        assert_eq!(epochs, [3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn memory_is_bounded_and_what_was_touched_last_stays() {
        let watermarks = Watermarks::default();
        let name = |n: usize| topic(&n.to_string());
        for n in 0..3 * GENERATION_TOPICS {
            watermarks.add(&name(n), EventId::new(1, 1));
        }
        assert!(watermarks.topics().len() <= 2 * GENERATION_TOPICS);
        assert_eq!(watermarks.get(&name(0)), []);
        assert_eq!(watermarks.get(&name(3 * GENERATION_TOPICS - 1)), [EventId::new(1, 1)]);
    }

    #[test]
    fn foreign_ids_are_passed_on_at_once_and_then_not_for_a_while() {
        let (watermarks, topic) = (Watermarks::default(), topic("a"));
        watermarks.add_unverified(&topic, EventId::new(1, 1));
        assert_eq!(watermarks.unverified_wait(&topic), Some(Duration::ZERO));
        assert_eq!(watermarks.get(&topic), [EventId::new(1, 1)]);
        assert_eq!(watermarks.unverified_wait(&topic), None);
        for epoch in 2..6 {
            watermarks.add_unverified(&topic, EventId::new(epoch, 1));
        }
        assert_eq!(watermarks.get(&topic), [EventId::new(1, 1)]);
        assert!(watermarks.unverified_wait(&topic).is_some_and(|wait| wait > Duration::ZERO));
    }
}
