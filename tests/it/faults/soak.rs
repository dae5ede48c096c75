//! Random faults in random order and combination, for a given time: `tests/soak`.

use std::time::{Duration, Instant};

use super::announcements::{announce, newest_announcements};
use super::failovers::{follower, promote};
use super::stage::{GAPS_PER_LOSS, Plan, Promise, Stage, key, random_room};
use crate::support::{Link, Links, RedisServer, Way, number_from};

/// Duration if `ROOMCAST_SOAK_MINUTES` is not set.
const MINUTES: u64 = 3;
/// Gaps for one loss: a client that reconnects between two replicas' discovery of the loss may receive a second
/// gap.
const GAPS_WITH_RECONNECT: usize = 2;
/// Reasons of the gaps in a round that loses something.
const ANY_REASON: &[&str] = &["diverged", "expired", "log_lost", "lost_tail", "trimmed"];

/// Prints how to repeat the round with this seed, if it fails.
struct RepeatHint(u64);

impl Drop for RepeatHint {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("this round failed; repeat it with ROOMCAST_SEED={} tests/soak", self.0);
        }
    }
}

#[tokio::test]
#[ignore = "it runs for minutes: tests/soak"]
async fn soak() {
    let end = Instant::now() + Duration::from_mins(number_from("ROOMCAST_SOAK_MINUTES").unwrap_or(MINUTES));
    let given = number_from("ROOMCAST_SEED");
    for round in 1.. {
        let seed = given.unwrap_or_else(|| fastrand::u32(..).into());
        println!("round {round}");
        let _hint = RepeatHint(seed);
        run_round(seed).await;
        if given.is_some() || Instant::now() >= end {
            break;
        }
    }
}

/// One round: a new stage, some faults, and the check.
async fn run_round(seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut is_durable = rng.bool();
    let redis = if is_durable {
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await
    } else {
        RedisServer::start().await
    };
    let mut stage = Plan::with(seed).on(redis).begin().await;
    let mut losses = 0;
    for _ in 0..stage.rng.usize(2..6) {
        let (fault, has_lost) = stage.random_fault(&mut is_durable).await;
        println!("  {fault}");
        losses += usize::from(has_lost);
        // Otherwise the next fault happens while links still fail or replicas are still degraded.
        if stage.rng.bool() {
            stage.set_all(Links::All, Link::Pass);
            stage.until_well().await;
        }
        stage.some_traffic().await;
    }
    stage.set_all(Links::All, Link::Pass);
    stage.max_gaps = GAPS_WITH_RECONNECT * GAPS_PER_LOSS * losses;
    let account = stage.finish().await;
    println!("  {account:?}");
    let promise = if losses == 0 { Promise::NoGap } else { Promise::OptionalGap(ANY_REASON) };
    promise.check(&account);
}

impl Stage {
    /// Causes a random fault. Returns its description, and whether Redis lost something. `is_durable` says whether
    /// a restart of Redis loses nothing.
    async fn random_fault(&mut self, is_durable: &mut bool) -> (String, bool) {
        let victim = self.rng.usize(..3);
        match self.rng.u8(..14) {
            0..5 => {
                let link = self.random_link();
                let links = [Links::All, Links::PubSub, Links::Commands][self.rng.usize(..3)];
                // One replica at a time: the other two work.
                self.set_all(Links::All, Link::Pass);
                self.proxies[victim].set_only(links, link);
                (format!("{links:?} of replica {victim}: {link:?}"), false)
            }
            5 => {
                self.proxies[victim].set(Link::Pass);
                self.replicas[victim].kill();
                self.replace(victim).await;
                (format!("replica {victim} is killed"), false)
            }
            6 => {
                self.proxies[victim].set(Link::Pass);
                assert_eq!(self.replace(victim).await.terminate().await, Some(0));
                (format!("replica {victim} is terminated"), false)
            }
            7 => {
                self.redis.freeze();
                self.until_all_degraded().await;
                self.redis.thaw();
                ("Redis hangs".into(), false)
            }
            8 => {
                self.redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
                ("subscriptions are killed".into(), false)
            }
            9 => {
                self.redis.kill();
                if self.rng.bool() {
                    self.until_all_degraded().await;
                }
                self.redis.come_back().await;
                let data = if *is_durable { "with all its data" } else { "empty" };
                (format!("Redis restarts {data}"), !*is_durable)
            }
            10 => {
                let room = random_room(&mut self.rng);
                for announcement in newest_announcements(self, room) {
                    announce(self, room, &announcement);
                }
                (format!("old announcements in {room}"), false)
            }
            11 => {
                self.redis.cli(&["FLUSHALL"]);
                ("Redis is emptied".into(), true)
            }
            12 => {
                let room = random_room(&mut self.rng);
                let kinds = [&["head", "log"][..], &["head"], &["log"]][self.rng.usize(..3)];
                for kind in kinds {
                    self.redis.cli(&["DEL", &key(room, kind)]);
                }
                (format!("{kinds:?} of {room} deleted"), true)
            }
            _ => {
                // The follower that takes over keeps nothing in a file.
                *is_durable = false;
                self.random_failover().await
            }
        }
    }

    fn random_link(&mut self) -> Link {
        match self.rng.u8(..6) {
            0 => Link::Cut,
            1 => Link::Reset,
            2 => Link::Freeze,
            3 => Link::Delay(Duration::from_millis(self.rng.u64(10..200))),
            4 => Link::Drop(Way::ToServer),
            _ => Link::Drop(Way::ToClient),
        }
    }

    /// A follower takes over. It has every event or lacks the last ones.
    async fn random_failover(&mut self) -> (String, bool) {
        self.set_all(Links::All, Link::Pass);
        self.until_well().await;
        let other = follower(&self.redis).await;
        let loses_tail = self.rng.bool();
        if loses_tail {
            promote(&other);
            self.some_traffic().await;
        } else {
            self.promote_without_loss(&other, Links::All).await;
        }
        self.fail_over(other).kill();
        self.set_all(Links::All, Link::Pass);
        (
            format!("failover, {}", if loses_tail { "the last events are lost" } else { "nothing is lost" }),
            loses_tail,
        )
    }
}
