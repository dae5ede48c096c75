//! Random steps on the memory: its bytes are counted right, and the journal holds exactly what the memory holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use wildmatch::WildMatch;

use super::*;
use crate::broker::memory::record::RecordChange;
use crate::broker::memory::record::tests::Samples;
use crate::broker::memory::store::ChangeSet;
use crate::broker::{
    BrokerError, Condition, HashLifetime, HashWrite, IdempotencyKey, Member, MemberChange, ReadLimit, ReadRange,
    Retention, WriteContext,
};
use crate::log::LogView;
use crate::names::{Data, EventId, EventName, FieldName, SubscriberId};

const SECOND: u64 = 1_000_000;

#[derive(Clone, Debug)]
enum RandomStep {
    Append { topic: u8, bytes: usize, key: Option<(u8, bool)>, watermark: Watermark },
    Read { topic: u8, is_above_end: bool, watermark: Watermark },
    Clear { topic: u8 },
    Renew { topic: u8 },
    SetField { hash: u8, field: u8, bytes: usize, key: Option<(u8, bool)> },
    RemoveField { hash: u8, field: u8 },
    RemoveHash { hash: u8, key: Option<(u8, bool)> },
    ExpireHash { hash: u8, lifetime: Option<(u32, bool)>, key: Option<(u8, bool)> },
    UpdateMembers { room: u8, changes: Vec<RandomChange>, watch: bool, remove_stale: bool },
    AddRemoval { user_bytes: usize, seconds: u64 },
    ReportSubscribers { rooms: Vec<u8> },
    Wait { seconds: u64 },
    SetClockBack { seconds: u64 },
    Sweep,
    Restart { has_other_retention: bool },
}

/// An id that a replica knows of a log.
#[derive(Clone, Copy, Debug)]
enum Watermark {
    None,
    /// The end of the log.
    End,
    /// An id that the log has lost.
    Lost,
    /// An id above the log's newest epoch.
    Above,
}

#[derive(Clone, Debug)]
struct RandomChange {
    is_join: bool,
    subscriber: u8,
    owner: u8,
    generation: Option<RandomGeneration>,
    profile_bytes: usize,
}

#[derive(Clone, Copy, Debug)]
enum RandomGeneration {
    Old,
    Present,
    Later,
}

fn random_step() -> impl Strategy<Value = RandomStep> {
    let watermark = || {
        prop_oneof![
            6 => Just(Watermark::None),
            2 => Just(Watermark::End),
            1 => Just(Watermark::Lost),
            1 => Just(Watermark::Above),
        ]
    };
    let key = || prop::option::of((0..3u8, any::<bool>()));
    let generation = prop_oneof![
        1 => Just(RandomGeneration::Old),
        2 => Just(RandomGeneration::Present),
        1 => Just(RandomGeneration::Later),
    ];
    let change = (any::<bool>(), 0..3u8, 0..2u8, prop::option::of(generation), 0..300usize).prop_map(
        |(is_join, subscriber, owner, generation, profile_bytes)| RandomChange {
            is_join,
            subscriber,
            owner,
            generation,
            profile_bytes,
        },
    );
    prop_oneof![
        6 => (0..9u8, 0..900usize, key(), watermark()).prop_map(
            |(topic, bytes, key, watermark)| RandomStep::Append { topic, bytes, key, watermark }
        ),
        4 => (0..9u8, any::<bool>(), watermark()).prop_map(
            |(topic, is_above_end, watermark)| RandomStep::Read { topic, is_above_end, watermark }
        ),
        1 => (0..9u8).prop_map(|topic| RandomStep::Clear { topic }),
        1 => (0..9u8).prop_map(|topic| RandomStep::Renew { topic }),
        3 => (0..2u8, 0..4u8, 0..900usize, key())
            .prop_map(|(hash, field, bytes, key)| RandomStep::SetField { hash, field, bytes, key }),
        1 => (0..2u8, 0..4u8).prop_map(|(hash, field)| RandomStep::RemoveField { hash, field }),
        1 => (0..2u8, key()).prop_map(|(hash, key)| RandomStep::RemoveHash { hash, key }),
        2 => (0..2u8, prop::option::of((1..100u32, any::<bool>())), key())
            .prop_map(|(hash, lifetime, key)| RandomStep::ExpireHash { hash, lifetime, key }),
        4 => (0..2u8, prop::collection::vec(change, 0..4), any::<bool>(), any::<bool>()).prop_map(
            |(room, changes, watch, remove_stale)| RandomStep::UpdateMembers { room, changes, watch, remove_stale }
        ),
        1 => (0..300usize, 0..200u64)
            .prop_map(|(user_bytes, seconds)| RandomStep::AddRemoval { user_bytes, seconds }),
        1 => prop::collection::vec(0..8u8, 0..4).prop_map(|rooms| RandomStep::ReportSubscribers { rooms }),
        2 => (0..100u64).prop_map(|seconds| RandomStep::Wait { seconds }),
        1 => (0..200u64).prop_map(|seconds| RandomStep::SetClockBack { seconds }),
        2 => Just(RandomStep::Sweep),
        1 => any::<bool>().prop_map(|has_other_retention| RandomStep::Restart { has_other_retention }),
    ]
}

