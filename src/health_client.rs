//! `roomcast health`: asks a running gateway whether it is ready.

use std::time::Duration;

use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Longest time to connect, and to be answered.
const LIMIT: Duration = Duration::from_secs(3);

/// Asks the gateway at `url`; the error says in a line why it is not ready.
pub async fn ask(url: &str) -> Result<(), String> {
    let uri: Uri = url.parse().map_err(|why| format!("{url:?} is no URL: {why}"))?;
    if uri.scheme_str() != Some("http") {
        return Err(format!("{url:?} is not http://"));
    }
    let authority = uri.authority().ok_or_else(|| format!("{url:?} names no host"))?.clone();
    let answer = timeout(LIMIT, ready(authority.as_str(), authority.port_u16().unwrap_or(80), authority.host()));
    answer.await.map_err(|_| format!("no answer from {url} within {LIMIT:?}"))?
}

async fn ready(authority: &str, port: u16, host: &str) -> Result<(), String> {
    let say = |what: &str, why: &dyn std::fmt::Display| format!("{what} {authority}: {why}");
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let socket = TcpStream::connect((host, port)).await.map_err(|why| say("can't connect to", &why))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|why| say("can't talk to", &why))?;
    let request = Request::get("/readyz").header(header::HOST, authority).body(Empty::<Bytes>::new());
    let asking = sender.send_request(request.map_err(|why| say("can't ask", &why))?);
    let answer = tokio::select! {
        answer = asking => answer.map_err(|why| say("no answer from", &why))?,
        ended = connection => return Err(say("no answer from", &format!("{ended:?}"))),
    };
    if answer.status().is_success() {
        Ok(())
    } else {
        Err(format!("{authority} is not ready: {}", answer.status()))
    }
}
