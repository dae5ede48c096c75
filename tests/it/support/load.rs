//! Continuous load: publishers that note every outcome, and subscribers that reconnect as `EventSource` does and
//! record what they receive. [`super::account`] checks the records.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use roomcast::names::EventId;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::publisher::{Counts, LAST, NAME, Publish, Publisher, content_from_text};
use super::{SseEvent, Stream, eventually, spawn, within};

pub const ROOMS: [&str; 3] = ["red", "green", "blue"];
/// Enough that publishes go on at a good pace while those to a failing replica wait for their answer.
const PUBLISHERS: usize = 12;
const SUBSCRIBERS: usize = 50;

/// The replicas to which a load balancer would send requests now.
#[derive(Clone, Default)]
pub struct Balancer(Arc<RwLock<Vec<String>>>);

impl Balancer {
    pub fn set(&self, urls: impl IntoIterator<Item = impl Into<String>>) {
        *self.0.write().unwrap() = urls.into_iter().map(Into::into).collect();
    }

    pub fn pick(&self, rng: &mut fastrand::Rng) -> String {
        let urls = self.0.read().unwrap();
        urls[rng.usize(..urls.len())].clone()
    }
}

/// What a subscriber received, in order.
#[derive(Debug, Default)]
pub struct Record {
    /// The position at which it joined each room.
    pub starts: BTreeMap<String, EventId>,
    pub received: Vec<Received>,
    /// Streams that ended at once with the reason `unavailable`.
    pub refused_streams: usize,
}

#[derive(Clone, Debug)]
pub enum Received {
    Event { room: String, id: EventId, content: String },
    Gap { room: String, from: EventId, to: EventId, reason: String },
}

/// Running publishers and subscribers.
pub struct Load {
    balancer: Balancer,
    rng: fastrand::Rng,
    stop: CancellationToken,
    publishers: Vec<JoinHandle<Vec<Publish>>>,
    subscribers: Vec<JoinHandle<Record>>,
    /// Publishes the events that the test itself chooses.
    pub publisher: Publisher,
    rooms: BTreeSet<String>,
    counts: Arc<Counts>,
    joined: mpsc::Sender<()>,
    joins: mpsc::Receiver<()>,
    pending_joins: usize,
}

impl Load {
    /// Starts publishers and subscribers, even if no replica accepts streams yet.
    pub fn begin(balancer: &Balancer, mut rng: fastrand::Rng) -> Self {
        let (joined, joins) = mpsc::channel(2 * SUBSCRIBERS);
        let (stop, counts) = (CancellationToken::new(), Arc::<Counts>::default());
        let publisher = Publisher::new(balancer, PUBLISHERS, rng.fork(), &counts);
        let mut load = Self {
            balancer: balancer.clone(),
            stop,
            publishers: Vec::new(),
            subscribers: Vec::new(),
            publisher,
            rooms: BTreeSet::new(),
            counts,
            joined,
            joins,
            pending_joins: 0,
            rng,
        };
        for number in 0..SUBSCRIBERS {
            let all = &ROOMS[..];
            let rooms = if number.is_multiple_of(3) { all } else { &all[number % 3..][..1] };
            load.subscribe(rooms, &load.balancer.clone());
        }
        for number in 0..PUBLISHERS {
            let publisher = Publisher::new(balancer, number, load.rng.fork(), &load.counts);
            load.publishers.push(spawn(publisher.run(load.stop.clone())));
        }
        load
    }

