//! Secrets are never shown: not in logs at the level `trace`, not in responses, not in `--help`.

use std::io::Read;
use std::process::Stdio;

use nix::sys::signal::Signal;
use reqwest::Method;
use roomcast::config::Settings;
use serde_json::json;

use super::{SECRET, all, at, close, token};
use crate::cli::{roomcast, signal};
use crate::support::{Gateway, Stream, eventually, free_port};

#[tokio::test]
async fn log_lines_of_a_request_have_its_id_method_and_path() {
    let address = format!("127.0.0.1:{}", free_port());
    let mut process = roomcast(&["--listen", &address, "--drain-delay", "0", "--drain-window", "0"])
        .env("ROOMCAST_LOG", "info")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let url = format!("http://{address}");
    eventually("it serves", async || reqwest::get(format!("{url}/livez")).await.ok()).await;
    let foreign = reqwest::Client::new().post(format!("{url}/v1/rooms/lobby/events?slip=secret")).body("hello");
    let foreign = foreign.header("host", "elsewhere.example").header("x-request-id", "mine");
    assert_eq!(foreign.send().await.unwrap().status(), 403);
    signal(&process, Signal::SIGTERM);
    let mut log = String::new();
    process.stderr.take().unwrap().read_to_string(&mut log).unwrap();
    let line = log.lines().find(|line| line.contains("refused")).unwrap_or_else(|| panic!("no such line: {log}"));
    for part in ["audit", "request_id=mine", "method=POST", "path=\"/v1/rooms/lobby/events\""] {
        assert!(line.contains(part), "no {part}: {line}");
    }
    assert!(!log.contains("secret"), "{log}");
    process.wait().unwrap();
}

#[tokio::test]
async fn no_token_and_no_secret_is_in_a_log_or_an_answer() {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    let mut process =
        roomcast(&["--listen", &address, "--jwt-skew", "0", "--drain-delay", "0", "--drain-window", "0"])
            .env("ROOMCAST_JWT_HS256_SECRET", SECRET)
            .env("ROOMCAST_LOG", "trace")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
    let mut stderr = process.stderr.take().unwrap();
    let reading = std::thread::spawn(move || {
        let mut log = Vec::new();
        stderr.read_to_end(&mut log).unwrap();
        String::from_utf8_lossy(&log).into_owned()
    });
    let url = format!("http://127.0.0.1:{port}");
    eventually("it serves", async || reqwest::get(format!("{url}/livez")).await.ok()).await;
    let client = reqwest::Client::new();
    let right = token(&json!({"sub": "ann", "exp": at(60), "roomcast": all()}));
    let expired = token(&json!({"sub": "ann", "exp": at(-60), "roomcast": all()}));
    let mut stream = Stream::open(&format!("{url}/v1/rooms/lobby/stream?access_token={right}"), None).await;
    let mut answers = Vec::new();
    for token in [&right, &expired, &format!("{right}x"), &"x.y.z-not-a-token".to_owned()] {
        let bearer = client.post(format!("{url}/v1/rooms/lobby/events")).bearer_auth(token).body("hello");
        let query = client.get(format!("{url}/v1/rooms/lobby/events?access_token={token}&slip=1"));
        let nowhere = client.get(format!("{url}/nowhere?access_token={token}"));
        let cookie = client.request(Method::DELETE, format!("{url}/v1/hashes/lamp"));
        let cookie = cookie.header("cookie", format!("__Host-roomcast={token}"));
        for request in [bearer, query, nowhere, cookie] {
            let answer = request.send().await.unwrap();
            let headers = format!("{:?}", answer.headers());
            answers.extend([headers, answer.text().await.unwrap()]);
        }
    }
    assert_eq!(stream.event().await.data, "hello");
    drop(stream);
    // Refusals and removals are in the audit log. A name with a line break does not forge a line.
    let admin = token(&json!({"sub": "mod", "exp": at(60), "roomcast": {"admin": true}}));
    for path in ["/v1/users/x%0A2026-01-01%20INFO%20audit:%20forged/streams", "/v1/tokens/t%0Aforged"] {
        let request = client.delete(format!("{url}{path}"));
        assert_eq!(request.bearer_auth(&admin).send().await.unwrap().status(), 204);
        assert_eq!(client.delete(format!("{url}{path}")).bearer_auth(&right).send().await.unwrap().status(), 403);
    }
    // An orderly shutdown writes all of the log.
    signal(&process, Signal::SIGTERM);
    eventually("it has left", async || process.try_wait().unwrap()).await;
    let log = reading.join().unwrap();
    assert!(log.contains("request") && log.contains("/v1/rooms/lobby/events"), "it logs: {log}");
    let audited = |words: &[&str]| {
        let lines = log.lines().filter(|line| line.contains(" audit: "));
        let mut found = lines.filter(|line| words.iter().all(|word| line.contains(word)));
        assert!(found.next().is_some(), "no audit line with {words:?}: {log}");
    };
    audited(&["removed", "kind=\"user\"", "subject=\"mod\"", "address=127.0.0.1"]);
    audited(&["removed", "kind=\"token\""]);
    audited(&["refused", "code=\"forbidden\"", "subject=\"ann\""]);
    audited(&["refused", "code=\"token_expired\""]);
    assert!(!log.lines().any(|line| line.starts_with("forged") || line.starts_with("2026-01-01")), "{log}");
    let signature = right.rsplit('.').next().unwrap();
    for secret in [SECRET, signature, expired.rsplit('.').next().unwrap(), "not-a-token"] {
        assert!(!log.contains(secret), "{secret} is in the log");
        assert!(!answers.iter().any(|answer| answer.contains(secret)), "{secret} is in an answer");
    }
}

#[tokio::test]
async fn no_secret_is_in_the_debug_form_of_settings_or_in_help() {
    let mut settings = Settings::defaults();
    close(&mut settings);
    assert!(!format!("{settings:?}").contains(SECRET));
    let help = roomcast(&["--help"]).env("ROOMCAST_JWT_HS256_SECRET", SECRET).output().unwrap();
    assert!(help.status.success() && !String::from_utf8(help.stdout).unwrap().contains(SECRET));
    let gateway = Gateway::start(close).await;
    assert!(!gateway.get("/healthz").await.1.to_string().contains(SECRET));
}
