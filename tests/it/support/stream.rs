//! A reader of streams over HTTP that does what an `EventSource` does.

use std::collections::VecDeque;

use futures_util::StreamExt;
use serde_json::Value;

use super::within;
use super::{EventSource, SseEvent};

/// An open stream.
pub struct Stream {
    response: reqwest::Response,
    source: EventSource,
    ready: VecDeque<SseEvent>,
    /// The last event's position: what a browser would send back.
    pub last_event_id: String,
    /// The last `retry:`, in milliseconds.
    pub retry: Option<u64>,
    /// Data of `stream.open`, if the stream began with one.
    pub opened: Value,
}

impl Stream {
    /// Connects; an error is one of the network, as an `EventSource` reconnects after. Panics on any other answer: an
    /// `EventSource` would stop for ever.
    pub async fn connect(url: &str, last_event_id: Option<&str>) -> reqwest::Result<Self> {
        let mut request = reqwest::Client::new().get(url).header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = within("a stream's head", request.send()).await?;
        let status = response.status();
        assert_eq!(status, 200, "this ends an EventSource for good: {}", response.text().await?);
        assert_eq!(response.headers()["content-type"], "text/event-stream", "this ends an EventSource for good");
        let last_event_id = last_event_id.unwrap_or_default().to_owned();
        let source = EventSource::resuming(&last_event_id);
        Ok(Self { response, source, ready: VecDeque::new(), last_event_id, retry: None, opened: Value::Null })
    }

    /// Connects, and takes the first block. Panics unless it is a stream.
    pub async fn open(url: &str, last_event_id: Option<&str>) -> Self {
        let mut stream = Self::connect(url, last_event_id).await.unwrap();
        let first = stream.next().await.expect("a stream has a first block");
        assert!(stream.retry.is_some(), "the first block has a retry");
        match first.event.as_str() {
            "stream.open" | "stream.end" => stream.opened = first.json(),
            other => panic!("the first block is {other}"),
        }
        stream
    }

    /// The next event; none at the stream's end.
    pub async fn next(&mut self) -> Option<SseEvent> {
        while self.ready.is_empty() {
            self.read().await?;
        }
        let event = self.ready.pop_front()?;
        let position = if self.ready.is_empty() { &self.source.last_event_id } else { &event.id };
        self.last_event_id.clone_from(position);
        Some(event)
    }

    /// Waits until so many comments have come, and no event.
    pub async fn comments(&mut self, count: usize) {
        while self.source.comments < count {
            self.read().await.expect("the stream goes on");
            assert_eq!(self.ready.front(), None);
        }
    }

    /// Takes some bytes.
    async fn read(&mut self) -> Option<()> {
        let chunk = within("a stream's next bytes", self.response.chunk()).await;
        self.ready.extend(self.source.feed(&chunk.ok().flatten()?));
        self.retry = self.source.retry;
        if self.ready.is_empty() {
            self.last_event_id.clone_from(&self.source.last_event_id);
        }
        Some(())
    }

    /// The next event, which there has to be.
    pub async fn event(&mut self) -> SseEvent {
        self.next().await.expect("the stream goes on")
    }

    /// The next event's data.
    pub async fn data(&mut self) -> String {
        self.event().await.data
    }

    /// The data of the next so many events.
    pub async fn datas(&mut self, count: usize) -> Vec<String> {
        let mut datas = Vec::with_capacity(count);
        for _ in 0..count {
            datas.push(self.data().await);
        }
        datas
    }

    /// Everything that still comes, as `futures` see it.
    pub async fn rest(mut self) -> Vec<SseEvent> {
        let mut events = Vec::new();
        let reading = futures_util::stream::unfold(&mut self, |stream| async move {
            stream.next().await.map(|event| (event, stream))
        });
        let mut reading = std::pin::pin!(reading);
        while let Some(event) = reading.next().await {
            events.push(event);
        }
        events
    }
}
