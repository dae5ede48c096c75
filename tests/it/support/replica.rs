//! Gateways as processes of their own, for what can only be done to a process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A running process; killed when dropped.
pub struct Replica {
    process: Child,
    url: String,
}

impl Replica {
    /// Starts one with quick timings, and waits until it listens.
    pub fn start(redis_url: &str, more: &[&str]) -> Self {
        let mut process = Command::new(env!("CARGO_BIN_EXE_roomcast"))
            .args(["--listen", "127.0.0.1:0", "--redis-url", redis_url, "--retry", "100ms", "--heartbeat", "500ms"])
            .args(["--drain-delay", "500ms", "--drain-window", "1s", "--linger", "500ms"])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let first = lines.next().expect("it says where it listens").unwrap();
        let url = first.split(' ').next_back().unwrap().to_owned();
        Self { process, url }
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// Waits until it says whether a publish would be delivered.
    pub async fn until(&self, status: u16) -> Value {
        super::eventually(&format!("a replica's health is {status}"), async || {
            let answer = reqwest::get(format!("{}/healthz", self.url)).await.ok()?;
            if answer.status() == status { answer.json().await.ok() } else { None }
        })
        .await
    }

    /// Ends it on the spot.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Asks it to leave, and waits until it has; its exit code.
    pub async fn terminate(mut self) -> Option<i32> {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM).unwrap();
        super::eventually("the replica has left", async || self.process.try_wait().unwrap()).await.code()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}
