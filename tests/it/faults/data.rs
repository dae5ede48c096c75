//! Deleted keys of a room, a clock that is set back, and a log that is trimmed faster than a subscriber reads.

use roomcast::names::EventId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::sync::{mpsc, watch};

use super::stage::{Plan, Promise, Stage, key, random_room};
use crate::support::{EventSource, LAST, ROOMS, Record, RedisServer, Stream, eventually, within};

/// Reasons of a gap after the loss of a whole log. A subscriber that lags may miss its end only.
const WHOLE_LOG: &[&str] = &["diverged", "log_lost", "lost_tail"];

/// Changes a head as a server would have written it with a clock that is an hour fast: the newest epoch lies ahead.
const AN_HOUR_FAST: &str = "
    local head = redis.call('GET', KEYS[1])
    local replication_id = string.match(head, '^%S+ (%S+)')
    local rest = string.gsub(head, '^(%S+) %S+', '%1', 1)
    local time = redis.call('TIME')
    local epoch = string.format('%.0f', (tonumber(time[1]) + 3600) * 1000000)
    redis.call('SET', KEYS[1], epoch .. '-0 ' .. replication_id .. ' ' .. rest, 'KEEPTTL')
    return epoch";

impl Stage {
    /// Moves every room to an epoch that is an hour ahead, which is as if Redis's clock were set back now. Returns
    /// the epochs.
    async fn set_clock_back(&mut self) -> Vec<u64> {
        let epochs: Vec<u64> = ROOMS
            .iter()
            .map(|room| self.redis.eval(AN_HOUR_FAST, &[&key(room, "head")], &[]).parse().unwrap())
            .collect();
        self.some_traffic().await;
        epochs
    }

    /// Checks that every room's epoch is above the former one.
    fn assert_epochs_rose(&self, former: &[u64]) {
        for (room, former) in ROOMS.iter().zip(former) {
            let head = self.redis.cli(&["GET", &key(room, "head")]);
            let epoch: u64 = head.split('-').next().unwrap().parse().unwrap();
            assert!(epoch > *former, "{room}: {head} is not above {former}");
        }
    }
}

#[tokio::test]
async fn p4_under_load_a_room_whose_head_and_log_are_deleted_is_told() {
    let mut stage = Stage::begin(501).await;
    let room = random_room(&mut stage.rng);
    stage.redis.cli(&["DEL", &key(room, "head"), &key(room, "log")]);
    stage.heal("A room's head and log are deleted in Redis", Promise::Gap(WHOLE_LOG)).await;
}

#[tokio::test]
async fn p4_under_load_a_room_whose_head_is_deleted_is_told() {
    let mut stage = Stage::begin(502).await;
    let room = random_room(&mut stage.rng);
    stage.redis.cli(&["DEL", &key(room, "head")]);
    stage.heal("A room's head is deleted in Redis", Promise::Gap(WHOLE_LOG)).await;
}

#[tokio::test]
async fn p4_under_load_a_room_whose_log_is_deleted_costs_only_those_who_lag() {
    let mut stage = Stage::begin(503).await;
    let room = random_room(&mut stage.rng);
    stage.redis.cli(&["DEL", &key(room, "log")]);
    let promise = Promise::OptionalGap(&["expired", "trimmed"]);
    stage.heal("A room's log is deleted in Redis, and its head stays", promise).await;
}

#[tokio::test]
async fn p3_under_load_a_clock_set_back_and_an_emptied_redis_repeat_no_id() {
    let mut stage = Stage::begin(504).await;
    let epochs = stage.set_clock_back().await;
    stage.redis.cli(&["FLUSHALL"]);
    stage.some_traffic().await;
    stage.assert_epochs_rose(&epochs);
    stage.heal("Redis's clock is set back by an hour; `FLUSHALL`", Promise::Gap(WHOLE_LOG)).await;
}

#[tokio::test]
async fn p3_under_load_a_clock_set_back_and_a_restart_repeat_no_id() {
    let redis = RedisServer::start_with(&["--appendonly", "yes", "--appendfsync", "always"]).await;
    let mut stage = Plan::with(505).on(redis).begin().await;
    let epochs = stage.set_clock_back().await;
    stage.redis.kill();
    stage.until_all_degraded().await;
    stage.redis.come_back().await;
    stage.until_well().await;
    stage.some_traffic().await;
    stage.assert_epochs_rose(&epochs);
    stage.heal("Redis's clock is set back by an hour; restart without loss", Promise::NoGap).await;
}

