//! Faults under load: everything acknowledged comes once and in order, or a gap covers it. Four publishers, fifty
//! subscribers that reconnect as `EventSource` does, three replicas as processes, one real Redis.

use crate::support::{Balancer, Link, Links, Load, Proxy, RedisServer, Replica, eventually};

/// Three replicas under load. The first one's links to Redis go through the proxy.
struct Fault {
    redis: RedisServer,
    proxy: Proxy,
    replicas: Vec<Replica>,
    balancer: Balancer,
    load: Load,
}

impl Fault {
    async fn begin() -> Self {
        Self::begin_with(RedisServer::start().await).await
    }

    async fn begin_with(redis: RedisServer) -> Self {
        let proxy = Proxy::to(redis.port()).await;
        let urls = [proxy.url(), redis.url(), redis.url()];
        Self::begin_at(redis, proxy, urls).await
    }

    /// Every replica reaches Redis through the proxy.
    async fn begin_behind_the_proxy(redis: RedisServer) -> Self {
        let proxy = Proxy::to(redis.port()).await;
        let urls = [proxy.url(), proxy.url(), proxy.url()];
        Self::begin_at(redis, proxy, urls).await
    }

    async fn begin_at(redis: RedisServer, proxy: Proxy, urls: [String; 3]) -> Self {
        let replicas: Vec<_> = urls.iter().map(|url| Replica::start(url)).collect();
        let balancer = Balancer::default();
        balancer.set(replicas.iter().map(Replica::url));
        for replica in &replicas {
            until(replica, 200).await;
        }
        let load = Load::start(&balancer).await;
        let fault = Self { redis, proxy, replicas, balancer, load };
        fault.some_traffic().await;
        fault
    }

    /// Lets some hundred events be published.
    async fn some_traffic(&self) {
        let client = reqwest::Client::new();
        let head = async || {
            let room =
                client.get(format!("{}/v1/rooms/red", self.replicas.last().unwrap().url())).send().await.ok()?;
            let room: serde_json::Value = room.json().await.ok()?;
            room["head"].as_str().map(str::to_owned)
        };
        let before = head().await;
        let mut steps = 0;
        eventually("events are published", async || {
            steps += u32::from(head().await != before);
            (steps > 20).then_some(())
        })
        .await;
    }

    /// Everyone is well again; the account says what was told.
    async fn heal(self) -> crate::support::Account {
        for replica in &self.replicas {
            until(replica, 200).await;
        }
        self.some_traffic().await;
        let account = self.load.finish().await;
        assert!(account.acknowledged > 100, "{account:?}");
        account
    }

    /// Nothing was lost, so nobody may have been told of a gap.
    async fn heals_without_a_gap(self) {
        let account = self.heal().await;
        assert!(account.gaps.is_empty(), "{account:?}");
    }
}

async fn until(replica: &Replica, status: u16) {
    eventually("a replica's health", async || {
        let answer = reqwest::get(format!("{}/healthz", replica.url())).await.ok()?;
        (answer.status() == status).then_some(())
    })
    .await;
}

#[tokio::test]
async fn p2_under_load_a_killed_replica_loses_nothing() {
    let mut fault = Fault::begin().await;
    fault.replicas[0].kill();
    fault.replicas.remove(0);
    fault.balancer.set(fault.replicas.iter().map(Replica::url));
    fault.some_traffic().await;
    fault.heals_without_a_gap().await;
}

#[tokio::test]
async fn p12_under_load_a_rolling_restart_of_all_three_loses_nothing() {
    let mut fault = Fault::begin().await;
    for _ in 0..3 {
        let fresh = Replica::start(&fault.redis.url());
        until(&fresh, 200).await;
        let old = fault.replicas.remove(0);
        fault.replicas.push(fresh);
        fault.balancer.set(fault.replicas.iter().map(Replica::url));
        assert_eq!(old.terminate().await, Some(0));
    }
    fault.heals_without_a_gap().await;
}

#[tokio::test]
async fn p2_under_load_a_cut_pubsub_link_loses_nothing() {
    let fault = Fault::begin().await;
    fault.proxy.set_only(Links::PubSub, Link::Cut);
    until(&fault.replicas[0], 503).await;
    fault.some_traffic().await;
    fault.proxy.set(Link::Pass);
    fault.heals_without_a_gap().await;
}

#[tokio::test]
async fn p2_under_load_a_frozen_pubsub_link_loses_nothing() {
    let fault = Fault::begin().await;
    fault.proxy.set_only(Links::PubSub, Link::Freeze);
    until(&fault.replicas[0], 503).await;
    fault.some_traffic().await;
    fault.proxy.set(Link::Pass);
    fault.heals_without_a_gap().await;
}

#[tokio::test]
async fn p2_under_load_a_cut_command_link_loses_nothing() {
    let fault = Fault::begin().await;
    fault.proxy.set_only(Links::Commands, Link::Cut);
    until(&fault.replicas[0], 503).await;
    fault.some_traffic().await;
    fault.proxy.set(Link::Pass);
    fault.heals_without_a_gap().await;
}

