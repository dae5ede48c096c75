//! The Lua scripts and the rules in `follow` are the same rules: random steps through both lead to the same heads.
//!
//! The two count epochs by clocks of their own, so heads are compared with each epoch replaced by its place in the order
//! in which epochs began.

use std::collections::BTreeMap;
use std::fmt::Write;

use redis::{Connection, Script};
use roomcast::log::{Head, LateLoss, StepContext};
use roomcast::names::EventId;

use crate::support::RedisServer;

const HEAD: &str = "{room}:head";
const LOG: &str = "{room}:log";
const SEQUENCES: u64 = 150;
/// Of the test of what is dropped.
const DROP_SEQUENCES: u64 = 12;
const DROP_APPENDS: u64 = 600;
/// A node of a stream, and what a stream takes without entries.
const NODE_BYTES: u64 = 4096;
const STEPS: usize = 40;

/// A room as the rules have it.
#[derive(Clone, Default)]
struct Model {
    head: Option<Head>,
    log: Vec<EventId>,
}

/// The stored form of a head, as the README describes it.
fn render(head: &Head) -> String {
    let mut text = String::new();
    for (place, epoch) in head.history.epochs().iter().rev().enumerate() {
        let _ = write!(text, "{}{}-{}", if place == 0 { "" } else { " " }, epoch.epoch, epoch.end);
        if place == 0 {
            let _ = write!(text, " {}", head.replication_id);
        }
        if let Some(since) = epoch.lost_since {
            let _ = write!(text, " ~{since}");
        }
        if let Some(LateLoss { since, entered }) = epoch.late {
            let _ = write!(text, " ?{since}/{entered}");
        }
    }
    if head.history.dropped() > 0 {
        let _ = write!(text, " ^{}", head.history.dropped());
    }
    if head.history.cleared().epoch > 0 {
        let _ = write!(text, " ={}", head.history.cleared());
    }
    text
}

/// Replaces each epoch by its place among all that ever began here.
fn normal(text: &str, epochs: &[u64]) -> String {
    let place = |number: &str| {
        let number: u64 = number.parse().unwrap();
        epochs.iter().position(|epoch| *epoch == number).map_or(format!("?{number}"), |place| format!("e{place}"))
    };
    let tokens = text.split(' ').map(|token| {
        let (tag, rest) = token.split_at(token.find(|c: char| c.is_ascii_digit()).unwrap_or(0));
        match rest.split_once('-') {
            Some((epoch, offset)) => match offset.split_once('/') {
                Some((offset, entered)) => format!("{tag}{}-{offset}/{}", place(epoch), place(entered)),
                None => format!("{tag}{}-{offset}", place(epoch)),
            },
            None if tag == "^" => format!("^{}", place(rest)),
            None => token.to_owned(),
        }
    });
    tokens.collect::<Vec<_>>().join(" ")
}

struct Pair {
    connection: Connection,
    append: Script,
    clear: Script,
    ensure_epoch: Script,
    replication_id: String,
    model: Model,
    time: u64,
    /// Epochs in the order in which they began, in Redis and in the model.
    epochs: Vec<(u64, u64)>,
    /// Every id that was given out, as the place of its epoch and its offset.
    given: Vec<(usize, u64)>,
}

impl Pair {
    fn watermarks(&self, dice: &mut fastrand::Rng) -> (Vec<String>, Vec<EventId>) {
        let count = dice.usize(..4).min(self.given.len());
        let mut highest: BTreeMap<usize, u64> = BTreeMap::new();
        for (place, offset) in (0..count).map(|_| self.given[dice.usize(..self.given.len())]) {
            let watermarks = highest.entry(place).or_default();
            *watermarks = offset.max(*watermarks);
        }
        let ids = |side: fn(&(u64, u64)) -> u64| {
            highest
                .iter()
                .map(|(place, offset)| EventId::new(side(&self.epochs[*place]), *offset))
                .collect::<Vec<_>>()
        };
        (ids(|pair| pair.0).iter().map(EventId::to_string).collect(), ids(|pair| pair.1))
    }

