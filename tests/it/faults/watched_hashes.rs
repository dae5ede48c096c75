//! Faults while a hash is written and watched: every watcher ends with what is stored, and is told a gap where changes
//! were lost that it has seen. Three replicas, four writers, a dozen watchers that reconnect as `EventSource` does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use roomcast::names::{ChangeKind, EventId, HashChange};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::failovers::{catches_up, follower, promote};
use super::outcome;
use super::stage::Promise;
use crate::support::{
    Account, Balancer, Fields, Link, Links, Proxy, RedisServer, Replica, Told, Watcher, Way, eventually, random,
    spawn, stored_fields, within,
};

const HASH: &str = "lamp";
const KEY: &str = "roomcast:hash:{lamp}";
const WRITERS: usize = 4;
const WATCHERS: usize = 12;
/// Most fields of the hash, beside the one with the last value.
const FIELDS: usize = 30;
/// The field that is written when all is over.
const LAST: &str = "last";
/// Reasons of a gap after the loss of the last changes.
const TAIL: &[&str] = &["diverged", "lost_tail"];
/// The same after the loss of the whole log.
const WHOLE_LOG: &[&str] = &["diverged", "log_lost", "lost_tail"];

#[derive(Default)]
struct Counts {
    acknowledged: AtomicUsize,
    refused: AtomicUsize,
    unknown: AtomicUsize,
}

/// Writes until it is stopped.
async fn write(
    balancer: Balancer,
    number: usize,
    mut rng: fastrand::Rng,
    counts: Arc<Counts>,
    stop: CancellationToken,
) {
    let client = reqwest::Client::new();
    for count in 0.. {
        if stop.is_cancelled() {
            return;
        }
        let path = format!("{}/v1/hashes/{HASH}", balancer.pick(&mut rng));
        let field = |rng: &mut fastrand::Rng| format!("f{}", rng.usize(..FIELDS));
        let value = format!("{number}.{count}");
        let request = match rng.u8(..20) {
            0..12 => client.put(format!("{path}/fields/{}", field(&mut rng))).body(value),
            12..16 => client.patch(path).json(&json!({field(&mut rng): value, field(&mut rng): null})),
            16..19 => client.delete(format!("{path}/fields/{}", field(&mut rng))),
            _ => client.delete(path),
        };
        let counter = match request.timeout(Duration::from_secs(10)).send().await {
            Ok(answer) if matches!(answer.status().as_u16(), 200 | 201 | 204 | 404) => &counts.acknowledged,
            Ok(answer) => {
                let body: serde_json::Value = answer.json().await.unwrap_or_default();
                match body["code"].as_str() {
                    Some("unavailable") => &counts.refused,
                    Some("outcome_unknown") | None => &counts.unknown,
                    code => panic!("a write failed with {code:?}"),
                }
            }
            Err(error) if error.is_connect() => &counts.refused,
            Err(_) => &counts.unknown,
        };
        counter.fetch_add(1, Ordering::SeqCst);
        // The pace leaves the two cores time for the watchers. No check depends on it.
        tokio::time::sleep(Duration::from_millis(rng.u64(40..100))).await;
    }
}

/// Watches and reconnects, until it has the last state.
async fn watch(
    balancer: Balancer,
    mut rng: fastrand::Rng,
    has_base: watch::Sender<bool>,
    mut last: watch::Receiver<Option<Fields>>,
) -> Watcher {
    let mut watcher = Watcher::new(HASH);
    loop {
        if watcher.try_open(&balancer.pick(&mut rng)).await {
            loop {
                if last.borrow().as_ref().is_some_and(|last| watcher.fields() == Some(last)) {
                    return watcher;
                }
                tokio::select! {
                    event = watcher.next() => if event.is_none() { break },
                    _ = last.changed() => continue,
                }
                has_base.send_replace(watcher.fields().is_some());
                // Some connections break now and then.
                if rng.u8(..100) == 0 {
                    break;
                }
            }
        }
        watcher.leave();
        tokio::time::sleep(Duration::from_millis(rng.u64(100..200))).await;
    }
}

/// Replicas with a hash that is written and watched. Each has its own proxy in front of Redis.
struct Stage {
    rng: fastrand::Rng,
    redis: RedisServer,
    proxies: Vec<Proxy>,
    replicas: Vec<Replica>,
    balancer: Balancer,
    counts: Arc<Counts>,
    stop: CancellationToken,
    writers: Vec<tokio::task::JoinHandle<()>>,
    watchers: Vec<tokio::task::JoinHandle<Watcher>>,
    /// Whether the watchers have a copy of the hash.
    bases: Vec<watch::Receiver<bool>>,
    last: watch::Sender<Option<Fields>>,
}

