//! The core under a model checker. It runs the code of `next_after`, `ensure_epoch` and the cache itself, on a server
//! that restarts with and without loss, fails over and back, trims, expires and clears its log, with two replicas, and
//! two subscribers that disconnect and resume. In a second world the log has no head at first, the subscribers resume
//! from positions that nothing stores, replicas die, and the clock is set back. In a third world there are presence
//! events as well, the log drops each kind by itself, and only one of the two subscribers gets them. In a fourth world an
//! event may be final.
//!
//! Every order of steps within a scope is visited. A scope is the most publishes, faults and disconnects;
//! `ROOMCAST_MODEL=1,2,1 cargo test --release -p roomcast-core model` takes another one, `unwritten,1,2,1` one of the
//! second world, `presence,2,1,1` one of the third, and `final,2,1,1` one of the fourth. (2,2,0 takes more than 16 GiB of
//! memory, presence,3,1,0 more than 10.)

mod path;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::ring::RingLimits;
use super::{AnnouncementOutcome, CachedEvent, LogCache, Lookup, Ring};
use crate::log::{
    DataSet, EntryKind, EpochHistory, Gap, GapReason, Head, LogView, Next, ReportedLoss, StepContext,
};
use crate::names::EventId;

/// An event; no two have the same `content`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ModelEvent {
    id: EventId,
    content: u8,
    kind: EntryKind,
    is_final: bool,
    last_message: Option<EventId>,
}

impl ModelEvent {
    /// Whether a subscriber with this view gets the event.
    fn is_in(&self, view: LogView) -> bool {
        view == LogView::All || self.kind == EntryKind::Message
    }
}

impl CachedEvent for ModelEvent {
    fn id(&self) -> EventId {
        self.id
    }

    fn bytes(&self) -> usize {
        1
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }

    fn last_message(&self) -> Option<EventId> {
        self.last_message
    }
}

/// The entries of both kinds, in the order of their ids.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct ModelLog(Vec<ModelEvent>);

impl ModelLog {
    fn after(&self, position: EventId, view: LogView) -> Vec<ModelEvent> {
        self.0.iter().filter(|event| event.id > position && event.is_in(view)).copied().collect()
    }

    /// Drops the oldest entry of a kind, and the presence events before a message.
    fn trim(&mut self, kind: EntryKind) {
        if let Some(index) = self.0.iter().position(|event| event.kind == kind) {
            let first = if kind == EntryKind::Message { 0 } else { index };
            self.0.drain(first..=index);
        }
    }
}

/// How far the clock moves with a step that uses the time.
const TICK: u64 = 1 << 25;
/// The lifetime of a head.
const LIFETIME: u64 = 8 * TICK;

/// The data of a server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ServerData {
    id: u64,
    head: Option<Head>,
    log: ModelLog,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ModelReplica {
    cache: LogCache<ModelEvent>,
    /// The highest offset by epoch.
    watermarks: BTreeMap<u64, u64>,
    /// Announcements on their way.
    inbox: VecDeque<ModelEvent>,
    needs_read: bool,
}

/// What a subscriber received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Received {
    Event(ModelEvent),
    Gap(Gap),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ModelSubscriber {
    view: LogView,
    replica: usize,
    position: EventId,
    reported: Option<ReportedLoss>,
    received: Vec<Received>,
    /// Its stream has ended, because the log is finished.
    has_ended: bool,
    /// A gap that went back told it that its position is unknown: it may have missed any of this many first events.
    all_lost: u8,
}

/// The world of a scope at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Both replicas have read the log, and both subscribers are at its end.
    Read,
    /// The log has no head, and both subscribers were told a position all the same.
    Unwritten,
    /// Like [`Self::Read`], but one of the subscribers gets no presence events.
    Presence,
    /// Like [`Self::Read`], and events may be final.
    Final,
}