fn retention(events: u64, bytes: u64) -> RetentionPolicy {
    let default = Retention {
        events,
        bytes,
        age: Duration::from_secs(30),
        head: Duration::from_mins(1),
        idempotency_window: Duration::from_secs(20),
    };
    let nothing = Retention { events: 0, ..default };
    RetentionPolicy { default, rules: vec![(WildMatch::new("room-0"), nothing)] }
}

fn topic(number: u8) -> Topic {
    match number {
        8 => Topic::Hash(hash(0)),
        room => Topic::Room(self::room(room)),
    }
}

fn room(number: u8) -> RoomName {
    RoomName::new(&format!("room-{number}")).unwrap()
}

fn hash(number: u8) -> HashName {
    HashName::new(&format!("hash-{number}")).unwrap()
}

fn field(number: u8) -> FieldName {
    FieldName::new(&"f".repeat(usize::from(number) + 1)).unwrap()
}

fn idempotency_key((key, is_same): (u8, bool)) -> IdempotencyKey {
    let content = if is_same { "same" } else { "other" };
    IdempotencyKey { key: format!("key-{key}"), content: content.into() }
}

/// The memory, and the journal as its changes have left it.
struct Machine {
    state: MemoryState,
    journal: ChangeSet,
    now: u64,
    max_bytes: usize,
}

impl Machine {
    fn new(max_bytes: usize) -> Self {
        let mut state = MemoryState::new(retention(5, 3000), max_bytes);
        state.start_journal();
        Self { state, journal: ChangeSet::new(), now: 1000 * SECOND, max_bytes }
    }