impl Stage {
    async fn begin(seed: u64) -> Self {
        Self::begin_on(seed, RedisServer::start().await).await
    }

    async fn begin_on(seed: u64, redis: RedisServer) -> Self {
        let (mut proxies, mut replicas) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let proxy = Proxy::to(redis.port()).await;
            replicas.push(Replica::start(&proxy.url(), &[]));
            proxies.push(proxy);
        }
        Self::begin_with(seed, redis, proxies, replicas).await
    }

    async fn begin_with(seed: u64, redis: RedisServer, proxies: Vec<Proxy>, replicas: Vec<Replica>) -> Self {
        let mut stage = Self {
            rng: random(seed),
            redis,
            proxies,
            replicas,
            balancer: Balancer::default(),
            counts: Arc::default(),
            stop: CancellationToken::new(),
            writers: Vec::new(),
            watchers: Vec::new(),
            bases: Vec::new(),
            last: watch::channel(None).0,
        };
        stage.until_well().await;
        stage.balance();
        for number in 0..WRITERS {
            let (balancer, counts, stop) = (stage.balancer.clone(), stage.counts.clone(), stage.stop.clone());
            stage.writers.push(spawn(write(balancer, number, stage.rng.fork(), counts, stop)));
        }
        for _ in 0..WATCHERS {
            let (has_base, base) = watch::channel(false);
            let (balancer, rng, last) = (stage.balancer.clone(), stage.rng.fork(), stage.last.subscribe());
            stage.watchers.push(spawn(watch(balancer, rng, has_base, last)));
            stage.bases.push(base);
        }
        stage.until_all_have_a_base().await;
        stage.some_traffic().await;
        stage
    }

    fn balance(&self) {
        self.balancer.set(self.replicas.iter().map(Replica::url));
    }

    async fn until_well(&self) {
        for replica in &self.replicas {
            replica.until(200).await;
        }
    }

    async fn until_all_degraded(&self) {
        for replica in &self.replicas {
            replica.until(503).await;
        }
    }

    async fn until_all_have_a_base(&mut self) {
        for base in &mut self.bases {
            within("a watcher has a copy", base.wait_for(|has_base| *has_base)).await.unwrap();
        }
    }

    async fn some_traffic(&mut self) {
        let acknowledged = || self.counts.acknowledged.load(Ordering::SeqCst);
        let enough = acknowledged() + self.rng.usize(40..120);
        eventually("the hash is written", async || (acknowledged() >= enough).then_some(())).await;
    }

    /// Sets the links of one replica, and restores them when its health has reported the fault.
    async fn fail_links(&mut self, links: Links, link: Link) {
        let victim = self.rng.usize(..3);
        self.proxies[victim].set_only(links, link);
        self.replicas[victim].until(503).await;
        self.some_traffic().await;
        self.proxies[victim].set(Link::Pass);
    }

    /// Leads all replicas to another server. The old one ends.
    fn fail_over(&mut self, to: RedisServer) {
        for proxy in &self.proxies {
            proxy.redirect(to.port());
        }
        self.redis = to;
    }

    /// Ends the writers. Checks that each watcher ends with what is stored, what it was told, and the promise.
    async fn heal(mut self, fault: &'static str, promise: Promise) -> Account {
        self.until_well().await;
        self.some_traffic().await;
        self.stop.cancel();
        for writer in self.writers.drain(..) {
            within("a writer ends", writer).await.unwrap();
        }
        let url = self.replicas[0].url();
        let client = reqwest::Client::new();
        eventually("the last value is stored", async || {
            let put = client.put(format!("{url}/v1/hashes/{HASH}/fields/{LAST}")).body("1").send().await.ok()?;
            put.status().is_success().then_some(())
        })
        .await;
        self.last.send_replace(Some(stored_fields(url, HASH).await));
        let mut watchers = Vec::new();
        for watcher in self.watchers.drain(..) {
            watchers.push(within("a watcher has the state that is stored", watcher).await.unwrap());
        }
        let log = self.log();
        let count = |counter: &AtomicUsize| counter.load(Ordering::SeqCst);
        let mut account = Account {
            acknowledged: count(&self.counts.acknowledged),
            refused: count(&self.counts.refused),
            unknown: count(&self.counts.unknown),
            subscribers: watchers.len(),
            refused_streams: watchers.iter().map(|watcher| watcher.refused_streams).sum(),
            ..Account::default()
        };
        for watcher in &watchers {
            check(watcher, log.as_ref(), &mut account);
        }
        println!("{account:?}");
        assert!(account.acknowledged > 100, "{account:?}");
        promise.check(&account);
        outcome::record(fault, promise, &account);
        account
    }

    /// What the log has. None without Redis.
    fn log(&self) -> Option<Log> {
        if self.proxies.is_empty() {
            return None;
        }
        let added = self.redis.cli(&["XINFO", "STREAM", &format!("{KEY}:log")]);
        let mut added = added.lines().skip_while(|line| *line != "entries-added");
        let text = self.redis.cli(&["XRANGE", &format!("{KEY}:log"), "-", "+"]);
        let mut log = BTreeMap::new();
        // The lines of an entry are its id, the name of its only part, and the change.
        let mut lines = text.lines().peekable();
        while let Some(line) = lines.next() {
            let id: EventId = line.parse().unwrap();
            assert_eq!(lines.next(), Some("e"));
            let mut stored: Vec<&str> = Vec::new();
            while let Some(line) = lines.next_if(|line| line.parse::<EventId>().is_err()) {
                stored.push(line);
            }
            log.insert(id, HashChange::decode(&stored.join("\n").into()).unwrap().kind);
        }
        // If the stream was deleted, it does not begin with an epoch's first change.
        let is_whole = log.keys().next().is_none_or(|oldest| oldest.offset == 1);
        let is_trimmed = !is_whole || added.nth(1).unwrap().parse::<usize>().unwrap() != log.len();
        Some(Log { changes: log, is_trimmed })
    }
}