#[tokio::test]
async fn p2_under_load_a_frozen_redis_loses_nothing() {
    let fault = Fault::begin().await;
    fault.redis.freeze();
    for replica in &fault.replicas {
        until(replica, 503).await;
    }
    fault.redis.thaw();
    fault.heals_without_a_gap().await;
}

#[tokio::test]
async fn p2_under_load_killed_subscriptions_lose_nothing() {
    let fault = Fault::begin().await;
    for _ in 0..20 {
        fault.redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        eventually("all three subscribe again", async || {
            let clients = fault.redis.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
            (clients.lines().filter(|client| !client.contains(" sub=0 ")).count() == 3).then_some(())
        })
        .await;
    }
    fault.heals_without_a_gap().await;
}

#[tokio::test]
async fn p2_under_load_a_redis_that_keeps_everything_restarts_without_a_gap() {
    let redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let mut fault = Fault::begin_with(redis).await;
    fault.redis.kill();
    until(&fault.replicas[1], 503).await;
    fault.redis.come_back().await;
    fault.heals_without_a_gap().await;
}

#[tokio::test]
async fn p4_under_load_a_redis_that_restarts_empty_is_told_and_nothing_is_lost_unsaid() {
    let mut fault = Fault::begin().await;
    fault.redis.kill();
    fault.redis.come_back().await;
    let account = fault.heal().await;
    assert!(account.gaps.contains_key("log_lost"), "{account:?}");
}

#[tokio::test]
async fn p4_under_load_a_flushed_redis_is_told_and_nothing_is_lost_unsaid() {
    let fault = Fault::begin().await;
    fault.redis.cli(&["FLUSHALL"]);
    let account = fault.heal().await;
    assert!(account.gaps.contains_key("log_lost"), "{account:?}");
}

/// A Redis that follows the first one, and has caught up.
async fn follower(of: &RedisServer) -> RedisServer {
    let follower = RedisServer::start().await;
    follower.cli(&["REPLICAOF", "127.0.0.1", &of.port().to_string()]);
    eventually("the follower has caught up", async || {
        follower.cli(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
    })
    .await;
    follower
}

#[tokio::test]
async fn p4_under_load_a_failover_that_loses_the_tail_is_told() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let mut fault = Fault::begin_behind_the_proxy(redis).await;
    // The follower stops following, and more is published: the tail that it will lack.
    other.cli(&["REPLICAOF", "NO", "ONE"]);
    fault.some_traffic().await;
    fault.redis.kill();
    fault.proxy.redirect(other.port());
    let account = fault.heal().await;
    assert!(account.gaps.keys().any(|reason| matches!(reason.as_str(), "lost_tail" | "diverged")), "{account:?}");
}

#[tokio::test]
async fn p4_under_load_a_failover_and_back_never_takes_one_event_for_another() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let fault = Fault::begin_behind_the_proxy(redis).await;
    other.cli(&["REPLICAOF", "NO", "ONE"]);
    fault.some_traffic().await;
    fault.proxy.redirect(other.port());
    fault.some_traffic().await;
    // The first master never restarted: its mark is its head's, and it knows nothing of what the other one gave out.
    fault.proxy.redirect(fault.redis.port());
    let account = fault.heal().await;
    assert!(!account.gaps.is_empty(), "{account:?}");
}

#[tokio::test]
async fn p2_under_load_a_failover_that_loses_nothing_costs_no_gap() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let mut fault = Fault::begin_behind_the_proxy(redis).await;
    // Nothing is written any more until the follower has it all.
    fault.proxy.set(Link::Cut);
    let offset = |server: &RedisServer| {
        let info = server.cli(&["INFO", "replication"]);
        info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).unwrap().trim().to_owned()
    };
    eventually("the follower has everything", async || (offset(&fault.redis) == offset(&other)).then_some(()))
        .await;
    other.cli(&["REPLICAOF", "NO", "ONE"]);
    fault.redis.kill();
    fault.proxy.redirect(other.port());
    fault.proxy.set(Link::Pass);
    fault.heals_without_a_gap().await;
}

#[tokio::test]
async fn p11_under_load_repeated_announcements_are_harmless() {
    let fault = Fault::begin().await;
    for room in ["red", "green", "blue"] {
        let log = fault.redis.cli(&["XREVRANGE", &format!("roomcast:{{{room}}}:log"), "+", "-", "COUNT", "20"]);
        let lines: Vec<_> = log.lines().collect();
        for entry in lines.chunks_exact(3) {
            let announcement = format!("{} {}\n{}", entry[0], entry[2].len(), entry[2]);
            fault.redis.cli(&["PUBLISH", &format!("roomcast:{{{room}}}:live"), &announcement]);
        }
    }
    fault.heals_without_a_gap().await;
}
