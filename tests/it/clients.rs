//! Clients that nobody here wrote, on both brokers. The test command installs what they need.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::json;

use crate::auth::{claims, close, token};
use crate::support::Gateway;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Runs a program against the gateway, and shows what it said if it failed.
async fn run(gateway: &Gateway, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder()).env("ROOMCAST_URL", &gateway.url).stdin(Stdio::null());
    let running = tokio::task::spawn_blocking(move || command.output());
    // A script has limits of its own, above that of a single wait here.
    let output = tokio::time::timeout(crate::support::DEADLINE * 10, running).await.expect("the client ends");
    let output =
        output.unwrap().unwrap_or_else(|why| panic!("{program} does not run ({why}); tests/run installs it"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} failed:\n{said}\n{complained}");
    said
}

fn python() -> String {
    installed("python")
}

/// A program of the Python packages.
fn installed(name: &str) -> String {
    folder().join(".venv/bin").join(name).to_str().unwrap().to_owned()
}

/// Requests made from the OpenAPI document, the wrong ones too: no failure of the gateway's own, and no answer that the
/// document lacks.
async fn examine(gateway: &Gateway, headers: &[&str]) {
    /// Requests to each operation in each phase, beside those that cover each parameter's limits. A budget, so that it ends.
    const EXAMPLES: &str = "100";
    let document = format!("{}/openapi.json", gateway.url);
    let mut arguments = vec!["run", &document];
    arguments.extend(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", "7"]);
    arguments.extend(["--generation-deterministic", "--no-color", "--warnings", "off"]);
    arguments.extend(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]);
    arguments.extend(["--checks", "response_headers_conformance,response_schema_conformance"]);
    // A stream has no end to wait for.
    arguments.extend(["--exclude-path-regex", "/stream$", "--request-timeout", "10", "--continue-on-failure"]);
    arguments.extend(headers.iter().flat_map(|header| ["--header", header]));
    run(gateway, &installed("schemathesis"), &arguments).await;
}

on_both_brokers! {
    async fn curl_publishes_streams_and_sets_values(world) {
        let gateway = world.gateway().await;
        let url = &gateway.url;
        let said = run(&gateway, "curl", &["-sS", "-d", "hello", &format!("{url}/v1/rooms/lobby/events")]).await;
        assert!(said.contains(r#""room":"lobby""#), "{said}");
        let stream = format!("{url}/v1/rooms/lobby/stream?from=earliest");
        // It reads until its own limit, which is not a failure here.
        let reading = format!("curl -sSN --max-time 2 '{stream}' || test $? = 28");
        let said = run(&gateway, "sh", &["-c", &reading]).await;
        assert!(said.contains("event: stream.open\n") && said.contains("data: hello\n"), "{said}");
        let field = format!("{url}/v1/hashes/lamp/fields/colour");
        let said = run(&gateway, "curl", &["-sS", "-X", "PUT", "-d", "green", &field]).await;
        assert!(said.contains(r#""value":"green""#), "{said}");
        let said = run(&gateway, "curl", &["-sS", "-H", "Accept: text/plain", &field]).await;
        assert_eq!(said, "green");
        let said = run(&gateway, "curl", &["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-I", &field]).await;
        assert_eq!(said, "200");
    }

    async fn the_npm_package_eventsource_reads_and_resumes(world) {
        let gateway = world.gateway().await;
        run(&gateway, "node", &["eventsource.mjs"]).await;
    }

    async fn chromium_reads_and_resumes_with_its_own_eventsource(world) {
        let gateway = world.gateway().await;
        run(&gateway, "node", &["browser.mjs"]).await;
    }

    async fn a_generated_typescript_client_works(world) {
        let gateway = world.gateway().await;
        run(&gateway, "node", &["typescript/run.mjs"]).await;
    }

    async fn a_generated_python_client_works(world) {
        let gateway = world.gateway().await;
        run(&gateway, &python(), &["python/run.py"]).await;
    }

    async fn the_k6_smoke_test_passes(world) {
        let gateway = world.gateway().await;
        run(&gateway, &installed("k6"), &["run", "--quiet", "../../k6/smoke.js"]).await;
    }

    async fn p11_no_request_that_the_document_allows_or_forbids_gets_an_answer_that_it_lacks(world) {
        examine(&world.gateway().await, &[]).await;
    }
}

#[tokio::test]
async fn three_replicas_behind_nginx_work_as_compose_would_start_them() {
    let mut command = Command::new(python());
    command.arg("../topology.py").current_dir(folder()).env("ROOMCAST_BIN", env!("CARGO_BIN_EXE_roomcast"));
    let running = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output());
    let output = tokio::time::timeout(crate::support::DEADLINE * 6, running).await.expect("the topology test ends");
    let output = output.unwrap().expect("python is installed; tests/run installs it");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.trim_end().ends_with(" 0 failed"), "{said}");
}

#[tokio::test]
async fn p11_so_it_is_with_a_token_and_with_none_where_one_is_wanted() {
    let gateway = Gateway::start(close).await;
    examine(&gateway, &[]).await;
    let token = token(&claims(&json!({"admin": true})));
    examine(&gateway, &[&format!("Authorization: Bearer {token}")]).await;
}