/// The changes that the log has at the end, and whether it had more.
struct Log {
    changes: BTreeMap<EventId, ChangeKind>,
    is_trimmed: bool,
}

/// Checks what a watcher was told: it is what the log has, nothing is left out, and a gap follows what the log lacks.
fn check(watcher: &Watcher, log: Option<&Log>, account: &mut Account) {
    let mut lost: BTreeSet<EventId> = BTreeSet::new();
    let mut base = None;
    for told in &watcher.told {
        match told {
            Told::Gap { reason, .. } => {
                lost.clear();
                *account.gaps.entry(reason.clone()).or_default() += 1;
            }
            Told::Snapshot { id, .. } => base = Some(*id),
            change => {
                let id = change.change_id().expect("it is a change");
                account.delivered += 1;
                if let Some(Log { changes: log, is_trimmed }) = log {
                    let is_known = !is_trimmed || log.keys().next().is_some_and(|oldest| *oldest <= id);
                    let skipped = base.and_then(|base| log.range(base..id).find(|(id, _)| **id > base));
                    assert_eq!(skipped, None, "left out before {change:?}");
                    match log.get(&id) {
                        Some(kind) => assert_eq!(content(change), logged_content(kind), "{id}"),
                        None if is_known => drop(lost.insert(id)),
                        None => {}
                    }
                }
                base = Some(id);
            }
        }
        account.lost = account.lost.max(lost.len());
    }
    assert_eq!(lost, BTreeSet::new(), "the log lacks them, and no gap was told");
}

fn content(told: &Told) -> (Fields, Vec<String>) {
    match told {
        Told::Set { fields, .. } => (fields.clone(), Vec::new()),
        Told::Delete { fields, .. } => (Fields::new(), fields.clone()),
        Told::Clear { reason, .. } => (Fields::new(), vec![format!("cleared: {reason}")]),
        Told::Snapshot { .. } | Told::Gap { .. } => panic!("no change"),
    }
}

fn logged_content(kind: &ChangeKind) -> (Fields, Vec<String>) {
    match kind {
        ChangeKind::Set(fields) => {
            (fields.iter().map(|(field, value)| (field.clone(), value.to_vec())).collect(), Vec::new())
        }
        ChangeKind::Remove(fields) => (Fields::new(), fields.clone()),
        ChangeKind::Clear(reason) => (Fields::new(), vec![format!("cleared: {}", reason.name())]),
        ChangeKind::Expiry => panic!("not told"),
    }
}

#[tokio::test]
async fn p9_watchers_of_a_killed_replica_lose_nothing() {
    let mut stage = Stage::begin(601).await;
    let victim = stage.rng.usize(..3);
    stage.replicas[victim].kill();
    stage.replicas.remove(victim);
    stage.balance();
    stage.heal("A hash is watched: `kill -9` of a replica", Promise::NoGap).await;
}

#[tokio::test]
async fn p9_watchers_lose_nothing_by_a_rolling_restart() {
    let mut stage = Stage::begin(602).await;
    for number in 0..3 {
        let new = Replica::start(&stage.proxies[number].url(), &[]);
        new.until(200).await;
        let old = std::mem::replace(&mut stage.replicas[number], new);
        assert_eq!(old.terminate().await, Some(0));
        stage.balance();
    }
    stage.heal("A hash is watched: rolling restart of all three replicas", Promise::NoGap).await;
}

