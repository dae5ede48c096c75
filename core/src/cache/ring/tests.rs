//! The ring against a plain list: whatever is pushed, dropped and cleared, both give the same answers.

use proptest::prelude::*;

use super::{Ring, RingLimits};
use crate::cache::CachedEvent;
use crate::log::{EpochHistory, Head, Next, StepContext};
use crate::names::EventId;

/// An event; two with the same id differ in their content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SampleEvent {
    pub id: EventId,
    pub bytes: usize,
    pub content: u32,
}

impl CachedEvent for SampleEvent {
    fn id(&self) -> EventId {
        self.id
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    fn last_message(&self) -> Option<EventId> {
        None
    }
}

/// An item of a [`PlainHistory`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PlainItem {
    /// An epoch begins, and no event before it was lost.
    EpochStart(u64),
    /// An epoch begins, and events before it were lost.
    Loss(u64),
    Event(EventId),
}

/// The history of a log as a plain list.
#[derive(Clone, Debug)]
pub(crate) struct PlainHistory(pub Vec<PlainItem>);

impl PlainHistory {
    /// The items after a position. `None` if the log does not have the position.
    pub fn after(&self, position: EventId) -> Option<&[PlainItem]> {
        let is_at_position = |item: &PlainItem| match *item {
            PlainItem::EpochStart(epoch) | PlainItem::Loss(epoch) => position == EventId::start_of(epoch),
            PlainItem::Event(id) => position == id,
        };
        self.0.iter().position(is_at_position).map(|index| &self.0[index + 1..])
    }

    pub fn end(&self) -> EventId {
        match *self.0.last().unwrap() {
            PlainItem::EpochStart(epoch) | PlainItem::Loss(epoch) => EventId::start_of(epoch),
            PlainItem::Event(id) => id,
        }
    }

    pub fn has(&self, id: EventId) -> bool {
        self.0.contains(&PlainItem::Event(id))
    }
}

/// The answer to a reader's question what follows its position.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Events(Vec<SampleEvent>),
    Nothing,
    /// Something other than an event that is held.
    Other,
}

/// The right answer, if only the events in `held` can be delivered.
pub(crate) fn expected_answer(
    history: &PlainHistory,
    held: &[SampleEvent],
    position: EventId,
    max_bytes: usize,
) -> Answer {
    let (mut events, mut bytes) = (Vec::new(), 0);
    let Some(rest) = history.after(position) else { return Answer::Other };
    let mut rest = rest.iter().filter(|item| !matches!(item, PlainItem::EpochStart(_)));
    loop {
        match rest.next() {
            None if events.is_empty() => return Answer::Nothing,
            Some(PlainItem::Event(id)) if bytes < max_bytes => match held.iter().find(|event| event.id == *id) {
                Some(event) => {
                    events.push(*event);
                    bytes += event.bytes;
                }
                None if events.is_empty() => return Answer::Other,
                None => return Answer::Events(events),
            },
            _ if events.is_empty() => return Answer::Other,
            _ => return Answer::Events(events),
        }
    }
}

/// Drops the oldest events that exceed the limits; a single event may exceed them.
pub(crate) fn keep_newest(held: &mut Vec<SampleEvent>, limits: RingLimits) {
    let bytes = |held: &[SampleEvent]| held.iter().map(|event| event.bytes).sum::<usize>();
    while held.len() > limits.events || (held.len() > 1 && bytes(held) > limits.bytes) {
        held.remove(0);
    }
}

/// A log on a server that restarts and may lose events that it has not saved. Its head follows the rules of the code,
/// and its history is kept as a plain list as well.
pub(crate) struct SampleServer {
    head: Head,
    /// The head before each append to the newest epoch.
    earlier_heads: Vec<Head>,
    pub history_list: PlainHistory,
    pub log: Vec<SampleEvent>,
    replication_id: u32,
    /// Every id that an event ever had.
    pub appended: Vec<EventId>,
}

impl SampleServer {
    pub fn new() -> Self {
        let (head, _) = Head::ensure_epoch(None, &[], context("0", 10));
        let history_list = PlainHistory(vec![PlainItem::EpochStart(10)]);
        let (earlier_heads, log, appended) = (Vec::new(), Vec::new(), Vec::new());
        Self { head, earlier_heads, history_list, log, replication_id: 0, appended }
    }

    pub fn history(&self) -> &EpochHistory {
        &self.head.history
    }

    pub fn append(&mut self, bytes: usize) -> SampleEvent {
        self.earlier_heads.push(self.head.clone());
        let id = self.head.history.extend();
        let event = SampleEvent { id, bytes, content: u32::try_from(self.appended.len()).unwrap() };
        self.history_list.0.push(PlainItem::Event(id));
        self.log.push(event);
        self.appended.push(id);
        event
    }

