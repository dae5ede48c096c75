//! The ring against a plain list: whatever is pushed, dropped and cleared, it says what the list says.

use proptest::prelude::*;

use super::{Ring, RingLimits};
use crate::cache::CachedEvent;
use crate::log::{EpochHistory, Head, Next, StepContext};
use crate::names::EventId;

/// An event; its content tells two of one id apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sample {
    pub id: EventId,
    pub bytes: usize,
    pub content: u32,
}

impl CachedEvent for Sample {
    fn id(&self) -> EventId {
        self.id
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

/// What a log's past is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// An epoch begins, and nothing was lost.
    Seam(u64),
    /// An epoch begins, and what came before it is not complete.
    Loss(u64),
    Event(EventId),
}

/// A log's past as a plain list.
#[derive(Clone, Debug)]
pub(crate) struct Past(pub Vec<Item>);

impl Past {
    /// What comes after a position; none if the log does not know it.
    pub fn after(&self, position: EventId) -> Option<&[Item]> {
        let stands = |item: &Item| match *item {
            Item::Seam(epoch) | Item::Loss(epoch) => position == EventId::start_of(epoch),
            Item::Event(id) => position == id,
        };
        self.0.iter().position(stands).map(|at| &self.0[at + 1..])
    }

    pub fn end(&self) -> EventId {
        match *self.0.last().unwrap() {
            Item::Seam(epoch) | Item::Loss(epoch) => EventId::start_of(epoch),
            Item::Event(id) => id,
        }
    }

    pub fn has(&self, id: EventId) -> bool {
        self.0.contains(&Item::Event(id))
    }
}

/// What a reader is to be told, if only `held` is at hand.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Events(Vec<Sample>),
    Nothing,
    /// Something else than an event at hand comes next.
    Else,
}

pub(crate) fn told(past: &Past, held: &[Sample], position: EventId, most_bytes: usize) -> Told {
    let (mut events, mut bytes) = (Vec::new(), 0);
    let Some(rest) = past.after(position) else { return Told::Else };
    let mut rest = rest.iter().filter(|item| !matches!(item, Item::Seam(_)));
    loop {
        match rest.next() {
            None if events.is_empty() => return Told::Nothing,
            Some(Item::Event(id)) if bytes < most_bytes => match held.iter().find(|event| event.id == *id) {
                Some(event) => {
                    events.push(*event);
                    bytes += event.bytes;
                }
                None if events.is_empty() => return Told::Else,
                None => return Told::Events(events),
            },
            _ if events.is_empty() => return Told::Else,
            _ => return Told::Events(events),
        }
    }
}

/// Keeps the newest within the limits; a single event whatever its size.
pub(crate) fn keep_newest(held: &mut Vec<Sample>, limits: RingLimits) {
    let bytes = |held: &[Sample]| held.iter().map(|event| event.bytes).sum::<usize>();
    while held.len() > limits.events || (held.len() > 1 && bytes(held) > limits.bytes) {
        held.remove(0);
    }
}

/// A log on a server that restarts, and loses what it had not saved. The history is made by the rules, the list by hand.
pub(crate) struct Server {
    head: Head,
    /// The head before each append of the present epoch.
    before: Vec<Head>,
    pub past: Past,
    pub log: Vec<Sample>,
    replication_id: u32,
    /// Every id that was ever given out.
    pub given_out: Vec<EventId>,
}

impl Server {
    pub fn new() -> Self {
        let (head, _) = Head::ensure_epoch(None, &[], moment("0", 10));
        let past = Past(vec![Item::Seam(10)]);
        Self { head, before: Vec::new(), past, log: Vec::new(), replication_id: 0, given_out: Vec::new() }
    }

    pub fn history(&self) -> &EpochHistory {
        &self.head.history
    }

    pub fn append(&mut self, bytes: usize) -> Sample {
        self.before.push(self.head.clone());
        let id = self.head.history.extend();
        let event = Sample { id, bytes, content: u32::try_from(self.given_out.len()).unwrap() };
        self.past.0.push(Item::Event(id));
        self.log.push(event);
        self.given_out.push(id);
        event
    }

