//! Random faults in random order and combination, for as long as one likes: `tests/soak`.

use std::time::{Duration, Instant};

use super::announcements::{announce, newest};
use super::failovers::{follower, promote};
use super::stage::{GAPS_PER_LOSS, Plan, Promise, Stage, key, room_of};
use crate::support::{Link, Links, RedisServer, Way, number_from};

/// How long it goes on if nobody says.
const MINUTES: u64 = 3;
/// A stream that ends between two replicas' finding a loss may be told of it again when it comes back.
const TELLINGS: usize = 2;
/// What subscribers may be told in a round that loses something.
const ANY: &[&str] = &["diverged", "expired", "log_lost", "lost_tail", "trimmed"];

/// Says how to repeat a round that fails.
struct Repeat(u64);

impl Drop for Repeat {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("this round failed; to repeat it: ROOMCAST_SEED={} tests/soak", self.0);
        }
    }
}

#[tokio::test]
#[ignore = "it takes as long as one likes: tests/soak"]
async fn soak() {
    let end = Instant::now() + Duration::from_mins(number_from("ROOMCAST_SOAK_MINUTES").unwrap_or(MINUTES));
    let given = number_from("ROOMCAST_SEED");
    for round in 1.. {
        let seed = given.unwrap_or_else(|| fastrand::u32(..).into());
        println!("round {round}");
        let _repeat = Repeat(seed);
        play(seed).await;
        if given.is_some() || Instant::now() >= end {
            break;
        }
    }
}

/// One round: a fresh load, some faults, and the account.
async fn play(seed: u64) {
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut keeps_all = dice.bool();
    let redis = if keeps_all {
        RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await
    } else {
        RedisServer::start().await
    };
    let mut stage = Plan::with(seed).on(redis).begin().await;
    let mut losses = 0;
    for _ in 0..stage.rng.usize(2..6) {
        let (fault, has_lost) = stage.random_fault(&mut keeps_all).await;
        println!("  {fault}");
        losses += usize::from(has_lost);
        // Else the next fault meets what this one has left: links that still fail, replicas that are not well yet.
        if stage.rng.bool() {
            stage.set_all(Links::All, Link::Pass);
            stage.until_well().await;
        }
        stage.some_traffic().await;
    }
    stage.set_all(Links::All, Link::Pass);
    stage.most_gaps = TELLINGS * GAPS_PER_LOSS * losses;
    let account = stage.settle().await;
    println!("  {account:?}");
    let promise = if losses == 0 { Promise::NoGap } else { Promise::Perhaps(ANY) };
    promise.check(&account);
}

impl Stage {
    /// Does something bad. What it was, and whether Redis has lost something by it.
    async fn random_fault(&mut self, keeps_all: &mut bool) -> (String, bool) {
        let victim = self.rng.usize(..3);
        match self.rng.u8(..14) {
            0..5 => {
                let link = self.random_link();
                let links = [Links::All, Links::PubSub, Links::Commands][self.rng.usize(..3)];
                // One replica at a time: the other two go on.
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
                (format!("replica {victim} is asked to leave"), false)
            }
            7 => {
                self.redis.freeze();
                self.until_all_ill().await;
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
                    self.until_all_ill().await;
                }
                self.redis.come_back().await;
                let what = if *keeps_all { "with everything" } else { "empty" };
                (format!("Redis restarts {what}"), !*keeps_all)
            }
            10 => {
                let room = room_of(&mut self.rng);
                for announcement in newest(self, room) {
                    announce(self, room, &announcement);
                }
                (format!("old announcements in {room}"), false)
            }
            11 => {
                self.redis.cli(&["FLUSHALL"]);
                ("Redis is emptied".into(), true)
            }
            12 => {
                let room = room_of(&mut self.rng);
                let kinds = [&["head", "log"][..], &["head"], &["log"]][self.rng.usize(..3)];
                for kind in kinds {
                    self.redis.cli(&["DEL", &key(room, kind)]);
                }
                (format!("{kinds:?} of {room} deleted"), true)
            }
            _ => {
                // The one that takes over keeps nothing in a file.
                *keeps_all = false;
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

    /// A follower takes over, with everything or without the last events.
    async fn random_failover(&mut self) -> (String, bool) {
        self.set_all(Links::All, Link::Pass);
        self.until_well().await;
        let other = follower(&self.redis).await;
        let loses = self.rng.bool();
        if loses {
            promote(&other);
            self.some_traffic().await;
        } else {
            self.promote_without_loss(&other, Links::All).await;
        }
        self.fail_over(other).kill();
        self.set_all(Links::All, Link::Pass);
        (format!("failover, {}", if loses { "the tail is lost" } else { "nothing is lost" }), loses)
    }
}