    fn vouch_model(&mut self, watermarks: &[EventId]) -> &mut Head {
        self.time += 1;
        if self.model.head.is_none() {
            self.model.log.clear();
        }
        let oldest = self.model.log.first().copied();
        let moment = StepContext { replication_id: &self.replication_id, time: self.time, random: 3, oldest };
        let (head, _) = Head::ensure_epoch(self.model.head.take(), watermarks, moment);
        self.model.head.insert(head)
    }

    fn clear(&mut self, dice: &mut fastrand::Rng) {
        let (texts, watermarks) = self.watermarks(dice);
        let mut call = self.clear.key(HEAD);
        call.key(LOG).arg("channel").arg(7_200_000).arg(3).arg(texts);
        let _: () = call.invoke(&mut self.connection).unwrap();
        self.vouch_model(&watermarks).history.clear();
        self.model.log.clear();
        self.note_epoch();
    }

    /// Remembers the newest epoch, if it has just begun.
    fn note_epoch(&mut self) {
        let head: String = redis::cmd("GET").arg(HEAD).query(&mut self.connection).unwrap();
        let newest: EventId = head.split(' ').next().unwrap().parse().unwrap();
        let began = self.model.head.as_ref().unwrap().history.newest().epoch;
        if self.epochs.iter().all(|(_, epoch)| *epoch != began) {
            self.epochs.push((newest.epoch, began));
        }
    }

    fn step(&mut self, append: bool, dice: &mut fastrand::Rng) {
        let (texts, watermarks) = self.watermarks(dice);
        let appended = if append {
            let mut call = self.append.key(HEAD);
            call.key(LOG).arg("{}").arg("channel").arg(1000).arg(3_600_000).arg(7_200_000).arg(3);
            call.arg(300_000).arg("").arg(1_000_000).arg("0").arg(texts);
            let (id, _): (String, bool) = call.invoke(&mut self.connection).unwrap();
            Some(id.parse::<EventId>().unwrap())
        } else {
            let mut call = self.ensure_epoch.key(HEAD);
            call.key(LOG).arg(7_200_000).arg(3).arg("").arg(texts);
            let _: String = call.invoke(&mut self.connection).unwrap();
            None
        };
        let history = &mut self.vouch_model(&watermarks).history;
        let modelled = append.then(|| history.extend());
        self.model.log.extend(modelled);
        self.note_epoch();
        if let (Some(id), Some(model)) = (appended, modelled) {
            let place = self.epochs.iter().position(|pair| pair.1 == model.epoch).unwrap();
            assert_eq!((self.epochs[place].0, id.offset), (id.epoch, model.offset));
            self.given.push((place, id.offset));
        }
    }

    fn compare(&mut self, trail: &str) {
        let head: Option<String> = redis::cmd("GET").arg(HEAD).query(&mut self.connection).unwrap();
        let (ours, theirs): (Vec<_>, Vec<_>) = self.epochs.iter().copied().unzip();
        let head = head.map(|head| normal(&head, &ours));
        let expected = self.model.head.as_ref().map(|head| normal(&render(head), &theirs));
        assert_eq!(head, expected, "{trail}");
        let log: Vec<_> = self.entries().iter().map(|id| normal(id, &ours)).collect();
        let expected: Vec<_> = self.model.log.iter().map(|id| normal(&id.to_string(), &theirs)).collect();
        assert_eq!(log, expected, "{trail}");
    }

    fn entries(&mut self) -> Vec<String> {
        let reply: Vec<(String, Vec<String>)> =
            redis::cmd("XRANGE").arg(LOG).arg("-").arg("+").query(&mut self.connection).unwrap();
        reply.into_iter().map(|(id, _)| id).collect()
    }

