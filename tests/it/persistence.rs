//! The embedded broker with a data folder: acknowledged data survives the process.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::{Client, Method, RequestBuilder, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::support::{
    Balancer, EventKey, Evidence, Load, ROOMS, Replica, Stream, content_from_data, eventually, random, spawn,
    within,
};

/// Fields that are written under load.
const FIELDS: usize = 4;

async fn send(request: RequestBuilder) -> (StatusCode, Value) {
    let answer = within("an answer", request.send()).await.unwrap();
    (answer.status(), answer.json().await.unwrap_or(Value::Null))
}

async fn get(replica: &Replica, path: &str) -> (StatusCode, Value) {
    send(Client::new().get(format!("{}{path}", replica.url()))).await
}

async fn publish(replica: &Replica, room: &str, text: &str) -> (StatusCode, Value) {
    send(Client::new().post(format!("{}/v1/rooms/{room}/events", replica.url())).body(text.to_owned())).await
}

async fn publish_all(replica: &Replica, room: &str, texts: &[&str]) {
    for text in texts {
        assert_eq!(publish(replica, room, text).await.0, 201);
    }
}

async fn put(replica: &Replica, field: &str, value: &str) -> StatusCode {
    let url = format!("{}/v1/hashes/h/fields/{field}", replica.url());
    send(Client::new().put(url).body(value.to_owned())).await.0
}

/// The data of the events in the room's log.
async fn log(replica: &Replica, room: &str) -> Vec<String> {
    let (status, page) = get(replica, &format!("/v1/rooms/{room}/events")).await;
    assert_eq!(status, 200, "{page}");
    page["events"].as_array().unwrap().iter().map(|event| event["data"].as_str().unwrap().to_owned()).collect()
}

/// Copies a folder to a path that does not exist yet.
fn copy_folder(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("-r").arg(from).arg(to).status();
    assert!(copied.unwrap().success());
}

async fn until_health(replica: &Replica, status: u16) -> Value {
    eventually("the health", async || {
        let (now, report) = get(replica, "/healthz").await;
        (now == status).then_some(report)
    })
    .await
}

/// Writers of a hash. Each counts upwards in a field of its own, and remembers the last acknowledged number.
struct Counters {
    acknowledged: Arc<Mutex<[u64; FIELDS]>>,
    stop: CancellationToken,
    writers: Vec<JoinHandle<()>>,
}

impl Counters {
    fn start(balancer: &Balancer, random: &mut fastrand::Rng) -> Self {
        let (acknowledged, stop) = (Arc::<Mutex<[u64; FIELDS]>>::default(), CancellationToken::new());
        let mut write = |field: usize| {
            let mut random = random.fork();
            let (acknowledged, stop, balancer) = (acknowledged.clone(), stop.clone(), balancer.clone());
            spawn(async move {
                let client = Client::new();
                for count in 1u64.. {
                    if stop.is_cancelled() {
                        return;
                    }
                    let url = format!("{}/v1/hashes/h/fields/{field}", balancer.pick(&mut random));
                    let put = client.put(url).timeout(Duration::from_secs(10)).body(count.to_string());
                    if put.send().await.is_ok_and(|answer| answer.status().is_success()) {
                        acknowledged.lock().unwrap()[field] = count;
                    } else {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            })
        };
        let writers = (0..FIELDS).map(&mut write).collect();
        Self { acknowledged, stop, writers }
    }

    fn total(&self) -> u64 {
        self.acknowledged.lock().unwrap().iter().sum()
    }

    /// Checks that each field holds its acknowledged number, or a later one.
    async fn check(&self, replica: &Replica, acknowledged: [u64; FIELDS]) {
        for (field, least) in acknowledged.iter().enumerate().filter(|(_, least)| **least > 0) {
            let (status, body) = get(replica, &format!("/v1/hashes/h/fields/{field}")).await;
            assert_eq!(status, 200, "field {field} was lost; {least} was acknowledged");
            let value: u64 = body["value"].as_str().unwrap().parse().unwrap();
            assert!(value >= *least, "field {field} holds {value}, but {least} was acknowledged");
        }
    }
}

/// The events of a room's whole log, page by page.
async fn whole_log(replica: &Replica, room: &str) -> Vec<(EventKey, String)> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let (status, page) = get(replica, &format!("/v1/rooms/{room}/events?limit=1000{after}")).await;
        assert_eq!(status, 200, "{page}");
        let events = page["events"].as_array().unwrap();
        let Some(last) = events.last() else { return all };
        after = format!("&after={}", last["id"].as_str().unwrap());
        let place = |event: &Value| (room.to_owned(), event["id"].as_str().unwrap().parse().unwrap());
        all.extend(events.iter().map(|event| (place(event), content_from_data(&event["data"]))));
    }
}

