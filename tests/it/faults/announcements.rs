//! Announcements that another client of Redis repeats, reorders or forges. Clients that can write to the Redis are
//! trusted. These tests show how much harm a wrong announcement can do.

use super::stage::{GAPS_PER_LOSS, Promise, Stage, key};
use crate::support::ROOMS;

/// Announces an event that is never appended. Its id is computed from the newest id.
const FORGE: &str = "
    local epoch, offset = string.match(redis.call('GET', KEYS[1]), '^(%d+)%-(%d+)')
    local id = string.format('%.0f-%.0f', epoch + ARGV[2], math.max(offset + ARGV[3], 1))
    local event = '{\"text\":\"forged\",\"published_at\":\"2026-01-02T03:04:05.678Z\"}'
    redis.call('PUBLISH', ARGV[1], id .. ' ' .. #event .. '\\n' .. event)
    return id";

impl Stage {
    /// Announces a forged event. Its id is this many epochs and offsets from the newest id.
    fn forge(&mut self, room: &str, epochs: i64, offsets: i64) {
        let arguments = [&key(room, "live"), &epochs.to_string()[..], &offsets.to_string()];
        let id = self.redis.eval(FORGE, &[&key(room, "head")], &arguments);
        self.forged.insert((room.into(), id.parse().unwrap()));
    }

    /// The malformed announcements that all replicas have counted.
    async fn malformed_announcements(&self) -> u64 {
        let mut sum = 0;
        for replica in &self.replicas {
            sum += replica.until(200).await["malformed_announcements"].as_u64().unwrap();
        }
        sum
    }
}

/// Announcements of the newest entries of a room's log, newest first.
pub fn newest_announcements(stage: &Stage, room: &str) -> Vec<String> {
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
        for announcement in newest_announcements(&stage, room).iter().rev() {
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
        let mut announcements = newest_announcements(&stage, room);
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
        let whole = newest_announcements(&stage, room).remove(0);
        let (header, event) = whole.split_once('\n').unwrap();
        let mut malformed = vec![
            whole[..whole.len() - 1].to_owned(),
            format!("{whole} "),
            event.to_owned(),
            String::new(),
            "9".repeat(100),
            format!("99999999999999999999-1 2\n{{}}"),
            format!("{header}x\n{event}"),
        ];
        malformed.extend(
            (0..10).map(|_| (0..stage.rng.usize(1..200)).map(|_| stage.rng.char(' '..='\u{ff}')).collect()),
        );
        for announcement in &malformed {
            announce(&stage, room, announcement);
        }
        // A header that no event follows.
        announce(&stage, room, &format!("{header}\n"));
        stage.some_traffic().await;
    }
    assert!(stage.malformed_announcements().await > 0);
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
    assert!(stage.malformed_announcements().await > 0);
    // The log has other events with those ids, so no subscriber may have received a forged one.
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
    let promise = Promise::OptionalGap(&["diverged", "lost_tail"]);
    let account = stage.heal("An id is announced that was never given out; taken for a lost one", promise).await;
    assert_eq!(account.forged_deliveries, 0, "{account:?}");
}

#[tokio::test]
async fn p11_under_load_a_forged_next_event_is_recalled_once_the_log_decides() {
    const FORGERIES: usize = 3;
    let mut stage = Stage::begin(606).await;
    for _ in 0..FORGERIES {
        for room in ROOMS {
            stage.forge(room, 0, 1);
        }
        stage.some_traffic().await;
    }
    stage.max_gaps = FORGERIES * GAPS_PER_LOSS;
    let promise = Promise::OptionalGap(&["diverged", "lost_tail"]);
    let fault = "The next id is announced with other content; delivered until the log decides";
    let account = stage.heal(fault, promise).await;
    assert!(account.forged_deliveries > 0, "{account:?}");
}
