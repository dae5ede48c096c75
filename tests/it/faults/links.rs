//! Links between a replica and Redis that break, hang, are slow, or lose bytes.

use std::time::Duration;

use super::stage::{Promise, Stage};
use crate::support::{Link, Links, Way, eventually};

impl Stage {
    /// Sets the links of one replica, and restores them some events after its health has reported the fault. The
    /// other replicas work.
    async fn fail_links(&mut self, links: Links, link: Link) {
        let victim = self.rng.usize(..3);
        self.proxies[victim].set_only(links, link);
        self.replicas[victim].until(503).await;
        self.some_traffic().await;
        self.proxies[victim].set(Link::Pass);
    }
}

#[tokio::test]
async fn p2_under_load_a_cut_pubsub_link_loses_nothing() {
    let mut stage = Stage::begin(101).await;
    stage.fail_links(Links::PubSub, Link::Cut).await;
    stage.heal("One replica's pub/sub link is cut", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_a_frozen_pubsub_link_loses_nothing() {
    let mut stage = Stage::begin(102).await;
    stage.fail_links(Links::PubSub, Link::Freeze).await;
    stage.heal("One replica's pub/sub link hangs", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_a_cut_command_link_loses_nothing() {
    let mut stage = Stage::begin(103).await;
    stage.fail_links(Links::Commands, Link::Cut).await;
    stage.heal("One replica's command links are cut", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_a_frozen_command_link_loses_nothing() {
    let mut stage = Stage::begin(104).await;
    stage.fail_links(Links::Commands, Link::Freeze).await;
    stage.heal("One replica's command links hang", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_links_that_are_reset_again_and_again_lose_nothing() {
    let mut stage = Stage::begin(105).await;
    for _ in 0..5 {
        let (victim, links) =
            (stage.rng.usize(..3), [Links::All, Links::PubSub, Links::Commands][stage.rng.usize(..3)]);
        stage.proxies[victim].set_only(links, Link::Reset);
        stage.some_traffic().await;
        stage.proxies[victim].set(Link::Pass);
        stage.some_traffic().await;
    }
    stage.heal("Links are reset (RST), one replica's after the other's", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_slow_links_lose_nothing() {
    let mut stage = Stage::begin(106).await;
    for _ in 0..5 {
        let victim = stage.rng.usize(..3);
        let pause = Duration::from_millis(stage.rng.u64(20..200));
        stage.proxies[victim].set(Link::Delay(pause));
        stage.some_traffic().await;
    }
    stage.set_all(Links::All, Link::Pass);
    stage.heal("Links that are slow, each differently", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_a_pubsub_link_whose_bytes_to_redis_vanish_loses_nothing() {
    let mut stage = Stage::begin(107).await;
    stage.fail_links(Links::PubSub, Link::Drop(Way::ToServer)).await;
    stage.heal("Half-open pub/sub link: bytes to Redis vanish", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_a_pubsub_link_whose_bytes_from_redis_vanish_loses_nothing() {
    let mut stage = Stage::begin(108).await;
    stage.fail_links(Links::PubSub, Link::Drop(Way::ToClient)).await;
    stage.heal("Half-open pub/sub link: bytes from Redis vanish", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_command_links_whose_bytes_to_redis_vanish_lose_nothing() {
    let mut stage = Stage::begin(109).await;
    stage.fail_links(Links::Commands, Link::Drop(Way::ToServer)).await;
    stage.heal("Half-open command links: bytes to Redis vanish", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_command_links_whose_bytes_from_redis_vanish_lose_nothing() {
    let mut stage = Stage::begin(110).await;
    stage.fail_links(Links::Commands, Link::Drop(Way::ToClient)).await;
    stage.heal("Half-open command links: bytes from Redis vanish", Promise::NoGap).await;
}

#[tokio::test]
async fn p2_under_load_a_pubsub_link_that_loses_bytes_in_its_midst_loses_no_event() {
    let mut stage = Stage::begin(111).await;
    for _ in 0..5 {
        let victim = &stage.proxies[stage.rng.usize(..3)];
        let before = victim.corrupted();
        victim.set_only(Links::PubSub, Link::Corrupt);
        eventually("bytes are lost", async || (victim.corrupted() > before).then_some(())).await;
        victim.set(Link::Pass);
        stage.some_traffic().await;
    }
    stage.heal("Bytes vanish out of the middle of a pub/sub link", Promise::NoGap).await;
}