    /// Comes back without its last events, at most those of its newest epoch.
    pub fn restart(&mut self, lost: usize) {
        let lost = lost.min(self.before.len());
        let watermarks: Vec<_> =
            self.before.last().filter(|_| lost > 0).map(|_| self.past.end()).into_iter().collect();
        if lost > 0 {
            self.head = self.before[self.before.len() - lost].clone();
            self.past.0.truncate(self.past.0.len() - lost);
            self.log.retain(|event| self.past.has(event.id));
        }
        self.replication_id += 1;
        let time = 10 * (1 + u64::from(self.replication_id));
        (self.head, _) = Head::ensure_epoch(
            Some(self.head.clone()),
            &watermarks,
            moment(&self.replication_id.to_string(), time),
        );
        assert_eq!(self.head.history.newest().epoch, time);
        self.past.0.push(if lost > 0 { Item::Loss(time) } else { Item::Seam(time) });
        self.before.clear();
    }

    /// A replica that knows this position begins a read.
    pub fn ensure_epoch(&mut self, watermarks: Option<EventId>) {
        let (replication_id, time) = (self.replication_id.to_string(), self.head.history.newest().epoch + 1);
        let watermarks: Vec<_> = watermarks.into_iter().collect();
        let begun;
        (self.head, begun) =
            Head::ensure_epoch(Some(self.head.clone()), &watermarks, moment(&replication_id, time));
        if begun {
            self.past.0.push(Item::Loss(time));
            self.before.clear();
        }
    }

    /// Every position that there is, that there was, and some that there never were.
    pub fn positions(&self) -> Vec<EventId> {
        let mut positions = vec![EventId::start_of(1), EventId::new(15, 1), EventId::new(9999, 3)];
        for epoch in self.head.history.epochs() {
            positions.extend((0..=epoch.end + 2).map(|offset| EventId::new(epoch.epoch, offset)));
        }
        positions.extend(&self.given_out);
        positions
    }
}

fn moment(replication_id: &str, time: u64) -> StepContext<'_> {
    StepContext { replication_id, time, random: 0, oldest: None }
}

fn after(ring: &Ring<Sample>, history: &EpochHistory, position: EventId, most_bytes: usize) -> Told {
    match ring.after(history, position, None, most_bytes) {
        Ok(events) => Told::Events(events),
        Err(Next::Nothing) => Told::Nothing,
        Err(Next::Event(_) | Next::Gap(_)) => Told::Else,
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Append(usize),
    Restart(usize),
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0..40usize).prop_map(Step::Append),
        1 => (0..4usize).prop_map(Step::Restart),
        1 => Just(Step::Clear),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn a_ring_says_what_a_plain_list_says(
        steps in steps(), events in 1..8usize, bytes in 0..120usize, most_bytes in 1..100usize
    ) {
        let limits = RingLimits { events, bytes };
        let (mut server, mut ring, mut held) = (Server::new(), Ring::new(limits), Vec::new());
        for step in steps {
            match step {
                Step::Append(bytes) => {
                    let event = server.append(bytes);
                    ring.push(event);
                    held.push(event);
                    keep_newest(&mut held, limits);
                }
                Step::Restart(lost) => {
                    server.restart(lost);
                    ring.keep_only(server.history());
                    held.retain(|event| server.past.has(event.id));
                }
                Step::Clear => {
                    ring.clear();
                    held.clear();
                }
            }
            prop_assert_eq!(ring.last(), held.last().map(|event| event.id));
            prop_assert_eq!(ring.bytes, held.iter().map(|event| event.bytes).sum::<usize>());
            prop_assert!(ring.events.len() <= limits.events);
            prop_assert!(ring.bytes <= limits.bytes || ring.events.len() == 1);
            for position in server.positions() {
                for most_bytes in [most_bytes, usize::MAX] {
                    let said = after(&ring, server.history(), position, most_bytes);
                    prop_assert_eq!(said, told(&server.past, &held, position, most_bytes), "after {}", position);
                }
                prop_assert_eq!(ring.event(position), held.iter().find(|event| event.id == position));
            }
        }
    }
}
