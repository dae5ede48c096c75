//! Continuous load, and an exact account of it: publishers that count, subscribers that reconnect as `EventSource` does,
//! and a check of every subscriber's record.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use roomcast::room::EventId;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{SseEvent, Stream, spawn, within};

const ROOMS: [&str; 3] = ["red", "green", "blue"];
const PUBLISHERS: usize = 4;
const SUBSCRIBERS: usize = 50;
/// Data of the last event of each room.
const LAST: &str = "last";
/// Gaps that put the subscriber's own past in doubt, so that everything up to `to` may be missing.
const WHOLE_PAST: [&str; 3] = ["unknown_position", "log_lost", "diverged"];

/// The replicas that a balancer would send requests to now.
#[derive(Clone, Default)]
pub struct Balancer(Arc<RwLock<Vec<String>>>);

impl Balancer {
    pub fn set(&self, urls: impl IntoIterator<Item = impl Into<String>>) {
        *self.0.write().unwrap() = urls.into_iter().map(Into::into).collect();
    }

    pub fn pick(&self) -> String {
        let urls = self.0.read().unwrap();
        urls[fastrand::usize(..urls.len())].clone()
    }
}

/// What was acknowledged: room, id, data.
type Published = Vec<(String, EventId, String)>;

/// What a subscriber was told, in order.
#[derive(Default)]
struct Record {
    starts: BTreeMap<String, EventId>,
    told: Vec<Told>,
}

enum Told {
    Event { room: String, id: EventId, data: String },
    Gap { room: String, from: EventId, to: EventId, reason: String },
}

/// Publishers and subscribers at work.
pub struct Load {
    balancer: Balancer,
    stop: CancellationToken,
    publishers: Vec<JoinHandle<Published>>,
    subscribers: Vec<JoinHandle<Record>>,
}

/// What the account came to.
#[derive(Debug)]
pub struct Account {
    pub acknowledged: usize,
    /// Gaps that subscribers were told, by reason.
    pub gaps: BTreeMap<String, usize>,
}

impl Load {
    /// Starts it; returns once every subscriber has joined and the first events are stored.
    pub async fn start(balancer: &Balancer) -> Self {
        let stop = CancellationToken::new();
        let (joined, mut joins) = tokio::sync::mpsc::channel(SUBSCRIBERS);
        let subscribe = |n| spawn(subscribe(balancer.clone(), n, joined.clone()));
        let subscribers = (0..SUBSCRIBERS).map(subscribe).collect();
        for _ in 0..SUBSCRIBERS {
            within("every subscriber joins", joins.recv()).await.unwrap();
        }
        let publish = |n| spawn(publish(balancer.clone(), n, stop.clone()));
        let publishers = (0..PUBLISHERS).map(publish).collect();
        Self { balancer: balancer.clone(), stop, publishers, subscribers }
    }

    /// Ends the load, waits until every subscriber has what was published last, and checks each record.
    pub async fn finish(self) -> Account {
        self.stop.cancel();
        let mut published = Published::new();
        for publisher in self.publishers {
            published.extend(within("a publisher ends", publisher).await.unwrap());
        }
        for room in ROOMS {
            let last = super::eventually("the last event is stored", async || {
                try_publish(&reqwest::Client::new(), &self.balancer.pick(), room, LAST).await
            });
            published.push((room.into(), last.await, LAST.into()));
        }
        let mut records = Vec::new();
        for subscriber in self.subscribers {
            records.push(within("a subscriber has what was published last", subscriber).await.unwrap());
        }
        check(&published, &records)
    }
}

