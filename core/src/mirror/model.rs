//! Watched hashes under a model checker: the code of [`Mirror`], [`HashRead`], [`Comparison`] and [`WatchPhase`], with
//! that of logs and caches, on a server to which another client writes, which restarts with loss, trims and expires,
//! with two replicas, and watchers that disconnect anywhere and resume on any replica. What the server and a stream do
//! beside that code stands here.
//!
//! Every order of steps within some scopes is visited, and after each step, what is left over once all is quiet. Larger
//! scopes are walked at random. A scope is the most writes, foreign writes, faults and resumes, the number of watchers,
//! the pages of a read and, if there is only one, the fault:
//! `ROOMCAST_WATCH_MODEL=1,1,1,1,1,1,Trim cargo test --release -p roomcast-core mirror::model` takes other scopes, and
//! `ROOMCAST_WATCH_STEPS` another number of random steps.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::LazyLock;

use bytes::Bytes;
use stateright::{Checker, HasDiscoveries, Model, Property, UniformChooser};

use super::{Comparison, HashRead, Mirror, StoredState, WatchPhase};
use crate::cache::{AnnouncementOutcome, CachedEvent, LogCache, Lookup, Ring, RingLimits};
use crate::log::{EntryKind, EpochHistory, Gap, Head, LogView, Next, ReportedLoss, StepContext};
use crate::names::{Bookmark, ChangeKind, ClearReason, EventId, HashChange, WatchBase, digest};

/// The names of the two fields.
const FIELDS: [&str; 2] = ["a", "b"];
/// Values are numbers: 0 at first, and another one for each write.
const VALUES: [&str; 16] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15"];
/// The digests of the values. Dependencies are not optimised in tests, and a digest takes long.
static DIGESTS: LazyLock<[u64; 16]> = LazyLock::new(|| VALUES.map(|value| digest(value.as_bytes())));
/// How far the clock moves with a step that uses the time.
const TICK: u64 = 1 << 25;

/// The values of the two fields.
type FieldValues = [Option<u8>; 2];

/// A change of the hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ModelChange {
    Set(usize, u8),
    Remove(usize),
    Clear,
}

impl ModelChange {
    fn apply(self, fields: &mut FieldValues) {
        match self {
            Self::Set(field, value) => fields[field] = Some(value),
            Self::Remove(field) => fields[field] = None,
            Self::Clear => *fields = [None; 2],
        }
    }

    fn change(self) -> HashChange {
        let kind = match self {
            Self::Set(field, value) => ChangeKind::Set(vec![(FIELDS[field].into(), bytes(value))]),
            Self::Remove(field) => ChangeKind::Remove(vec![FIELDS[field].into()]),
            Self::Clear => ChangeKind::Clear(ClearReason::Removed),
        };
        HashChange { published_at: String::new(), by: None, expires_at: 0, kind }
    }
}

fn bytes(value: u8) -> Bytes {
    Bytes::from_static(VALUES[usize::from(value)].as_bytes())
}

fn stored_state(fields: FieldValues) -> StoredState {
    let present = || FIELDS.iter().zip(fields).filter_map(|(field, value)| Some(((*field).into(), value?)));
    let mut stored = StoredState::new(present().map(|(field, value)| (field, bytes(value))).collect());
    stored.digests = present().map(|(field, value)| (field, DIGESTS[usize::from(value)])).collect();
    stored
}

fn fields_of(stored: &StoredState) -> FieldValues {
    FIELDS.map(|field| {
        let value = stored.fields.get(field)?;
        VALUES.iter().position(|known| known.as_bytes() == value).and_then(|value| u8::try_from(value).ok())
    })
}

/// An entry of the log; no two have the same `content`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ModelEntry {
    id: EventId,
    content: u8,
    change: ModelChange,
}

impl CachedEvent for ModelEntry {
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
        None
    }
}

/// The data of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct HashServer {
    head: Option<Head>,
    log: Vec<ModelEntry>,
    hash: FieldValues,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct ModelSnapshot {
    mirror: u64,
    position: EventId,
    fields: FieldValues,
}