    /// As a server does that restarts from an older dataset.
    fn restore(&mut self, saved: &(Option<String>, Vec<String>, Model)) {
        let (head, entries, model) = saved;
        let _: () = redis::cmd("DEL").arg(HEAD).arg(LOG).query(&mut self.connection).unwrap();
        if let Some(head) = head {
            let _: () = redis::cmd("SET").arg(HEAD).arg(head).query(&mut self.connection).unwrap();
        }
        for id in entries {
            let _: () = redis::cmd("XADD").arg(LOG).arg(id).arg("e").arg("{}").query(&mut self.connection).unwrap();
        }
        self.model = model.clone();
        self.change_mark();
    }

    /// The head turns out to be another server's.
    fn change_mark(&mut self) {
        let other = "f".repeat(40);
        let head: Option<String> = redis::cmd("GET").arg(HEAD).query(&mut self.connection).unwrap();
        if let (Some(head), Some(model)) = (head, &mut self.model.head) {
            let head = head.replacen(&self.replication_id, &other, 1);
            let _: () = redis::cmd("SET").arg(HEAD).arg(head).query(&mut self.connection).unwrap();
            model.replication_id = other;
        }
    }
}

#[tokio::test]
async fn the_scripts_and_the_rules_agree_on_random_steps() {
    let server = RedisServer::start().await;
    tokio::task::spawn_blocking(move || {
        let prelude = include_str!("../../src/broker/redis/scripts/log.lua");
        let script = |text: &str| Script::new(&[prelude, text].concat());
        let info = server.cli(&["INFO", "replication"]);
        let replication_id =
            info.lines().find_map(|line| line.strip_prefix("master_replid:")).unwrap().trim().to_owned();
        for seed in 0..SEQUENCES {
            let mut dice = fastrand::Rng::with_seed(seed);
            server.cli(&["FLUSHALL"]);
            let mut pair = Pair {
                connection: redis::Client::open(server.url()).unwrap().get_connection().unwrap(),
                append: script(include_str!("../../src/broker/redis/scripts/append.lua")),
                clear: script(include_str!("../../src/broker/redis/scripts/clear.lua")),
                ensure_epoch: script(include_str!("../../src/broker/redis/scripts/ensure_epoch.lua")),
                replication_id: replication_id.clone(),
                model: Model::default(),
                time: 1000,
                epochs: Vec::new(),
                given: Vec::new(),
            };
            let mut saved = (None, Vec::new(), Model::default());
            let mut trail = format!("seed {seed}:");
            for _ in 0..STEPS {
                let what = dice.u8(..12);
                let _ = write!(trail, " {what}");
                match what {
                    0..=3 => pair.step(true, &mut dice),
                    4 | 5 => pair.step(false, &mut dice),
                    6 => {
                        let keep = dice.usize(..4);
                        server.cli(&["XTRIM", LOG, "MAXLEN", &keep.to_string()]);
                        let drop = pair.model.log.len().saturating_sub(keep);
                        pair.model.log.drain(..drop);
                    }
                    7 => {
                        let head = redis::cmd("GET").arg(HEAD).query(&mut pair.connection).unwrap();
                        saved = (head, pair.entries(), pair.model.clone());
                    }
                    8 => pair.restore(&saved),
                    9 => pair.change_mark(),
                    10 => pair.clear(&mut dice),
                    11 if dice.bool() => {
                        server.cli(&["DEL", HEAD]);
                        pair.model.head = None;
                    }
                    _ => {
                        // Many epochs: the oldest are cut from the history.
                        for _ in 0..12 {
                            pair.change_mark();
                            pair.step(false, &mut dice);
                        }
                    }
                }
                pair.compare(&trail);
            }
        }
    })
    .await
    .unwrap();
}

/// An entry as it was appended: its id, its bytes, and the time that it tells.
type Entry = (String, u64, u64);