/// Kills the process several times under load, and restarts it on the same folder each time.
async fn survives_kills(seed: u64, kills: u32, arguments: &[&str]) {
    let mut random = random(seed);
    let unlimited = ["--retention-events", "1000000", "--retention-bytes", "1000000000"];
    let arguments = &[&unlimited[..], arguments].concat();
    let folder = tempfile::tempdir().unwrap();
    let mut replica = Replica::start_on(folder.path(), arguments);
    let balancer = Balancer::default();
    balancer.set([replica.url()]);
    let mut load = Load::begin(&balancer, random.fork());
    load.all_joined().await;
    let counters = Counters::start(&balancer, &mut random);
    for _ in 0..kills {
        let until = counters.total() + random.u64(1..400);
        eventually("the hash is written to", async || (counters.total() >= until).then_some(())).await;
        replica.kill();
        let acknowledged = *counters.acknowledged.lock().unwrap();
        replica = Replica::start_on(folder.path(), arguments);
        counters.check(&replica, acknowledged).await;
        balancer.set([replica.url()]);
    }
    counters.stop.cancel();
    for writer in counters.writers {
        within("a writer ends", writer).await.unwrap();
    }
    let (published, records) = load.finish().await;
    let mut log = Vec::new();
    for room in ROOMS {
        log.extend(whole_log(&replica, room).await);
    }
    let (log, other_logs, forged) = (log.into_iter().collect(), Vec::new(), BTreeSet::new());
    let account = Evidence { published, records, log, other_logs, forged, max_gaps: 0 }.check();
    assert!(account.acknowledged > kills as usize, "{account:?}");
    assert_eq!((account.lost, account.gaps.len()), (0, 0), "{account:?}");
}

#[tokio::test]
async fn p8_under_load_a_process_that_is_killed_again_and_again_keeps_all_it_acknowledged() {
    survives_kills(71, 25, &[]).await;
}

#[tokio::test]
async fn p8_under_load_kills_cost_nothing_with_everysec_either() {
    survives_kills(72, 20, &["--data-sync", "everysec"]).await;
}

#[tokio::test]
async fn p4_a_restart_with_a_data_folder_costs_no_gap_and_one_without_costs_one() {
    let folder = tempfile::tempdir().unwrap();
    let with_folder: fn(&Path) -> Replica = |folder| Replica::start_on(folder, &[]);
    let without_folder: fn(&Path) -> Replica = |_| Replica::start_with(&[]);
    for (start, is_durable) in [(with_folder, true), (without_folder, false)] {
        let replica = start(folder.path());
        publish_all(&replica, "a", &["one", "two"]).await;
        put(&replica, "f", "v").await;
        let stream = Stream::open(&format!("{}/v1/rooms/a/stream", replica.url()), None).await;
        let position = stream.last_event_id.clone();
        publish_all(&replica, "a", &["three"]).await;
        assert_eq!(replica.terminate().await, Some(0));

        let replica = start(folder.path());
        let expected: &[&str] = if is_durable { &["one", "two", "three"] } else { &[] };
        assert_eq!(log(&replica, "a").await, expected);
        let status = get(&replica, "/v1/hashes/h/fields/f").await.0;
        assert_eq!(status, if is_durable { 200 } else { 404 });
        let mut stream = Stream::open(&format!("{}/v1/rooms/a/stream", replica.url()), Some(&position)).await;
        publish_all(&replica, "a", &["four"]).await;
        let next = stream.event().await;
        if is_durable {
            assert_eq!(next.data, "three");
        } else {
            assert_eq!(next.event, "stream.gap");
        }
        assert_eq!(stream.data().await, "four");
    }
}