/// A read of the hash, and the comparison that follows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum ModelRead {
    /// So many pages were read.
    Pages(HashRead, FieldValues, usize),
    Comparing(Comparison),
    /// The log has got other entries.
    Overtaken(Comparison),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct MirrorReplica {
    cache: LogCache<ModelEntry>,
    /// The highest offset by epoch.
    watermarks: BTreeMap<u64, u64>,
    /// Announcements on their way.
    inbox: VecDeque<ModelEntry>,
    mirror: Option<Mirror>,
    /// 0 if there is no mirror.
    mirror_number: u64,
    snapshot: Option<ModelSnapshot>,
    read: Option<ModelRead>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Watcher {
    replica: usize,
    position: EventId,
    reported: Option<ReportedLoss>,
    phase: WatchPhase<ModelSnapshot>,
    /// What the client has.
    fields: FieldValues,
    /// It has a whole snapshot, and no gap came since.
    has_base: bool,
    /// The numbers of the entries that its base has, that it was told, or that a gap covers.
    known: BTreeSet<u8>,
}

/// What a delivery, or the lack of one, did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum WatchViolation {
    /// A change, to a client that has no whole snapshot, or got a gap since.
    ChangeWithoutBase,
    /// A change that the client had already, or that a gap covered.
    RepeatedChange,
    /// A change, before an earlier one that the log has.
    SkippedChange,
    /// A snapshot in place of changes, to a client that was told neither them nor a gap.
    SkippedBySnapshot,
    /// A gap, though nothing was lost at all.
    NeedlessGap,
    /// What another client has changed was appended twice.
    AppendedTwice,
    /// Neither a change nor a gap for it, though no step is left to take.
    SilentLoss,
    /// The client's fields are not the stored ones, though no step is left to take.
    Stale,
}

/// The state of the model.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct WatchWorld {
    data: HashServer,
    /// The data that the server has after a restart with loss, and that its copy has.
    saved: HashServer,
    replication_id: u8,
    time: u64,
    replicas: [MirrorReplica; 2],
    watchers: Vec<Watcher>,
    /// All entries that were ever appended.
    appended: Vec<ModelEntry>,
    next_value: u8,
    next_mirror: u64,
    pages: usize,
    writes: u8,
    foreign_writes: u8,
    faults: u8,
    resumes: u8,
    /// The fields that another client has changed since they were appended last.
    is_foreign: [bool; 2],
    /// Entries may be lost for which a watcher may need a gap.
    is_lossy: bool,
    violations: BTreeSet<WatchViolation>,
}

/// A step. Numbers are those of replicas and watchers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum WatchStep {
    Write(usize, ModelChange),
    /// Another client of the server changes the hash, or the hash expires.
    Foreign(ModelChange),
    ReceiveAnnouncement(usize),
    ReadLog(usize),
    /// The next step of a read of the hash.
    ReadHash(usize),
    Poll(usize),
    /// The watcher's connection ends, and it resumes on this replica.
    Resume(usize, usize),
    /// A replica without watchers drops its cache and mirror.
    Vacate(usize),
    /// The watcher took the parts of its snapshot too slowly.
    DropSnapshot(usize),
    Save,
    Restart,
    LoseAllKeys,
    ExpireHead,
    ExpireLog,
    Trim,
}

/// The faults of the server.
const FAULTS: [WatchStep; 5] =
    [WatchStep::Restart, WatchStep::LoseAllKeys, WatchStep::ExpireHead, WatchStep::ExpireLog, WatchStep::Trim];

/// How many steps of a kind there may be.
#[derive(Clone, Copy, Debug)]
struct WatchScope {
    writes: u8,
    foreign_writes: u8,
    faults: u8,
    resumes: u8,
    watchers: usize,
    pages: usize,
    /// The only fault, if there is only one.
    fault: Option<WatchStep>,
    /// All kinds of writes, by both replicas.
    is_walk: bool,
}

impl WatchWorld {
    fn start(scope: WatchScope) -> Self {
        let data = HashServer { hash: [Some(0), Some(0)], ..HashServer::default() };
        let mut world = Self {
            data: data.clone(),
            saved: data,
            replication_id: 0,
            time: 10 * TICK,
            replicas: [MirrorReplica::new(), MirrorReplica::new()],
            watchers: Vec::new(),
            appended: Vec::new(),
            next_value: 1,
            next_mirror: 1,
            pages: scope.pages,
            writes: 0,
            foreign_writes: 0,
            faults: 0,
            resumes: 0,
            is_foreign: [false; 2],
            is_lossy: false,
            violations: BTreeSet::new(),
        };
        // At first there is one watcher that has the state, and one that comes, or a mirror that nobody needs any more.
        for replica in 0..2 {
            world.watchers.push(Watcher::new(replica));
            world.read_log(replica);
            if replica == 0 || scope.watchers == 1 {
                world.finish_reads(replica);
                while world.poll(replica) {}
            }
        }
        world.watchers.truncate(scope.watchers);
        world.saved = world.data.clone();
        world
    }

