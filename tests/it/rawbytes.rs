//! Bytes that no client would send, and clients that disconnect in the middle of a request: the gateway serves others
//! as before.

use reqwest::Method;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Gateway, eventually, random, within};

const REQUESTS: usize = 600;
const SAMPLES: [&str; 7] = [
    "GET /v1/rooms/raw/stream HTTP/1.1\r\nhost: localhost\r\nlast-event-id: 1790000000000000-3\r\n\r\n",
    "GET /v1/stream?room=raw&room=b&after=c1.AB HTTP/1.1\r\nhost: localhost\r\n\r\n",
    "POST /v1/rooms/raw/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 21\r\n\r\n{\"event\":\"e\",\"data\":1}",
    "POST /v1/rooms/raw/events HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "POST /v1/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 34\r\n\r\n{\"events\":[{\"room\":\"a\",\"data\":[]}]}",
    "PUT /v1/hashes/raw/fields/f HTTP/1.1\r\nhost: localhost\r\nif-match: \"x\"\r\ncontent-length: 1\r\n\r\n1",
    "PATCH /v1/hashes/raw HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 11\r\n\r\n{\"a\": null}",
];

/// A sample with some bytes replaced, removed, repeated or added; sometimes random bytes.
fn mutated(rng: &mut fastrand::Rng) -> Vec<u8> {
    if rng.u8(..8) == 0 {
        return (0..rng.usize(..400)).map(|_| rng.u8(..)).collect();
    }
    let mut bytes = SAMPLES[rng.usize(..SAMPLES.len())].as_bytes().to_vec();
    for _ in 0..rng.usize(1..6) {
        let at = rng.usize(..bytes.len());
        match rng.u8(..4) {
            0 => bytes[at] = rng.u8(..),
            1 => drop(bytes.remove(at)),
            2 => {
                let end = bytes.len().min(at + rng.usize(..60));
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            _ => bytes.insert(at, *rng.choice(b"\r\n\0:; \xff%").unwrap()),
        }
    }
    bytes
}

/// Sends bytes and disconnects: at once, or after the first bytes of an answer.
async fn send_and_disconnect(gateway: &Gateway, bytes: &[u8], waits: bool) {
    let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
    // The gateway may have closed already.
    let _ = socket.write_all(bytes).await;
    if waits {
        let mut first = [0; 16];
        // Bounded, because the gateway waits for the rest of an incomplete head.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(20), socket.read(&mut first)).await;
    }
}

/// Checks that the gateway delivers an event.
async fn assert_serves(gateway: &Gateway) {
    let mut stream = gateway.room("after").await;
    let id = gateway.publish("after", "still here").await;
    assert_eq!(stream.event().await.id, id);
}

on_both_brokers! {
    async fn p11_random_bytes_and_broken_requests_do_not_disturb_the_gateway(world) {
        let mut rng = random(11);
        let gateway = world.gateway().await;
        for count in 0..REQUESTS {
            send_and_disconnect(&gateway, &mutated(&mut rng), rng.u8(..4) == 0).await;
            if count % 100 == 0 {
                assert_serves(&gateway).await;
            }
        }
        assert_serves(&gateway).await;
        eventually("the streams of disconnected clients end", async || {
            (gateway.get("/v1/rooms/raw").await.1["subscribers"] == 0).then_some(())
        }).await;
    }

    async fn a_publisher_that_disconnects_at_any_byte_has_published_all_or_nothing(world) {
        let gateway = world.gateway().await;
        let body = r#"{"event":"e","data":"whole"}"#;
        let head = format!(
            "POST /v1/rooms/partial/events HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
            body.len(),
        );
        let request = format!("{head}{body}");
        for end in 0..request.len() {
            send_and_disconnect(&gateway, &request.as_bytes()[..end], false).await;
        }
        // None of the requests was complete.
        assert_serves(&gateway).await;
        assert_eq!(gateway.get("/v1/rooms/partial").await.1["retained"], 0);
        let mut stream = gateway.room("partial").await;
        let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        within("an answer", socket.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 201");
        assert_eq!(stream.data().await, "\"whole\"");
        let log = gateway.send(gateway.request(Method::GET, "/v1/rooms/partial/events")).await.1;
        assert_eq!(log["events"].as_array().unwrap().len(), 1);
    }
}
