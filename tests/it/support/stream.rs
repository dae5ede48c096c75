//! A reader of Server-Sent Events, after HTML 9.2.6.

use futures_util::StreamExt;
use serde_json::Value;

use super::within;

/// A dispatched event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    pub id: String,
    pub event: String,
    pub data: String,
}

impl SseEvent {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap()
    }
}

/// An open stream.
pub struct Stream {
    response: reqwest::Response,
    text: Vec<u8>,
    /// What a browser would send back.
    pub last_event_id: String,
    /// The last `retry:`, in milliseconds.
    pub retry: Option<u64>,
    comments: usize,
    /// Data of `stream.open`, if the stream began with one.
    pub opened: Value,
}

impl Stream {
    /// Connects; an error is one of the network, as an `EventSource` reconnects after. Panics on any other answer.
    pub async fn connect(url: &str, last_event_id: Option<&str>) -> reqwest::Result<Self> {
        let mut request = reqwest::Client::new().get(url).header("accept", "text/event-stream");
        if let Some(id) = last_event_id {
            request = request.header("last-event-id", id);
        }
        let response = within("a stream's head", request.send()).await?;
        assert_eq!(response.status(), 200, "{}", response.text().await?);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        let last_event_id = last_event_id.unwrap_or_default().to_owned();
        Ok(Self { response, text: Vec::new(), last_event_id, retry: None, comments: 0, opened: Value::Null })
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
        loop {
            let block = self.block().await?;
            if let Some(event) = self.take_block(&block) {
                return Some(event);
            }
        }
    }

    /// Waits until so many comments have come, and no event.
    pub async fn comments(&mut self, count: usize) {
        while self.comments < count {
            let block = self.block().await.expect("the stream goes on");
            assert_eq!(self.take_block(&block), None);
        }
    }

    async fn block(&mut self) -> Option<String> {
        loop {
            if let Some(end) = find_block_end(&self.text) {
                let block: Vec<u8> = self.text.drain(..end).collect();
                return Some(String::from_utf8(block).unwrap());
            }
            let chunk = within("a stream's next bytes", self.response.chunk()).await;
            self.text.extend_from_slice(&chunk.ok().flatten()?);
        }
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

    fn take_block(&mut self, block: &str) -> Option<SseEvent> {
        let (mut event, mut data) = (String::from("message"), None::<String>);
        for line in block.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.starts_with(':') => self.comments += 1,
                "event" => value.clone_into(&mut event),
                "data" => match &mut data {
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                },
                "id" => value.clone_into(&mut self.last_event_id),
                "retry" => self.retry = value.parse().ok(),
                _ => {}
            }
        }
        Some(SseEvent { id: self.last_event_id.clone(), event, data: data? })
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

fn find_block_end(text: &[u8]) -> Option<usize> {
    text.windows(2).position(|pair| pair == b"\n\n").map(|at| at + 2)
}