    // The server

    /// Begins a step on a log.
    fn ensure_epoch(&mut self, replica: usize) -> &mut Head {
        let watermarks = &self.replicas[replica].watermarks;
        let watermarks: Vec<_> = watermarks.iter().map(|(epoch, offset)| EventId::new(*epoch, *offset)).collect();
        let replication_id = self.replication_id.to_string();
        let oldest = self.data.log.first().map(|entry| entry.id);
        if self.data.head.is_none() {
            self.data.log.clear();
        }
        let context = StepContext { replication_id: &replication_id, time: self.time, random: 0, oldest };
        let (head, changed) = Head::ensure_epoch(self.data.head.take(), &watermarks, context);
        // Only a step that uses the time advances it, so that worlds that differ in nothing else are the same state.
        self.time += u64::from(changed) * TICK;
        self.data.head.insert(head)
    }

    /// The history of the log, and its entries after a position.
    fn read_entries(&mut self, replica: usize, position: EventId) -> (EpochHistory, Vec<ModelEntry>) {
        let history = self.ensure_epoch(replica).history.clone();
        self.replicas[replica].add_watermark(history.end());
        (history, self.data.log.iter().filter(|entry| entry.id > position).copied().collect())
    }

    fn append(&mut self, replica: usize, change: ModelChange) {
        let (id, _) = self.ensure_epoch(replica).extend(EntryKind::Message);
        let entry = ModelEntry { id, content: u8::try_from(self.appended.len()).unwrap(), change };
        self.data.log.push(entry);
        self.appended.push(entry);
        for replica in &mut self.replicas {
            if replica.cache.end().is_some() {
                replica.inbox.push_back(entry);
            }
        }
    }

    fn write(&mut self, replica: usize, change: ModelChange) {
        // A replica that knows ids of the log knows that the hash has one, or had one.
        let is_watched = self.data.head.is_some() || !self.replicas[replica].watermarks.is_empty();
        if self.change_hash(change, !is_watched) && is_watched {
            self.append(replica, change);
        }
    }

    /// Changes the stored hash. Returns whether it is different now.
    fn change_hash(&mut self, change: ModelChange, is_foreign: bool) -> bool {
        let before = self.data.hash;
        change.apply(&mut self.data.hash);
        self.next_value += u8::from(matches!(change, ModelChange::Set(_, 1..)));
        for (number, old) in before.iter().enumerate() {
            if self.data.hash[number] != *old {
                self.is_foreign[number] = is_foreign;
            }
        }
        self.data.hash != before
    }

    /// Appends the present values of fields. Returns none unless the log has this end.
    fn append_external(&mut self, replica: usize, end: Option<EventId>, fields: &[Box<str>]) -> Option<usize> {
        let head = self.data.head.as_ref()?;
        let is_same_server = head.replication_id == self.replication_id.to_string();
        if !is_same_server || end.is_some_and(|end| end != head.history.end()) {
            return None;
        }
        for name in fields {
            let field = usize::from(**name == *FIELDS[1]);
            if !std::mem::take(&mut self.is_foreign[field]) && !self.is_lossy {
                self.violations.insert(WatchViolation::AppendedTwice);
            }
            let value = self.data.hash[field];
            self.append(replica, value.map_or(ModelChange::Remove(field), |value| ModelChange::Set(field, value)));
        }
        Some(fields.len())
    }

    // A replica

    fn receive_announcement(&mut self, replica: usize) {
        let replica = &mut self.replicas[replica];
        let Some(entry) = replica.inbox.pop_front() else { return };
        if replica.cache.receive(entry) != AnnouncementOutcome::Conflict {
            replica.add_watermark(entry.id);
        }
    }

    /// Reads the log into the cache.
    fn read_log(&mut self, replica: usize) {
        let from = self.replicas[replica].cache.read_from().unwrap_or(EventId::start_of(0));
        let (history, entries) = self.read_entries(replica, from);
        let cache = &mut self.replicas[replica].cache;
        cache.begin_read();
        cache.compare(&history, &entries);
        cache.end_read(&history, entries);
        assert_eq!(cache.retractions(), 0, "no announcement is forged here");
    }

