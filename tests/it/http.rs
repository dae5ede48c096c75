//! HTTP as clients, proxies and libraries speak it: each request works, or is refused with the reason.

mod bodies;
mod conditions;
mod heads;
mod positions;
mod values;

use reqwest::RequestBuilder;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Gateway, within};

/// Sends bytes in pieces of this size. Returns everything that the gateway sends until it closes the connection.
async fn send_in_pieces(gateway: &Gateway, bytes: &[u8], size: usize) -> String {
    let mut socket = TcpStream::connect(gateway.address()).await.unwrap();
    socket.set_nodelay(true).unwrap();
    for piece in bytes.chunks(size) {
        within("the gateway takes the bytes", socket.write_all(piece)).await.unwrap();
        tokio::task::yield_now().await;
    }
    let mut answer = Vec::new();
    within("the gateway closes", socket.read_to_end(&mut answer)).await.unwrap();
    String::from_utf8(answer).unwrap()
}

async fn send_raw(gateway: &Gateway, bytes: impl AsRef<[u8]>) -> String {
    let bytes = bytes.as_ref();
    send_in_pieces(gateway, bytes, bytes.len()).await
}

/// The problem document of a response.
fn document(answer: &str) -> Value {
    serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap()
}

/// Sends a request that must be refused. Returns the reason.
async fn refused(gateway: &Gateway, request: RequestBuilder, status: u16, code: &str) -> String {
    let (answered, problem) = gateway.send(request).await;
    assert_eq!((answered.as_u16(), problem["code"].as_str()), (status, Some(code)), "{problem}");
    problem["detail"].as_str().unwrap().to_owned()
}