/// What a delivery, or the lack of one, did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Violation {
    /// A gap skipped an event that the log still had.
    SkippedEvent,
    /// A gap for trimmed or expired events, to a subscriber that missed none.
    FalseGap,
    /// A gap for nothing more than an earlier gap of the same stream covered.
    RepeatedGap,
    /// A gap that moves a stream backwards although it stayed connected.
    BackwardGap,
    /// An event, before the gap for an earlier event that the replica knew to be lost.
    LateGap,
    /// An event from the cache that the replica had seen to be cleared.
    ClearedEvent,
    /// Neither an event nor a gap for it, though no step is left to take.
    SilentLoss,
    /// A gap, though no event was lost at all.
    NeedlessGap,
    /// The end of a finished log, before an event that the log's history has.
    EarlyEnd,
    /// A stream of a finished log that does not end, though no step is left to take.
    NoEnd,
}

/// The state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// The server's data.
    data: ServerData,
    /// The data that the server has after a restart with loss, and that its copy has.
    saved: ServerData,
    replication_id: u8,
    /// The replication id of the other server, once the two have different histories.
    other_replication_id: Option<u8>,
    last_replication_id: u8,
    time: u64,
    replicas: [ModelReplica; 2],
    subscribers: [ModelSubscriber; 2],
    acknowledged: Vec<ModelEvent>,
    faults: u8,
    disconnects: u8,
    /// Data was lost for which a subscriber may need a gap.
    is_lossy: bool,
    /// Presence events were dropped, for which only a subscriber that gets them may need a gap.
    has_dropped_presence: bool,
    /// The clock was set back.
    is_set_back: bool,
    violations: BTreeSet<Violation>,
}

/// A step. Numbers are those of replicas and subscribers in the world before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ModelStep {
    Publish(usize, EntryKind),
    /// The replica publishes a final event.
    Finish(usize),
    ReceiveAnnouncement(usize),
    Read(usize),
    Poll(usize),
    /// The subscriber's connection ends, and it resumes on the other replica.
    Reconnect(usize),
    /// The server saves its data, and its copy receives all of it.
    Save,
    Restart,
    RestartWithoutLoss,
    /// The copy is promoted. The next time, the server that never restarted is promoted again.
    FailOver,
    /// The server loses all keys, or a head expires that no replica kept alive.
    LoseAllKeys,
    /// The head expires that no replica kept alive, and the server keeps its other keys.
    ExpireHead,
    /// A replica dies, and another one without knowledge takes its place.
    ReplaceReplica(usize),
    SetClockBack,
    Trim(EntryKind),
    /// The entries of the log age out.
    Expire,
    /// A replica clears the log on request.
    Clear(usize),
    /// An announcement gets lost unnoticed.
    LoseAnnouncement(usize),
}

/// How many steps of a kind there may be.
#[derive(Clone, Copy)]
struct Scope {
    publishes: usize,
    faults: u8,
    disconnects: u8,
    origin: Origin,
}

/// Which numbers were swapped to reach the canonical form of a world.
struct Swaps {
    replicas: bool,
    subscribers: bool,
}

impl World {
    fn start(origin: Origin) -> Self {
        let replica = ModelReplica::new();
        let position = EventId::start_of(0);
        let subscriber = ModelSubscriber {
            view: LogView::All,
            replica: 0,
            position,
            reported: None,
            received: Vec::new(),
            has_ended: false,
            all_lost: 0,
        };
        let empty = ServerData { id: 1, head: None, log: ModelLog::default() };
        let mut world = Self {
            data: empty.clone(),
            saved: empty,
            replication_id: 0,
            other_replication_id: None,
            last_replication_id: 0,
            time: 10 * TICK,
            replicas: [replica.clone(), replica],
            subscribers: [subscriber.clone(), ModelSubscriber { replica: 1, ..subscriber }],
            acknowledged: Vec::new(),
            faults: 0,
            disconnects: 0,
            is_lossy: false,
            has_dropped_presence: false,
            is_set_back: false,
            violations: BTreeSet::new(),
        };
        if origin == Origin::Presence {
            world.subscribers[1].view = LogView::Messages;
        }
        if origin == Origin::Unwritten {
            for subscriber in &mut world.subscribers {
                subscriber.position = world.data.rule().unwritten_position(world.time);
            }
            return world;
        }
        for replica in 0..2 {
            world.read(replica);
        }
        for subscriber in &mut world.subscribers {
            let start = world.data.head.as_ref().unwrap().history.end();
            subscriber.position = start;
            subscriber.reported = Some(ReportedLoss { from: EventId::start_of(0), to: start });
        }
        world.saved = world.data.clone();
        world
    }