    /// Brings the mirror to the end of the log, as far as the replica has the log. Drops it if that leaves a gap.
    fn catch_up(&mut self, replica: usize) {
        while let MirrorReplica { mirror: Some(mirror), cache, .. } = &mut self.replicas[replica] {
            let position = mirror.position();
            match cache.after(position, None, 1) {
                Lookup::Nothing => return,
                Lookup::Events(entries) => {
                    mirror.catch_up(&[(entries[0].id, entries[0].change.change())], entries[0].id);
                }
                Lookup::Unknown => {
                    let Some((changes, end)) = self.changes_after(replica, position) else {
                        return self.replicas[replica].drop_mirror();
                    };
                    let mirror = self.replicas[replica].mirror.as_mut().expect("it is there");
                    return mirror.catch_up(&changes, end);
                }
            }
        }
    }

    /// The changes after a position, and the end of the log. None if there is a gap between.
    fn changes_after(
        &mut self,
        replica: usize,
        position: EventId,
    ) -> Option<(Vec<(EventId, HashChange)>, EventId)> {
        let (history, entries) = self.read_entries(replica, position);
        let ring = Ring::from_events(entries, LogView::All, None);
        let found = match ring.after(&history, position, None, usize::MAX) {
            Ok(entries) => entries,
            Err(Next::Nothing) => Vec::new(),
            Err(_) => return None,
        };
        let last = found.last().map_or(position, |entry| entry.id);
        let has_all = history.next_after(last, &ring, None) == Next::Nothing;
        let changes = found.iter().map(|entry| (entry.id, entry.change.change())).collect();
        has_all.then(|| (changes, history.end()))
    }

    /// The next step of a read of the hash. Begins one if there is none.
    fn read_hash(&mut self, replica: usize) {
        let Some(read) = self.replicas[replica].read.take() else {
            self.catch_up(replica);
            let mirror = self.replicas[replica].mirror.as_ref().map(Mirror::position);
            if mirror.is_some() || self.is_snapshot_needed(replica) {
                let end = self.read_entries(replica, EventId::start_of(0)).0.end();
                self.replicas[replica].read = Some(ModelRead::Pages(HashRead::new(end, mirror), [None; 2], 0));
            }
            return;
        };
        let next = match read {
            ModelRead::Pages(read, mut fields, pages) if pages < self.pages => {
                let page = if self.pages == 1 { 0..2 } else { pages..pages + 1 };
                fields[page.clone()].copy_from_slice(&self.data.hash[page]);
                Some(ModelRead::Pages(read, fields, pages + 1))
            }
            ModelRead::Pages(read, fields, _) => self.end_pages(replica, read, fields),
            ModelRead::Comparing(mut comparison) => {
                let (end, fields) = comparison.to_append().expect("there is something to append");
                match self.append_external(replica, end, fields) {
                    Some(count) => {
                        comparison.appended(count);
                        self.go_on(replica, comparison)
                    }
                    None => Some(ModelRead::Overtaken(comparison)),
                }
            }
            ModelRead::Overtaken(mut comparison) => {
                let changes = self.changes_after(replica, comparison.position());
                changes.and_then(|(changes, end)| {
                    let mirror = self.replicas[replica].mirror.as_mut().expect("it is compared");
                    if comparison.catch_up(mirror, &changes, end) { self.go_on(replica, comparison) } else { None }
                })
            }
        };
        self.replicas[replica].read = next;
    }

    /// Whether a step of a read of the hash may make a difference: a comparison of what is equal and stays so makes
    /// none.
    fn may_read_hash(&self, replica: usize, scope: &WatchScope) -> bool {
        let MirrorReplica { mirror, read, .. } = &self.replicas[replica];
        let may_change =
            self.writes < scope.writes || self.foreign_writes < scope.foreign_writes || self.faults < scope.faults;
        let differs = mirror.as_ref().is_some_and(|mirror| {
            may_change
                || self.data.head.as_ref().is_none_or(|head| head.history.end() != mirror.position())
                || !mirror.differing(&stored_state(self.data.hash).digests).is_empty()
        });
        read.is_some() || differs || self.is_snapshot_needed(replica)
    }

    fn end_pages(&mut self, replica: usize, mut read: HashRead, fields: FieldValues) -> Option<ModelRead> {
        let mut since = self.changes_after(replica, read.log_from());
        if since.is_none() && read.give_up_mirror() {
            since = self.changes_after(replica, read.log_from());
        }
        let (changes, end) = since?;
        if self.pages == 1 && !read.is_unchanged(&changes) {
            // The next step begins another one.
            return None;
        }
        let mut stored = stored_state(fields);
        let reaches_mirror = read.finish(&mut stored, &changes, end);
        if !reaches_mirror {
            self.replicas[replica].drop_mirror();
        }
        let MirrorReplica { mirror, mirror_number, .. } = &mut self.replicas[replica];
        if let Some(mirror) = mirror {
            let comparison = Comparison::new(mirror, stored, &changes, end);
            return self.go_on(replica, comparison);
        }
        let fields = fields_of(&stored);
        (*mirror, *mirror_number) = (Some(Mirror::new(end, stored.digests, 0)), self.next_mirror);
        self.next_mirror += 1;
        self.keep_snapshot(replica, end, fields);
        None
    }

