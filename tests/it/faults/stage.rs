//! Where a fault happens: three replicas over one Redis, under load, and what is checked when all is well again.

use std::collections::{BTreeMap, BTreeSet};

use super::outcome;
use crate::support::{
    Account, Balancer, Evidence, Link, Links, Load, Place, Proxy, ROOMS, RedisServer, Replica, content, eventually,
    random,
};

/// A log that is not trimmed during a test, so that what it has at the end is what was not lost.
const KEEP: [&str; 4] = ["--retention-events", "1000000", "--retention-bytes", "1000000000"];

/// Most gaps by which one stream is told of one loss in a room, whatever replicas knew of it.
pub const GAPS_PER_LOSS: usize = 1;

/// What subscribers may be told.
#[derive(Clone, Copy, Debug)]
pub enum Promise {
    /// Nothing is lost, so nobody is told of a gap.
    NoGap,
    /// Gaps of these reasons, but perhaps none.
    Perhaps(&'static [&'static str]),
    /// Gaps of these reasons, and at least one.
    Told(&'static [&'static str]),
}

/// How a stage is set up.
pub struct Plan {
    seed: u64,
    redis: Option<RedisServer>,
    arguments: Vec<&'static str>,
}

/// Three replicas under load, each behind a proxy of its own.
pub struct Stage {
    pub rng: fastrand::Rng,
    /// The one that holds the truth now.
    pub redis: RedisServer,
    /// Those that did so for a while, and took writes that the truth now lacks.
    pub others: Vec<RedisServer>,
    pub proxies: Vec<Proxy>,
    pub replicas: Vec<Replica>,
    pub balancer: Balancer,
    pub load: Load,
    pub arguments: Vec<&'static str>,
    /// Ids under which something was announced that was never appended.
    pub forged: BTreeSet<Place>,
    /// Most gaps that a stream may be told in a room.
    pub most_gaps: usize,
}

impl Plan {
    pub fn with(seed: u64) -> Self {
        Self { seed, redis: None, arguments: Vec::new() }
    }

    pub fn on(mut self, redis: RedisServer) -> Self {
        self.redis = Some(redis);
        self
    }

    pub fn arguments(mut self, arguments: &[&'static str]) -> Self {
        self.arguments.extend(arguments);
        self
    }

    /// Starts replicas and load, and waits until everybody has joined and some events were published.
    pub async fn begin(mut self) -> Stage {
        if self.redis.is_none() {
            self.redis = Some(RedisServer::start().await);
        }
        let mut stage = self.begin_with(async |replicas| until(replicas, 200).await).await;
        stage.load.all_joined().await;
        stage.some_traffic().await;
        stage
    }

    /// Starts replicas and load, whether or not Redis is there.
    pub async fn begin_alone(self) -> Stage {
        self.begin_with(async |_| ()).await
    }

    async fn begin_with(self, before_the_load: impl AsyncFnOnce(&[Replica])) -> Stage {
        let mut rng = random(self.seed);
        let redis = self.redis.unwrap_or_else(RedisServer::absent);
        let arguments = [&KEEP[..], &self.arguments].concat();
        let (mut proxies, mut replicas) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            let proxy = Proxy::to(redis.port()).await;
            replicas.push(Replica::start(&proxy.url(), &arguments));
            proxies.push(proxy);
        }
        before_the_load(&replicas).await;
        let balancer = Balancer::default();
        balancer.set(replicas.iter().map(Replica::url));
        let load = Load::begin(&balancer, rng.fork());
        Stage {
            rng,
            redis,
            others: Vec::new(),
            proxies,
            replicas,
            balancer,
            load,
            arguments,
            forged: BTreeSet::new(),
            most_gaps: GAPS_PER_LOSS,
        }
    }
}

async fn until(replicas: &[Replica], status: u16) {
    for replica in replicas {
        replica.until(status).await;
    }
}

impl Stage {
    pub async fn begin(seed: u64) -> Self {
        Plan::with(seed).begin().await
    }

