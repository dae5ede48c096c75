//! The binary as an operator meets it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub fn roomcast(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
    command.args(arguments);
    command
}

fn output(arguments: &[&str]) -> Output {
    roomcast(arguments).output().unwrap()
}

/// A bad setting is one clear line, and exit 2.
pub fn refuses(arguments: &[&str], words: &[&str]) {
    let output = output(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{text} lacks {word:?}");
    }
}

/// Serves on a free port, and waits until it says so.
fn serve(arguments: &[&str]) -> (Child, String, String) {
    let mut child = roomcast(&["--listen", "127.0.0.1:0"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    while !said.contains("curl http") {
        assert!(lines.read_line(&mut said).unwrap() > 0, "it ended: {said}");
    }
    let address = said.split("http://").nth(1).unwrap().lines().next().unwrap().to_owned();
    (child, address, said)
}

pub fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

#[test]
fn it_says_where_it_listens_which_broker_it_has_and_what_to_try() {
    let (mut child, address, said) = serve(&[]);
    for word in [&format!("http://{address}"), "embedded", "curl -N", "/v1/rooms/lobby/stream"] {
        assert!(said.contains(word), "{said} lacks {word:?}");
    }
    let health = output(&["health", "--url", &format!("http://{address}")]);
    assert_eq!(health.status.code(), Some(0));
    child.kill().unwrap();
    child.wait().unwrap();
    let health = output(&["health", "--url", &format!("http://{address}")]);
    assert_eq!(health.status.code(), Some(1));
    assert_eq!(String::from_utf8(health.stderr).unwrap().lines().count(), 1);
}

#[test]
fn a_bad_setting_is_one_clear_line_and_exit_2() {
    refuses(&["--listen", "nowhere"], &["--listen", "nowhere"]);
    refuses(&["--listen", "0.0.0.0:0"], &["0.0.0.0:0", "--insecure-allow-anonymous"]);
    refuses(&["--redis-url", "http://host"], &["--redis-url", "redis://"]);
    refuses(&["--redis-prefix", "{x}"], &["--redis-prefix", "braces"]);
    refuses(&["--heartbeat", "soon"], &["--heartbeat", "soon"]);
    refuses(&["--heartbeat", "0"], &["--heartbeat", "10ms to 1h"]);
    refuses(&["--heartbeat", "10000000000000000000"], &["--heartbeat", "10ms to 1h"]);
    refuses(&["--stall-timeout", "500ms"], &["--stall-timeout", "1s to 1h"]);
    refuses(&["--data-dir", "d", "--redis-url", "redis://host"], &["--data-dir", "--redis-url", "leave one out"]);
    refuses(&["--data-sync", "never"], &["--data-sync", "everysec"]);
    refuses(&["--max-connections", "0"], &["--max-connections", "at least 1"]);
    refuses(&["--max-batch-items", "0"], &["--max-batch-items", "at least 1"]);
    refuses(&["--retention-events", "18446744073709551615"], &["--retention-events", "1000000000"]);
    refuses(&["--max-body-bytes", "10"], &["--max-event-bytes", "--max-body-bytes"]);
    refuses(&["--log", "a=b=c"], &["--log"]);
    refuses(&["--retention", "chat.*=forever"], &["--retention", "forever", "events:100"]);
    refuses(&["--no-such-flag"], &["--no-such-flag"]);
    refuses(&["no-such-command"], &["no-such-command"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refuses(&["--listen", &address], &[&address, "in use"]);
}

#[test]
fn a_bad_variable_is_refused_like_a_flag() {
    let output = roomcast(&[]).env("ROOMCAST_LISTEN", "nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("nowhere"));
}

#[test]
fn the_redis_password_is_never_shown() {
    let url = "redis://user:hunter2@127.0.0.1:1/0";
    let (mut child, _, said) = serve(&["--redis-url", url, "--log", "trace"]);
    assert!(said.contains("***@127.0.0.1:1"), "{said}");
    signal(&child, Signal::SIGKILL);
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    child.wait().unwrap();
    assert!(!said.contains("hunter2") && !log.contains("hunter2"));
    let help = roomcast(&["--help"]).env("ROOMCAST_REDIS_URL", url).output().unwrap();
    assert!(!String::from_utf8(help.stdout).unwrap().contains("hunter2"));
    let wrong = output(&["--redis-url", "redis://user:hunter2@[bad"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn the_first_signal_leaves_politely_and_the_second_at_once() {
    for first in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut child, _, _) = serve(&["--drain-delay", "0", "--drain-window", "0"]);
        signal(&child, first);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    let (mut child, _, _) = serve(&["--drain-delay", "10m"]);
    let mut log = BufReader::new(child.stderr.take().unwrap());
    signal(&child, Signal::SIGTERM);
    let mut line = String::new();
    while !line.contains("leaving") {
        line.clear();
        assert!(log.read_line(&mut line).unwrap() > 0);
    }
    signal(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("ERROR"), "{rest}");
}

#[test]
fn it_prints_the_openapi_documents() {
    let print = |arguments: &[&str]| String::from_utf8(output(arguments).stdout).unwrap();
    assert_eq!(print(&["openapi"]), include_str!("../../openapi/openapi.json"));
    assert_eq!(print(&["openapi", "--version", "3.2"]), include_str!("../../openapi/openapi-3.2.json"));
}

#[test]
fn help_names_every_flag_with_its_variable_and_its_default() {
    let help = String::from_utf8(output(&["--help"]).stdout).unwrap();
    for words in
        ["--listen", "ROOMCAST_LISTEN", "127.0.0.1:8080", "--drain-window", "--redis-url", "health", "openapi"]
    {
        assert!(help.contains(words), "{words}");
    }
}