    fn go_on(&mut self, replica: usize, comparison: Comparison) -> Option<ModelRead> {
        if comparison.to_append().is_some() {
            return Some(ModelRead::Comparing(comparison));
        }
        self.keep_snapshot(replica, comparison.position(), fields_of(&comparison.into_stored()));
        None
    }

    /// Keeps a snapshot if a watcher waits for one. Others may get it later, too.
    fn keep_snapshot(&mut self, replica: usize, position: EventId, fields: FieldValues) {
        let mirror = self.replicas[replica].mirror_number;
        let snapshot = ModelSnapshot { mirror, position, fields };
        self.replicas[replica].snapshot = self.is_snapshot_needed(replica).then_some(snapshot);
    }

    fn is_snapshot_needed(&self, replica: usize) -> bool {
        let needs = |watcher: &Watcher| matches!(watcher.phase, WatchPhase::NeedsSnapshot { .. });
        self.watchers.iter().any(|watcher| watcher.replica == replica && needs(watcher))
    }

    // A watcher

    /// A watcher asks its replica what follows. Returns whether it moves on.
    fn poll(&mut self, watcher: usize) -> bool {
        let Watcher { replica, position, .. } = self.watchers[watcher];
        if self.replicas[replica].cache.end().is_none() {
            return false;
        }
        match self.watchers[watcher].phase {
            WatchPhase::NeedsSnapshot { .. } => {
                if self.replicas[replica].read.is_some() {
                    return false;
                }
                self.catch_up(replica);
                let MirrorReplica { snapshot, mirror_number, .. } = self.replicas[replica];
                let is_usable =
                    |snapshot: &ModelSnapshot| snapshot.mirror == mirror_number && snapshot.position >= position;
                let Some(snapshot) = snapshot.filter(is_usable) else { return false };
                self.watchers[watcher].phase.begin(snapshot);
            }
            WatchPhase::Snapshot { snapshot, .. } => {
                if self.watchers[watcher].phase.follows_log()
                    && position < snapshot.position
                    && let Some(next) = self.next_change(watcher, Some(snapshot.position))
                {
                    self.deliver(watcher, next);
                } else {
                    self.take_part(watcher, snapshot);
                }
            }
            WatchPhase::Following(_) => {
                let Some(next) = self.next_change(watcher, None) else {
                    let present = self.replicas[replica].present_mirror();
                    return self.watchers[watcher].phase.caught_up(present);
                };
                self.deliver(watcher, next);
            }
        }
        true
    }

    fn take_part(&mut self, watcher: usize, snapshot: ModelSnapshot) {
        let is_in_base = |entry: &ModelEntry| entry.id <= snapshot.position;
        if self.watchers[watcher].has_base
            && self.misses_any(watcher, |entry| is_in_base(entry) && self.holds(entry))
        {
            self.violations.insert(WatchViolation::SkippedBySnapshot);
        }
        let watcher = &mut self.watchers[watcher];
        let has_followed = watcher.phase.follows_log();
        let part = watcher.phase.next_part(snapshot.mirror, FIELDS.len());
        if part == 0 && !has_followed {
            watcher.reported = Some(ReportedLoss { from: EventId::start_of(0), to: snapshot.position });
        }
        if part == 0 {
            if !has_followed {
                watcher.known =
                    self.appended.iter().filter(|entry| is_in_base(entry)).map(|entry| entry.content).collect();
            }
            (watcher.fields, watcher.has_base, watcher.position) = ([None; 2], false, snapshot.position);
        }
        watcher.fields[part] = snapshot.fields[part];
        watcher.has_base = part + 1 == FIELDS.len();
    }

