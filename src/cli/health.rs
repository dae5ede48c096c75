//! `roomcast health`: asks a running gateway whether it is ready.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::{Request, Uri, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::CommandError;
use crate::config::listen_address;

/// Longest time for the connection and the answer together.
const LIMIT: Duration = Duration::from_secs(3);

/// The arguments of `roomcast health`.
#[derive(Args, Debug)]
pub struct HealthArgs {
    /// URL of the gateway, with http://. If left out, the gateway is on this machine, at --listen.
    #[arg(long, env = "ROOMCAST_HEALTH_URL", hide_env_values = true)]
    url: Option<String>,
    /// Address on which the gateway of this machine listens.
    #[arg(long, env = "ROOMCAST_LISTEN", default_value = "127.0.0.1:8080", value_parser = listen_address, value_name = "ADDRESS")]
    listen: SocketAddr,
}

pub(super) fn run(arguments: &HealthArgs) -> Result<(), CommandError> {
    let url = arguments.url.clone().map_or_else(|| local_url(arguments.listen), Ok);
    url.and_then(|url| super::runtime().block_on(check(&url))).map_err(CommandError::failure)
}

/// The URL at which a gateway of this machine answers that listens on `listen`.
fn local_url(mut listen: SocketAddr) -> Result<String, String> {
    if listen.port() == 0 {
        return Err(format!("--listen {listen} does not say the gateway's port; give its address with --url"));
    }
    // No connection leads to an address that stands for all.
    match listen.ip() {
        IpAddr::V4(all) if all.is_unspecified() => listen.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(all) if all.is_unspecified() => listen.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    Ok(format!("http://{listen}"))
}

/// Asks the gateway at `url`. The error says in one line why it does not count as ready.
async fn check(url: &str) -> Result<(), String> {
    let expected = "--url: expected http://host:port, without a user name or password";
    let uri: Option<Uri> = url.parse().ok().filter(|uri: &Uri| uri.scheme_str() == Some("http"));
    // Not quoted, as it may have a password in it.
    let authority = uri.and_then(|uri| uri.authority().cloned());
    let authority = authority.filter(|_| !url.contains(['@', '#'])).ok_or(expected)?;
    let answer = timeout(LIMIT, ready(authority.as_str(), authority.port_u16().unwrap_or(80), authority.host()));
    answer.await.map_err(|_| format!("no answer from {authority} within {LIMIT:?}"))?
}

async fn ready(authority: &str, port: u16, host: &str) -> Result<(), String> {
    let failed = |step: &str, why: &dyn fmt::Display| format!("{step} {authority}: {why}");
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let socket = TcpStream::connect((host, port)).await.map_err(|why| failed("can't connect to", &why))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|why| failed("can't speak HTTP with", &why))?;
    let request = Request::get("/readyz").header(header::HOST, authority).body(Empty::<Bytes>::new());
    let response = sender.send_request(request.map_err(|why| failed("can't ask", &why))?);
    let response = tokio::select! {
        response = response => response.map_err(|why| failed("no answer from", &why))?,
        ended = connection => return Err(failed("no answer from", &format!("{ended:?}"))),
    };
    if response.status().is_success() {
        Ok(())
    } else {
        Err(format!("{authority} is not ready: {}", response.status()))
    }
}
