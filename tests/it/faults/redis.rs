//! A Redis that hangs, restarts with all, some or none of its data, is emptied, ends subscriptions, or is not
//! running.

use std::time::{Duration, Instant};

use super::stage::{Plan, Promise, Stage};
use crate::support::{Balancer, Link, Links, RedisServer, Replica, eventually};

/// How long Redis hangs.
const HANG: Duration = Duration::from_secs(10);
/// Reasons of a gap after a restart without the last events. They depend on what a replica had seen.
const TAIL: &[&str] = &["diverged", "lost_tail"];
/// The same after a restart without any event. A subscriber that lags may miss the last events only.
const WHOLE_LOG: &[&str] = &["diverged", "log_lost", "lost_tail"];

async fn start_with_file(fsync: &'static str) -> RedisServer {
    RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", fsync]).await
}

#[tokio::test]
async fn p2_under_load_a_redis_that_hangs_for_ten_seconds_loses_nothing() {
    let stage = Stage::begin(301).await;
    stage.redis.freeze();
    let began = Instant::now();
    stage.until_all_degraded().await;
    // The length of the fault itself.
    tokio::time::sleep(HANG.saturating_sub(began.elapsed())).await;
    stage.redis.thaw();
    stage.heal("Redis hangs for 10 s", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_killed_subscriptions_lose_nothing() {
    let stage = Stage::begin(302).await;
    for _ in 0..20 {
        stage.redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
        eventually("all three subscribe again", async || {
            let clients = stage.redis.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
            (clients.lines().filter(|client| !client.contains(" sub=0 ")).count() == 3).then_some(())
        })
        .await;
    }
    stage.heal("`CLIENT KILL TYPE pubsub`, twenty times", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_a_redis_that_keeps_everything_restarts_without_a_gap() {
    let mut stage = Plan::with(303).on(start_with_file("always").await).begin().await;
    stage.redis.kill();
    stage.until_all_degraded().await;
    stage.redis.come_back().await;
    stage.heal("Redis is killed and restarts, `appendfsync always`", Promise::NoGap).await;
}

#[tokio::test]
async fn p4_under_load_a_redis_killed_with_everysec_loses_nothing_unsaid() {
    let mut stage = Plan::with(304).on(start_with_file("everysec").await).begin().await;
    stage.redis.kill();
    stage.until_all_degraded().await;
    stage.redis.come_back().await;
    stage.heal("Redis is killed and restarts, `appendfsync everysec`", Promise::OptionalGap(TAIL)).await;
}

#[tokio::test]
async fn p4_under_load_a_redis_that_restarts_without_its_last_second_is_told() {
    let mut stage = Plan::with(305).on(start_with_file("everysec").await).begin().await;
    // As after a crash of the machine, the file lacks the last writes.
    let file = std::fs::OpenOptions::new().write(true).open(stage.redis.append_only_file()).unwrap();
    let kept = file.metadata().unwrap().len();
    stage.some_traffic().await;
    stage.redis.kill();
    file.set_len(kept).unwrap();
    stage.redis.come_back().await;
    let account =
        stage.heal("The machine crashes: Redis restarts without its last second", Promise::Gap(TAIL)).await;
    assert!(account.lost > 0, "{account:?}");
}

#[tokio::test]
async fn p4_under_load_a_redis_that_restarts_empty_is_told_and_nothing_is_lost_unsaid() {
    let mut stage = Stage::begin(306).await;
    stage.redis.kill();
    stage.redis.come_back().await;
    stage.heal("Redis is killed and restarts empty", Promise::Gap(WHOLE_LOG)).await;
}

#[tokio::test]
async fn p4_under_load_a_flushed_redis_is_told_and_nothing_is_lost_unsaid() {
    let stage = Stage::begin(307).await;
    stage.redis.cli(&["FLUSHALL"]);
    stage.heal("`FLUSHALL`", Promise::Gap(WHOLE_LOG)).await;
}

#[tokio::test]
async fn p8_under_load_a_redis_that_is_away_at_start_loses_nothing_when_it_comes() {
    let mut stage = Plan::with(308).begin_without_redis().await;
    stage.until_all_degraded().await;
    eventually("publishes are refused", async || (stage.load.failed() > 10).then_some(())).await;
    stage.redis.come_back().await;
    stage.load.all_joined().await;
    let account = stage.heal("Redis is away when replicas and clients start", Promise::NoGap).await;
    assert!(account.refused > 0, "{account:?}");
}

#[tokio::test]
async fn p2_under_load_a_subscription_that_redis_ends_for_its_output_buffer_loses_nothing() {
    let mut stage = Stage::begin(309).await;
    let victim = stage.rng.usize(..3);
    let victim_only = Balancer::default();
    victim_only.set([stage.replicas[victim].url()]);
    for _ in 0..2 {
        stage.load.subscribe(&["bulk"], &victim_only);
    }
    stage.load.all_joined().await;
    stage.redis.cli(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 64kb 32kb 1"]);
    stage
        .balancer
        .set(stage.replicas.iter().enumerate().filter(|(n, _)| *n != victim).map(|(_, r)| Replica::url(r)));
    stage.proxies[victim].set_only(Links::PubSub, Link::Freeze);
    let mut count = 0;
    let publisher = &mut stage.load.publisher;
    eventually("Redis ends the subscription", async || {
        count += 1;
        publisher.publish_to("bulk", &format!("t{count}/60000")).await;
        stage.redis.log().contains("overcoming of output buffer limits").then_some(())
    })
    .await;
    stage.balancer.set(stage.replicas.iter().map(Replica::url));
    stage.proxies[victim].set(Link::Pass);
    stage.heal("Redis ends a hung subscription for its output buffer", Promise::NoGap).await;
}