    /// Begins a replica's step on the server.
    fn ensure_epoch(&mut self, replica: usize) -> &mut Head {
        let watermarks: Vec<_> =
            self.replicas[replica].watermarks.iter().map(|(epoch, offset)| EventId::new(*epoch, *offset)).collect();
        let replication_id = self.replication_id.to_string();
        let oldest = self.data.log.0.first().map(|event| event.id);
        if self.data.head.is_none() {
            self.data.log = ModelLog::default();
        }
        let context = StepContext { replication_id: &replication_id, time: self.time, random: 0, oldest };
        let (head, changed) = Head::ensure_epoch(self.data.head.take(), &watermarks, context);
        // Only a step that uses the time advances it, so that worlds that differ in nothing else are the same state.
        self.time += u64::from(changed) * TICK;
        self.data.head.insert(head)
    }

    fn add_watermark(&mut self, replica: usize, id: EventId) {
        let offset = self.replicas[replica].watermarks.entry(id.epoch).or_default();
        *offset = id.offset.max(*offset);
    }

    fn publish(&mut self, replica: usize, kind: EntryKind, is_final: bool) {
        if kind == EntryKind::Message && self.is_finished() {
            return;
        }
        let content = u8::try_from(self.acknowledged.len()).unwrap();
        let head = self.ensure_epoch(replica);
        let (id, last_message) = head.extend(kind);
        if is_final {
            head.history.finish();
        }
        let event = ModelEvent { id, content, kind, is_final, last_message };
        self.data.log.0.push(event);
        self.acknowledged.push(event);
        self.add_watermark(replica, id);
        for replica in &mut self.replicas {
            replica.inbox.push_back(event);
        }
    }

    /// Whether the server takes no message.
    fn is_finished(&self) -> bool {
        self.data.head.as_ref().is_some_and(|head| head.history.finished().is_some())
    }

    fn receive_announcement(&mut self, replica: usize) {
        let Some(event) = self.replicas[replica].inbox.pop_front() else { return };
        let outcome = self.replicas[replica].cache.receive(event);
        self.add_watermark(replica, event.id);
        // Only a read tells that the log is finished.
        if event.is_final || matches!(outcome, AnnouncementOutcome::Unexpected | AnnouncementOutcome::Conflict) {
            self.replicas[replica].needs_read = true;
        }
    }

    fn read(&mut self, replica: usize) {
        let history = self.ensure_epoch(replica).history.clone();
        self.add_watermark(replica, history.end());
        let ModelReplica { cache, needs_read, .. } = &mut self.replicas[replica];
        cache.begin_read();
        let entries = self.data.log.after(cache.read_from().unwrap_or(EventId::start_of(0)), LogView::All);
        cache.compare(&history, &entries);
        *needs_read = cache.end_read(&history, entries);
        assert_eq!(cache.retractions(), 0, "no announcement is forged here");
    }

    /// A subscriber asks its replica what follows, and receives it if there is anything.
    fn poll(&mut self, subscriber: usize) {
        let replica = self.subscribers[subscriber].replica;
        if let Some(history) = self.replicas[replica].cache.history() {
            let history = history.clone();
            self.resume(subscriber, &history);
        }
        let ModelSubscriber { replica, position, reported, has_ended, .. } = self.subscribers[subscriber];
        if has_ended || self.ends(subscriber) {
            return;
        }
        match self.replicas[replica].cache.after(position, reported, 1) {
            Lookup::Events(events) => {
                let history = self.replicas[replica].cache.history.as_ref().unwrap();
                if events[0].id <= history.cleared() {
                    self.violations.insert(Violation::ClearedEvent);
                }
                self.deliver(subscriber, Received::Event(events[0]));
            }
            Lookup::Nothing => {}
            Lookup::Unknown => self.poll_log(subscriber),
        }
    }

