//! Watermarks: the highest ids, by epoch, that this replica has appended, seen or given out in each recent topic. Every
//! call about a log carries them, so that a server that has lost one of them notices it in that call.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::names::{EventId, Topic};
use crate::rate_limit::RateKey;

/// Longest time until the next segment begins. A topic is kept for one to two of these after its last use.
const SEGMENT_AGE: Duration = Duration::from_mins(5);
/// Memory that a segment of written topics may take, in bytes. Appends to more topics are refused: what a replica has
/// acknowledged it does not forget. The topics of one caller take as much as they leave free, so that there is room for
/// those of one more caller.
const WRITTEN_BYTES: usize = 64 * 1024 * 1024;
/// Memory that a segment of topics that were only read may take, in bytes. More topics displace the oldest.
const READ_BYTES: usize = 8 * 1024 * 1024;
/// Memory that a topic takes beside its name, with the ids of two epochs.
const TOPIC_BYTES: usize = 192;
/// Memory that the count of a caller takes.
const CALLER_BYTES: usize = 512;
/// Most epochs that are kept of a topic: the newest.
const KEPT_EPOCHS: usize = 8;

/// Shortest time between two calls about a topic that carry unverified ids: each of them may begin an epoch. While
/// commands and announcements come from different servers, every announcement is unverified.
const UNVERIFIED_PAUSE: Duration = Duration::from_secs(1);

/// The watermarks of all recent topics.
#[derive(Default)]
pub struct Watermarks(Mutex<Stores>);

/// A topic may be in several stores: all its ids count.
struct Stores {
    /// Topics that are live on this replica. Kept as long as they are.
    live: HashMap<Topic, TopicWatermarks>,
    /// Topics that this replica has appended to, or whose events it has seen while they were live.
    written: Segments,
    /// Other topics that this replica has read.
    read: Segments,
}

/// Topics by their last use, in two segments: a topic that is used moves to the younger one, and the older one is
/// dropped as a whole.
struct Segments {
    young: HashMap<Topic, TopicWatermarks>,
    old: HashMap<Topic, TopicWatermarks>,
    born: Instant,
    /// Memory of the younger segment.
    bytes: usize,
    /// Memory of the topics in it that each caller has appended to first.
    callers: HashMap<RateKey, usize>,
    max_bytes: usize,
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

impl Default for Stores {
    fn default() -> Self {
        Self { live: HashMap::new(), written: Segments::new(WRITTEN_BYTES), read: Segments::new(READ_BYTES) }
    }
}

impl Stores {
    fn of_topic(&mut self, topic: &Topic) -> impl Iterator<Item = &mut TopicWatermarks> {
        let Self { live, written, read } = self;
        let recent = [&mut written.young, &mut written.old, &mut read.young, &mut read.old];
        [live].into_iter().chain(recent).filter_map(|topics| topics.get_mut(topic))
    }

    /// All ids of a topic. Unverified ones become part of them once their pause is over.
    fn take(&mut self, topic: &Topic) -> Vec<EventId> {
        let mut ids = Vec::new();
        for watermarks in self.of_topic(topic) {
            if !watermarks.unverified.is_empty() && watermarks.unverified_wait().is_zero() {
                watermarks.unverified_sent = Some(Instant::now());
                for id in std::mem::take(&mut watermarks.unverified) {
                    raise(&mut watermarks.ids, id);
                }
            }
            if ids.is_empty() {
                ids.clone_from(&watermarks.ids);
            } else {
                watermarks.ids.iter().for_each(|id| raise(&mut ids, *id));
            }
        }
        ids
    }
}

impl Segments {
    fn new(max_bytes: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            born: Instant::now(),
            bytes: 0,
            callers: HashMap::new(),
            max_bytes,
        }
    }

    fn contains(&self, topic: &Topic) -> bool {
        self.young.contains_key(topic) || self.old.contains_key(topic)
    }

    fn is_full(&self) -> bool {
        self.bytes >= self.max_bytes
    }

    fn begin(&mut self) {
        self.old = std::mem::take(&mut self.young);
        self.callers.clear();
        (self.born, self.bytes) = (Instant::now(), 0);
    }

    fn begin_if_due(&mut self) {
        if self.born.elapsed() >= SEGMENT_AGE {
            self.begin();
        }
    }