    fn run<T>(&mut self, step: impl FnOnce(&mut Transaction<'_>) -> T) -> T {
        let mut transaction = self.state.begin(self.now);
        let outcome = step(&mut transaction);
        transaction.finish().add_to(&mut self.journal);
        self.journal.retain(|_, value| value.is_some());
        outcome
    }

    fn write(&mut self, hash: &HashName, write: &HashWrite, key: Option<(u8, bool)>) {
        let key = key.map(idempotency_key);
        let context = WriteContext { key: key.as_ref(), ..WriteContext::default() };
        self.run(|transaction| transaction.expire_hash(hash));
        let _ = self.run(|transaction| transaction.write_hash(hash, write, context).map(|_| ()));
    }

    fn watermarks(&self, topic: &Topic, watermark: Watermark) -> Vec<EventId> {
        let end = self.state.logs.get(topic).map(|log| log.head().history.end());
        match (watermark, end) {
            (Watermark::None, _) | (_, None) => Vec::new(),
            (Watermark::End, Some(end)) => vec![end],
            (Watermark::Lost, Some(end)) => vec![EventId::new(end.epoch, end.offset + 3)],
            (Watermark::Above, Some(end)) => vec![EventId::new(end.epoch + SECOND, 1)],
        }
    }

    fn change(&self, room: &RoomName, change: &RandomChange) -> MemberChange {
        let subscriber = SubscriberId::new(&format!("s{}", change.subscriber)).unwrap();
        let present = self.state.members(room).and_then(|room| room.members.get(&subscriber));
        let generation = change.generation.and_then(|generation| match generation {
            RandomGeneration::Old => Some(1),
            RandomGeneration::Present => present.map(|member| member.generation),
            RandomGeneration::Later => Some(self.now + SECOND),
        });
        let owner = format!("o{}", change.owner).into();
        let profile = "p".repeat(change.profile_bytes).into();
        let member = Arc::new(Member { subscriber, owner, address: None, profile });
        if change.is_join {
            MemberChange::Join { member, generation }
        } else {
            MemberChange::Leave { member, generation }
        }
    }

    fn apply(&mut self, step: RandomStep) {
        self.now += 1000;
        match step {
            RandomStep::Append { topic, bytes, key, watermark } => {
                let topic = self::topic(topic);
                let watermarks = self.watermarks(&topic, watermark);
                let stored = Bytes::from(vec![b'x'; bytes]);
                let key = key.map(idempotency_key);
                let _ = self.run(|transaction| {
                    if transaction.recorded_append(&topic, key.as_ref())?.is_some() {
                        return Ok(());
                    }
                    let mut log = transaction.open_log(&topic, &watermarks, Purpose::Append)?;
                    log.append_once(stored, key.as_ref()).map(|_| ())
                });
            }
            RandomStep::Read { topic, is_above_end, watermark } => {
                let topic = self::topic(topic);
                let watermarks = self.watermarks(&topic, watermark);
                let above = EventId::new(self.now + 1000 * SECOND, 1);
                let purpose = Purpose::Read(is_above_end.then_some(above));
                self.run(|transaction| drop(transaction.open_log(&topic, &watermarks, purpose)));
            }
            RandomStep::Clear { topic } => {
                let topic = self::topic(topic);
                let _ = self.run(|transaction| {
                    transaction.open_log(&topic, &[], Purpose::Read(None)).map(|mut log| log.clear())
                });
            }
            RandomStep::Renew { topic } => {
                let topic = self::topic(topic);
                self.run(|transaction| transaction.renew_log(&topic).is_some());
            }
            RandomStep::SetField { hash, field, bytes, key } => {
                let (hash, field) = (self::hash(hash), self::field(field));
                let value = Bytes::from(vec![b'v'; bytes]);
                self.write(&hash, &HashWrite::Set { field, value, condition: Condition::Always }, key);
            }
            RandomStep::RemoveField { hash, field } => {
                let write = HashWrite::Remove { field: self::field(field), condition: Condition::Always };
                self.write(&self::hash(hash), &write, None);
            }
            RandomStep::RemoveHash { hash, key } => {
                self.write(&self::hash(hash), &HashWrite::Clear, key);
            }
            RandomStep::ExpireHash { hash, lifetime, key } => {
                let lifetime = lifetime.map(|(seconds, is_refreshed)| HashLifetime { seconds, is_refreshed });
                self.write(&self::hash(hash), &HashWrite::Expire(lifetime), key);
            }
            RandomStep::UpdateMembers { room, changes, watch, remove_stale } => {
                let room = self::room(room);
                let topic = Topic::from(room.clone());
                let changes: Vec<_> = changes.iter().map(|change| self.change(&room, change)).collect();
                let request = MembersRequest { room: &room, changes: &changes, watch, remove_stale, time: "now" };
                let _ = self.run(|transaction| {
                    let mut log = transaction.open_log(&topic, &[], Purpose::AppendPresence)?;
                    let update = log.update_members(&request)?;
                    for member in update.left.iter().chain(&update.joined).filter(|_| update.is_watched) {
                        log.append_presence(&presence_event(member));
                    }
                    Ok::<_, BrokerError>(())
                });
            }
            RandomStep::AddRemoval { user_bytes, seconds } => {
                let until = self.now / 1000 + seconds * 1000;
                let removal = Removal { user: Some("u".repeat(user_bytes)), until, ..Removal::default() };
                let _ = self.run(|transaction| transaction.add_removal(&removal));
            }
            RandomStep::ReportSubscribers { rooms } => {
                self.state.subscribers = rooms.into_iter().map(|room| (self::room(room), 1)).collect();
            }
            RandomStep::Wait { seconds } => self.now += seconds * SECOND,
            RandomStep::SetClockBack { seconds } => self.now -= (seconds * SECOND).min(self.now - 100 * SECOND),
            RandomStep::Sweep => {
                while let Some(hash) = self.state.due_hash(self.now) {
                    self.run(|transaction| transaction.expire_hash(&hash));
                }
                self.run(|transaction| {
                    transaction.sweep();
                });
            }
            RandomStep::Restart { has_other_retention } => {
                let retention = if has_other_retention { retention(2, 500) } else { retention(5, 3000) };
                let mut state = MemoryState::new(retention, self.max_bytes);
                for (key, value) in &self.journal {
                    let record = Record::parse(key, value.as_ref().unwrap()).unwrap();
                    state.load(record).unwrap();
                }
                state.start_journal();
                self.state = state;
            }
        }
    }

    fn check(&self) {
        let state = &self.state;
        assert_eq!(state.used_bytes(), counted_bytes(state));
        assert_eq!(state.unused_logs, state.logs.values().filter(|log| log.is_unused()).count());
        let records: ChangeSet = records(state).into_iter().map(|change| (change.key, change.value)).collect();
        assert_eq!(records, self.journal);
        assert!(state.hashes.values().all(|fields| !fields.is_empty()));
        assert!(state.expiries.iter().all(|(hash, _)| state.hashes.contains_key(hash)));
    }
}

fn presence_event(member: &StoredMember) -> Event {
    Event {
        name: EventName::from_log(EventName::JOIN).ok(),
        data: Data::Text((*member.profile).into()),
        published_at: String::new(),
        except: Vec::new(),
        publish_id: None,
        traceparent: None,
        is_final: false,
        last_message: None,
    }
}

/// What the memory holds, counted anew.
fn counted_bytes(state: &MemoryState) -> usize {
    let logs = state.logs.iter().map(|(topic, log)| {
        log_bytes(topic) + log.entries.timed().map(|(entry, _)| entry_bytes(&entry.stored)).sum::<usize>()
    });
    let hashes = state.hashes.keys().map(hash_bytes);
    let fields = state.hashes.values().flatten().map(|(field, value)| field_bytes(field, value));
    let members = state.members.values().flat_map(|room| room.members.values().map(StoredMember::bytes));
    let watches = state.members.values().filter(|room| room.is_watched).map(|_| OVERHEAD_BYTES);
    let removals = state.removals.values().map(removal_bytes);
    let keys = state.idempotency.iter().count() * IDEMPOTENCY_KEY_BYTES;
    let expiries = state.expiries.iter().map(|(hash, _)| expiry_bytes(hash)).sum::<usize>();
    keys + expiries + logs.chain(hashes).chain(fields).chain(members).chain(watches).chain(removals).sum::<usize>()
}

/// The records of everything that the memory holds.
fn records(state: &MemoryState) -> Vec<RecordChange> {
    let mut records = Vec::new();
    for (topic, log) in &state.logs {
        records.push(RecordChange::head(topic, log.head(), log.touched));
        records.extend(log.entries.timed().map(|(entry, time)| RecordChange::entry(topic, entry, time)));
    }
    for ((topic, digest), record) in state.idempotency.iter() {
        records.push(RecordChange::idempotency_key(topic, digest, record));
    }
    for (hash, fields) in &state.hashes {
        records.extend(fields.iter().map(|(field, value)| RecordChange::field(hash, field, Some(value.clone()))));
    }
    records.extend(state.expiries.iter().map(|(hash, expiry)| RecordChange::expiry(hash, Some(expiry))));
    for (name, room) in &state.members {
        let members = room.members.iter();
        records.extend(members.map(|(subscriber, member)| RecordChange::member(name, subscriber, Some(member))));
        records.extend(room.is_watched.then(|| RecordChange::watched(name, true)));
    }
    records.extend(state.removals.iter().map(|(id, removal)| RecordChange::removal(*id, Some(removal))));
    records
}

proptest! {
    #[test]
    fn after_any_steps_bytes_are_counted_right_and_the_journal_holds_what_the_memory_holds(
        max_bytes in prop::sample::select(vec![4000usize, 12_000, 1_000_000]),
        steps in prop::collection::vec(random_step(), 0..80),
    ) {
        let mut machine = Machine::new(max_bytes);
        for step in steps {
            machine.apply(step);
            machine.check();
        }
    }

    #[test]
    fn a_malformed_record_is_refused_and_never_panics(
        prefix in prop::sample::select(b"hHlLoOfemrwx".to_vec()),
        rest in prop::collection::vec(any::<u8>(), 0..40),
        value in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let key = [&[prefix][..], &rest].concat();
        let mut state = MemoryState::new(retention(5, 3000), 1_000_000);
        let _ = Record::parse(&key, &value).and_then(|record| state.load(record));
    }
}

#[test]
fn a_log_that_expires_with_entries_of_a_later_clock_leaves_nothing_behind() {
    let mut machine = Machine::new(1_000_000);
    let append = |machine: &mut Machine| {
        machine.apply(RandomStep::Append { topic: 1, bytes: 10, key: None, watermark: Watermark::None });
    };
    append(&mut machine);
    machine.now -= 200 * SECOND;
    // Renews the head by a clock that is behind that of the first entry.
    append(&mut machine);
    machine.now += 150 * SECOND;
    machine.apply(RandomStep::Sweep);
    machine.check();
    assert!(machine.state.logs.is_empty() && machine.journal.is_empty());
    assert_eq!(machine.state.used_bytes(), 0);
}

#[test]
fn presence_alone_leaves_a_head_behind_for_as_long_as_a_head_lives() {
    let mut machine = Machine::new(1_000_000);
    let update = |machine: &mut Machine, is_join| {
        let change = RandomChange { is_join, subscriber: 1, owner: 1, generation: None, profile_bytes: 50 };
        machine.apply(RandomStep::UpdateMembers {
            room: 1,
            changes: vec![change],
            watch: true,
            remove_stale: false,
        });
    };
    update(&mut machine, true);
    machine.apply(RandomStep::ReportSubscribers { rooms: vec![1] });
    machine.now += 61 * SECOND;
    machine.apply(RandomStep::Sweep);
    let entries = |machine: &Machine| machine.state.logs.values().map(|log| log.entries.len()).collect::<Vec<_>>();
    assert_eq!(entries(&machine).len(), 1, "the room has a stream");
    update(&mut machine, false);
    machine.apply(RandomStep::ReportSubscribers { rooms: Vec::new() });
    assert_eq!(entries(&machine), [1]);
    machine.now += 61 * SECOND;
    machine.apply(RandomStep::Sweep);
    machine.check();
    // A client without presence that returns gets no gap.
    assert_eq!(entries(&machine), [0]);
    machine.now += 30 * SECOND;
    machine.apply(RandomStep::Sweep);
    machine.check();
    assert!(machine.state.logs.is_empty() && machine.state.members.is_empty() && machine.journal.is_empty());
    assert_eq!(machine.state.used_bytes(), 0);
}

#[test]
fn members_of_an_earlier_process_go_with_their_log() {
    let mut machine = Machine::new(1_000_000);
    let change = RandomChange { is_join: true, subscriber: 1, owner: 1, generation: None, profile_bytes: 50 };
    machine.apply(RandomStep::UpdateMembers { room: 1, changes: vec![change], watch: false, remove_stale: false });
    machine.apply(RandomStep::Restart { has_other_retention: false });
    machine.apply(RandomStep::Sweep);
    assert_eq!(machine.state.members.len(), 1);
    machine.now += 91 * SECOND;
    machine.apply(RandomStep::Sweep);
    machine.check();
    assert!(machine.state.members.is_empty() && machine.journal.is_empty());
}

#[test]
fn loaded_records_are_held() {
    let samples = Samples::new();
    let mut state = MemoryState::new(retention(5, 3000), 1_000_000);
    for change in samples.changes() {
        let record = Record::parse(&change.key, &change.value.unwrap()).unwrap();
        state.load(record).unwrap();
    }
    let log = &state.logs[&samples.topic];
    assert_eq!((log.head(), log.touched), (&samples.head, 77));
    assert_eq!(
        log.entries.select(ReadRange::Oldest, LogView::All, ReadLimit { entries: 9, bytes: 10_000 }),
        (vec![samples.entry], true)
    );
    assert_eq!(state.hashes[&samples.hash]["é f"], b"\xff"[..]);
    assert_eq!(state.expiries.get(&samples.hash), Some(samples.expiry));
    let keys: HashMap<_, _> = state.idempotency.iter().collect();
    assert_eq!(*keys[&(samples.topic, "digest".into())], samples.key);
    assert_eq!(*keys[&(samples.hash.clone().into(), "digest".into())], samples.hash_key);
    let room = &state.members[&samples.room];
    assert!(room.is_watched);
    assert_eq!(room.members[&samples.subscriber], StoredMember { is_stale: true, ..samples.member });
    assert_eq!(state.removals[&88], samples.removal);
    assert_eq!(state.used_bytes(), counted_bytes(&state));
}
