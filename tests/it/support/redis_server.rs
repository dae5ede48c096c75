//! Redis processes that the tests start.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{eventually, free_port};

const LOG: &str = "redis.log";

/// A `redis-server` process, empty at first. It ends when it is dropped.
pub struct RedisServer {
    port: u16,
    folder: tempfile::TempDir,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl RedisServer {
    pub async fn start() -> Self {
        Self::start_with(&["--save", "", "--appendonly", "no"]).await
    }

    pub async fn start_with(arguments: &[&str]) -> Self {
        let mut server = Self::absent();
        server.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        server.come_back().await;
        server
    }

    /// A server that is not running yet.
    pub fn absent() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let arguments = ["--save", "", "--appendonly", "no"].map(String::from).to_vec();
        Self { port: free_port(), folder, arguments, process: None }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Starts the process, with the data that the previous one left in the folder.
    pub async fn come_back(&mut self) {
        let process = Command::new("redis-server")
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--dir", self.folder.path().to_str().unwrap(), "--logfile", LOG])
            // A follower is sent the data at once. By default the server waits 5 s for other followers.
            .args(["--repl-diskless-sync-delay", "0"])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis-server is installed; `tests/run install` installs it");
        self.process = Some(process);
        eventually("redis-server answers", async || (self.try_cli(&["PING"]).ok()? == "PONG").then_some(())).await;
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// The server's log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join(LOG)).unwrap_or_default()
    }

    /// The append-only file of a server with `--appendonly yes`.
    pub fn append_only_file(&self) -> PathBuf {
        self.folder.path().join("appendonlydir/appendonly.aof.1.incr.aof")
    }

    /// Runs a Lua script.
    pub fn eval(&self, script: &str, keys: &[&str], arguments: &[&str]) -> String {
        let count = keys.len().to_string();
        self.cli(&[&["EVAL", script, &count], keys, arguments].concat())
    }

    /// Stops the process. The kernel still accepts connections, but nothing answers.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        let process = self.process.as_ref().expect("the server runs");
        kill(Pid::from_raw(process.id().cast_signed()), signal).unwrap();
    }

    /// The output of a command.
    pub fn cli(&self, arguments: &[&str]) -> String {
        self.try_cli(arguments).unwrap()
    }

    fn try_cli(&self, arguments: &[&str]) -> std::io::Result<String> {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port, "--raw"]).args(arguments).output()?;
        Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}