    fn touch(&mut self, topic: &Topic) -> &mut TopicWatermarks {
        self.begin_if_due();
        let Self { young, old, bytes, .. } = self;
        young.entry(topic.clone()).or_insert_with(|| {
            *bytes += topic_bytes(topic);
            old.remove(topic).unwrap_or_default()
        })
    }

    /// Like [`Self::touch`]; a topic that was not in the younger segment counts for the caller.
    fn touch_for(&mut self, topic: &Topic, caller: &RateKey) -> &mut TopicWatermarks {
        self.begin_if_due();
        if !self.young.contains_key(topic) {
            let of_caller = self.callers.entry(caller.clone()).or_insert_with(|| {
                self.bytes += CALLER_BYTES;
                0
            });
            *of_caller += topic_bytes(topic);
        }
        self.touch(topic)
    }

    /// Whether a further topic may count for the caller.
    fn has_room_for(&self, topic: &Topic, caller: &RateKey) -> bool {
        let of_caller = self.callers.get(caller).copied().unwrap_or_default();
        of_caller + topic_bytes(topic) <= self.max_bytes.saturating_sub(self.bytes)
    }

    /// Like [`Self::touch`]; a topic for which there is no room displaces the older segment.
    fn touch_or_displace(&mut self, topic: &Topic) -> &mut TopicWatermarks {
        if self.is_full() && !self.young.contains_key(topic) {
            self.begin();
        }
        self.touch(topic)
    }
}

impl Watermarks {
    /// The watermarks to send with a call about a topic. Unverified ids become part of them once their pause is over.
    pub fn take_for_call(&self, topic: &Topic) -> Vec<EventId> {
        self.stores().take(topic)
    }

    /// Like [`Self::take_for_call`], for an append of a caller. Fails if the id of the event could not be kept, with the
    /// time until it can be.
    pub fn take_for_append(&self, topic: &Topic, caller: &RateKey) -> Result<Vec<EventId>, Duration> {
        let mut stores = self.stores();
        let written = &mut stores.written;
        written.begin_if_due();
        if written.contains(topic) || written.has_room_for(topic, caller) {
            return Ok(stores.take(topic));
        }
        Err(SEGMENT_AGE.saturating_sub(written.born.elapsed()))
    }

    /// Adds the id of an event that this replica has appended for a caller.
    pub fn add_appended(&self, topic: &Topic, id: EventId, caller: &RateKey) {
        raise(&mut self.stores().written.touch_for(topic, caller).ids, id);
    }

    /// The memory that recently written topics take, in bytes. They may take [`WRITTEN_BYTES`].
    pub fn written_bytes(&self) -> usize {
        let written = &mut self.stores().written;
        written.begin_if_due();
        written.bytes
    }

    /// Adds an id that was read, or announced as expected.
    pub fn add(&self, topic: &Topic, id: EventId) {
        let mut stores = self.stores();
        let Stores { live, written, read } = &mut *stores;
        let watermarks = match live.get_mut(topic) {
            Some(watermarks) => watermarks,
            None if written.contains(topic) => written.touch(topic),
            None => read.touch_or_displace(topic),
        };
        raise(&mut watermarks.ids, id);
    }

    /// Adds an id of an announcement that was not expected, and that may be forged or from another server. Only live
    /// topics have announcements.
    pub fn add_unverified(&self, topic: &Topic, id: EventId) {
        if let Some(watermarks) = self.stores().live.get_mut(topic) {
            raise(&mut watermarks.unverified, id);
        }
    }

    /// How long the unverified ids of a topic have to wait. `None` if there are none.
    pub fn unverified_wait(&self, topic: &Topic) -> Option<Duration> {
        let mut stores = self.stores();
        let with_unverified = stores.of_topic(topic).filter(|watermarks| !watermarks.unverified.is_empty());
        with_unverified.map(|watermarks| watermarks.unverified_wait()).min()
    }

    /// Keeps the watermarks of a topic that is live from now on until [`Self::release`].
    pub fn hold(&self, topic: &Topic) {
        self.stores().live.entry(topic.clone()).or_default();
    }

