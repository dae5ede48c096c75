//! A reader of streams over HTTP with the rules of `EventSource`.

use std::collections::VecDeque;

use serde_json::Value;

use super::{EventSource, SseEvent, within};

/// An open stream.
pub struct Stream {
    response: reqwest::Response,
    source: EventSource,
    ready: VecDeque<SseEvent>,
    /// The last event's id, which a browser would send as `Last-Event-ID`.
    pub last_event_id: String,
    /// The last `retry:`, in milliseconds.
    pub retry: Option<u64>,
    /// Data of the first event, `stream.open` or `stream.end`.
    pub opened: Value,
}

impl Stream {
    /// Connects. An error is one of the network, after which an `EventSource` reconnects. Panics at an answer after
    /// which an `EventSource` stops for good.
    pub async fn connect(url: &str, last_event_id: Option<&str>) -> reqwest::Result<Self> {
        let mut request = reqwest::Client::new().get(url).header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = within("a stream's head", request.send()).await?;
        let status = response.status();
        assert_eq!(status, 200, "an EventSource stops for good after: {}", response.text().await?);
        assert_eq!(
            response.headers()["content-type"],
            "text/event-stream",
            "an EventSource stops for good after another type"
        );
        let last_event_id = last_event_id.unwrap_or_default().to_owned();
        let source = EventSource::resuming(&last_event_id);
        Ok(Self { response, source, ready: VecDeque::new(), last_event_id, retry: None, opened: Value::Null })
    }

    /// Connects, and reads the first event. Panics if the answer is no stream.
    pub async fn open(url: &str, last_event_id: Option<&str>) -> Self {
        let mut stream = Self::connect(url, last_event_id).await.unwrap();
        let first = stream.next().await.expect("a stream has a first event");
        assert!(stream.retry.is_some(), "the first event comes with a retry time");
        match first.event.as_str() {
            "stream.open" | "stream.end" => stream.opened = first.json(),
            other => panic!("the first event is {other}"),
        }
        stream
    }

    /// The next event, or `None` at the stream's end.
    pub async fn next(&mut self) -> Option<SseEvent> {
        while self.ready.is_empty() {
            self.read().await?;
        }
        let event = self.ready.pop_front()?;
        let position = if self.ready.is_empty() { &self.source.last_event_id } else { &event.id };
        self.last_event_id.clone_from(position);
        if event.event == "stream.end" && event.json()["reconnect"] == "never" {
            assert_eq!(self.retry, Some(24 * 60 * 60 * 1000), "an EventSource stays away: {}", event.data);
        }
        Some(event)
    }

    /// How many comments the stream has had.
    pub fn comment_count(&self) -> usize {
        self.source.comments
    }

    /// Waits until the stream has had this number of comments. Panics if an event comes.
    pub async fn comments(&mut self, count: usize) {
        while self.source.comments < count {
            self.read().await.expect("the stream goes on");
            assert_eq!(self.ready.front(), None);
        }
    }

    /// Reads some bytes. Returns `None` at the stream's end.
    async fn read(&mut self) -> Option<()> {
        let chunk = within("a stream's next bytes", self.response.chunk()).await;
        self.ready.extend(self.source.feed(&chunk.ok().flatten()?));
        self.retry = self.source.retry;
        if self.ready.is_empty() {
            self.last_event_id.clone_from(&self.source.last_event_id);
        }
        Some(())
    }

    /// The next event. Panics at the stream's end.
    pub async fn event(&mut self) -> SseEvent {
        self.next().await.expect("the stream goes on")
    }

    /// The next event's data.
    pub async fn data(&mut self) -> String {
        self.event().await.data
    }

    /// The data of the next `count` events.
    pub async fn datas(&mut self, count: usize) -> Vec<String> {
        let mut datas = Vec::with_capacity(count);
        for _ in 0..count {
            datas.push(self.data().await);
        }
        datas
    }

    /// All events until the stream's end.
    pub async fn rest(mut self) -> Vec<SseEvent> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}