    /// Ends the stream of a subscriber if nothing follows its position in a finished log. Returns whether it has ended.
    fn ends(&mut self, subscriber: usize) -> bool {
        let ModelSubscriber { replica, position, reported, view, .. } = self.subscribers[subscriber];
        let cache = &self.replicas[replica].cache;
        let Some(history) = cache.history().filter(|history| history.is_finished_at(position)) else {
            return false;
        };
        if matches!(cache.after(position, reported, 1), Lookup::Unknown) {
            return false;
        }
        let is_held = |event: &ModelEvent| event.is_in(view) && event.id <= position && history.holds(event.id);
        if self.misses_any(subscriber, |event| is_held(event) && self.data.log.0.contains(event)) {
            self.violations.insert(Violation::EarlyEnd);
        }
        self.subscribers[subscriber].has_ended = true;
        true
    }

    /// A stream without a history begins where its client says, unless that was before the log was first written.
    fn resume(&mut self, subscriber: usize, history: &EpochHistory) {
        let rule = self.data.rule();
        let subscriber = &mut self.subscribers[subscriber];
        if subscriber.reported.is_none() {
            subscriber.position = history.resume_from(subscriber.position, rule);
        }
    }

    fn poll_log(&mut self, subscriber: usize) {
        let replica = self.subscribers[subscriber].replica;
        let Head { history, last_message, .. } = self.ensure_epoch(replica).clone();
        self.resume(subscriber, &history);
        let ModelSubscriber { view, position, reported, .. } = self.subscribers[subscriber];
        self.add_watermark(replica, history.end());
        let entries = self.data.log.after(position, view);
        let first = entries.first().map(|event| event.id);
        match Ring::from_events(entries, view, last_message).after(&history, position, reported, 1) {
            Ok(events) => {
                let event = events[0];
                let is_known =
                    |lost: EventId| self.replicas[replica].watermarks.get(&lost.epoch) >= Some(&lost.offset);
                let is_late = |lost: &ModelEvent| lost.is_in(view) && lost.id < event.id && is_known(lost.id);
                if self.misses_any(subscriber, is_late) {
                    self.violations.insert(Violation::LateGap);
                }
                self.deliver(subscriber, Received::Event(event));
            }
            Err(Next::Gap(gap)) => {
                let has_skipped = first.is_some_and(|id| id <= gap.to && history.holds(id));
                if has_skipped && history.holds(position) {
                    self.violations.insert(Violation::SkippedEvent);
                }
                self.check_gap(subscriber, gap);
                self.deliver(subscriber, Received::Gap(gap));
            }
            Err(Next::Nothing) => self.subscribers[subscriber].position = history.end(),
            Err(Next::Event(id)) => unreachable!("{id} is among the entries"),
        }
    }

    /// Whether a subscriber has neither received nor got a gap for some event of those that are meant.
    fn misses_any(&self, subscriber: usize, is_meant: impl Fn(&ModelEvent) -> bool) -> bool {
        let subscriber = &self.subscribers[subscriber];
        let has = |event: &ModelEvent| subscriber.events().any(|seen| seen == event) || subscriber.covers(event);
        self.acknowledged.iter().any(|event| is_meant(event) && !has(event))
    }

    /// Checks that a gap is needed.
    fn check_gap(&mut self, subscriber: usize, gap: Gap) {
        let ModelSubscriber { view, .. } = self.subscribers[subscriber];
        let history = &self.data.head.as_ref().unwrap().history;
        // Of an event that the server has lost, nothing tells the kind.
        let is_reason = |event: &ModelEvent| event.is_in(view) || !history.holds(event.id);
        let is_needed = self.misses_any(subscriber, |event| event.id <= gap.to && is_reason(event));
        let is_for_age = matches!(gap.reason, GapReason::Trimmed | GapReason::Expired);
        if is_for_age && !is_needed {
            self.violations.insert(Violation::FalseGap);
        }
        // A client that resumes may get a second gap, since its position does not show what was reported to it. And its
        // replica may know nothing of a position from the other server of a split brain.
        let subscriber = &self.subscribers[subscriber];
        if subscriber.reported.is_none() {
            return;
        }
        if gap.to <= subscriber.position {
            self.violations.insert(Violation::BackwardGap);
        }
        // One loss takes one gap. After a second loss, the record of the first one may be lost as well.
        let has_one_loss = self.faults == 1 && !(self.has_dropped_presence && view == LogView::All);
        if !is_needed && has_one_loss && subscriber.gaps().next().is_some() {
            self.violations.insert(Violation::RepeatedGap);
        }
    }