/// What a log may take: half more than the limit, one event, and the node that is being filled.
fn most(limit: u64, largest: u64) -> u64 {
    limit + limit / 2 + largest + 2 * NODE_BYTES
}

#[tokio::test]
async fn what_a_log_drops_is_its_oldest_and_had_to_go_for_age_or_bytes() {
    let server = RedisServer::start().await;
    tokio::task::spawn_blocking(move || {
        let prelude = include_str!("../../src/broker/redis/scripts/log.lua");
        let append = Script::new(&[prelude, include_str!("../../src/broker/redis/scripts/append.lua")].concat());
        let mut connection = redis::Client::open(server.url()).unwrap().get_connection().unwrap();
        let (mut dropped_for_age, mut dropped_for_bytes) = (0, 0);
        for seed in 0..DROP_SEQUENCES {
            let mut dice = fastrand::Rng::with_seed(seed);
            server.cli(&["FLUSHALL"]);
            let limit = [20_000, 100_000, 1_000_000][dice.usize(..3)];
            let lifetime = dice.u64(50..400);
            let mut kept: Vec<Entry> = Vec::new();
            let (mut usual, mut largest) = (1, 0);
            for now in 0..DROP_APPENDS {
                // Phases of small events, of large ones, and of both.
                if dice.u8(..60) == 0 {
                    usual = [1, 100, 3000, usize::try_from(limit / 4).unwrap()][dice.usize(..4)];
                }
                let event =
                    format!(r#"{{"published_at":"{now:08}","data":"{}"}}"#, "x".repeat(dice.usize(..=usual)));
                let bytes = event.len() as u64;
                largest = largest.max(bytes);
                let too_old = now.saturating_sub(lifetime);
                let mut call = append.key(HEAD);
                call.key(LOG).arg(event).arg("channel").arg(1_000_000).arg(3_600_000).arg(7_200_000).arg(3);
                call.arg(300_000).arg("").arg(limit).arg(format!("{too_old:08}"));
                let (id, _): (String, bool) = call.invoke(&mut connection).unwrap();
                kept.push((id, bytes, now));
                let ids: Vec<(String, redis::Value)> =
                    redis::cmd("XRANGE").arg(LOG).arg("-").arg("+").query(&mut connection).unwrap();
                let weight: u64 = redis::cmd("MEMORY")
                    .arg("USAGE")
                    .arg(LOG)
                    .arg("SAMPLES")
                    .arg(0)
                    .query(&mut connection)
                    .unwrap();
                let place = format!("seed {seed}, append {now}, limit {limit}, weight {weight}");
                assert!(weight <= most(limit, largest), "{place}");
                let dropped: Vec<_> = kept.drain(..kept.len() - ids.len()).collect();
                assert!(kept.iter().map(|entry| &entry.0).eq(ids.iter().map(|(id, _)| id)), "{place}");
                // What is too old goes soon, several times as fast as it comes.
                assert!(kept[0].2 + 32 >= too_old, "{place}: {:?}", kept[0]);
                let young: Vec<_> = dropped.iter().filter(|entry| entry.2 >= too_old).collect();
                dropped_for_age += dropped.len() - young.len();
                dropped_for_bytes += young.len();
                // With what had to go for bytes, the log was heavier than it may be. (Redis's allocator gives up to a
                // quarter more than is asked for.)
                let freed: u64 = dropped.iter().map(|entry| entry.1 * 5 / 4 + 64).sum();
                assert!(young.is_empty() || weight + freed + 2 * NODE_BYTES >= limit, "{place}: {freed}");
                let last = young.last().map_or(0, |entry| entry.1 * 5 / 4);
                assert!(young.is_empty() || weight + last + freed / 4 + 3 * NODE_BYTES >= limit, "{place}: {last}");
            }
        }
        assert!(dropped_for_age > 500 && dropped_for_bytes > 500, "{dropped_for_age} {dropped_for_bytes}");
    })
    .await
    .unwrap();
}