/// A room with a short log.
const HOSE: &str = "hose";
/// Events of a burst: more than the log and all buffers between gateway and reader hold.
const BURST: usize = 150;
const BURSTS: usize = 3;

/// Reads while it is allowed to, with a small buffer. Sends the content of the last event and the end of each gap.
async fn read_slowly(
    address: String,
    mut may_read: watch::Receiver<bool>,
    last_content: watch::Sender<String>,
    gap_ends: mpsc::Sender<String>,
) -> Record {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut connection = socket.connect(address.parse().unwrap()).await.unwrap();
    // In HTTP/1.0 the body is the stream without chunks.
    let request = format!("GET /v1/rooms/{HOSE}/stream HTTP/1.0\r\nhost: {address}\r\n\r\n");
    connection.write_all(request.as_bytes()).await.unwrap();
    let (mut record, mut source) = (Record::default(), EventSource::default());
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within("a slow reader's head", connection.read_u8()).await.unwrap());
    }
    let mut buffer = [0; 1024];
    loop {
        may_read.wait_for(|is_allowed| *is_allowed).await.unwrap();
        let count = within("a slow reader's bytes", connection.read(&mut buffer)).await.unwrap();
        assert!(count > 0, "the stream ended");
        for event in source.feed(&buffer[..count]) {
            if let Some((_, content)) = record.add(&event, &[HOSE]) {
                last_content.send_replace(content.to_owned());
                if content == LAST {
                    return record;
                }
            } else if event.event == "stream.open" {
                last_content.send_replace(event.event);
            } else if event.event == "stream.gap" {
                gap_ends.send(event.id).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn p7_under_load_a_log_trimmed_faster_than_a_slow_reader_reads_costs_only_that_reader_a_gap() {
    let limits = ["--retention", "hose=events:20", "--ring-events", "16", "--send-buffer-bytes", "8192"];
    // The slow reader must not be cut off, however slow this machine is.
    let mut stage = Plan::with(506).arguments(&limits).arguments(&["--stall-timeout", "1h"]).begin().await;
    let mut quick = Vec::new();
    for replica in &stage.replicas {
        quick.push((
            Stream::connect(&format!("{}/v1/rooms/{HOSE}/stream", replica.url()), None).await.unwrap(),
            Record::default(),
        ));
    }
    for (stream, record) in &mut quick {
        assert!(record.add(&stream.event().await, &[HOSE]).is_none());
    }
    let address = stage.replicas[stage.rng.usize(..3)].url().strip_prefix("http://").unwrap().to_owned();
    let (may_read, permission) = watch::channel(true);
    let (content_sender, mut contents) = watch::channel(String::new());
    let (gap_end_sender, mut gap_ends) = mpsc::channel(BURSTS);
    stage.load.add_record(HOSE, read_slowly(address, permission, content_sender, gap_end_sender));
    within("the slow reader joins", contents.wait_for(|content| content == "stream.open")).await.unwrap();
    let (mut attempts, mut last) = (0, String::new());
    for _ in 0..BURSTS {
        may_read.send_replace(false);
        for _ in 0..BURST {
            eventually("an event is stored", async || {
                attempts += 1;
                last = format!("t{attempts}/4000");
                stage.load.publisher.publish_to(HOSE, &last).await.then_some(())
            })
            .await;
            // The quick readers have each event before the next one is published, so they never lag.
            for (stream, record) in &mut quick {
                while record.add(&stream.event().await, &[HOSE]) != Some((HOSE, last.as_str())) {}
            }
        }
        may_read.send_replace(true);
        within("the slow reader catches up", contents.wait_for(|content| *content == last)).await.unwrap();
        let oldest = stage.redis.cli(&["XRANGE", &key(HOSE, "log"), "-", "+", "COUNT", "1"]);
        let oldest: EventId = oldest.lines().next().unwrap().parse().unwrap();
        let gap_end = within("the slow reader receives a gap", gap_ends.recv()).await.unwrap();
        assert_eq!(gap_end, oldest.before().to_string(), "the gap ends before the oldest event");
    }
    for (mut stream, mut record) in quick {
        stage.load.add_record(HOSE, async move {
            while record.add(&stream.event().await, &[HOSE]) != Some((HOSE, LAST)) {}
            record
        });
    }
    stage.max_gaps = BURSTS;
    let fault = "A log is trimmed faster than one slow reader reads; told to that reader alone";
    let account = stage.heal(fault, Promise::Gap(&["trimmed"])).await;
    assert_eq!(account.gaps["trimmed"], BURSTS, "{account:?}");
}