    fn deliver(&mut self, subscriber: usize, delivery: Received) {
        // A clock that was set back may give a new history lower epochs than the lost one had.
        if let Received::Gap(gap) = delivery
            && self.is_set_back
            && gap.to < gap.from
        {
            self.subscribers[subscriber].all_lost = u8::try_from(self.acknowledged.len()).unwrap();
        }
        let subscriber = &mut self.subscribers[subscriber];
        subscriber.position = match delivery {
            Received::Event(event) => event.id,
            Received::Gap(gap) => {
                subscriber.reported = Some(ReportedLoss::after_gap(subscriber.reported, gap));
                gap.to
            }
        };
        subscriber.received.push(delivery);
    }

    /// The world after every replica has reached the server, and every subscriber has received all that follows.
    fn at_rest(&self) -> Self {
        let mut world = self.clone();
        for replica in [0, 1, 0, 1] {
            world.read(replica);
        }
        for subscriber in 0..2 {
            loop {
                let before = world.subscribers[subscriber].clone();
                world.poll(subscriber);
                if world.subscribers[subscriber] == before {
                    break;
                }
                assert!(before.received.len() < 50, "polling never ends");
            }
            let ModelSubscriber { view, has_ended, .. } = world.subscribers[subscriber];
            if world.is_finished() && !has_ended {
                world.violations.insert(Violation::NoEnd);
            }
            // A stream that has ended is not told of what is lost or published later.
            if !has_ended && world.misses_any(subscriber, |event| event.is_in(view)) {
                world.violations.insert(Violation::SilentLoss);
            }
            let may_miss = world.is_lossy || world.has_dropped_presence && view == LogView::All;
            if !may_miss && world.subscribers[subscriber].gaps().next().is_some() {
                world.violations.insert(Violation::NeedlessGap);
            }
        }
        world
    }

    /// One of the worlds that differ only in which replica and which subscriber has the number 0; the checker visits no
    /// other. So a replica or a subscriber may have another number after a step.
    fn canonical(mut self) -> (Self, Swaps) {
        let order = BuildHasherDefault::<DefaultHasher>::default();
        let [first, second] = &self.replicas;
        let replicas = order.hash_one(first) > order.hash_one(second);
        if replicas {
            self.replicas.swap(0, 1);
            self.subscribers.iter_mut().for_each(|subscriber| subscriber.replica ^= 1);
        }
        let [first, second] = &self.subscribers;
        let subscribers = order.hash_one(first) > order.hash_one(second);
        if subscribers {
            self.subscribers.swap(0, 1);
        }
        (self, Swaps { replicas, subscribers })
    }