    /// Starts one more subscriber.
    pub fn subscribe(&mut self, rooms: &[&'static str], balancer: &Balancer) {
        self.rooms.extend(rooms.iter().map(|room| (*room).to_owned()));
        let (joined, rng) = (self.joined.clone(), self.rng.fork());
        self.subscribers.push(spawn(subscribe(balancer.clone(), rooms.to_vec(), rng, joined)));
        self.pending_joins += 1;
    }

    /// Waits until every subscriber has joined.
    pub async fn all_joined(&mut self) {
        for _ in 0..std::mem::take(&mut self.pending_joins) {
            within("every subscriber joins", self.joins.recv()).await.unwrap();
        }
    }

    /// Events acknowledged so far.
    pub fn stored(&self) -> usize {
        self.counts.stored.load(Ordering::SeqCst)
    }

    /// Publishes so far that were refused, or of which the outcome is unknown.
    pub fn failed(&self) -> usize {
        self.counts.failed.load(Ordering::SeqCst)
    }

    /// Adds a subscriber of the test itself. It reads the room until the last event.
    pub fn add_record(&mut self, room: &str, record: impl Future<Output = Record> + Send + 'static) {
        self.rooms.insert(room.into());
        self.subscribers.push(spawn(record));
    }

    /// Ends the load, and waits until every subscriber has the last event.
    pub async fn finish(mut self) -> (Vec<Publish>, Vec<Record>) {
        self.stop.cancel();
        let mut published = Vec::new();
        for publisher in self.publishers {
            published.extend(within("a publisher ends", publisher).await.unwrap());
        }
        for room in &self.rooms {
            eventually("the last event is stored", async || {
                self.publisher.publish_to(room, LAST).await.then_some(())
            })
            .await;
        }
        published.extend(self.publisher.run(self.stop).await);
        let mut records = Vec::new();
        for subscriber in self.subscribers {
            records.push(within("a subscriber has the last event", subscriber).await.unwrap());
        }
        (published, records)
    }
}

/// Reads the rooms on one stream until the last event of each.
async fn subscribe(
    balancer: Balancer,
    rooms: Vec<&'static str>,
    mut rng: fastrand::Rng,
    joined: mpsc::Sender<()>,
) -> Record {
    let path = stream_path(&rooms);
    let (mut record, mut last_event_id) = (Record::default(), String::new());
    let mut open: BTreeSet<&str> = rooms.iter().copied().collect();
    loop {
        let resume = (!last_event_id.is_empty()).then_some(last_event_id.as_str());
        let mut retry = 100;
        if let Ok(mut stream) = Stream::connect(&format!("{}{path}", balancer.pick(&mut rng)), resume).await {
            while let Some(event) = stream.next().await {
                if event.event == "stream.open" && record.starts.is_empty() {
                    joined.send(()).await.unwrap();
                }
                if let Some((room, content)) = record.add(&event, &rooms)
                    && content == LAST
                {
                    open.remove(room);
                }
                if open.is_empty() {
                    return record;
                }
            }
            last_event_id.clone_from(&stream.last_event_id);
            retry = stream.retry.unwrap_or(retry);
        }
        tokio::time::sleep(Duration::from_millis(retry)).await;
    }
}

fn stream_path(rooms: &[&str]) -> String {
    match rooms {
        [room] => format!("/v1/rooms/{room}/stream"),
        rooms => format!("/v1/stream?room={}", rooms.join("&room=")),
    }
}

impl Record {
    /// Adds an event of the stream. Returns room and content if it is an event of a room.
    pub fn add<'a>(&'a mut self, event: &SseEvent, rooms: &[&'a str]) -> Option<(&'a str, &'a str)> {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let id = |value: &Value| value.as_str().unwrap().parse().unwrap();
        match event.event.as_str() {
            "stream.open" if self.starts.is_empty() => {
                let opened = event.json();
                let start = |room: &&str| ((*room).to_owned(), id(&opened["rooms"][room]["position"]));
                self.starts = rooms.iter().map(start).collect();
            }
            "stream.gap" => {
                let gap = event.json();
                let (from, to) = (id(&gap["from"]), id(&gap["to"]));
                self.received.push(Received::Gap {
                    room: text(&gap["room"]),
                    from,
                    to,
                    reason: text(&gap["reason"]),
                });
            }
            "stream.end" => self.refused_streams += usize::from(event.json()["reason"] == "unavailable"),
            name if !name.starts_with("stream.") => {
                let (room, id, data) = if let [room] = rooms {
                    let data = serde_json::from_str(&event.data).unwrap_or(Value::String(event.data.clone()));
                    ((*room).to_owned(), event.id.parse().unwrap(), data)
                } else {
                    let envelope = event.json();
                    assert_eq!(envelope["event"].as_str().unwrap_or("message"), name);
                    (text(&envelope["room"]), id(&envelope["id"]), envelope["data"].clone())
                };
                let content = content_from_data(&data);
                assert_eq!(name == NAME, content.starts_with('j'), "{content} has the name {name}");
                self.received.push(Received::Event { room, id, content });
                let Some(Received::Event { room, content, .. }) = self.received.last() else { unreachable!() };
                return Some((rooms.iter().find(|own| *own == room)?, content));
            }
            _ => {}
        }
        None
    }
}

/// The content of an event's data, which is a text or an object with a text.
pub fn content_from_data(data: &Value) -> String {
    let text = data.get("content").unwrap_or(data);
    text.as_str().map_or_else(|| text.to_string(), |text| content_from_text(text).to_owned())
}
