//! Checks the assumption of the detach: when hyper flushes, it has written the whole head and nothing after it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::{Detach, HeadTimer, IoTracker};
use crate::delivery::DetachableStream;

const STREAM: &str = "GET /stream HTTP/1.1\r\nhost: x\r\n\r\n";

fn router() -> Router {
    let stream = |needs_chunks| async move {
        let body = futures_util::stream::once(async { Ok::<_, std::convert::Infallible>("never sent") });
        let mut response = axum::response::Response::new(axum::body::Body::from_stream(body));
        response.extensions_mut().insert(DetachableStream::empty(needs_chunks));
        response
    };
    Router::new()
        .route("/stream", get(move || stream(true)))
        .route("/page", get(move || stream(false)))
        .route("/plain", get(|| async { "plain" }))
}

/// Serves one end of a pipe. Returns that end once the stream leaves hyper, or nothing when the connection has ended.
async fn serve(near: DuplexStream) -> Option<DuplexStream> {
    let detach = Detach::default();
    let (answering, router) = (detach.clone(), router());
    let service = service_fn(move |request| {
        let response = answering.clone().answer(router.clone(), request);
        async move { Ok::<_, std::convert::Infallible>(response.await) }
    });
    let io = IoTracker { io: TokioIo::new(near), detach: detach.clone(), heads: HeadTimer::new(Duration::MAX) };
    let mut connection = http1::Builder::new().serve_connection(io, service);
    let detached = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
        Poll::Ready(_) => Poll::Ready(false),
        Poll::Pending if detach.take().is_some() => Poll::Ready(true),
        Poll::Pending => Poll::Pending,
    });
    detached.await.then_some(())?;
    Some(connection.into_parts().io.io.into_inner())
}

/// Sends a text in pieces, and returns all that comes back. The server writes "END" after the head of a stream, and
/// closes.
async fn exchange(pipe: usize, piece: usize, text: &str) -> String {
    let (near, far) = duplex(pipe);
    let (mut reads, mut writes) = tokio::io::split(far);
    let sending = async {
        for piece in text.as_bytes().chunks(piece) {
            if writes.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let reading = async {
        let mut all = String::new();
        reads.read_to_string(&mut all).await.unwrap();
        all
    };
    let serving = async {
        if let Some(mut socket) = serve(near).await {
            socket.write_all(b"END").await.unwrap();
        }
    };
    tokio::join!(sending, reading, serving).1
}

fn is_head_and_end(text: &str) -> bool {
    let (head, rest) = text.split_once("\r\n\r\n").unwrap();
    head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("transfer-encoding: chunked") && rest == "END"
}

#[tokio::test]
async fn at_the_flush_the_head_is_written_and_nothing_after_it_through_pipes_of_any_size() {
    for pipe in 1..=64 {
        for piece in [1, 7, STREAM.len()] {
            let text = exchange(pipe, piece, STREAM).await;
            assert!(is_head_and_end(&text), "{pipe} {piece}: {text:?}");
        }
    }
}

#[tokio::test]
async fn the_same_holds_for_the_head_of_a_page_that_comes_later_also_in_http_1_0() {
    for (version, header) in [("1.1", "transfer-encoding: chunked"), ("1.0", "HTTP/1.0 200 OK")] {
        let request = format!("GET /page HTTP/{version}\r\nhost: x\r\n\r\n");
        for pipe in 1..=64 {
            for piece in [1, 7, request.len()] {
                let text = exchange(pipe, piece, &request).await;
                let (head, rest) = text.split_once("\r\n\r\n").unwrap();
                assert!(head.contains(header) && rest == "END", "{pipe} {piece}: {text:?}");
            }
        }
    }
}

#[tokio::test]
async fn responses_before_a_stream_are_complete() {
    let plain = "GET /plain HTTP/1.1\r\nhost: x\r\n\r\n";
    for (pipe, plains) in [(1, 3), (16, 20), (4096, 200)] {
        let text = exchange(pipe, 13, &[plain.repeat(plains).as_str(), STREAM].concat()).await;
        assert_eq!(text.matches("\r\n\r\nplain").count(), plains);
        assert!(is_head_and_end(&text[text.rfind("HTTP/1.1").unwrap()..]), "{text:?}");
    }
}

#[tokio::test]
async fn streams_that_need_chunks_stay_in_hyper_if_there_are_none() {
    // A response to HTTP/1.0 is not chunked, and one to HEAD has no body. The response after it is not affected.
    let old = exchange(64, 100, "GET /stream HTTP/1.0\r\nhost: x\r\n\r\n").await;
    assert!(old.ends_with("\r\n\r\nnever sent"), "{old:?}");
    let head = "HEAD /stream HTTP/1.1\r\nhost: x\r\n\r\n";
    let text =
        exchange(64, 100, &[head, "GET /plain HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"].concat()).await;
    assert!(text.ends_with("\r\n\r\nplain"), "{text:?}");
}

#[tokio::test]
async fn bytes_after_a_request_do_not_disturb_its_stream() {
    let text = exchange(64, 5, &[STREAM, &"x".repeat(30)].concat()).await;
    assert!(is_head_and_end(&text), "{text:?}");
}
