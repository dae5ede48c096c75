//! Publishers that note for each event whether it is stored, is certainly not stored, or may be stored.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use roomcast::names::EventId;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::Balancer;
use super::load::ROOMS;

/// Data of each room's last event.
pub const LAST: &str = "last";
/// The name of all events with a name.
pub const NAME: &str = "note";
/// More data than one announcement carries.
const LARGE_BYTES: usize = 6000;

/// The outcome of publishing one event to one room.
#[derive(Debug)]
pub struct Publish {
    pub room: String,
    /// Identifies the event. Its data is made from the content, and is checked against it.
    pub content: String,
    /// Whether it was repeated with the same `Idempotency-Key` until the outcome was known.
    pub has_key: bool,
    /// Ids in the answers; several if the publish was repeated.
    pub stored: Vec<EventId>,
    /// Attempts that certainly stored nothing. The event must not appear because of them.
    pub refused: usize,
    /// Attempts with an unknown outcome.
    pub unknown: usize,
}

impl Publish {
    fn new(room: &str, content: &str) -> Self {
        Self {
            room: room.into(),
            content: content.into(),
            has_key: false,
            stored: Vec::new(),
            refused: 0,
            unknown: 0,
        }
    }

    fn note(&mut self, outcome: &Outcome, counts: &Counts) {
        match outcome {
            Outcome::Stored(id) => self.stored.push(*id),
            Outcome::Refused => self.refused += 1,
            Outcome::Unknown => self.unknown += 1,
        }
        let count = if matches!(outcome, Outcome::Stored(_)) { &counts.stored } else { &counts.failed };
        count.fetch_add(1, Ordering::SeqCst);
    }
}

enum Outcome {
    Stored(EventId),
    Refused,
    Unknown,
}

/// The data of an event: its content, padded to the length that the content names.
pub fn event_data(content: &str) -> String {
    let bytes = content.rsplit_once('/').map_or(0, |(_, bytes)| bytes.parse().unwrap());
    format!("{content} {}", "x".repeat(bytes))
}

/// The content of complete data. Of any other data, all of it, which no publisher sent.
pub fn content_from_text(data: &str) -> &str {
    let content = data.split(' ').next().unwrap_or(data);
    let is_ours = content.rsplit_once('/').is_some_and(|(_, bytes)| bytes.parse::<usize>().is_ok());
    if is_ours && data == event_data(content) { content } else { data }
}

/// Outcomes of the load so far.
#[derive(Debug, Default)]
pub struct Counts {
    /// Acknowledged events.
    pub stored: AtomicUsize,
    /// Attempts that were refused or have an unknown outcome.
    pub failed: AtomicUsize,
}

/// Publishes one event after the other.
pub struct Publisher {
    balancer: Balancer,
    number: usize,
    rng: fastrand::Rng,
    counts: Arc<Counts>,
    client: reqwest::Client,
    done: Vec<Publish>,
}

impl Publisher {
    pub fn new(balancer: &Balancer, number: usize, rng: fastrand::Rng, counts: &Arc<Counts>) -> Self {
        let client = reqwest::Client::new();
        Self { balancer: balancer.clone(), number, rng, counts: counts.clone(), client, done: Vec::new() }
    }

    pub async fn run(mut self, stop: CancellationToken) -> Vec<Publish> {
        for count in 0.. {
            if stop.is_cancelled() {
                break;
            }
            let bytes = if self.rng.u8(..20) == 0 { LARGE_BYTES } else { self.rng.usize(..200) };
            let content = |kind| format!("{kind}{}.{count}/{bytes}", self.number);
            match self.rng.u8(..10) {
                0..5 => self.publish_text(&content('t')).await,
                5..7 => self.publish_json(&content('j')).await,
                7..9 => self.publish_with_a_key(&content('k')).await,
                _ => self.publish_batch(&content('b')).await,
            }
            // The pace keeps two cores busy with fifty readers. No check depends on it.
            tokio::time::sleep(Duration::from_millis(self.rng.u64(15..60))).await;
        }
        self.done
    }

