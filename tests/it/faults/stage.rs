//! The deployment in which faults happen: three replicas on one Redis, under load. After recovery the records are
//! checked.

use std::collections::{BTreeMap, BTreeSet};

use super::outcome;
use crate::support::{
    Account, Balancer, EventKey, Evidence, Link, Links, Load, Proxy, ROOMS, RedisServer, Replica,
    content_from_data, eventually, random,
};

/// Limits that no log reaches during a test: an event that the log lacks at the end was lost.
const KEEP: [&str; 4] = ["--retention-events", "1000000", "--retention-bytes", "1000000000"];

/// Most gaps that one stream receives in a room for one loss, even if replicas knew different parts of it.
pub const GAPS_PER_LOSS: usize = 1;

/// The gaps that subscribers may receive.
#[derive(Clone, Copy, Debug)]
pub enum Promise {
    /// Nothing is lost, so there is no gap.
    NoGap,
    /// Gaps with these reasons, or none.
    OptionalGap(&'static [&'static str]),
    /// Gaps with these reasons, at least one.
    Gap(&'static [&'static str]),
}

/// The set-up of a stage.
pub struct Plan {
    seed: u64,
    redis: Option<RedisServer>,
    arguments: Vec<&'static str>,
}

/// Three replicas under load, each with its own proxy in front of Redis.
pub struct Stage {
    pub rng: fastrand::Rng,
    /// The server that counts now: its logs are compared with the records.
    pub redis: RedisServer,
    /// Servers that counted for a while, with writes that the present one lacks.
    pub former_servers: Vec<RedisServer>,
    pub proxies: Vec<Proxy>,
    pub replicas: Vec<Replica>,
    pub balancer: Balancer,
    pub load: Load,
    pub arguments: Vec<&'static str>,
    /// Ids that were announced with an event that was never appended.
    pub forged: BTreeSet<EventKey>,
    /// Most gaps that a stream may receive in a room.
    pub max_gaps: usize,
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

    /// Starts replicas and load. Waits until every subscriber has joined and some events are published.
    pub async fn begin(mut self) -> Stage {
        if self.redis.is_none() {
            self.redis = Some(RedisServer::start().await);
        }
        let mut stage = self.begin_with(async |replicas| until(replicas, 200).await).await;
        stage.load.all_joined().await;
        stage.some_traffic().await;
        stage
    }

    /// Starts replicas and load, without waiting for Redis.
    pub async fn begin_without_redis(self) -> Stage {
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
            former_servers: Vec::new(),
            proxies,
            replicas,
            balancer,
            load,
            arguments,
            forged: BTreeSet::new(),
            max_gaps: GAPS_PER_LOSS,
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

    /// Sets the links of all replicas.
    pub fn set_all(&self, links: Links, link: Link) {
        for proxy in &self.proxies {
            proxy.set_only(links, link);
        }
    }

    /// Leads all replicas to another server, which counts from now on. Returns the old one, which goes on running.
    pub fn fail_over(&mut self, to: RedisServer) -> RedisServer {
        for proxy in &self.proxies {
            proxy.redirect(to.port());
        }
        std::mem::replace(&mut self.redis, to)
    }

    pub async fn until_well(&self) {
        until(&self.replicas, 200).await;
    }

    pub async fn until_all_degraded(&self) {
        until(&self.replicas, 503).await;
    }

    /// Waits until some more events are acknowledged. The number comes from the seed.
    pub async fn some_traffic(&mut self) {
        let enough = self.load.stored() + self.rng.usize(40..120);
        eventually("events are published", async || (self.load.stored() >= enough).then_some(())).await;
    }

    /// Starts a new process in place of a replica. Returns the old one, which goes on running.
    pub async fn replace(&mut self, number: usize) -> Replica {
        let new = Replica::start(&self.proxies[number].url(), &self.arguments);
        new.until(200).await;
        let old = std::mem::replace(&mut self.replicas[number], new);
        self.balancer.set(self.replicas.iter().map(Replica::url));
        old
    }

    /// Waits until all replicas are healthy, ends the load, and checks every record.
    pub async fn finish(mut self) -> Account {
        self.until_well().await;
        self.some_traffic().await;
        let (published, records) = self.load.finish().await;
        let rooms: BTreeSet<_> = records.iter().flat_map(|record| record.starts.keys().cloned()).collect();
        let log = |redis| rooms.iter().flat_map(|room| log_entries(redis, room)).collect();
        let (log, other_logs) = (log(&self.redis), self.former_servers.iter().map(log).collect());
        let (forged, max_gaps) = (self.forged, self.max_gaps);
        Evidence { published, records, log, other_logs, forged, max_gaps }.check()
    }

    /// Finishes, checks the promise, and keeps the outcome for the list in docs/fault-tests.md.
    pub async fn heal(self, fault: &'static str, promise: Promise) -> Account {
        let account = self.finish().await;
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
            Self::OptionalGap(_) => {}
            Self::Gap(_) => assert!(!account.gaps.is_empty(), "{account:?}"),
        }
    }

    pub fn reasons(self) -> &'static [&'static str] {
        match self {
            Self::NoGap => &[],
            Self::OptionalGap(reasons) | Self::Gap(reasons) => reasons,
        }
    }
}

/// The name of a key or channel of a room in Redis.
pub fn key(room: &str, kind: &str) -> String {
    format!("roomcast:{{{room}}}:{kind}")
}

/// The events of a room's log, with their content.
fn log_entries(redis: &RedisServer, room: &str) -> BTreeMap<EventKey, String> {
    let text = redis.cli(&["XRANGE", &key(room, "log"), "-", "+"]);
    let lines: Vec<_> = text.lines().collect();
    let entry = |lines: &[&str]| {
        let event: serde_json::Value = serde_json::from_str(lines[2]).unwrap();
        let data = event.get("text").unwrap_or(&event["data"]);
        ((room.to_owned(), lines[0].parse().unwrap()), content_from_data(data))
    };
    lines.chunks_exact(3).map(entry).collect()
}

/// One of the rooms.
pub fn random_room(rng: &mut fastrand::Rng) -> &'static str {
    ROOMS[rng.usize(..ROOMS.len())]
}