#[tokio::test]
async fn p8_a_full_disk_is_reported_and_writes_work_again_once_there_is_space() {
    let folder = tempfile::tempdir().unwrap();
    let replica = Replica::start_on(folder.path(), &[]);
    publish_all(&replica, "a", &["before"]).await;
    put(&replica, "f", "before").await;
    let mut stream = Stream::open(&format!("{}/v1/rooms/a/stream", replica.url()), None).await;
    replica.fill_disk();

    // The first publish has already changed the memory when the disk refuses it.
    let (status, problem) = publish(&replica, "a", "unknown").await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("outcome_unknown")), "{problem}");
    assert!(problem["detail"].as_str().unwrap().contains("disk_full"), "{problem}");
    let (status, problem) = publish(&replica, "a", "refused").await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("disk_full")), "{problem}");
    assert_eq!(put(&replica, "f", "refused").await, 503);
    assert_eq!(until_health(&replica, 503).await["commands"], "disk_full");
    // Stored data is still served. Data that is not yet stored is served to no client.
    assert_eq!(get(&replica, "/v1/hashes/h/fields/f").await.1["value"], "before");
    assert_eq!(get(&replica, "/v1/rooms/a/events").await.0, 503);
    stream.comments(2).await;

    replica.clear_disk();
    until_health(&replica, 200).await;
    assert_eq!(stream.data().await, "unknown");
    publish_all(&replica, "a", &["after"]).await;
    assert_eq!(stream.data().await, "after");
    drop(replica);
    let replica = Replica::start_on(folder.path(), &[]);
    assert_eq!(log(&replica, "a").await, ["before", "unknown", "after"]);
}

/// Starts a gateway on a folder that it must refuse. Returns what it prints.
fn refusal(folder: &Path) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_roomcast"));
    command.args(["--listen", "127.0.0.1:0", "--log", "off", "--data-dir"]).arg(folder);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.lines().last().unwrap().starts_with("roomcast: --data-dir "), "{text}");
    text
}

#[tokio::test]
async fn one_folder_has_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let replica = Replica::start_on(folder.path(), &[]);
    publish_all(&replica, "a", &["one"]).await;
    let said = refusal(folder.path());
    assert!(said.contains("another process uses it") && said.lines().count() == 1, "{said}");
    publish_all(&replica, "a", &["two"]).await;
}

#[tokio::test]
async fn a_folder_is_created_for_its_user_alone_and_a_failure_to_create_it_is_one_line() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("some/data");
    let replica = Replica::start_on(&folder, &[]);
    publish_all(&replica, "a", &["one"]).await;
    assert_eq!(std::fs::metadata(&folder).unwrap().permissions().mode() & 0o777, 0o700);
    let file = parent.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(refusal(&file).lines().count(), 1);
}

/// The newest journal of the store's library.
fn newest_journal(folder: &Path) -> PathBuf {
    let files = std::fs::read_dir(folder.join("store")).unwrap().map(|entry| entry.unwrap().path());
    let journals = files.filter(|path| path.extension().is_some_and(|kind| kind == "jnl"));
    let number = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    journals.max_by_key(number).unwrap()
}

#[tokio::test]
async fn a_torn_end_loses_only_the_torn_part_and_garbage_behind_the_end_loses_nothing() {
    let texts: Vec<_> = (0..20).map(|count| count.to_string()).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    for (cut, garbage) in
        [(1, &b""[..]), (200, b""), (2000, b""), (0, b"\x01\x02junk"), (0, &[0xff; 5000]), (7, b"\x03junk")]
    {
        let folder = tempfile::tempdir().unwrap();
        let mut replica = Replica::start_on(folder.path(), &[]);
        publish_all(&replica, "a", &texts).await;
        replica.kill();
        let path = newest_journal(folder.path());
        let mut bytes = std::fs::read(&path).unwrap();
        // The library fills the rest of the file with zeros in advance.
        bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1 - cut);
        bytes.extend_from_slice(garbage);
        std::fs::write(&path, bytes).unwrap();

        let replica = Replica::start_on(folder.path(), &[]);
        let kept = log(&replica, "a").await;
        assert!(texts.starts_with(&kept.iter().map(String::as_str).collect::<Vec<_>>()), "{cut}: {kept:?}");
        assert_eq!(kept.len() == texts.len(), cut == 0, "{cut} {garbage:?}: {kept:?}");
        publish_all(&replica, "a", &["after"]).await;
        drop(replica);
        let replica = Replica::start_on(folder.path(), &[]);
        assert_eq!(log(&replica, "a").await.last().unwrap(), "after");
    }
}