    /// Restarts without its last events: at most as many as `lost`, and only events of the newest epoch.
    pub fn restart(&mut self, lost: usize) {
        let lost = lost.min(self.earlier_heads.len());
        let watermarks: Vec<_> =
            self.earlier_heads.last().filter(|_| lost > 0).map(|_| self.history_list.end()).into_iter().collect();
        if lost > 0 {
            self.head = self.earlier_heads[self.earlier_heads.len() - lost].clone();
            self.history_list.0.truncate(self.history_list.0.len() - lost);
            self.log.retain(|event| self.history_list.has(event.id));
        }
        self.replication_id += 1;
        let time = 10 * (1 + u64::from(self.replication_id));
        (self.head, _) = Head::ensure_epoch(
            Some(self.head.clone()),
            &watermarks,
            context(&self.replication_id.to_string(), time),
        );
        assert_eq!(self.head.history.newest().number, time);
        self.history_list.0.push(if lost > 0 { PlainItem::Loss(time) } else { PlainItem::EpochStart(time) });
        self.earlier_heads.clear();
    }

    /// Begins a step of a replica that has this watermark.
    pub fn ensure_epoch(&mut self, watermark: Option<EventId>) {
        let (replication_id, time) = (self.replication_id.to_string(), self.head.history.newest().number + 1);
        let watermarks: Vec<_> = watermark.into_iter().collect();
        let has_begun;
        (self.head, has_begun) =
            Head::ensure_epoch(Some(self.head.clone()), &watermarks, context(&replication_id, time));
        if has_begun {
            self.history_list.0.push(PlainItem::Loss(time));
            self.earlier_heads.clear();
        }
    }

    /// Every position that the log has or once had, and some that it never had.
    pub fn positions(&self) -> Vec<EventId> {
        let mut positions = vec![EventId::start_of(1), EventId::new(15, 1), EventId::new(9999, 3)];
        for epoch in self.head.history.epochs() {
            positions.extend((0..=epoch.end + 2).map(|offset| EventId::new(epoch.number, offset)));
        }
        positions.extend(&self.appended);
        positions
    }
}

fn context(replication_id: &str, time: u64) -> StepContext<'_> {
    StepContext { replication_id, time, random: 0, oldest: None }
}

fn answer(ring: &Ring<SampleEvent>, history: &EpochHistory, position: EventId, max_bytes: usize) -> Answer {
    match ring.after(history, position, None, max_bytes) {
        Ok(events) => Answer::Events(events),
        Err(Next::Nothing) => Answer::Nothing,
        Err(Next::Event(_) | Next::Gap(_)) => Answer::Other,
    }
}

#[derive(Clone, Copy, Debug)]
enum RingStep {
    Append(usize),
    Restart(usize),
    Clear,
}

fn steps() -> impl Strategy<Value = Vec<RingStep>> {
    let step = prop_oneof![
        8 => (0..40usize).prop_map(RingStep::Append),
        1 => (0..4usize).prop_map(RingStep::Restart),
        1 => Just(RingStep::Clear),
    ];
    proptest::collection::vec(step, 0..60)
}

proptest! {
    #[test]
    fn a_ring_gives_the_same_answers_as_a_plain_list(
        steps in steps(), events in 1..8usize, bytes in 0..120usize, max_bytes in 1..100usize
    ) {
        let limits = RingLimits { events, bytes };
        let (mut server, mut ring, mut held) = (SampleServer::new(), Ring::new(limits), Vec::new());
        for step in steps {
            match step {
                RingStep::Append(bytes) => {
                    let event = server.append(bytes);
                    ring.push(event);
                    held.push(event);
                    keep_newest(&mut held, limits);
                }
                RingStep::Restart(lost) => {
                    server.restart(lost);
                    ring.keep_only(server.history());
                    held.retain(|event| server.history_list.has(event.id));
                }
                RingStep::Clear => {
                    ring.clear();
                    held.clear();
                }
            }
            prop_assert_eq!(ring.last_id(), held.last().map(|event| event.id));
            prop_assert_eq!(ring.bytes, held.iter().map(|event| event.bytes).sum::<usize>());
            prop_assert!(ring.events.len() <= limits.events);
            prop_assert!(ring.bytes <= limits.bytes || ring.events.len() == 1);
            for position in server.positions() {
                for max_bytes in [max_bytes, usize::MAX] {
                    let expected = expected_answer(&server.history_list, &held, position, max_bytes);
                    let answer = answer(&ring, server.history(), position, max_bytes);
                    prop_assert_eq!(answer, expected, "after {}", position);
                }
                prop_assert_eq!(ring.event(position), held.iter().find(|event| event.id == position));
            }
        }
    }
}
