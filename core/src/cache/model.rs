//! The core under a model checker: the very `next`, `ensure_epoch`, ring and read-forward code, on a server that restarts with
//! and without loss, fails over and back, is emptied, trims and expires, with two replicas and two subscribers that drop
//! and resume.
//!
//! Every order of steps within a scope is visited. `ROOMCAST_MODEL=1,2,1 cargo test --release model` takes another scope:
//! publishes, faults, and drops of a connection. (2,2,0 takes more than 16 GiB.)

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use stateright::{Checker, HasDiscoveries, Model, Property};

use super::ring::RingLimits;
use super::{AnnouncementOutcome, CachedEvent, LogCache, Lookup};
use crate::log::{Gap, GapReason, Head, Next, ReportedLoss, Retained, StepContext, next};
use crate::names::EventId;

/// An event; `content` differs from that of every other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Event {
    id: EventId,
    content: u8,
}

impl CachedEvent for Event {
    fn id(&self) -> EventId {
        self.id
    }

    fn bytes(&self) -> usize {
        1
    }

    fn is_same(&self, other: &Self) -> bool {
        self == other
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Log(Vec<Event>);

impl Retained for Log {
    fn first_after(&self, position: EventId) -> Option<EventId> {
        self.0.iter().map(|event| event.id).find(|id| *id > position)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Dataset {
    head: Option<Head>,
    log: Log,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replica {
    mirror: LogCache<Event>,
    watermarks: BTreeMap<u64, u64>,
    inbox: VecDeque<Event>,
    invalidate: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Told {
    Event(Event),
    Gap(Gap),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Subscriber {
    replica: usize,
    position: EventId,
    reported: Option<ReportedLoss>,
    told: Vec<Told>,
}

/// What went wrong when a subscriber was told something, or nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Wrong {
    /// A gap has jumped an event that the log still had.
    Overreached,
    /// A gap for what was trimmed or aged out, and there was nothing that the subscriber lacks.
    False,
    /// A gap for nothing but what an earlier one of the same stream had told.
    Repeated,
    /// A gap that leads back, to a stream that has stayed on.
    Backward,
    /// An event, before the gap for an earlier one that the replica knew to be lost.
    Unsaid,
    /// An event out of the copy that the replica had seen to be deleted.
    Deleted,
    /// Neither an event nor a gap for it, with everything at rest.
    Lost,
    /// A gap, and nothing was lost to anyone.
    Needless,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    now: Dataset,
    /// What the server would come back with, and what its copy has.
    saved: Dataset,
    replication_id: u8,
    /// The replication_id of the other server once the two have parted.
    other_mark: Option<u8>,
    last_mark: u8,
    time: u64,
    replicas: [Replica; 2],
    subscribers: [Subscriber; 2],
    acknowledged: Vec<Event>,
    faults: u8,
    drops: u8,
    /// Something was lost that a subscriber may have to be told of.
    lossy: bool,
    wrong: BTreeSet<Wrong>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Step {
    Publish(usize),
    Deliver(usize),
    Read(usize),
    Serve(usize),
    /// The subscriber's connection ends, and it resumes on the other replica.
    Move(usize),
    /// Everything is saved, and reaches the copy.
    Save,
    Restart,
    RestartWithEverything,
    /// The copy is promoted; the next time it is back to the side that never restarted.
    FailOver,
    /// All keys are gone, or a head that nobody renewed.
    Flush,
    Trim,
    /// The log's entries age out.
    Expire,
    /// The log is emptied on purpose.
    Clear(usize),
    /// An announcement gets lost, and nobody notices.
    Mislay(usize),
}

/// How much may happen.
#[derive(Clone, Copy)]
struct Scope {
    publishes: usize,
    faults: u8,
    drops: u8,
}

impl World {
    fn start() -> Self {
        let mirror = LogCache::new(RingLimits { events: 2, bytes: usize::MAX });
        let replica = Replica { mirror, watermarks: BTreeMap::new(), inbox: VecDeque::new(), invalidate: false };
        let position = EventId::start_of(0);
        let subscriber = Subscriber { replica: 0, position, reported: None, told: Vec::new() };
        let nothing = Dataset { head: None, log: Log::default() };
        let mut world = Self {
            now: nothing.clone(),
            saved: nothing,
            replication_id: 0,
            other_mark: None,
            last_mark: 0,
            time: 10,
            replicas: [replica.clone(), replica],
            subscribers: [subscriber.clone(), Subscriber { replica: 1, ..subscriber }],
            acknowledged: Vec::new(),
            faults: 0,
            drops: 0,
            lossy: false,
            wrong: BTreeSet::new(),
        };
        for replica in 0..2 {
            world.read(replica);
        }
        for subscriber in &mut world.subscribers {
            let start = world.now.head.as_ref().unwrap().history.end();
            subscriber.position = start;
            subscriber.reported = Some(ReportedLoss { from: EventId::start_of(0), to: start });
        }
        world.saved = world.now.clone();
        world
    }

    /// Begins a step of a replica on the server.
    fn ensure_epoch(&mut self, replica: usize) -> &mut Head {
        let watermarks: Vec<_> =
            self.replicas[replica].watermarks.iter().map(|(epoch, offset)| EventId::new(*epoch, *offset)).collect();
        let replication_id = self.replication_id.to_string();
        let oldest = self.now.log.0.first().map(|event| event.id);
        if self.now.head.is_none() {
            self.now.log = Log::default();
        }
        let moment = StepContext { replication_id: &replication_id, time: self.time, random: 0, oldest };
        let (head, changed) = Head::ensure_epoch(self.now.head.take(), &watermarks, moment);
        // Only steps that use the clock move it, so that states which differ in nothing else are one.
        self.time += u64::from(changed);
        self.now.head.insert(head)
    }

    fn know(&mut self, replica: usize, id: EventId) {
        let offset = self.replicas[replica].watermarks.entry(id.epoch).or_default();
        *offset = id.offset.max(*offset);
    }

    fn publish(&mut self, replica: usize) {
        let content = u8::try_from(self.acknowledged.len()).unwrap();
        let id = self.ensure_epoch(replica).history.extend();
        let event = Event { id, content };
        self.now.log.0.push(event);
        self.acknowledged.push(event);
        self.know(replica, id);
        for replica in &mut self.replicas {
            replica.inbox.push_back(event);
        }
    }

    fn deliver(&mut self, replica: usize) {
        let Some(event) = self.replicas[replica].inbox.pop_front() else { return };
        let taken = self.replicas[replica].mirror.announce(event);
        self.know(replica, event.id);
        if matches!(taken, AnnouncementOutcome::Unexpected | AnnouncementOutcome::Conflict) {
            self.replicas[replica].invalidate = true;
        }
    }

    fn read(&mut self, replica: usize) {
        let history = self.ensure_epoch(replica).history.clone();
        self.know(replica, history.end());
        let entries = self.now.log.0.clone();
        let Replica { mirror, invalidate, .. } = &mut self.replicas[replica];
        mirror.begin_read();
        let from = mirror.read_from().unwrap_or(EventId::start_of(0));
        let entries: Vec<_> = entries.into_iter().filter(|event| event.id > from).collect();
        mirror.compare(&history, &entries);
        *invalidate = mirror.end_read(&history, entries);
        assert_eq!(mirror.retractions(), 0, "nobody forges here");
    }

    /// Tells a subscriber what follows, if anything does.
    fn serve(&mut self, subscriber: usize) {
        let Subscriber { replica, position, reported, .. } = self.subscribers[subscriber];
        match self.replicas[replica].mirror.after(position, reported, 1) {
            Lookup::Events(events) => {
                let history = self.replicas[replica].mirror.history.as_ref().unwrap();
                if events[0].id <= history.cleared() {
                    self.wrong.insert(Wrong::Deleted);
                }
                self.tell(subscriber, Told::Event(events[0]));
            }
            Lookup::Nothing => {}
            Lookup::Unknown => self.serve_from_log(subscriber),
        }
    }

    fn serve_from_log(&mut self, subscriber: usize) {
        let Subscriber { replica, position, reported, .. } = self.subscribers[subscriber];
        let history = self.ensure_epoch(replica).history.clone();
        self.know(replica, history.end());
        match next(&history, &self.now.log, position, reported) {
            Next::Event(id) => {
                let event = *self.now.log.0.iter().find(|event| event.id == id).unwrap();
                let knows =
                    |lost: EventId| self.replicas[replica].watermarks.get(&lost.epoch) >= Some(&lost.offset);
                if self.lacks(subscriber, |lost| lost < id && knows(lost)) {
                    self.wrong.insert(Wrong::Unsaid);
                }
                self.tell(subscriber, Told::Event(event));
            }
            Next::Gap(gap) => {
                let jumped = self.now.log.first_after(position).is_some_and(|id| id <= gap.to && history.holds(id));
                if jumped && history.holds(position) {
                    self.wrong.insert(Wrong::Overreached);
                }
                self.judge(subscriber, gap);
                self.tell(subscriber, Told::Gap(gap));
            }
            Next::Nothing => {}
        }
    }

    /// Whether there is an event of some kind that a subscriber has neither got nor been told to be missing.
    fn lacks(&self, subscriber: usize, of_kind: impl Fn(EventId) -> bool) -> bool {
        let subscriber = &self.subscribers[subscriber];
        let has = |event: &Event| subscriber.events().any(|seen| seen == event) || subscriber.covers(event);
        self.acknowledged.iter().any(|event| of_kind(event.id) && !has(event))
    }

    /// Whether a gap had to be told.
    fn judge(&mut self, subscriber: usize, gap: Gap) {
        let is_needed = self.lacks(subscriber, |id| id <= gap.to);
        let is_for_age = matches!(gap.reason, GapReason::Trimmed | GapReason::Expired);
        if is_for_age && !is_needed {
            self.wrong.insert(Wrong::False);
        }
        // A client that has come back may be told once more, since its position does not show what it was told; and the
        // replica may know nothing of a position from the other side of a split brain.
        let subscriber = &self.subscribers[subscriber];
        if subscriber.reported.is_none() {
            return;
        }
        if gap.to <= subscriber.position {
            self.wrong.insert(Wrong::Backward);
        }
        // One loss is told once; a second one may have taken the memory of the first with it.
        if !is_needed && self.faults == 1 && subscriber.gaps().next().is_some() {
            self.wrong.insert(Wrong::Repeated);
        }
    }

    fn tell(&mut self, subscriber: usize, told: Told) {
        let subscriber = &mut self.subscribers[subscriber];
        subscriber.position = match told {
            Told::Event(event) => event.id,
            Told::Gap(gap) => {
                subscriber.reported = Some(ReportedLoss::with(subscriber.reported, gap));
                gap.to
            }
        };
        subscriber.told.push(told);
    }

    /// Everyone reaches the server, and every subscriber is told what there is to tell.
    fn at_rest(&self) -> Self {
        let mut world = self.clone();
        for replica in [0, 1, 0, 1] {
            world.read(replica);
        }
        for subscriber in 0..2 {
            loop {
                let before = world.subscribers[subscriber].told.len();
                world.serve(subscriber);
                if world.subscribers[subscriber].told.len() == before {
                    break;
                }
                assert!(before < 50, "it never comes to an end");
            }
            if world.lacks(subscriber, |_| true) {
                world.wrong.insert(Wrong::Lost);
            }
            if !world.lossy && world.subscribers[subscriber].gaps().next().is_some() {
                world.wrong.insert(Wrong::Needless);
            }
        }
        world
    }

    /// One of the worlds that differ in nothing but which replica and which subscriber is called the first. So the numbers in
    /// the steps of a failing path are those of each state alone.
    fn named_anew(mut self) -> Self {
        let order = BuildHasherDefault::<DefaultHasher>::default();
        let [first, second] = &self.replicas;
        if order.hash_one(first) > order.hash_one(second) {
            self.replicas.swap(0, 1);
            self.subscribers.iter_mut().for_each(|subscriber| subscriber.replica ^= 1);
        }
        self.subscribers.sort_by_cached_key(|subscriber| order.hash_one(subscriber));
        self
    }
}

impl Subscriber {
    fn events(&self) -> impl Iterator<Item = &Event> {
        self.told.iter().filter_map(|told| match told {
            Told::Event(event) => Some(event),
            Told::Gap(_) => None,
        })
    }

    fn gaps(&self) -> impl Iterator<Item = &Gap> {
        self.told.iter().filter_map(|told| match told {
            Told::Gap(gap) => Some(gap),
            Told::Event(_) => None,
        })
    }

    fn covers(&self, event: &Event) -> bool {
        let mut reported = self.gaps().map(|gap| ReportedLoss::from(*gap));
        reported.any(|reported| reported.from < event.id && event.id <= reported.to)
    }
}

impl Model for Scope {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::start()]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        let fault = world.faults < self.faults;
        for n in 0..2 {
            if world.acknowledged.len() < self.publishes {
                steps.push(Step::Publish(n));
            }
            steps.push(Step::Serve(n));
            if world.drops < self.drops {
                steps.push(Step::Move(n));
            }
            if !world.replicas[n].inbox.is_empty() {
                steps.push(Step::Deliver(n));
                if fault {
                    steps.push(Step::Mislay(n));
                }
            }
            steps.push(Step::Read(n));
        }
        if fault {
            steps.extend([Step::Save, Step::Restart, Step::RestartWithEverything, Step::FailOver]);
            steps.extend([Step::Flush, Step::Trim, Step::Expire, Step::Clear(0), Step::Clear(1)]);
        }
    }

    fn next_state(&self, before: &World, step: Step) -> Option<World> {
        let mut world = before.clone();
        match step {
            Step::Publish(replica) => world.publish(replica),
            Step::Deliver(replica) => world.deliver(replica),
            Step::Read(replica) => world.read(replica),
            Step::Serve(subscriber) => world.serve(subscriber),
            Step::Move(subscriber) => {
                world.drops += 1;
                world.subscribers[subscriber].replica ^= 1;
                world.subscribers[subscriber].reported = None;
            }
            Step::Save => {
                world.saved = world.now.clone();
                world.other_mark = None;
            }
            Step::Mislay(replica) => {
                world.faults += 1;
                world.replicas[replica].inbox.pop_front();
            }
            Step::Restart | Step::RestartWithEverything => {
                world.faults += 1;
                world.last_mark += 1;
                world.replication_id = world.last_mark;
                if step == Step::Restart {
                    world.now = world.saved.clone();
                    world.lossy |= world.now != before.now;
                }
            }
            Step::FailOver => {
                world.faults += 1;
                std::mem::swap(&mut world.now, &mut world.saved);
                world.replication_id = world.other_mark.unwrap_or_else(|| {
                    world.last_mark += 1;
                    world.last_mark
                });
                world.other_mark = Some(before.replication_id);
                world.lossy |= world.now != before.now;
            }
            Step::Flush => {
                world.faults += 1;
                world.now = Dataset { head: None, log: Log::default() };
                world.lossy = true;
            }
            Step::Trim => {
                world.faults += 1;
                world.now.log.0.drain(..1.min(before.now.log.0.len()));
                world.lossy = true;
            }
            Step::Expire => {
                world.faults += 1;
                world.now.log = Log::default();
                world.lossy = true;
            }
            Step::Clear(replica) => {
                world.faults += 1;
                world.ensure_epoch(replica).history.clear();
                world.now.log = Log::default();
                world.lossy = true;
            }
        }
        (world != *before).then(|| world.named_anew())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("an id names one event", |_, world: &World| {
                let mut named = BTreeMap::new();
                let told = world.subscribers.iter().flat_map(Subscriber::events);
                world.acknowledged.iter().chain(told).all(|event| *named.entry(event.id).or_insert(event) == event)
            }),
            Property::always("events come in order and once", |_, world: &World| {
                world.subscribers.iter().all(|subscriber| {
                    let ids: Vec<_> = subscriber.events().map(|event| event.id).collect();
                    ids.is_sorted_by(|a, b| a < b)
                })
            }),
            Property::always("what is told is right, and nothing is lost unsaid", |_, world: &World| {
                world.at_rest().wrong.is_empty()
            }),
        ]
    }
}

#[test]
#[allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a switch, and the count, of this test alone")]
fn model_every_order_of_steps_keeps_the_promises() {
    let asked = std::env::var("ROOMCAST_MODEL").unwrap_or_else(|_| "2,1,1 1,2,0".into());
    for scope in asked.split(' ') {
        let counts: Vec<u8> = scope.split(',').map(|count| count.parse().expect("three numbers")).collect();
        let scope = Scope { publishes: counts[0].into(), faults: counts[1], drops: counts[2] };
        let checker = scope.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        println!("{} states, {} of them different", checker.state_count(), checker.unique_state_count());
        checker.assert_properties();
        assert!(checker.unique_state_count() > 1000);
    }
}
