//! Watermarks: the highest ids, by epoch, that this replica has appended, seen or given out in each recent topic. Every
//! call about a log carries them, so that a server that has lost one of them notices it in that call.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::names::{EventId, Topic};

/// Most topics of a segment. Two segments are kept.
const SEGMENT_TOPICS: usize = 50_000;
/// Longest time until the next segment begins. A topic is kept for one to two of these after its last use.
const SEGMENT_AGE: Duration = Duration::from_mins(5);
/// Most epochs that are kept of a topic: the newest.
const KEPT_EPOCHS: usize = 8;

/// Shortest time between two calls about a topic that carry unverified ids: each of them may begin an epoch. While
/// commands and announcements come from different servers, every announcement is unverified.
const UNVERIFIED_PAUSE: Duration = Duration::from_secs(1);

/// The watermarks of all recent topics. They are kept in two segments: a topic that is used moves to the younger
/// one, and the older one is dropped as a whole.
#[derive(Default)]
pub struct Watermarks(Mutex<Segments>);

struct Segments {
    young: HashMap<Topic, TopicWatermarks>,
    old: HashMap<Topic, TopicWatermarks>,
    born: Instant,
}

#[derive(Default)]
struct TopicWatermarks {
    /// The highest id of each epoch, in rising order.
    ids: Vec<EventId>,
    /// Ids of announcements that were not expected; they join `ids` when they may be sent.
    unverified: Vec<EventId>,
    /// When unverified ids were sent last.
    unverified_sent: Option<Instant>,
}

impl TopicWatermarks {
    fn unverified_wait(&self) -> Duration {
        self.unverified_sent.map_or(Duration::ZERO, |at| UNVERIFIED_PAUSE.saturating_sub(at.elapsed()))
    }
}

impl Default for Segments {
    fn default() -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), born: Instant::now() }
    }
}

impl Segments {
    fn touch(&mut self, topic: &Topic) -> &mut TopicWatermarks {
        if self.young.len() >= SEGMENT_TOPICS || self.born.elapsed() >= SEGMENT_AGE {
            self.old = std::mem::take(&mut self.young);
            self.born = Instant::now();
        }
        let Self { young, old, .. } = self;
        young.entry(topic.clone()).or_insert_with(|| old.remove(topic).unwrap_or_default())
    }
}

impl Watermarks {
    /// The watermarks to send with a call about a topic. Unverified ids become part of them once their pause is over.
    pub fn take_for_call(&self, topic: &Topic) -> Vec<EventId> {
        let mut segments = self.segments();
        let Segments { young, old, .. } = &mut *segments;
        let Some(watermarks) = young.get_mut(topic).or_else(|| old.get_mut(topic)) else { return Vec::new() };
        if !watermarks.unverified.is_empty() && watermarks.unverified_wait().is_zero() {
            watermarks.unverified_sent = Some(Instant::now());
            for id in std::mem::take(&mut watermarks.unverified) {
                raise(&mut watermarks.ids, id);
            }
        }
        watermarks.ids.clone()
    }

    /// Adds an id that was appended, read, or announced as expected.
    pub fn add(&self, topic: &Topic, id: EventId) {
        raise(&mut self.segments().touch(topic).ids, id);
    }

    /// Adds an id of an announcement that was not expected, and that may be forged or from another server.
    pub fn add_unverified(&self, topic: &Topic, id: EventId) {
        raise(&mut self.segments().touch(topic).unverified, id);
    }

    /// How long the unverified ids of a topic have to wait. `None` if there are none.
    pub fn unverified_wait(&self, topic: &Topic) -> Option<Duration> {
        let segments = self.segments();
        let watermarks = segments.young.get(topic).or_else(|| segments.old.get(topic))?;
        (!watermarks.unverified.is_empty()).then(|| watermarks.unverified_wait())
    }

    /// Counts as a use of a topic, if the topic has watermarks.
    pub fn keep(&self, topic: &Topic) {
        let mut segments = self.segments();
        if segments.young.contains_key(topic) || segments.old.contains_key(topic) {
            segments.touch(topic);
        }
    }

    /// The topics that have watermarks.
    pub fn topics(&self) -> Vec<Topic> {
        let segments = self.segments();
        segments.young.keys().chain(segments.old.keys()).cloned().collect()
    }

    fn segments(&self) -> MutexGuard<'_, Segments> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

/// Raises the highest id of an epoch, or adds the epoch. Only the newest epochs stay.
fn raise(ids: &mut Vec<EventId>, id: EventId) {
    match ids.binary_search_by_key(&id.epoch, |highest| highest.epoch) {
        Ok(index) => ids[index] = ids[index].max(id),
        Err(index) => {
            ids.insert(index, id);
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
    fn the_highest_id_of_each_epoch_is_kept_and_the_oldest_epochs_are_dropped() {
        let (watermarks, topic) = (Watermarks::default(), topic("a"));
        watermarks.add(&topic, EventId::new(1, 2));
        watermarks.add(&topic, EventId::new(1, 1));
        assert_eq!(watermarks.take_for_call(&topic), [EventId::new(1, 2)]);
        for epoch in (2..=10).rev() {
            watermarks.add(&topic, EventId::new(epoch, 1));
        }
        let epochs: Vec<_> = watermarks.take_for_call(&topic).iter().map(|id| id.epoch).collect();
        assert_eq!(epochs, [3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn the_number_of_topics_is_limited_and_the_last_used_stay() {
        let watermarks = Watermarks::default();
        let name = |n: usize| topic(&n.to_string());
        for n in 0..3 * SEGMENT_TOPICS {
            watermarks.add(&name(n), EventId::new(1, 1));
        }
        assert!(watermarks.topics().len() <= 2 * SEGMENT_TOPICS);
        assert_eq!(watermarks.take_for_call(&name(0)), []);
        assert_eq!(watermarks.take_for_call(&name(3 * SEGMENT_TOPICS - 1)), [EventId::new(1, 1)]);
    }

    #[test]
    fn unverified_ids_are_sent_at_once_and_then_not_for_a_while() {
        let (watermarks, topic) = (Watermarks::default(), topic("a"));
        watermarks.add_unverified(&topic, EventId::new(1, 1));
        assert_eq!(watermarks.unverified_wait(&topic), Some(Duration::ZERO));
        assert_eq!(watermarks.take_for_call(&topic), [EventId::new(1, 1)]);
        assert_eq!(watermarks.unverified_wait(&topic), None);
        for epoch in 2..6 {
            watermarks.add_unverified(&topic, EventId::new(epoch, 1));
        }
        assert_eq!(watermarks.take_for_call(&topic), [EventId::new(1, 1)]);
        assert!(watermarks.unverified_wait(&topic).is_some_and(|wait| wait > Duration::ZERO));
    }
}
