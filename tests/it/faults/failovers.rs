//! Failovers to a follower that has every event or lacks the last ones, and back.

use super::stage::{GAPS_PER_LOSS, Plan, Promise, Stage};
use crate::support::{Link, Links, RedisServer, eventually};

/// Reasons of a gap after the loss of the last events.
const TAIL: &[&str] = &["diverged", "lost_tail"];
/// The same after a failover back: the first master lacks the whole epoch of the other one.
const BACK: &[&str] = &["diverged", "log_lost", "lost_tail"];

/// A new Redis that follows a master and has caught up.
pub async fn follower(master: &RedisServer) -> RedisServer {
    let follower = RedisServer::start().await;
    follow(&follower, master).await;
    follower
}

async fn follow(follower: &RedisServer, master: &RedisServer) {
    follower.cli(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]);
    eventually("the follower is linked", async || {
        follower.cli(&["INFO", "replication"]).contains("master_link_status:up").then_some(())
    })
    .await;
    // A linked follower gets no writes until its first acknowledgement, which may take a second.
    let key = format!("followed-by-{}", follower.port());
    master.cli(&["SET", &key, "1"]);
    eventually("the follower gets writes", async || (follower.cli(&["GET", &key]).trim() == "1").then_some(()))
        .await;
    master.cli(&["DEL", &key]);
}

pub async fn catches_up(follower: &RedisServer, master: &RedisServer) {
    let replication_offset = |server: &RedisServer| {
        let info = server.cli(&["INFO", "replication"]);
        info.lines().find_map(|line| line.strip_prefix("master_repl_offset:")).unwrap().trim().to_owned()
    };
    eventually("the follower catches up", async || {
        (replication_offset(master) == replication_offset(follower)).then_some(())
    })
    .await;
}

pub fn promote(server: &RedisServer) {
    server.cli(&["REPLICAOF", "NO", "ONE"]);
}

impl Stage {
    /// Cuts the links, waits until the follower has every event, and promotes it.
    pub async fn promote_without_loss(&self, other: &RedisServer, links: Links) {
        self.set_all(links, Link::Cut);
        // A replica that has not noticed the cut of its command link yet may still write over the other link.
        self.until_all_degraded().await;
        catches_up(other, &self.redis).await;
        promote(other);
    }

    /// Leads command links to another server. Subscriptions stay at the old one, which is returned.
    fn fail_commands_over(&mut self, other: RedisServer) -> RedisServer {
        for proxy in &self.proxies {
            proxy.redirect_only(Links::Commands, other.port());
        }
        self.set_all(Links::All, Link::Pass);
        std::mem::replace(&mut self.redis, other)
    }
}

#[tokio::test]
async fn p2_under_load_a_failover_that_loses_nothing_costs_no_gap() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let mut stage = Plan::with(401).on(redis).begin().await;
    stage.promote_without_loss(&other, Links::All).await;
    stage.fail_over(other).kill();
    stage.set_all(Links::All, Link::Pass);
    stage.heal("Failover to a follower that has everything", Promise::NoGap).await;
}

#[tokio::test]
async fn p4_under_load_a_failover_that_loses_the_tail_is_told() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let mut stage = Plan::with(402).on(redis).begin().await;
    // The follower stops following, so it lacks what is published from now on.
    promote(&other);
    stage.some_traffic().await;
    stage.redis.kill();
    stage.fail_over(other);
    let account = stage.heal("Failover to a follower without the last events", Promise::Gap(TAIL)).await;
    assert!(account.lost > 0, "{account:?}");
}

#[tokio::test]
async fn p4_under_load_a_failover_that_loses_the_tail_and_a_proper_one_back_tell_one_loss() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let mut stage = Plan::with(403).on(redis).begin().await;
    promote(&other);
    stage.some_traffic().await;
    let first = stage.fail_over(other);
    stage.until_well().await;
    stage.some_traffic().await;
    // The old master discards its last events, follows the new one, and takes over again.
    follow(&first, &stage.redis).await;
    stage.promote_without_loss(&first, Links::All).await;
    stage.fail_over(first);
    stage.set_all(Links::All, Link::Pass);
    stage.heal("The same, and a fail-back by `REPLICAOF` that loses nothing more", Promise::Gap(TAIL)).await;
}

#[tokio::test]
async fn p4_under_load_a_failover_and_back_never_takes_one_event_for_another() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let mut stage = Plan::with(404).on(redis).begin().await;
    promote(&other);
    stage.some_traffic().await;
    let first = stage.fail_over(other);
    stage.some_traffic().await;
    // The first master never restarted, so its heads have its own replication id, and it lacks the other one's
    // events.
    let other = stage.fail_over(first);
    stage.former_servers.push(other);
    // Each server lacks events of the other one.
    stage.max_gaps = 2 * GAPS_PER_LOSS;
    stage.heal("Failover without the last events, and back to a master that never knew", Promise::Gap(BACK)).await;
}

#[tokio::test]
async fn p2_under_load_a_subscription_left_on_an_isolated_old_master_is_found_and_moved() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let mut stage = Plan::with(405).on(redis).begin().await;
    stage.promote_without_loss(&other, Links::Commands).await;
    // Replicas can't subscribe to the new master yet, so that the fault does not heal before it has been observed.
    other.cli(&["ACL", "SETUSER", "default", "-subscribe"]);
    let old = stage.fail_commands_over(other);
    let subscribed = |server: &RedisServer| {
        let clients = server.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        clients.lines().filter(|client| !client.contains(" sub=0 ")).count()
    };
    stage.until_all_degraded().await;
    stage.redis.cli(&["ACL", "SETUSER", "default", "+subscribe"]);
    eventually("all subscriptions are at the new master", async || {
        (subscribed(&stage.redis) == 3 && subscribed(&old) == 0).then_some(())
    })
    .await;
    stage.heal("Failover that leaves subscriptions on the old master", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_a_subscription_left_on_a_demoted_master_loses_nothing() {
    let redis = RedisServer::start().await;
    let other = follower(&redis).await;
    let mut stage = Plan::with(406).on(redis).begin().await;
    stage.promote_without_loss(&other, Links::Commands).await;
    // As a follower it repeats the new master's announcements, and accepts no writes.
    follow(&stage.redis, &other).await;
    let old = stage.fail_commands_over(other);
    stage.former_servers.push(old);
    for _ in 0..5 {
        stage.some_traffic().await;
    }
    stage.heal("Failover that leaves subscriptions on the old master, a follower now", Promise::NoGap).await;
}