#[tokio::test]
async fn p9_watchers_lose_nothing_by_links_that_fail() {
    let mut stage = Stage::begin(603).await;
    for (links, link) in [
        (Links::PubSub, Link::Cut),
        (Links::Commands, Link::Cut),
        (Links::PubSub, Link::Drop(Way::ToClient)),
        (Links::Commands, Link::Drop(Way::ToClient)),
        (Links::All, Link::Freeze),
    ] {
        stage.fail_links(links, link).await;
        stage.until_well().await;
    }
    stage
        .heal(
            "A hash is watched: links are cut, half-open or hang, one replica's after the other's",
            Promise::NoGap,
        )
        .await;
}

#[tokio::test]
async fn p9_watchers_lose_nothing_by_a_redis_that_hangs() {
    let mut stage = Stage::begin(604).await;
    stage.redis.freeze();
    stage.until_all_degraded().await;
    stage.redis.thaw();
    stage.until_well().await;
    stage.some_traffic().await;
    stage.heal("A hash is watched: Redis hangs", Promise::NoGap).await;
}

#[tokio::test]
async fn p9_watchers_lose_nothing_by_a_redis_that_keeps_everything() {
    let redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let mut stage = Stage::begin_on(605, redis).await;
    stage.redis.kill();
    stage.until_all_degraded().await;
    stage.redis.come_back().await;
    stage.heal("A hash is watched: Redis is killed and restarts, `appendfsync always`", Promise::NoGap).await;
}

#[tokio::test]
async fn p9_watchers_are_told_that_redis_has_restarted_empty() {
    let mut stage = Stage::begin(606).await;
    stage.redis.kill();
    stage.redis.come_back().await;
    stage.heal("A hash is watched: Redis is killed and restarts empty", Promise::Gap(WHOLE_LOG)).await;
}

#[tokio::test]
async fn p9_watchers_are_told_that_redis_was_flushed() {
    let mut stage = Stage::begin(607).await;
    stage.until_all_have_a_base().await;
    stage.redis.cli(&["FLUSHALL"]);
    stage.heal("A hash is watched: `FLUSHALL`", Promise::Gap(WHOLE_LOG)).await;
}

#[tokio::test]
async fn p9_watchers_lose_nothing_by_a_failover_that_loses_nothing() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let mut stage = Stage::begin_on(608, redis).await;
    for proxy in &stage.proxies {
        proxy.set(Link::Cut);
    }
    stage.until_all_degraded().await;
    catches_up(&other, &stage.redis).await;
    promote(&other);
    stage.fail_over(other);
    for proxy in &stage.proxies {
        proxy.set(Link::Pass);
    }
    stage.heal("A hash is watched: failover to a follower that has everything", Promise::NoGap).await;
}

#[tokio::test]
async fn p9_watchers_are_told_that_a_failover_has_lost_the_last_changes() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let mut stage = Stage::begin_on(609, redis).await;
    promote(&other);
    stage.some_traffic().await;
    stage.fail_over(other);
    let account =
        stage.heal("A hash is watched: failover to a follower without the last changes", Promise::Gap(TAIL)).await;
    assert!(account.lost > 0, "{account:?}");
}

#[tokio::test]
async fn p9_watchers_of_a_hash_whose_keys_are_deleted_end_with_what_is_stored() {
    let mut stage = Stage::begin(610).await;
    for suffix in ["", ":head", ":log"] {
        stage.redis.cli(&["DEL", &format!("{KEY}{suffix}")]);
        stage.some_traffic().await;
    }
    let promise = Promise::Gap(&["diverged", "expired", "log_lost", "lost_tail", "trimmed"]);
    stage
        .heal(
            "A hash is watched: the hash, its head and its log are deleted in Redis, one after the other",
            promise,
        )
        .await;
}

#[tokio::test]
async fn p9_watchers_of_a_process_that_keeps_its_data_lose_nothing_by_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let start = || Replica::start_on(folder.path(), &[]);
    let mut stage = Stage::begin_with(611, RedisServer::absent(), Vec::new(), vec![start()]).await;
    for _ in 0..3 {
        stage.replicas[0].kill();
        stage.replicas[0] = start();
        stage.balance();
        stage.some_traffic().await;
    }
    let fault = "A hash is watched: `kill -9` of a process with a data folder, three times";
    stage.heal(fault, Promise::NoGap).await;
}

#[tokio::test]
async fn p9_watchers_of_a_process_that_restarts_empty_are_told() {
    let start = || Replica::start_with(&[]);
    let mut stage = Stage::begin_with(612, RedisServer::absent(), Vec::new(), vec![start()]).await;
    stage.until_all_have_a_base().await;
    stage.replicas[0].kill();
    stage.replicas[0] = start();
    stage.balance();
    let fault = "A hash is watched: `kill -9` of a process without a data folder";
    stage.heal(fault, Promise::Gap(&["unknown_position"])).await;
}