#[tokio::test]
async fn damage_is_reported_in_one_line_or_loses_the_end_and_is_never_served() {
    let texts: Vec<_> = (0..20).map(|count| format!("{count} {}", "x".repeat(100))).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    let original = tempfile::tempdir().unwrap();
    let mut replica = Replica::start_on(original.path(), &[]);
    publish_all(&replica, "a", &texts).await;
    replica.kill();
    let bytes = std::fs::read(newest_journal(original.path())).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    for part in 1..10 {
        let mut damaged = bytes.clone();
        for byte in &mut damaged[end * part / 10..][..3] {
            *byte ^= 0x55;
        }
        std::fs::write(newest_journal(original.path()), damaged).unwrap();
        let copy = tempfile::tempdir().unwrap();
        let folder = copy.path().join("d");
        copy_folder(original.path(), &folder);
        let replica = Replica::start_on(&folder, &[]);
        if replica.serves() {
            let kept = log(&replica, "a").await;
            assert!(texts.starts_with(&kept.iter().map(String::as_str).collect::<Vec<_>>()), "{kept:?}");
        } else {
            assert!(refusal(&folder).contains("damaged"));
        }
    }
}

#[tokio::test]
async fn retention_holds_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let arguments = ["--retention-events", "5"];
    let replica = Replica::start_on(folder.path(), &arguments);
    publish_all(&replica, "a", &["1", "2", "3", "4", "5", "6", "7"]).await;
    drop(replica);
    let replica = Replica::start_on(folder.path(), &arguments);
    assert_eq!(log(&replica, "a").await, ["3", "4", "5", "6", "7"]);
    publish_all(&replica, "a", &["8"]).await;
    drop(replica);
    let replica = Replica::start_on(folder.path(), &["--retention-events", "2"]);
    // The new limit applies before the next publish, too.
    eventually("the log is shorter", async || (log(&replica, "a").await == ["7", "8"]).then_some(())).await;
    publish_all(&replica, "a", &["9"]).await;
    assert_eq!(log(&replica, "a").await, ["8", "9"]);
    drop(replica);
    let replica = Replica::start_on(folder.path(), &["--retention-age", "1s"]);
    eventually("the events age", async || log(&replica, "a").await.is_empty().then_some(())).await;
    drop(replica);
    let replica = Replica::start_on(folder.path(), &[]);
    assert!(log(&replica, "a").await.is_empty());
}

#[tokio::test]
async fn p6_a_key_is_remembered_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let pay = async |replica: &Replica, content: &str| {
        let url = format!("{}/v1/rooms/a/events", replica.url());
        send(Client::new().post(url).header("idempotency-key", "k").body(content.to_owned())).await
    };
    let replica = Replica::start_on(folder.path(), &[]);
    let (status, first) = pay(&replica, "paid").await;
    assert_eq!(status, 201);
    drop(replica);
    let replica = Replica::start_on(folder.path(), &[]);
    assert_eq!(pay(&replica, "paid").await, (StatusCode::CREATED, first));
    assert_eq!(pay(&replica, "paid twice").await.0, 422);
    assert_eq!(log(&replica, "a").await, ["paid"]);
}

#[tokio::test]
async fn removed_fields_and_hashes_stay_removed() {
    let folder = tempfile::tempdir().unwrap();
    let replica = Replica::start_on(folder.path(), &[]);
    let delete =
        async |path: &str| send(Client::new().request(Method::DELETE, format!("{}{path}", replica.url()))).await.0;
    for field in ["a", "b", "c"] {
        put(&replica, field, "v").await;
    }
    assert!(delete("/v1/hashes/h/fields/a").await.is_success());
    drop(replica);
    let replica = Replica::start_on(folder.path(), &[]);
    let (_, page) = get(&replica, "/v1/hashes/h").await;
    assert!(page.to_string().contains("\"b\"") && !page.to_string().contains("\"a\""), "{page}");
    let url = format!("{}/v1/hashes/h", replica.url());
    assert!(send(Client::new().delete(url)).await.0.is_success());
    drop(replica);
    let replica = Replica::start_on(folder.path(), &[]);
    assert_eq!(get(&replica, "/v1/hashes/h/fields/b").await.0, 404);
}

#[tokio::test]
async fn a_folder_that_is_larger_than_the_limit_is_served_and_writes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let replica = Replica::start_on(folder.path(), &[]);
    publish_all(&replica, "a", &["one", "two", "three", "four", "five"]).await;
    drop(replica);
    let replica = Replica::start_on(folder.path(), &["--embedded-max-bytes", "500"]);
    assert_eq!(log(&replica, "a").await.len(), 5);
    let (status, problem) = publish(&replica, "a", "six").await;
    assert_eq!((status.as_u16(), &problem["code"]), (503, &json!("out_of_memory")));
}

