//! The binary: its commands, its messages, its exit codes, and signals.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};

use clap::CommandFactory;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roomcast::cli::CommandLine;

pub fn roomcast(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roomcast"));
    command.args(arguments);
    command
}

fn output(arguments: &[&str]) -> Output {
    roomcast(arguments).output().unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    String::from_utf8(output(arguments).stdout).unwrap()
}

fn stderr(arguments: &[&str]) -> String {
    String::from_utf8(output(arguments).stderr).unwrap()
}

/// Expects exit code 2, and one line of error that has these words.
pub fn refuses(arguments: &[&str], words: &[&str]) {
    let output = output(arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{text} lacks {word:?}");
    }
}

/// Serves on a free port, and waits for the whole greeting. Returns the process, its address and the greeting.
fn serve(arguments: &[&str]) -> (Child, String, String) {
    let mut child = roomcast(&["--listen", "127.0.0.1:0"])
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut greeting = String::new();
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    while !greeting.contains("curl http") {
        assert!(lines.read_line(&mut greeting).unwrap() > 0, "it ended: {greeting}");
    }
    let address = greeting.split("http://").nth(1).unwrap().lines().next().unwrap().to_owned();
    (child, address, greeting)
}

pub fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
}

#[test]
fn the_greeting_has_the_address_the_broker_and_commands_to_try() {
    let (mut child, address, greeting) = serve(&[]);
    for word in [&format!("http://{address}"), "embedded", "curl -N", "/v1/rooms/lobby/stream"] {
        assert!(greeting.contains(word), "{greeting} lacks {word:?}");
    }
    // Scripts read the URL at the end of the first line.
    assert!(greeting.lines().next().unwrap().ends_with(&format!(" listens on http://{address}")), "{greeting}");
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
    refuses(&["--data-dir", "d", "--redis-url", "redis://host"], &["--data-dir", "--redis-url", "remove one"]);
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
    let (mut child, _, greeting) = serve(&["--redis-url", url, "--log", "trace"]);
    assert!(greeting.contains("***@127.0.0.1:1"), "{greeting}");
    signal(&child, Signal::SIGKILL);
    let mut log = String::new();
    child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    child.wait().unwrap();
    assert!(!greeting.contains("hunter2") && !log.contains("hunter2"));
    let help = roomcast(&["--help"]).env("ROOMCAST_REDIS_URL", url).output().unwrap();
    assert!(!String::from_utf8(help.stdout).unwrap().contains("hunter2"));
    // clap quotes values that it refuses.
    for wrong in [
        &["--redis-url", "redis://user:hunter2@[bad"][..],
        &["--redis-url=redis:/:hunter2@host"],
        &["--redis-url", "unix:?pass=hunter2"],
        &["--jwks-url", "https://user:hunter2@id.example/keys"],
        &["--otlp-endpoint", "http://user:hunter2@collector"],
        &["--cors-origin", "https://user:hunter2@app.example"],
        &["redis://user:hunter2@host"],
    ] {
        assert_eq!(output(wrong).status.code(), Some(2), "{wrong:?}");
        assert!(!stderr(wrong).contains("hunter2"), "{}", stderr(wrong));
    }
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
    while !line.contains("shutting down") {
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
    assert_eq!(stdout(&["openapi"]), include_str!("../../openapi/openapi.json"));
    assert_eq!(stdout(&["openapi", "--version", "3.2"]), include_str!("../../openapi/openapi-3.2.json"));
}

#[test]
fn help_names_every_flag_with_its_variable_and_its_default() {
    let help = stdout(&["--help"]);
    for words in
        ["--listen", "ROOMCAST_LISTEN", "127.0.0.1:8080", "--drain-window", "--redis-url", "health", "openapi"]
    {
        assert!(help.contains(words), "{words}");
    }
}

#[test]
fn every_setting_has_a_help_text_and_a_heading() {
    let settings = CommandLine::command();
    let settings = settings.get_arguments().filter(|setting| setting.get_env().is_some());
    let mut count = 0;
    for setting in settings {
        count += 1;
        assert!(setting.get_help_heading().is_some(), "{setting} has no heading");
        let help = setting.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.len() > 20 && help.starts_with(char::is_uppercase), "{setting}: {help:?}");
        let variable = setting.get_long().unwrap().replace('-', "_").to_uppercase();
        assert_eq!(setting.get_env().unwrap().to_str().unwrap(), format!("ROOMCAST_{variable}"));
    }
    assert!(count >= 57, "{count} settings");
    let help = stdout(&["--help"]);
    for heading in ["Server:", "Redis:", "Embedded broker:", "Access:", "Streams:", "Retention:", "Shutdown:"] {
        assert!(help.lines().any(|line| line == heading), "{help} lacks {heading:?}");
    }
    assert!(help.contains("Exit codes:"), "{help}");
}

#[test]
fn it_prints_completion_scripts() {
    for (shell, word) in [
        ("bash", "complete -F _roomcast"),
        ("zsh", "#compdef roomcast"),
        ("fish", "complete -c roomcast"),
        ("elvish", "edit:completion"),
        ("powershell", "Register-ArgumentCompleter"),
    ] {
        let script = stdout(&["completions", shell]);
        for part in [word, "redis-url", "completions"] {
            assert!(script.contains(part), "{shell}: {script} lacks {part:?}");
        }
    }
    refuses(&["completions", "tcsh"], &["tcsh", "bash"]);
}

#[test]
fn it_prints_manual_pages() {
    let page = stdout(&["man"]);
    for part in [
        ".TH roomcast 1",
        "\\-\\-redis\\-url",
        "ROOMCAST_REDIS_URL",
        ".SH RETENTION",
        "Exit codes:",
        "roomcast\\-token(1)",
    ] {
        assert!(page.contains(part), "{page} lacks {part:?}");
    }
    let page = stdout(&["man", "token"]);
    for part in [".TH roomcast-token 1", "\\-\\-lifetime", "ROOMCAST_JWT_AUDIENCE"] {
        assert!(page.contains(part), "{page} lacks {part:?}");
    }
    refuses(&["man", "nothing"], &["nothing"]);
}
