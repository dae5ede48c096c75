//! Announcements that are repeated, reordered or forged by another client of Redis. Whoever can write to the Redis is
//! trusted; these tests say how much harm a wrong announcement can do.

use super::stage::{GAPS_PER_LOSS, Promise, Stage, key};
use crate::support::ROOMS;

/// Announces an event that is never appended, under an id that is made from the newest one's.
const FORGE: &str = "
    local epoch, offset = string.match(redis.call('GET', KEYS[1]), '^(%d+)%-(%d+)')
    local id = string.format('%.0f-%.0f', epoch + ARGV[2], math.max(offset + ARGV[3], 1))
    local event = '{\"text\":\"forged\",\"published_at\":\"2026-01-02T03:04:05.678Z\"}'
    redis.call('PUBLISH', ARGV[1], id .. ' ' .. #event .. '\\n' .. event)
    return id";

impl Stage {
    /// Announces something under an id so many epochs and offsets from the newest one.
    fn forge(&mut self, room: &str, epochs: i64, offsets: i64) {
        let arguments = [&key(room, "live"), &epochs.to_string()[..], &offsets.to_string()];
        let id = self.redis.eval(FORGE, &[&key(room, "head")], &arguments);
        self.forged.insert((room.into(), id.parse().unwrap()));
    }

    async fn junk(&self) -> u64 {
        let mut junk = 0;
        for replica in &self.replicas {
            junk += replica.until(200).await["malformed_announcements"].as_u64().unwrap();
        }
        junk
    }
}

/// The newest entries of a room's log, newest first, as announcements.
pub fn newest(stage: &Stage, room: &str) -> Vec<String> {
    let log = stage.redis.cli(&["XREVRANGE", &key(room, "log"), "+", "-", "COUNT", "20"]);
    let lines: Vec<_> = log.lines().collect();
    lines.chunks_exact(3).map(|entry| format!("{} {}\n{}", entry[0], entry[2].len(), entry[2])).collect()
}

pub fn announce(stage: &Stage, room: &str, announcement: &str) {
    stage.redis.cli(&["PUBLISH", &key(room, "live"), announcement]);
}

#[tokio::test]
async fn p11_under_load_repeated_announcements_are_harmless() {
    let mut stage = Stage::begin(601).await;
    for room in ROOMS {
        for announcement in newest(&stage, room).iter().rev() {
            announce(&stage, room, announcement);
            announce(&stage, room, announcement);
        }
        stage.some_traffic().await;
    }
    stage.heal("Announcements are repeated", Promise::NoGap).await;
}

#[tokio::test]
async fn p11_under_load_reordered_announcements_are_harmless() {
    let mut stage = Stage::begin(602).await;
    for room in ROOMS {
        let mut announcements = newest(&stage, room);
        for announcement in &announcements {
            announce(&stage, room, announcement);
        }
        stage.rng.shuffle(&mut announcements);
        for announcement in &announcements {
            announce(&stage, room, announcement);
        }
        stage.some_traffic().await;
    }
    stage.heal("Announcements come again in reverse and at random", Promise::NoGap).await;
}

#[tokio::test]
async fn p11_under_load_junk_on_the_channels_is_counted_and_harmless() {
    let mut stage = Stage::begin(603).await;
    for room in ROOMS {
        let whole = newest(&stage, room).remove(0);
        let (header, event) = whole.split_once('\n').unwrap();
        let mut junk = vec![
            whole[..whole.len() - 1].to_owned(),
            format!("{whole} "),
            event.to_owned(),
            String::new(),
            "9".repeat(100),
            format!("99999999999999999999-1 2\n{{}}"),
            format!("{header}x\n{event}"),
        ];
        junk.extend(
            (0..10).map(|_| (0..stage.rng.usize(1..200)).map(|_| stage.rng.char(' '..='\u{ff}')).collect()),
        );
        for junk in &junk {
            announce(&stage, room, junk);
        }
        // A header whose event never comes.
        announce(&stage, room, &format!("{header}\n"));
        stage.some_traffic().await;
    }
    assert!(stage.junk().await > 0);
    stage.heal("Junk and truncated announcements", Promise::NoGap).await;
}

#[tokio::test]
async fn p11_under_load_a_forged_copy_of_an_old_id_is_counted_and_delivered_to_nobody_twice() {
    let mut stage = Stage::begin(604).await;
    for _ in 0..5 {
        for room in ROOMS {
            let back = stage.rng.i64(1..5);
            stage.forge(room, 0, -back);
        }
        stage.some_traffic().await;
    }
    assert!(stage.junk().await > 0);
    // Those ids were appended and mean what the log says: nobody may have been given anything else.
    stage.forged.clear();
    stage.heal("Other content is announced under ids that were given out", Promise::NoGap).await;
}

#[tokio::test]
async fn p11_under_load_a_forged_id_that_was_never_given_out_costs_at_most_a_gap() {
    let mut stage = Stage::begin(605).await;
    let kinds = [(0, 1000), (-1000, 1000), (3_600_000_000, 1)];
    for (room, (epochs, offsets)) in ROOMS.into_iter().zip(kinds) {
        stage.forge(room, epochs, offsets);
        stage.some_traffic().await;
    }
    let told = Promise::Perhaps(&["diverged", "lost_tail"]);
    let account = stage.heal("An id is announced that was never given out; taken for a lost one", told).await;
    assert_eq!(account.stand_ins, 0, "{account:?}");
}

#[tokio::test]
async fn p11_under_load_a_forged_next_event_is_recalled_once_the_log_decides() {
    let mut stage = Stage::begin(606).await;
    let times = 3;
    for _ in 0..times {
        for room in ROOMS {
            stage.forge(room, 0, 1);
        }
        stage.some_traffic().await;
    }
    stage.most_gaps = times * GAPS_PER_LOSS;
    let told = Promise::Perhaps(&["diverged", "lost_tail"]);
    let fault = "The next id is announced with other content; delivered until the log decides";
    let account = stage.heal(fault, told).await;
    assert!(account.stand_ins > 0, "{account:?}");
}