    /// What follows in the log, up to a position if there is one.
    fn next_change(&mut self, watcher: usize, until: Option<EventId>) -> Option<Result<ModelEntry, Gap>> {
        let Watcher { replica, position, reported, .. } = self.watchers[watcher];
        let cache = &self.replicas[replica].cache;
        let next = match cache.after(position, reported, 1) {
            Lookup::Events(entries) => Some(Ok(entries[0])),
            Lookup::Nothing if until.is_none_or(|until| cache.holds(until)) => None,
            Lookup::Nothing | Lookup::Unknown => {
                let (history, entries) = self.read_entries(replica, position);
                match Ring::from_events(entries, LogView::All, None).after(&history, position, reported, 1) {
                    Ok(entries) => Some(Ok(entries[0])),
                    Err(Next::Gap(gap)) => Some(Err(gap)),
                    Err(Next::Nothing | Next::Event(_)) => {
                        self.watchers[watcher].position = history.end();
                        None
                    }
                }
            }
        };
        next.filter(|next| !next.is_ok_and(|entry| until.is_some_and(|until| entry.id > until)))
    }

    fn deliver(&mut self, watcher: usize, next: Result<ModelEntry, Gap>) {
        match next {
            Ok(entry) => self.deliver_change(watcher, entry),
            Err(gap) => self.deliver_gap(watcher, gap),
        }
    }

    fn deliver_change(&mut self, watcher: usize, entry: ModelEntry) {
        let Watcher { has_base, known, .. } = &self.watchers[watcher];
        let is_skipped = |skipped: &ModelEntry| skipped.id < entry.id && self.holds(skipped);
        let violations = [
            (!*has_base, WatchViolation::ChangeWithoutBase),
            (known.contains(&entry.content), WatchViolation::RepeatedChange),
            (self.misses_any(watcher, is_skipped), WatchViolation::SkippedChange),
        ];
        self.violations.extend(violations.into_iter().filter(|(is, _)| *is).map(|(_, violation)| violation));
        let watcher = &mut self.watchers[watcher];
        entry.change.apply(&mut watcher.fields);
        watcher.known.insert(entry.content);
        watcher.position = entry.id;
    }

    fn deliver_gap(&mut self, watcher: usize, gap: Gap) {
        if !self.is_lossy {
            self.violations.insert(WatchViolation::NeedlessGap);
        }
        let watcher = &mut self.watchers[watcher];
        let covered = ReportedLoss::from(gap);
        let is_covered = |entry: &&ModelEntry| covered.from < entry.id && entry.id <= covered.to;
        watcher.known.extend(self.appended.iter().filter(is_covered).map(|entry| entry.content));
        watcher.reported = Some(ReportedLoss::after_gap(watcher.reported, gap));
        (watcher.position, watcher.has_base) = (gap.to, false);
        watcher.phase.gap();
    }

    /// Whether a watcher was told neither some entry, among those that are meant, nor a gap for it.
    fn misses_any(&self, watcher: usize, is_meant: impl Fn(&ModelEntry) -> bool) -> bool {
        let known = &self.watchers[watcher].known;
        self.appended.iter().any(|entry| !known.contains(&entry.content) && is_meant(entry))
    }

    // All

    /// Whether the server has an entry, or had it and has not lost it.
    fn holds(&self, entry: &ModelEntry) -> bool {
        self.data.head.as_ref().is_some_and(|head| head.history.holds(entry.id))
    }

    /// Reads the hash until it is compared.
    fn finish_reads(&mut self, replica: usize) {
        loop {
            self.read_hash(replica);
            if self.replicas[replica].read.is_none() {
                return;
            }
        }
    }

    fn is_up_to_date(&self, watcher: &Watcher) -> bool {
        watcher.phase.follows(self.replicas[watcher.replica].present_mirror()) && watcher.fields == self.data.hash
    }

    /// The world after every replica has reached the server and compared, and every watcher has been told all that
    /// follows.
    fn at_rest(&self) -> Self {
        let mut world = self.clone();
        for round in 0..8 {
            for replica in 0..2 {
                world.read_log(replica);
            }
            for replica in 0..2 {
                world.finish_reads(replica);
            }
            for watcher in 0..world.watchers.len() {
                let count = (0..100).take_while(|_| world.poll(watcher)).count();
                assert!(count < 100, "polling never ends");
            }
            if round > 1 && world.watchers.iter().all(|watcher| world.is_up_to_date(watcher)) {
                break;
            }
        }
        for watcher in 0..world.watchers.len() {
            if !world.watchers[watcher].has_base || !world.is_up_to_date(&world.watchers[watcher]) {
                world.violations.insert(WatchViolation::Stale);
            }
            let is_known = |entry: &ModelEntry| {
                world.holds(entry) || world.replicas.iter().any(|replica| replica.knows(entry))
            };
            if world.misses_any(watcher, is_known) {
                world.violations.insert(WatchViolation::SilentLoss);
            }
        }
        world
    }