    /// The world after a step, with the numbers of the world before it.
    fn after(&self, step: ModelStep) -> Self {
        let mut world = self.clone();
        match step {
            ModelStep::Publish(replica, kind) => world.publish(replica, kind, false),
            ModelStep::Finish(replica) => world.publish(replica, EntryKind::Message, true),
            ModelStep::ReceiveAnnouncement(replica) => world.receive_announcement(replica),
            ModelStep::Read(replica) => world.read(replica),
            ModelStep::Poll(subscriber) => world.poll(subscriber),
            ModelStep::Reconnect(subscriber) => {
                world.disconnects += 1;
                world.subscribers[subscriber].replica ^= 1;
                world.subscribers[subscriber].reported = None;
                world.subscribers[subscriber].has_ended = false;
            }
            ModelStep::Save => {
                world.saved = world.data.clone();
                world.other_replication_id = None;
            }
            ModelStep::LoseAnnouncement(replica) => {
                world.faults += 1;
                world.replicas[replica].inbox.pop_front();
            }
            ModelStep::Restart | ModelStep::RestartWithoutLoss => {
                world.faults += 1;
                world.last_replication_id += 1;
                world.replication_id = world.last_replication_id;
                if step == ModelStep::Restart {
                    world.data = world.saved.clone();
                    world.is_lossy |= world.data != self.data;
                }
            }
            ModelStep::FailOver => {
                world.faults += 1;
                std::mem::swap(&mut world.data, &mut world.saved);
                world.replication_id = world.other_replication_id.unwrap_or_else(|| {
                    world.last_replication_id += 1;
                    world.last_replication_id
                });
                world.other_replication_id = Some(self.replication_id);
                world.is_lossy |= world.data != self.data;
            }
            ModelStep::LoseAllKeys => {
                world.faults += 1;
                world.data = ServerData { id: world.data.id + 1, head: None, log: ModelLog::default() };
                world.is_lossy = true;
            }
            ModelStep::ExpireHead => {
                world.faults += 1;
                world.time += LIFETIME;
                for data in [&mut world.data, &mut world.saved] {
                    (data.head, data.log) = (None, ModelLog::default());
                }
                world.is_lossy = true;
            }
            ModelStep::ReplaceReplica(replica) => {
                world.disconnects += 1;
                world.replicas[replica] = ModelReplica::new();
            }
            ModelStep::SetClockBack => {
                world.faults += 1;
                // Not by whole ticks: a clock in microseconds does not show the same time again.
                world.time -= LIFETIME / 4 + 1;
                (world.is_lossy, world.is_set_back) = (true, true);
            }
            ModelStep::Trim(EntryKind::Message) => {
                world.faults += 1;
                world.data.log.trim(EntryKind::Message);
                world.is_lossy = true;
            }
            ModelStep::Trim(EntryKind::Presence) => {
                world.data.log.trim(EntryKind::Presence);
                world.has_dropped_presence = true;
            }
            ModelStep::Expire => {
                world.faults += 1;
                world.data.log = ModelLog::default();
                world.is_lossy = true;
            }
            ModelStep::Clear(replica) => {
                world.faults += 1;
                world.ensure_epoch(replica).history.clear();
                world.data.log = ModelLog::default();
                world.is_lossy = true;
            }
        }
        world
    }
}

impl ServerData {
    fn rule(&self) -> DataSet {
        DataSet { id: self.id, head_lifetime: LIFETIME }
    }
}

impl ModelReplica {
    fn new() -> Self {
        let cache = LogCache::new(RingLimits { events: 2, bytes: usize::MAX });
        Self { cache, watermarks: BTreeMap::new(), inbox: VecDeque::new(), needs_read: false }
    }
}

impl ModelSubscriber {
    fn events(&self) -> impl Iterator<Item = &ModelEvent> {
        self.received.iter().filter_map(|delivery| match delivery {
            Received::Event(event) => Some(event),
            Received::Gap(_) => None,
        })
    }

    fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.received.iter().filter_map(|delivery| match delivery {
            Received::Gap(gap) => Some(gap),
            Received::Event(_) => None,
        })
    }

    fn covers(&self, event: &ModelEvent) -> bool {
        let mut reported = self.gaps().map(|gap| ReportedLoss::from(*gap));
        event.content < self.all_lost
            || reported.any(|reported| reported.from < event.id && event.id <= reported.to)
    }
}

impl Scope {
    /// The kinds of events that are published.
    fn kinds(&self) -> &'static [EntryKind] {
        match self.origin {
            Origin::Read | Origin::Unwritten | Origin::Final => &[EntryKind::Message],
            Origin::Presence => &[EntryKind::Message, EntryKind::Presence],
        }
    }
}

impl Model for Scope {
    type State = World;
    type Action = ModelStep;