async fn publish(balancer: Balancer, number: usize, stop: CancellationToken) -> Published {
    let client = reqwest::Client::new();
    let mut published = Published::new();
    for count in 0u64.. {
        if stop.is_cancelled() {
            break;
        }
        let room = ROOMS[fastrand::usize(..ROOMS.len())];
        let data = format!("{number} {count}");
        if let Some(id) = try_publish(&client, &balancer.pick(), room, &data).await {
            published.push((room.into(), id, data));
        }
        // A pace that two cores keep with fifty readers; the test does not depend on it.
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    published
}

async fn try_publish(client: &reqwest::Client, url: &str, room: &str, data: &str) -> Option<EventId> {
    let request = client.post(format!("{url}/v1/rooms/{room}/events")).timeout(Duration::from_secs(10));
    let answer = request.body(data.to_owned()).send().await.ok()?;
    if answer.status() != 201 {
        assert_eq!(answer.status(), 503, "{}", answer.text().await.unwrap());
        return None;
    }
    let body: Value = answer.json().await.ok()?;
    Some(body["id"].as_str().unwrap().parse().unwrap())
}

/// Reads one room, or all on one stream, until the last event of each has come.
async fn subscribe(balancer: Balancer, subscriber: usize, joined: tokio::sync::mpsc::Sender<()>) -> Record {
    let rooms = if subscriber.is_multiple_of(3) { &ROOMS[..] } else { &ROOMS[subscriber % 3..][..1] };
    let path = match rooms {
        [room] => format!("/v1/rooms/{room}/stream"),
        rooms => format!("/v1/stream?room={}", rooms.join("&room=")),
    };
    let (mut record, mut last_event_id) = (Record::default(), String::new());
    let mut open: BTreeSet<String> = rooms.iter().map(|room| (*room).to_owned()).collect();
    loop {
        let resume = (!last_event_id.is_empty()).then_some(last_event_id.as_str());
        let mut retry = 100;
        if let Ok(mut stream) = Stream::connect(&format!("{}{path}", balancer.pick()), resume).await {
            while let Some(event) = stream.next().await {
                last_event_id.clone_from(&event.id);
                if event.event == "stream.open" && record.starts.is_empty() {
                    let opened = event.json();
                    let start = |room: &&str| opened["rooms"][room]["position"].as_str().unwrap().parse().unwrap();
                    record.starts = rooms.iter().map(|room| ((*room).to_owned(), start(room))).collect();
                    joined.send(()).await.unwrap();
                }
                if let Some(told) = told(&event, rooms) {
                    if let Told::Event { room, data, .. } = &told
                        && data == LAST
                    {
                        open.remove(room);
                    }
                    record.told.push(told);
                }
                if open.is_empty() {
                    return record;
                }
            }
            retry = stream.retry.unwrap_or(retry);
        }
        tokio::time::sleep(Duration::from_millis(retry)).await;
    }
}

fn told(event: &SseEvent, rooms: &[&str]) -> Option<Told> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    match event.event.as_str() {
        "stream.gap" => {
            let gap = event.json();
            let id = |name: &str| text(&gap[name]).parse().unwrap();
            Some(Told::Gap {
                room: text(&gap["room"]),
                from: id("from"),
                to: id("to"),
                reason: text(&gap["reason"]),
            })
        }
        "message" if rooms.len() == 1 => {
            let id = event.id.parse().unwrap();
            Some(Told::Event { room: rooms[0].into(), id, data: event.data.clone() })
        }
        "message" => {
            let event = event.json();
            let id = text(&event["id"]).parse().unwrap();
            Some(Told::Event { room: text(&event["room"]), id, data: text(&event["data"]) })
        }
        _ => None,
    }
}

/// Everything acknowledged came once and in order, or a gap covers it; and no id names two events.
fn check(published: &Published, records: &[Record]) -> Account {
    let mut named: BTreeMap<(&str, EventId), &str> = BTreeMap::new();
    let mut name = |room, id, data| {
        let before = *named.entry((room, id)).or_insert(data);
        assert_eq!(before, data, "{room} {id} names two events");
    };
    for (room, id, data) in published {
        name(room, *id, data);
    }
    let mut gaps: BTreeMap<String, usize> = BTreeMap::new();
    for (subscriber, record) in records.iter().enumerate() {
        for (room, start) in &record.starts {
            let (mut seen, mut told_gaps, mut position) = (BTreeSet::new(), Vec::new(), *start);
            for told in &record.told {
                match told {
                    Told::Event { room: of, id, data } if of == room => {
                        assert!(*id > position, "subscriber {subscriber}: {room} {id} came after {position}");
                        name(room, *id, data);
                        position = *id;
                        seen.insert(*id);
                    }
                    Told::Gap { room: of, from, to, reason } if of == room => {
                        *gaps.entry(reason.clone()).or_default() += 1;
                        position = *to;
                        told_gaps.push((*from, *to, WHOLE_PAST.contains(&reason.as_str())));
                    }
                    _ => {}
                }
            }
            for (of, id, data) in published {
                let missing = of == room && id > start && !seen.contains(id);
                let covered = told_gaps.iter().any(|(from, to, whole)| id <= to && (*whole || id > from));
                assert!(!missing || covered, "subscriber {subscriber}: {room} {id} ({data}) was lost unsaid");
            }
        }
    }
    Account { acknowledged: published.len(), gaps }
}