/// A quiet room keeps its epoch history, however often the process restarts.
#[tokio::test]
async fn p4_no_number_of_restarts_costs_the_client_of_a_quiet_room_a_gap() {
    let folder = tempfile::tempdir().unwrap();
    let path = "/v1/rooms/quiet/stream";
    let replica = Replica::start_on(folder.path(), &[]);
    publish_all(&replica, "quiet", &["1", "2"]).await;
    let (_, page) = get(&replica, "/v1/rooms/quiet/events").await;
    let seen = page["head"].as_str().unwrap().to_owned();
    let clear = Client::new().delete(format!("{}/v1/rooms/quiet/events", replica.url()));
    assert_eq!(send(clear).await.0, 204);
    drop(replica);
    for _ in 0..40 {
        let replica = Replica::start_on(folder.path(), &[]);
        let stream = Stream::open(&format!("{}{path}", replica.url()), Some(&seen)).await;
        assert_eq!(stream.opened["rooms"]["quiet"]["resume"], "complete");
        // Another room changes each time.
        publish_all(&replica, "busy", &["x"]).await;
    }
    let replica = Replica::start_on(folder.path(), &[]);
    let mut stream = Stream::open(&format!("{}{path}", replica.url()), Some(&seen)).await;
    publish_all(&replica, "quiet", &["3"]).await;
    let event = stream.event().await;
    assert_eq!(event.data, "3");
    assert_ne!(event.id.split('-').next(), seen.split('-').next(), "no process reuses the ids of another");
}

/// A power cut with `everysec`, or a restored backup, loses the last events.
#[tokio::test]
async fn p4_a_folder_that_lacks_the_last_events_causes_a_gap_that_leads_forward() {
    let folder = tempfile::tempdir().unwrap();
    let (now, backup) = (folder.path().join("now"), folder.path().join("backup"));
    let mut replica = Replica::start_on(&now, &[]);
    publish_all(&replica, "a", &["1", "2", "3"]).await;
    replica.kill();
    copy_folder(&now, &backup);
    // The lost events are in the epoch that the backup has, then in a later one.
    for lost in [&["4", "5"][..], &["6", "7"]] {
        let mut replica = Replica::start_on(&now, &[]);
        publish_all(&replica, "a", lost).await;
        let (_, page) = get(&replica, "/v1/rooms/a/events").await;
        let seen = page["head"].as_str().unwrap().to_owned();
        replica.kill();
        std::fs::remove_dir_all(&now).unwrap();
        copy_folder(&backup, &now);
        let replica = Replica::start_on(&now, &[]);
        let mut stream = Stream::open(&format!("{}/v1/rooms/a/stream", replica.url()), Some(&seen)).await;
        let gap = stream.event().await;
        assert_eq!(gap.event, "stream.gap", "{gap:?}");
        let to: String = gap.json()["to"].as_str().unwrap().into();
        assert!(to > seen && gap.json()["from"].as_str().unwrap() <= &*seen, "{gap:?} at {seen}");
        publish_all(&replica, "a", &["next"]).await;
        assert_eq!(stream.data().await, "next");
    }
}

#[tokio::test]
async fn a_data_folder_that_others_could_read_is_closed_to_them() {
    let temporary = tempfile::tempdir().unwrap();
    let (folder, store) = (temporary.path().join("data"), temporary.path().join("data/store"));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let open_with = async |loose: u32| {
        for path in [&folder, &store] {
            let _ = std::fs::set_permissions(path, PermissionsExt::from_mode(loose));
        }
        let replica = Replica::start_on(&folder, &[]);
        assert_eq!(publish(&replica, "lobby", "kept").await.0, 201);
        replica.terminate().await;
        (mode(&folder), mode(&store))
    };
    std::fs::create_dir(&folder).unwrap();
    for loose in [0o755, 0o777, 0o750] {
        assert_eq!(open_with(loose).await, (0o700, 0o700));
    }
    // A folder that has other files, too, may be meant for others. The data in it is not.
    std::fs::write(folder.join("notes"), "").unwrap();
    assert_eq!(open_with(0o755).await, (0o755, 0o700));
}
