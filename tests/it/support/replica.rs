//! Gateways as processes, for tests that kill, signal or limit a process.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// A running process. It is killed when it is dropped.
pub struct Replica {
    process: Child,
    url: String,
}

impl Replica {
    /// Starts a replica on Redis, and waits until it listens.
    pub fn start(redis_url: &str, more: &[&str]) -> Self {
        Self::start_with(&[&["--redis-url", redis_url], more].concat())
    }

    /// Starts a replica on the embedded broker with a data folder, and waits until it listens.
    pub fn start_on(folder: &Path, arguments: &[&str]) -> Self {
        Self::start_with(&[&["--data-dir", folder.to_str().unwrap()], arguments].concat())
    }

    /// Starts a replica with short times and these arguments.
    pub fn start_with(arguments: &[&str]) -> Self {
        // Without the signal XFSZ, a write beyond the file size limit is an error: see `fill_disk`.
        let mut process = Command::new("sh")
            .args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_roomcast")])
            .args(["--listen", "127.0.0.1:0", "--retry", "100ms", "--heartbeat", "500ms"])
            .args(["--drain-delay", "500ms", "--drain-window", "1s", "--room-idle-ttl", "500ms"])
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        // The first line says where it listens. There is none if it could not start.
        let first = lines.next().map(|line| line.unwrap()).unwrap_or_default();
        let url = first.split(' ').next_back().unwrap_or_default().to_owned();
        Self { process, url }
    }

    /// Whether it started and listened.
    pub fn serves(&self) -> bool {
        !self.url.is_empty()
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// From now on its files can't grow, as on a full disk.
    pub fn fill_disk(&self) {
        self.limit_files("1:");
    }

    /// Ends the effect of `fill_disk`.
    pub fn clear_disk(&self) {
        self.limit_files("unlimited:");
    }

    fn limit_files(&self, bytes: &str) {
        let pid = self.process.id().to_string();
        let limited = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={bytes}")]).status();
        assert!(limited.expect("prlimit is installed, a part of util-linux").success());
    }

    /// Waits until `/healthz` answers with this status. Returns the body.
    pub async fn until(&self, status: u16) -> Value {
        super::eventually(&format!("a replica's health is {status}"), async || {
            let answer = reqwest::get(format!("{}/healthz", self.url)).await.ok()?;
            if answer.status() == status { answer.json().await.ok() } else { None }
        })
        .await
    }

    /// Resident memory of the process.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        resident.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }

    /// Kills the process.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }

    /// Sends SIGTERM and waits for the end. Returns the exit code.
    pub async fn terminate(mut self) -> Option<i32> {
        kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM).unwrap();
        super::eventually("the replica ends", async || self.process.try_wait().unwrap()).await.code()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}