    fn init_states(&self) -> Vec<World> {
        vec![World::start(self.origin)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<ModelStep>) {
        let may_fail = world.faults < self.faults;
        for number in 0..2 {
            // With presence events, one of the replicas publishes all, so that there may be one more.
            if world.acknowledged.len() < self.publishes && (number == 0 || self.origin != Origin::Presence) {
                steps.extend(self.kinds().iter().map(|kind| ModelStep::Publish(number, *kind)));
                steps.extend((self.origin == Origin::Final).then_some(ModelStep::Finish(number)));
            }
            // Of an unwritten log, one subscriber resumes early, and the other at rest.
            if number == 0 || self.origin != Origin::Unwritten {
                steps.push(ModelStep::Poll(number));
            }
            if world.disconnects < self.disconnects {
                // Of an unwritten log, all subscribers resume as it is.
                steps.push(match self.origin {
                    Origin::Read | Origin::Presence | Origin::Final => ModelStep::Reconnect(number),
                    Origin::Unwritten => ModelStep::ReplaceReplica(number),
                });
            }
            // Whether an announcement arrives does not depend on its kind, so that is left to the first world.
            if !world.replicas[number].inbox.is_empty() && self.origin != Origin::Presence {
                steps.push(ModelStep::ReceiveAnnouncement(number));
                if may_fail && self.origin == Origin::Read {
                    steps.push(ModelStep::LoseAnnouncement(number));
                }
            }
            steps.push(ModelStep::Read(number));
        }
        // It has an effect once for each presence event, so the number of these steps needs no bound of its own.
        if world.data.log.0.iter().any(|event| event.kind == EntryKind::Presence) {
            steps.push(ModelStep::Trim(EntryKind::Presence));
        }
        if !may_fail {
            return;
        }
        if self.origin == Origin::Unwritten {
            steps.extend([ModelStep::LoseAllKeys, ModelStep::ExpireHead, ModelStep::SetClockBack]);
        } else if self.origin == Origin::Presence {
            steps.push(ModelStep::Trim(EntryKind::Message));
            // With more events, other faults would make too many states.
            if self.publishes <= 2 {
                steps.extend([ModelStep::Save, ModelStep::Restart, ModelStep::FailOver, ModelStep::LoseAllKeys]);
                steps.extend([ModelStep::Expire, ModelStep::Clear(0)]);
            }
        } else {
            steps.extend([ModelStep::Save, ModelStep::Restart, ModelStep::RestartWithoutLoss, ModelStep::FailOver]);
            steps.extend([ModelStep::LoseAllKeys, ModelStep::Trim(EntryKind::Message), ModelStep::Expire]);
            steps.extend([ModelStep::Clear(0), ModelStep::Clear(1)]);
        }
    }

    fn next_state(&self, before: &World, step: ModelStep) -> Option<World> {
        let world = before.after(step);
        (world != *before).then(|| world.canonical().0)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("an id belongs to one event", |_, world: &World| {
                let mut events = BTreeMap::new();
                let received = world.subscribers.iter().flat_map(ModelSubscriber::events);
                let mut all = world.acknowledged.iter().chain(received);
                all.all(|event| *events.entry(event.id).or_insert(event) == event)
            }),
            Property::always("a subscriber receives events in order and once", |_, world: &World| {
                world.subscribers.iter().all(|subscriber| {
                    let ids: Vec<_> = subscriber.events().map(|event| event.id).collect();
                    ids.is_sorted_by(|a, b| a < b)
                })
            }),
            Property::always("every delivery is right, and no event is lost without a gap", |_, world: &World| {
                world.at_rest().violations.is_empty()
            }),
        ]
    }
}

#[test]
#[allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a switch, and the count, of this test alone")]
fn model_every_order_of_steps_keeps_the_promises() {
    let scopes = std::env::var("ROOMCAST_MODEL").unwrap_or_else(|_| {
        "2,1,1 1,2,0 unwritten,1,2,1 presence,2,1,0 presence,3,1,0 final,2,1,0 final,1,1,1".into()
    });
    for scope in scopes.split(' ') {
        let (origin, counts) = match scope.split_once(',') {
            Some(("unwritten", counts)) => (Origin::Unwritten, counts),
            Some(("presence", counts)) => (Origin::Presence, counts),
            Some(("final", counts)) => (Origin::Final, counts),
            _ => (Origin::Read, scope),
        };
        let counts: Vec<u8> = counts.split(',').map(|count| count.parse().expect("three numbers")).collect();
        let scope = Scope { publishes: counts[0].into(), faults: counts[1], disconnects: counts[2], origin };
        let checker = scope.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
        if let Some((property, path)) = checker.discoveries().into_iter().next() {
            panic!("{}", path::in_words(property, path, origin));
        }
        checker.assert_properties();
        assert!(checker.unique_state_count() > 1000);
    }
}
