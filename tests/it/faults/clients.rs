//! A client that disconnects at every byte of a stream, and comes back as `EventSource` does.

use futures_util::StreamExt;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::outcome;
use super::stage::Promise;
use crate::support::{Account, EventSource, Gateway, SseEvent, within};

/// Clients at one time.
const AT_ONCE: usize = 50;
const EVENTS: [&str; 4] = ["eins", "zwei\nZeilen", "dreißig € 🦀", "vier"];

/// What a client got that reads at most so many bytes of the response and closes.
struct Visit {
    events: Vec<SseEvent>,
    last_event_id: String,
    /// It has read as far as it may, or everything there is.
    is_cut: bool,
}

/// Reads so many bytes of the response, or until the last event has come. In HTTP/1.0 its body is the stream as it is.
async fn visit(gateway: &Gateway, path: &str, last_event_id: &str, bytes: usize) -> Visit {
    let mut connection = TcpStream::connect(gateway.address()).await.unwrap();
    let resume =
        if last_event_id.is_empty() { String::new() } else { format!("last-event-id: {last_event_id}\r\n") };
    let request = format!("GET {path} HTTP/1.0\r\nhost: {}\r\n{resume}\r\n", gateway.address());
    connection.write_all(request.as_bytes()).await.unwrap();
    let (mut source, mut events, mut head) = (EventSource::resuming(last_event_id), Vec::new(), Vec::new());
    let mut buffer = vec![0; 4096];
    let mut left = bytes;
    while left > 0 {
        let most = left.min(buffer.len());
        let count = within("a stream's bytes", connection.read(&mut buffer[..most])).await.unwrap();
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
    Visit { last_event_id: source.last_event_id, events, is_cut: left == 0 }
}

fn is_last(event: &SseEvent) -> bool {
    event.data.contains(EVENTS[EVENTS.len() - 1])
}

/// Those that were published, without the stream's own.
fn published(events: impl IntoIterator<Item = SseEvent>) -> Vec<SseEvent> {
    events.into_iter().filter(|event| !event.event.starts_with("stream.")).collect()
}

/// Cuts a stream after each of its bytes, and has the client go on from where it is then. How many cuts there were.
async fn cut_at_every_byte(gateway: &Gateway, path: &str) -> usize {
    let whole = published(visit(gateway, path, "", usize::MAX).await.events);
    let check = async |bytes: usize| {
        // Each is a subscriber of its own: a later stream of the same one would end this one.
        let path = &format!("{path}{bytes:06}");
        let first = visit(gateway, path, "", bytes).await;
        let is_cut = first.is_cut;
        let mut events = first.events;
        if !events.iter().any(is_last) {
            events.extend(visit(gateway, path, &first.last_event_id, usize::MAX).await.events);
        }
        assert!(events.iter().all(|event| event.event != "stream.gap"), "{bytes}: {events:?}");
        assert_eq!(published(events), whole, "cut after {bytes} bytes");
        is_cut
    };
    // Beyond the stream's length nothing is cut any more: that is where it ends.
    let mut cuts = 0;
    loop {
        let round: Vec<bool> =
            futures_util::stream::iter(cuts..cuts + AT_ONCE).map(&check).buffered(AT_ONCE).collect().await;
        let cut = round.iter().filter(|is_cut| **is_cut).count();
        cuts += cut;
        if cut < AT_ONCE {
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
            cuts += cut_at_every_byte(&gateway, &path).await;
        }
        assert!(cuts > 1000, "{cuts}");
        let fault = "A client disconnects at every byte of a stream";
        let delivered = cuts * EVENTS.len();
        let account = Account { acknowledged: EVENTS.len(), subscribers: cuts, delivered, ..Account::default() };
        outcome::record(fault, Promise::NoGap, &account);
    }
}