    /// Has links of all replicas fail.
    pub fn set_all(&self, links: Links, link: Link) {
        for proxy in &self.proxies {
            proxy.set_only(links, link);
        }
    }

    /// From now on another server is the one that counts. The old one goes on running; it is returned.
    pub fn fail_over(&mut self, to: RedisServer) -> RedisServer {
        for proxy in &self.proxies {
            proxy.redirect(to.port());
        }
        std::mem::replace(&mut self.redis, to)
    }

    pub async fn until_well(&self) {
        until(&self.replicas, 200).await;
    }

    pub async fn until_all_ill(&self) {
        until(&self.replicas, 503).await;
    }

    /// Lets some events be acknowledged: how many, the seed says.
    pub async fn some_traffic(&mut self) {
        let enough = self.load.stored() + self.rng.usize(40..120);
        eventually("events are published", async || (self.load.stored() >= enough).then_some(())).await;
    }

    /// Replaces a replica's process by a fresh one.
    pub async fn replace(&mut self, number: usize) -> Replica {
        let fresh = Replica::start(&self.proxies[number].url(), &self.arguments);
        fresh.until(200).await;
        let old = std::mem::replace(&mut self.replicas[number], fresh);
        self.balancer.set(self.replicas.iter().map(Replica::url));
        old
    }

    /// Waits until everyone is well again, ends the load, and checks every record.
    pub async fn settle(mut self) -> Account {
        self.until_well().await;
        self.some_traffic().await;
        let (published, records) = self.load.finish().await;
        let rooms: BTreeSet<_> = records.iter().flat_map(|record| record.starts.keys().cloned()).collect();
        let log = |redis| rooms.iter().flat_map(|room| log_of(redis, room)).collect();
        let (log, other_logs) = (log(&self.redis), self.others.iter().map(log).collect());
        let (forged, most_gaps) = (self.forged, self.most_gaps);
        Evidence { published, records, log, other_logs, forged, most_gaps }.check()
    }

    /// Settles, checks what was promised, and keeps the outcome for the table.
    pub async fn heal(self, fault: &'static str, promise: Promise) -> Account {
        let account = self.settle().await;
        assert!(account.acknowledged > 100, "{account:?}");
        promise.check(&account);
        outcome::record(fault, promise, &account);
        account
    }
}

impl Promise {
    pub fn check(self, account: &Account) {
        let reasons = self.reasons();
        assert!(account.gaps.keys().all(|reason| reasons.contains(&reason.as_str())), "{account:?}");
        match self {
            Self::NoGap => assert_eq!(account.lost, 0, "{account:?}"),
            Self::Perhaps(_) => {}
            Self::Told(_) => assert!(!account.gaps.is_empty(), "{account:?}"),
        }
    }

    pub fn reasons(self) -> &'static [&'static str] {
        match self {
            Self::NoGap => &[],
            Self::Perhaps(reasons) | Self::Told(reasons) => reasons,
        }
    }
}

/// The name of a room's key or channel in Redis.
pub fn key(room: &str, kind: &str) -> String {
    format!("roomcast:{{{room}}}:{kind}")
}

/// What the log of a room has.
fn log_of(redis: &RedisServer, room: &str) -> BTreeMap<Place, String> {
    let text = redis.cli(&["XRANGE", &key(room, "log"), "-", "+"]);
    let lines: Vec<_> = text.lines().collect();
    let entry = |lines: &[&str]| {
        let event: serde_json::Value = serde_json::from_str(lines[2]).unwrap();
        let data = event.get("text").unwrap_or(&event["data"]);
        ((room.to_owned(), lines[0].parse().unwrap()), content(data))
    };
    lines.chunks_exact(3).map(entry).collect()
}

/// Rooms that a test picks from.
pub fn room_of(rng: &mut fastrand::Rng) -> &'static str {
    ROOMS[rng.usize(..ROOMS.len())]
}