    /// The world after a step.
    fn after(&self, step: WatchStep) -> Self {
        let mut world = self.clone();
        match step {
            WatchStep::Write(replica, change) => {
                world.writes += 1;
                world.write(replica, change);
            }
            WatchStep::Foreign(change) => {
                world.foreign_writes += 1;
                world.change_hash(change, true);
            }
            WatchStep::ReceiveAnnouncement(replica) => world.receive_announcement(replica),
            WatchStep::ReadLog(replica) => world.read_log(replica),
            WatchStep::ReadHash(replica) => world.read_hash(replica),
            WatchStep::Poll(watcher) => {
                world.poll(watcher);
            }
            WatchStep::Resume(watcher, replica) => {
                world.resumes += 1;
                world.watchers[watcher].resume(replica);
            }
            WatchStep::Vacate(replica) => {
                world.resumes += 1;
                let watermarks = std::mem::take(&mut world.replicas[replica].watermarks);
                world.replicas[replica] = MirrorReplica { watermarks, ..MirrorReplica::new() };
            }
            WatchStep::DropSnapshot(watcher) => {
                world.watchers[watcher].phase.too_slow();
            }
            WatchStep::Save => world.saved = world.data.clone(),
            WatchStep::Restart => {
                world.replication_id += 1;
                world.data = world.saved.clone();
            }
            WatchStep::LoseAllKeys => world.data = HashServer::default(),
            WatchStep::ExpireHead => (world.data.head, world.data.log) = (None, Vec::new()),
            WatchStep::ExpireLog => world.data.log.clear(),
            WatchStep::Trim => {
                world.data.log.remove(0);
            }
        }
        let is_servers = FAULTS.contains(&step);
        world.faults += u8::from(is_servers || matches!(step, WatchStep::DropSnapshot(_)));
        world.is_lossy |= is_servers && world.data != self.data;
        world
    }
}

impl MirrorReplica {
    fn new() -> Self {
        Self {
            cache: LogCache::new(RingLimits { events: 2, bytes: usize::MAX }),
            watermarks: BTreeMap::new(),
            inbox: VecDeque::new(),
            mirror: None,
            mirror_number: 0,
            snapshot: None,
            read: None,
        }
    }

    fn add_watermark(&mut self, id: EventId) {
        let offset = self.watermarks.entry(id.epoch).or_default();
        *offset = id.offset.max(*offset);
    }

    fn knows(&self, entry: &ModelEntry) -> bool {
        self.watermarks.get(&entry.id.epoch).is_some_and(|offset| *offset >= entry.id.offset)
    }

    fn present_mirror(&self) -> Option<u64> {
        self.mirror.as_ref().map(|_| self.mirror_number)
    }

    fn drop_mirror(&mut self) {
        (self.mirror, self.mirror_number, self.snapshot) = (None, 0, None);
    }
}

impl Watcher {
    fn new(replica: usize) -> Self {
        Self {
            replica,
            position: EventId::start_of(0),
            reported: None,
            phase: WatchPhase::new(None),
            fields: [None; 2],
            has_base: false,
            known: BTreeSet::new(),
        }
    }

    fn resume(&mut self, replica: usize) {
        let bookmark = Bookmark { id: self.position, base: Some(self.phase.base()) };
        self.phase = WatchPhase::new(Some(bookmark));
        self.replica = replica;
        let is_new = bookmark.base == Some(WatchBase::Unfinished);
        self.has_base &= !is_new;
        self.reported = is_new.then_some(ReportedLoss { from: EventId::start_of(0), to: self.position });
    }
}

impl Model for WatchScope {
    type State = WatchWorld;
    type Action = WatchStep;

    fn init_states(&self) -> Vec<WatchWorld> {
        vec![WatchWorld::start(*self)]
    }