    fn room(&mut self) -> &'static str {
        ROOMS[self.rng.usize(..ROOMS.len())]
    }

    async fn publish_text(&mut self, content: &str) {
        let room = self.room();
        self.publish_to(room, content).await;
    }

    /// Publishes a text. Returns whether it is stored.
    pub async fn publish_to(&mut self, room: &str, content: &str) -> bool {
        let data = if content == LAST { content.to_owned() } else { event_data(content) };
        let request = self.post(&format!("/v1/rooms/{room}/events")).body(data);
        let mut publish = Publish::new(room, content);
        publish.note(&self.outcome(request).await, &self.counts);
        let is_stored = !publish.stored.is_empty();
        self.done.push(publish);
        is_stored
    }

    async fn publish_json(&mut self, content: &str) {
        let room = self.room();
        let body = json!({"event": NAME, "data": {"content": event_data(content)}});
        let request = self.post(&format!("/v1/rooms/{room}/events")).json(&body);
        let mut publish = Publish::new(room, content);
        publish.note(&self.outcome(request).await, &self.counts);
        self.done.push(publish);
    }

    /// Repeats the publish with the same key until the outcome is known, and sometimes once more.
    async fn publish_with_a_key(&mut self, content: &str) {
        let room = self.room();
        let mut publish = Publish { has_key: true, ..Publish::new(room, content) };
        loop {
            let request = self.post(&format!("/v1/rooms/{room}/events"));
            let request = request.header("idempotency-key", content).body(event_data(content));
            let outcome = self.outcome(request).await;
            publish.note(&outcome, &self.counts);
            match outcome {
                Outcome::Refused if publish.unknown == 0 => break,
                Outcome::Stored(_) if self.rng.u8(..4) > 0 => break,
                _ => tokio::time::sleep(Duration::from_millis(self.rng.u64(20..200))).await,
            }
        }
        self.done.push(publish);
    }

    /// Publishes one event to two rooms, and another one to the third.
    async fn publish_batch(&mut self, content: &str) {
        let mut rooms = ROOMS;
        self.rng.shuffle(&mut rooms);
        let items = [(&rooms[..2], format!("b{content}")), (&rooms[2..], format!("c{content}"))];
        let event = |(rooms, content): &(&[&str], String)| {
            let data = json!({"content": event_data(content)});
            json!({"rooms": rooms, "data": data})
        };
        let body = json!({"events": items.iter().map(event).collect::<Vec<_>>()});
        let answer = self.post("/v1/events").json(&body).send().await;
        let results = match answer {
            Ok(answer) if matches!(answer.status().as_u16(), 200 | 207) => answer.json::<Value>().await.ok(),
            Ok(answer) => panic!("a batch was answered {}", answer.text().await.unwrap()),
            Err(error) if error.is_connect() => Some(Value::Null),
            Err(_) => None,
        };
        for (index, (rooms, content)) in items.iter().enumerate() {
            for room in *rooms {
                let mut publish = Publish::new(room, content);
                let result = results.as_ref().map(|results| &results["results"][index]);
                publish.note(&outcome_in_batch(result, room, rooms.len()), &self.counts);
                self.done.push(publish);
            }
        }
    }

    fn post(&mut self, path: &str) -> reqwest::RequestBuilder {
        let url = self.balancer.pick(&mut self.rng);
        self.client.post(format!("{url}{path}")).timeout(Duration::from_secs(10))
    }

    async fn outcome(&self, request: reqwest::RequestBuilder) -> Outcome {
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) if error.is_connect() => return Outcome::Refused,
            Err(_) => return Outcome::Unknown,
        };
        let status = answer.status();
        let has_retry_after = answer.headers().contains_key("retry-after");
        let Ok(body) = answer.json::<Value>().await else { return Outcome::Unknown };
        if status == 201 {
            return Outcome::Stored(body["id"].as_str().unwrap().parse().unwrap());
        }
        assert_eq!(status, 503, "{body}");
        assert!(has_retry_after, "{body}");
        failure(body["code"].as_str())
    }
}

fn failure(code: Option<&str>) -> Outcome {
    match code {
        Some("unavailable") => Outcome::Refused,
        Some("outcome_unknown") => Outcome::Unknown,
        other => panic!("a publish failed with {other:?}"),
    }
}

/// The outcome for one room of a batch item. `result` is `None` if the answer was lost, and null if there was no
/// connection.
fn outcome_in_batch(result: Option<&Value>, room: &str, rooms: usize) -> Outcome {
    let Some(result) = result else { return Outcome::Unknown };
    if result.is_null() {
        return Outcome::Refused;
    }
    let published = result["published"].as_array().unwrap();
    if let Some(copy) = published.iter().find(|copy| copy["room"] == room) {
        return Outcome::Stored(copy["id"].as_str().unwrap().parse().unwrap());
    }
    let problem = &result["problem"];
    assert!(problem["rooms"].as_array().unwrap().iter().any(|named| named == room), "{result}");
    match failure(problem["code"].as_str()) {
        // The item has one code, which is true of its first room only.
        Outcome::Refused if rooms > 1 => Outcome::Unknown,
        outcome => outcome,
    }
}
