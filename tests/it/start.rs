//! What the gateway says at its start, and how signals end it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::sys::signal::Signal;
use roomcast::cli::CommandLine;

use crate::cli::{refuses, roomcast, signal};
use crate::support::{DEADLINE, Gateway, RedisServer, Stream, eventually};

/// A process with its log. It is killed when it is dropped.
struct Serving {
    process: Child,
    url: String,
    log: mpsc::Receiver<String>,
}

impl Serving {
    fn start(command: &mut Command) -> Self {
        let mut process = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut first).unwrap();
        let url = first.trim().split(' ').next_back().unwrap_or_default().to_owned();
        assert!(url.starts_with("http://"), "it does not serve: {first}");
        let lines = BufReader::new(process.stderr.take().unwrap()).lines().map_while(Result::ok);
        let (sender, log) = mpsc::sync_channel(10_000);
        std::thread::spawn(move || lines.into_iter().try_for_each(|line| sender.send(line)));
        Self { process, url, log }
    }

    /// The next line of the log with this word.
    fn line(&self, word: &str) -> String {
        let mut lines = Vec::new();
        loop {
            lines.push(
                self.log.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("no line with {word:?}: {lines:?}")),
            );
            if lines.last().unwrap().contains(word) {
                return lines.pop().unwrap();
            }
        }
    }

    /// The exit code, and the rest of the log.
    async fn ended(mut self) -> (Option<i32>, Vec<String>) {
        let status = eventually("the process ends", async || self.process.try_wait().unwrap()).await;
        (status.code(), self.log.iter().collect())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const ANY_PORT: [&str; 2] = ["--listen", "127.0.0.1:0"];

#[test]
fn a_mistyped_variable_is_named_with_the_nearest_setting() {
    let command = &mut roomcast(&ANY_PORT);
    // Variables that Kubernetes sets for a service with this name are no settings.
    command.env("ROOMCAST_PORT", "tcp://10.0.0.1:80").env("ROOMCAST_SERVICE_PORT_HTTP", "80");
    command.env("ROOMCAST_REDIS_ULR", "redis://:hunter2@host").env("ROOMCAST_ZZZ", "1").env("ROOMCAST_HOST", "::1");
    let gateway = Serving::start(command);
    let lines = [(); 3].map(|()| gateway.line("no setting"));
    let line = |name: &str| lines.iter().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{lines:?}"));
    assert!(line("ROOMCAST_REDIS_ULR").contains("ROOMCAST_REDIS_URL"), "{lines:?}");
    assert!(line("ROOMCAST_HOST").contains("ROOMCAST_LISTEN"), "{lines:?}");
    assert!(line("ROOMCAST_ZZZ").contains("WARN"), "{lines:?}");
    assert!(!lines.concat().contains("hunter2"), "{lines:?}");
}

#[test]
fn no_variable_of_a_setting_is_called_mistyped() {
    use clap::CommandFactory;
    let command = &mut roomcast(&ANY_PORT);
    command.env("ROOMCAST_HEALTH_URL", "http://127.0.0.1:1").env("ROOMCAST_LOG", "info");
    command.env("ROOMCAST_LAST", "1");
    for setting in CommandLine::command().get_arguments() {
        if let (Some(variable), [default]) = (setting.get_env(), setting.get_default_values()) {
            command.env(variable, default);
        }
    }
    command.env("ROOMCAST_LISTEN", "127.0.0.1:0");
    // Unknown variables are named in their order.
    let gateway = Serving::start(command);
    assert!(gateway.line("no setting").contains("ROOMCAST_LAST"));
}

#[test]
fn listen_takes_localhost_and_says_what_else_it_takes() {
    let gateway = Serving::start(&mut roomcast(&["--listen", "localhost:0"]));
    assert!(gateway.url.starts_with("http://127.0.0.1:"), "{}", gateway.url);
    for flag in ["--listen", "--admin-listen", "--metrics-listen"] {
        for wrong in ["8080", ":8080", "localhost", "gateway.example:8080", "127.0.0.1"] {
            refuses(&[flag, wrong], &[flag, wrong, "127.0.0.1:8080"]);
        }
    }
    for flag in ["--port", "-p", "--host", "--bind"] {
        refuses(&[flag, "8080"], &[flag, "--listen 127.0.0.1:8080"]);
    }
}

#[test]
fn a_limit_of_open_files_below_the_limit_of_connections_is_told_with_both() {
    let limited = |files: &str, connections: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_roomcast")]);
        command.args(ANY_PORT).args(["--max-connections", connections]).env("ROOMCAST_LAST", "1");
        Serving::start(&mut command)
    };
    let line = limited("400", "50000").line("open files");
    for part in ["WARN", "400", "50000", "80"] {
        assert!(line.contains(part), "{line}");
    }
    let gateway = limited("400", "80");
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line: &String| !line.contains("ROOMCAST_LAST")) {
        lines.push(gateway.line(""));
    }
    assert!(!lines.concat().contains("open files"), "{lines:?}");
}

