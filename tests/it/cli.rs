//! The binary: its commands, its messages, its exit codes, and signals.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};

use clap::CommandFactory;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use roomcast::cli::CommandLine;

use crate::support::{eventually, free_port};

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
    // Two commands use the field, the last of them in the last line.
    while greeting.matches("/fields/colour").count() < 2 {
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
fn health_asks_the_address_on_which_the_gateway_is_told_to_listen() {
    let (mut child, address, _) = serve(&[]);
    let port = address.rsplit_once(':').unwrap().1;
    let health = |listen: &str| roomcast(&["health"]).env("ROOMCAST_LISTEN", listen).output().unwrap();
    for listen in [&address, &format!("0.0.0.0:{port}"), &format!("localhost:{port}")] {
        let health = health(listen);
        assert_eq!(health.status.code(), Some(0), "{listen}: {}", String::from_utf8_lossy(&health.stderr));
    }
    let unknown = health("127.0.0.1:0");
    let text = String::from_utf8(unknown.stderr).unwrap();
    assert_eq!((unknown.status.code(), text.contains("--url"), text.lines().count()), (Some(1), true, 1), "{text}");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_bad_setting_is_one_clear_line_and_exit_2() {
    refuses(&["--listen", "nowhere"], &["--listen", "nowhere"]);
    refuses(&["--listen", "0.0.0.0:0"], &["0.0.0.0:0", "--insecure-allow-anonymous"]);
    refuses(&["--redis-url", "http://host"], &["--redis-url", "redis://"]);
    refuses(&["--redis-prefix", "{x}"], &["--redis-prefix", "braces"]);
    refuses(&["--hash-key", "user"], &["--hash-key", "{hash}"]);
    refuses(&["--hash-key", "{hash}"], &["--hash-key {hash}", "roomcast:", "user:{hash}"]);
    refuses(&["--hash-key", "{a}:{hash}"], &["--hash-key", "braces"]);
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
    refuses(&["token"], &["not provided: --jwt-hs256-secret <SECRET>"]);
    refuses(&["--max-body-bytes", "1MB"], &["--max-body-bytes", "1MB", "it must be a whole number"]);
    refuses(&["--max-value-bytes", "99999999999999999999"], &["--max-value-bytes", "the number is too large"]);
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
}

/// Values that hold the secret `hunter2`: in the place of a setting, cut off at a character that is not
/// percent-encoded, or in the place of something else.
#[test]
fn no_value_that_may_hold_a_secret_is_quoted() {
    let settings: &[(&str, &[&str])] = &[
        (
            "redis-url",
            &[
                "redis://user:hunter2@[bad",
                "redis:/:hunter2@host",
                "redis://:hunter2#x@host",
                "redis://hunter2#x@host",
                "redis://hunter2?x@host",
                "redis://:x?hunter2@host",
                "redis://:hunter2/x@host",
                "redis://host/hunter2",
                "redis://host?password=hunter2",
                "redis://host?db=hunter2",
                "rediss://:hunter2@host",
                "unix:?pass=hunter2",
                "unix:///run/redis.sock?pass=x&hunter2",
                "unix:///run/redis.sock?pass=hunter2#x",
                "hunter2",
            ],
        ),
        (
            "jwks-url",
            &[
                "https://user:hunter2@id.example/keys",
                "https://user:hunter2#x@id.example/keys",
                "https://hunter2#x@id.example/keys",
                "http://id.example/keys?key=hunter2",
                "hunter2",
            ],
        ),
        (
            "otlp-endpoint",
            &[
                "http://user:hunter2@collector",
                "http://hunter2#x@collector",
                "http://collector?key=hunter2",
                "https://collector/?key=hunter2",
            ],
        ),
        ("cors-origin", &["https://user:hunter2@app.example", "https://app.example?key=hunter2"]),
        ("jwt-public-key", &["-----BEGIN PRIVATE KEY----- hunter2", "hunter2"]),
        ("jwks-file", &["{\"keys\":[{\"k\":\"hunter2\"}]}"]),
    ];
    let expect = |command: &mut Command| {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // A command that serves says so first.
        let mut first = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
        if !first.is_empty() {
            child.kill().unwrap();
        }
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(first.is_empty() && matches!(output.status.code(), Some(1 | 2)), "{command:?}: {first}{error}");
        assert!(error.lines().count() == 1 && !error.contains("hunter2"), "{error}");
    };
    for (setting, values) in settings {
        let variable = format!("ROOMCAST_{}", setting.replace('-', "_").to_uppercase());
        for value in *values {
            expect(roomcast(&["--listen", "127.0.0.1:0"]).arg(format!("--{setting}={value}")));
            expect(roomcast(&["--listen", "127.0.0.1:0"]).env(&variable, value));
            let help = roomcast(&["--help"]).env(&variable, value).output().unwrap();
            assert!(help.status.success() && !String::from_utf8_lossy(&help.stdout).contains("hunter2"), "{value}");
        }
    }
    for url in
        ["http://user:hunter2@127.0.0.1:1", "http://user:hunter2#x@127.0.0.1:1", "https://hunter2", "hunter2"]
    {
        expect(&mut roomcast(&["health", "--url", url]));
        expect(roomcast(&["health"]).env("ROOMCAST_HEALTH_URL", url));
    }
    let url = "redis://user:hunter2@host";
    for misplaced in [
        &[url][..],
        &["health", url],
        &["completions", url],
        &["man", url],
        &["--redis-urlredis://:hunter2@host"],
        &["--listen", url],
        &["--anonymous", url],
        &["--anonymous", "redis://:hunter2@host=x"],
        &["--retention", url],
        &["--heartbeat", url],
        &["--data-sync", url],
        &["--insecure-allow-anonymous=hunter2"],
        &["--log", "redis://:hunter2@host=x"],
        &["token", "--jwt-hs256-secret", "a", "hunter2"],
    ] {
        expect(&mut roomcast(misplaced));
    }
}

/// The part of a URL that is wanted after the part that was written.
#[test]
fn a_url_that_is_cut_off_or_has_unknown_parts_is_refused_with_what_to_write() {
    for (url, words) in [
        ("redis://:x#y@host", &["%23"][..]),
        ("redis://x#y@host", &["%23"]),
        ("redis://x?y@host", &["%3F"]),
        ("redis://:x/y@host", &["%2F"]),
        ("redis://host:6379?db=2", &["/2"]),
        ("redis://host?timeout=5", &["%3F"]),
        ("rediss://host", &["TLS", "redis://"]),
    ] {
        refuses(&["--redis-url", url], &[&["--redis-url"], words].concat());
    }
    refuses(&["--jwks-url", "https://id.example/keys#x"], &["--jwks-url", "%23"]);
    refuses(&["--otlp-endpoint", "http://collector#x"], &["--otlp-endpoint", "http://127.0.0.1:4318"]);
}

#[tokio::test]
async fn secrets_in_urls_are_in_no_log_line() {
    let url = format!("http://127.0.0.1:{}/keys?key=hunter2", free_port());
    let collector = format!("http://127.0.0.1:{}", free_port());
    let (mut child, address, greeting) = serve(&[
        "--jwks-url",
        &url,
        "--otlp-endpoint",
        &collector,
        "--log",
        "trace",
        "--redis-url",
        "redis://u:hunter2@127.0.0.1:1",
        "--drain-delay",
        "0",
    ]);
    let stderr = BufReader::new(child.stderr.take().unwrap());
    let reading = std::thread::spawn(move || stderr.lines().map_while(Result::ok).collect::<Vec<_>>().join("\n"));
    let url = format!("http://{address}/v1/hashes/lamp");
    // Until the set has been fetched, which fails.
    let request = || reqwest::Client::new().get(&url).bearer_auth("x.y.z").send();
    eventually("a request is refused", async || request().await.ok()).await;
    signal(&child, Signal::SIGTERM);
    eventually("it has left", async || child.try_wait().unwrap()).await;
    let lines = reading.join().unwrap();
    assert!(lines.contains("the JWKS can't be fetched"), "{lines}");
    assert!(!lines.contains("hunter2") && !greeting.contains("hunter2"), "{lines}");
}

#[test]
fn the_first_signal_leaves_politely_and_the_second_at_once() {
    for first in [Signal::SIGTERM, Signal::SIGINT] {
        let (mut child, _, _) = serve(&["--drain-delay", "0", "--drain-window", "0"]);
        signal(&child, first);
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
    let (mut child, address, _) = serve(&["--drain-delay", "10m"]);
    // It waits for those who check whether it is ready.
    assert!(output(&["health", "--url", &format!("http://{address}")]).status.success());
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
    refuses(&["man", "nothing"], &["health", "token"]);
}