    /// The topic is not live any more. If events were seen in it, and if there is room for it, it counts as written.
    pub fn release(&self, topic: &Topic) {
        let mut stores = self.stores();
        let Stores { live, written, read } = &mut *stores;
        let Some(released) = live.remove(topic) else { return };
        let has_events = released.ids.iter().any(|id| id.offset > 0);
        // Readers may take half of the room, so that they can't keep publishers out.
        let is_written = has_events && (written.bytes < written.max_bytes / 2 || written.contains(topic));
        let kept = if is_written { written.touch(topic) } else { read.touch_or_displace(topic) };
        released.ids.into_iter().for_each(|id| raise(&mut kept.ids, id));
        released.unverified.into_iter().for_each(|id| raise(&mut kept.unverified, id));
    }

    /// The topics in which this replica knows of events.
    pub fn topics_with_events(&self) -> Vec<Topic> {
        let stores = self.stores();
        let Stores { live, written, read } = &*stores;
        let all = [live, &written.young, &written.old, &read.young, &read.old].into_iter().flatten();
        let has_events = |watermarks: &TopicWatermarks| watermarks.ids.iter().any(|id| id.offset > 0);
        let topics: HashSet<_> =
            all.filter(|(_, watermarks)| has_events(watermarks)).map(|(topic, _)| topic).collect();
        topics.into_iter().cloned().collect()
    }

    fn stores(&self) -> MutexGuard<'_, Stores> {
        self.0.lock().expect("no holder of the lock panics")
    }
}

/// The memory that a topic takes.
fn topic_bytes(topic: &Topic) -> usize {
    topic.name().len() + TOPIC_BYTES
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

    fn caller(subject: &str) -> RateKey {
        RateKey::Subject(subject.into())
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
    fn topics_that_are_only_read_displace_each_other_and_nothing_else() {
        let watermarks = Watermarks::default();
        let (event, name) = (EventId::new(1, 1), |n: usize| topic(&n.to_string()));
        watermarks.add_appended(&topic("written"), event, &caller("ann"));
        watermarks.hold(&topic("live"));
        watermarks.add(&topic("live"), event);
        watermarks.hold(&topic("closed"));
        watermarks.add(&topic("closed"), event);
        watermarks.release(&topic("closed"));
        let count = 3 * READ_BYTES / TOPIC_BYTES;
        for n in 0..count {
            watermarks.add(&name(n), event);
        }
        for kept in ["written", "live", "closed"] {
            assert_eq!(watermarks.take_for_call(&topic(kept)), [event], "{kept}");
        }
        assert_eq!(watermarks.take_for_call(&name(0)), []);
        assert_eq!(watermarks.take_for_call(&name(count - 1)), [event]);
        assert!(watermarks.topics_with_events().len() < count);
    }

    /// Appends to further topics until there is no room for another one. Returns their number.
    fn fill(watermarks: &Watermarks, prefix: &str, caller: &RateKey) -> usize {
        let mut count = 0;
        while watermarks.take_for_append(&topic(&format!("{prefix}{count}")), caller).is_ok() {
            watermarks.add_appended(&topic(&format!("{prefix}{count}")), EventId::new(1, 1), caller);
            count += 1;
        }
        count
    }

    #[test]
    fn appends_to_more_topics_than_can_be_kept_are_refused() {
        let watermarks = Watermarks::default();
        let (ann, bob) = (caller("ann"), caller("bob"));
        let count = fill(&watermarks, "a", &ann);
        assert!(count > 150_000, "{count} topics with short names");
        assert!(watermarks.take_for_append(&topic("a0"), &ann).is_ok(), "a topic that is kept takes no more room");
        // The one caller has left as much to the others as it has, and so have the others.
        let others = fill(&watermarks, "b", &bob);
        assert!(others > count / 3, "{others} topics after {count}");
        for n in 0..100 {
            assert!(watermarks.take_for_append(&topic("new"), &caller(&n.to_string())).is_ok());
        }
        // Readers are not refused, and displace nothing.
        watermarks.hold(&topic("other"));
        watermarks.add(&topic("other"), EventId::new(1, 1));
        watermarks.release(&topic("other"));
        assert_eq!(watermarks.take_for_call(&topic("a0")), [EventId::new(1, 1)]);
        assert_eq!(watermarks.take_for_call(&topic("other")), [EventId::new(1, 1)]);
    }

    #[test]
    fn unverified_ids_are_sent_at_once_and_then_not_for_a_while() {
        let (watermarks, topic) = (Watermarks::default(), topic("a"));
        watermarks.hold(&topic);
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