#[tokio::test]
async fn the_store_of_the_data_folder_logs_warnings_only_unless_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    for (filter, expected) in [("info", false), ("debug", false), ("info,fjall=info", true)] {
        let folder = folder.path().join(filter);
        let mut command = roomcast(&ANY_PORT);
        let gateway = Serving::start(command.args(["--log", filter, "--data-dir"]).arg(folder));
        signal(&gateway.process, Signal::SIGTERM);
        let (code, lines) = gateway.ended().await;
        let lines: Vec<_> =
            lines.iter().filter(|line| line.contains(" fjall") || line.contains(" lsm_tree")).collect();
        assert_eq!((code, !lines.is_empty()), (Some(0), expected), "{filter}: {lines:?}");
    }
}

#[tokio::test]
async fn every_signal_that_ends_a_process_drains_first() {
    for ends in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
        // The tests themselves may run under nohup.
        let mut command = Command::new("env");
        command.args(["--default-signal=HUP", env!("CARGO_BIN_EXE_roomcast"), "--drain-delay", "0"]);
        let gateway = Serving::start(command.args(["--drain-window", "0"]).args(ANY_PORT));
        let mut stream = Stream::open(&format!("{}/v1/rooms/lobby/stream", gateway.url), None).await;
        signal(&gateway.process, ends);
        if ends == Signal::SIGHUP {
            // A terminal that closes may send it twice.
            signal(&gateway.process, ends);
        }
        assert_eq!(stream.event().await.event, "stream.end", "{ends}");
        assert_eq!(gateway.ended().await.0, Some(0), "{ends}");
    }
}

#[tokio::test]
async fn nohup_still_keeps_a_gateway_alive() {
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_roomcast")]).args(ANY_PORT);
    let gateway = Serving::start(&mut command);
    signal(&gateway.process, Signal::SIGHUP);
    assert_eq!(reqwest::get(format!("{}/readyz", gateway.url)).await.unwrap().status(), 200);
    // The second signal would end it at once, with 130.
    signal(&gateway.process, Signal::SIGTERM);
    assert!(gateway.line("shutting down").contains("5s"));
}

#[tokio::test]
async fn an_idle_gateway_that_no_balancer_checks_ends_at_once() {
    let gateway = Gateway::start(|settings| settings.shutdown.drain_delay = Duration::from_mins(1)).await;
    gateway.publish("lobby", "hello").await;
    // The client keeps its connection.
    gateway.stop().await.unwrap();
    // In the module `shutdown`, gateways with a stream or with a balancer wait.
}

#[tokio::test]
async fn what_redis_refuses_is_logged_with_what_to_do() {
    let server = RedisServer::start().await;
    server.cli(&["CONFIG", "SET", "requirepass", "right"]);
    let as_admin = ["--no-auth-warning", "-a", "right"];
    let user = |rules: &[&str]| {
        server.cli(&[&as_admin[..], &["ACL", "SETUSER", "few", "reset", "on", ">x"], rules].concat())
    };
    let port = server.port();
    let health = async |url: &str, words: &[&str]| {
        let gateway = Serving::start(roomcast(&ANY_PORT).args(["--redis-url", url]));
        let line = gateway.line("Redis is degraded");
        for word in words {
            assert!(line.contains(word), "{line} lacks {word}");
        }
        assert!(!line.contains("hunter2"), "{line}");
        let report = reqwest::get(format!("{}/healthz", gateway.url)).await.unwrap();
        report.json::<serde_json::Value>().await.unwrap()
    };
    let wrong =
        health(&format!("redis://:hunter2@127.0.0.1:{port}"), &["not_permitted", "password", "--redis-url"]).await;
    assert_eq!(wrong["commands"], "not_permitted");
    let none = health(&format!("redis://127.0.0.1:{port}"), &["not_permitted", "password", "--redis-url"]).await;
    assert_eq!(none["commands"], "not_permitted");
    health(&format!("redis://:right@127.0.0.1:{port}/99"), &["database", "--redis-url"]).await;
    user(&["~*", "&*", "+@all", "-xadd"]);
    let url = format!("redis://few:x@127.0.0.1:{port}");
    assert_eq!(health(&url, &["not_permitted", "docs/redis.md"]).await["commands"], "not_permitted");
    user(&["~*", "&*", "+@all", "-eval", "-evalsha"]);
    assert_eq!(health(&url, &["not_permitted", "docs/redis.md"]).await["commands"], "not_permitted");
    user(&["~elsewhere", "&*", "+@all"]);
    assert_eq!(health(&url, &["not_permitted", "docs/redis.md"]).await["commands"], "not_permitted");
    user(&["~*", "+@all", "resetchannels"]);
    health(&url, &["not_permitted", "docs/redis.md"]).await;
    user(&["~*", "&*", "+@all", "-subscribe"]);
    assert_eq!(health(&url, &["not_permitted", "docs/redis.md"]).await["delivery"], "not_permitted");
    user(&["~*", "&*", "+@all", "-select"]);
    health(&format!("{url}/1"), &["not_permitted", "docs/redis.md"]).await;
    let absent = RedisServer::absent();
    assert_eq!(health(&absent.url(), &["unreachable"]).await["commands"], "unreachable");
}
