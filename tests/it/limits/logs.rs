//! Log lines that callers cause: their size and their number are limited.

use std::io::Read;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use futures_util::future::join_all;
use nix::sys::signal::Signal;
use serde_json::json;

use crate::auth::{SECRET, claims, token};
use crate::cli::{roomcast, signal};
use crate::support::{eventually, free_port};

/// Most lines of one address and code in a second, as in docs/operations.md.
const LINES: u64 = 10;

/// A gateway whose log is read.
struct LoggingGateway {
    process: Child,
    log: Arc<Mutex<Vec<u8>>>,
    reading: Option<JoinHandle<()>>,
    url: String,
    started: Instant,
}

impl LoggingGateway {
    async fn start(arguments: &[&str]) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let arguments = [&["--listen", &address, "--drain-delay", "0", "--drain-window", "0"], arguments].concat();
        let started = Instant::now();
        let mut process = roomcast(&arguments)
            .env("ROOMCAST_JWT_HS256_SECRET", SECRET)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = process.stderr.take().unwrap();
        let log = Arc::default();
        let appended: Arc<Mutex<Vec<u8>>> = Arc::clone(&log);
        let reading = std::thread::spawn(move || {
            let mut bytes = vec![0; 64 * 1024];
            while let Ok(count @ 1..) = stderr.read(&mut bytes) {
                appended.lock().unwrap().extend(&bytes[..count]);
            }
        });
        let url = format!("http://{address}");
        eventually("it serves", async || reqwest::get(format!("{url}/livez")).await.ok()).await;
        Self { process, log, reading: Some(reading), url, started }
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&self.log.lock().unwrap()).into_owned()
    }

    /// Stops the gateway. Returns its log, and the most lines that it may have of one address.
    fn stop(mut self) -> (String, u64) {
        signal(&self.process, Signal::SIGTERM);
        self.process.wait().unwrap();
        self.reading.take().unwrap().join().unwrap();
        (self.log(), LINES * (self.started.elapsed().as_secs() + 1))
    }
}

impl Drop for LoggingGateway {
    fn drop(&mut self) {
        let _ = self.process.kill();
    }
}

/// How many lines have this text, and how many more were left out.
fn count(log: &str, text: &str) -> (u64, u64) {
    let lines: Vec<_> = log.lines().filter(|line| line.contains(text)).collect();
    let omitted = |line: &str| line.split("omitted=").nth(1)?.split(' ').next()?.parse::<u64>().ok();
    (lines.len() as u64, lines.iter().filter_map(|line| omitted(line)).sum())
}

#[tokio::test]
async fn p11_refusals_of_one_address_write_few_and_short_lines_and_removals_one_each() {
    let gateway = LoggingGateway::start(&[]).await;
    let client = reqwest::Client::new();
    // A path as long as a head allows.
    let path = format!("{}/v1/rooms/{}/events", gateway.url, "%01".repeat(9000));
    let refusals = async |count: usize| {
        for _ in 0..count {
            assert_eq!(client.get(&path).bearer_auth("a.b.c").send().await.unwrap().status(), 401);
        }
    };
    refusals(300).await;
    let admin = token(&claims(&json!({"admin": true})));
    let removals =
        (0..30).map(|n| client.delete(format!("{}/v1/users/u{n}/streams", gateway.url)).bearer_auth(&admin));
    let removed = join_all(removals.map(reqwest::RequestBuilder::send)).await;
    assert!(removed.into_iter().all(|answer| answer.unwrap().status() == 204));
    let longest = gateway.log().lines().map(str::len).max().unwrap_or_default();
    assert!(longest < 1024, "a line of {longest} bytes");
    eventually("lines have the number of those that were left out", async || {
        refusals(1).await;
        let (lines, omitted) = count(&gateway.log(), "refused");
        (omitted > 0 && lines + omitted >= 300).then_some(())
    })
    .await;
    let (log, most) = gateway.stop();
    let (lines, _) = count(&log, "refused");
    assert!((1..=most).contains(&lines), "{lines} lines, at most {most}");
    assert_eq!(count(&log, "removed").0, 30);
}

#[tokio::test]
async fn p11_failures_of_the_broker_write_few_lines_too() {
    let gateway = LoggingGateway::start(&["--embedded-max-bytes", "1000000"]).await;
    let client = reqwest::Client::new();
    let publisher = token(&claims(&json!({"publish": ["*"]})));
    let publish = |n: usize| {
        let post = client.post(format!("{}/v1/rooms/r{n}/events", gateway.url)).bearer_auth(&publisher);
        post.body("x".repeat(50_000)).send()
    };
    let answers = join_all((0..200).map(publish)).await;
    let refused = answers.into_iter().filter(|answer| answer.as_ref().unwrap().status() == 503).count();
    assert!(refused > 100, "{refused} refused");
    let (log, most) = gateway.stop();
    let (lines, _) = count(&log, "a request failed");
    assert!((1..=most).contains(&lines), "{lines} lines, at most {most}, of {refused} refusals");
}
