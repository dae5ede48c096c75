//! A client that disconnects after each byte of a stream, and reconnects as `EventSource` does.

use futures_util::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::outcome;
use super::stage::Promise;
use crate::support::{Account, EventSource, Gateway, SseEvent, within};

/// Clients at the same time.
const CONCURRENT_CLIENTS: usize = 50;
const EVENTS: [&str; 4] = ["eins", "zwei\nZeilen", "dreißig € 🦀", "vier"];

/// The result of one connection.
struct Connection {
    events: Vec<SseEvent>,
    last_event_id: String,
    /// Whether it ended at the limit of bytes.
    is_cut: bool,
}

/// Reads this many bytes of the response, or until the last event. In HTTP/1.0 the body is the stream without
/// chunks.
async fn connect(gateway: &Gateway, path: &str, last_event_id: &str, bytes: usize) -> Connection {
    let mut connection = TcpStream::connect(gateway.address()).await.unwrap();
    let resume =
        if last_event_id.is_empty() { String::new() } else { format!("last-event-id: {last_event_id}\r\n") };
    let request = format!("GET {path} HTTP/1.0\r\nhost: {}\r\n{resume}\r\n", gateway.address());
    connection.write_all(request.as_bytes()).await.unwrap();
    let (mut source, mut events, mut head) = (EventSource::resuming(last_event_id), Vec::new(), Vec::new());
    let mut buffer = vec![0; 4096];
    let mut left = bytes;
    while left > 0 {
        let limit = left.min(buffer.len());
        let count = within("a stream's bytes", connection.read(&mut buffer[..limit])).await.unwrap();
        assert!(count > 0, "the stream ended");
        left -= count;
        for byte in &buffer[..count] {
            if head.ends_with(b"\r\n\r\n") {
                events.extend(source.feed(&[*byte]));
            } else {
                head.push(*byte);
            }
        }
        if events.iter().any(is_last) {
            break;
        }
    }
    Connection { last_event_id: source.last_event_id, events, is_cut: left == 0 }
}

fn is_last(event: &SseEvent) -> bool {
    event.data.contains(EVENTS[EVENTS.len() - 1])
}

/// The published events, without the stream's control events.
fn published(events: impl IntoIterator<Item = SseEvent>) -> Vec<SseEvent> {
    events.into_iter().filter(|event| !event.event.starts_with("stream.")).collect()
}

/// Cuts a stream after each of its bytes, and lets the client resume. Returns the number of cuts.
async fn cut_after_each_byte(gateway: &Gateway, path: &str) -> usize {
    let whole = published(connect(gateway, path, "", usize::MAX).await.events);
    let check = async |bytes: usize| {
        // Each client is a subscriber with its own name, since a later stream with the same name would end this
        // one.
        let path = &format!("{path}{bytes:06}");
        let first = connect(gateway, path, "", bytes).await;
        let is_cut = first.is_cut;
        let mut events = first.events;
        if !events.iter().any(is_last) {
            events.extend(connect(gateway, path, &first.last_event_id, usize::MAX).await.events);
        }
        assert!(events.iter().all(|event| event.event != "stream.gap"), "{bytes}: {events:?}");
        assert_eq!(published(events), whole, "cut after {bytes} bytes");
        is_cut
    };
    // A limit beyond the stream's length cuts nothing: this is the end.
    let mut cuts = 0;
    loop {
        let round: Vec<bool> = futures_util::stream::iter(cuts..cuts + CONCURRENT_CLIENTS)
            .map(&check)
            .buffered(CONCURRENT_CLIENTS)
            .collect()
            .await;
        let cuts_of_round = round.iter().filter(|is_cut| **is_cut).count();
        cuts += cuts_of_round;
        if cuts_of_round < CONCURRENT_CLIENTS {
            return cuts;
        }
    }
}

on_both_brokers! {
    async fn p2_a_client_that_disconnects_at_any_byte_of_a_stream_misses_and_repeats_nothing(world) {
        let gateway = world.gateway().await;
        for (number, text) in EVENTS.iter().enumerate() {
            if number == 1 {
                gateway.publish_json("a", "note", json!({"text": text})).await;
            } else {
                gateway.publish("a", text).await;
            }
        }
        let mut cuts = 0;
        for path in ["/v1/rooms/a/stream", "/v1/stream?room=a&room=b"] {
            let separator = if path.contains('?') { '&' } else { '?' };
            let path = format!("{path}{separator}from=earliest&subscriber=me");
            cuts += cut_after_each_byte(&gateway, &path).await;
        }
        assert!(cuts > 1000, "{cuts}");
        let fault = "A client disconnects at every byte of a stream";
        let delivered = cuts * EVENTS.len();
        let account = Account { acknowledged: EVENTS.len(), subscribers: cuts, delivered, ..Account::default() };
        outcome::record(fault, Promise::NoGap, &account);
    }
}