    fn actions(&self, world: &WatchWorld, steps: &mut Vec<WatchStep>) {
        let may_fail = world.faults < self.faults;
        let kinds = if self.is_walk { 4 } else { 1 };
        let change = |number: usize| {
            let set = |field| ModelChange::Set(field, world.next_value);
            [set(0), ModelChange::Clear, set(1), ModelChange::Remove(0)][number]
        };
        // Without resumes, a fault of the server concerns one replica as well as two.
        let replicas = if self.fault.is_some() && self.resumes == 0 { 1 } else { 2 };
        for number in 0..replicas {
            let replica = &world.replicas[number];
            if world.writes < self.writes && (number == 0 || self.is_walk) {
                steps.extend((0..kinds).map(|kind| WatchStep::Write(number, change(kind))));
            }
            if replica.cache.end().is_some() {
                if !replica.inbox.is_empty() {
                    steps.push(WatchStep::ReceiveAnnouncement(number));
                }
                if world.may_read_hash(number, self) {
                    steps.push(WatchStep::ReadHash(number));
                }
                let has_watchers = world.watchers.iter().any(|watcher| watcher.replica == number);
                if world.resumes < self.resumes && !has_watchers {
                    steps.push(WatchStep::Vacate(number));
                }
            }
            steps.push(WatchStep::ReadLog(number));
        }
        for number in 0..self.watchers {
            steps.push(WatchStep::Poll(number));
            if world.resumes < self.resumes {
                steps.extend([WatchStep::Resume(number, 0), WatchStep::Resume(number, 1)]);
            }
            let has_snapshot = matches!(world.watchers[number].phase, WatchPhase::Snapshot { .. });
            if may_fail && self.fault.is_none() && has_snapshot {
                steps.push(WatchStep::DropSnapshot(number));
            }
        }
        if world.foreign_writes < self.foreign_writes {
            steps.extend((0..kinds).map(|kind| WatchStep::Foreign(change(kind))));
            // The first value again.
            if world.data.hash[0] != Some(0) {
                steps.push(WatchStep::Foreign(ModelChange::Set(0, 0)));
            }
        }
        if may_fail {
            let has_log = !world.data.log.is_empty();
            let is_meant = |fault: &&WatchStep| self.fault.is_none_or(|only| only == **fault);
            let faults = FAULTS.iter().filter(is_meant).copied();
            steps.extend(faults.filter(|fault| has_log || *fault != WatchStep::Trim));
        }
        if self.is_walk {
            steps.push(WatchStep::Save);
        }
    }

    fn next_state(&self, before: &WatchWorld, step: WatchStep) -> Option<WatchWorld> {
        let world = before.after(step);
        (world != *before).then_some(world)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("watchers are told what happens", |_, world: &WatchWorld| {
            world.at_rest().violations.is_empty()
        })]
    }
}

fn check(checker: &impl Checker<WatchScope>) {
    if let Some(path) = checker.discoveries().into_values().next() {
        let (world, steps) = (path.last_state().at_rest(), path.into_actions());
        panic!("after {steps:?}: {:?}\nat rest: {world:#?}", world.violations);
    }
}

#[test]
#[allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a switch, and the count, of this test alone")]
fn model_every_order_of_steps_leaves_watchers_with_the_stored_state() {
    let scopes = std::env::var("ROOMCAST_WATCH_MODEL")
        .unwrap_or_else(|_| "0,0,0,2,1,1 1,0,0,1,1,1 1,1,0,0,1,1 0,1,0,1,1,2 0,0,1,1,1,1 1,1,1,0,1,1,Trim".into());
    for scope in scopes.split(' ') {
        let mut parts = scope.split(',');
        let mut next = || parts.next()?.parse().ok();
        let [writes, foreign_writes, faults, resumes, watchers, pages]: [u8; 6] =
            std::array::from_fn(|_| next().expect("six numbers"));
        let fault = parts
            .next()
            .map(|name| *FAULTS.iter().find(|fault| format!("{fault:?}") == name).expect("the name of a fault"));
        let (watchers, pages) = (watchers.into(), pages.into());
        let scope = WatchScope { writes, foreign_writes, faults, resumes, watchers, pages, fault, is_walk: false };
        let checker = scope.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        println!("{} states, {} different: {scope:?}", checker.state_count(), checker.unique_state_count());
        check(&checker);
        assert!(checker.unique_state_count() > 50);
    }
}

#[test]
#[allow(clippy::disallowed_methods, clippy::print_stdout, reason = "a switch, and the count, of this test alone")]
fn model_random_walks_leave_watchers_with_the_stored_state() {
    let count = std::env::var("ROOMCAST_WATCH_STEPS").map_or(30_000, |count| count.parse().expect("a number"));
    for (pages, fault) in [1, 2].into_iter().zip([None; 2]).chain(FAULTS.map(|fault| (1, Some(fault)))) {
        let (watchers, is_walk) = (2, true);
        let scope =
            WatchScope { writes: 4, foreign_writes: 3, faults: 2, resumes: 3, watchers, pages, fault, is_walk };
        let checker = scope.checker().target_state_count(count);
        let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_simulation(1, UniformChooser).join();
        println!("{} states: {scope:?}", checker.state_count());
        check(&checker);
    }
}
