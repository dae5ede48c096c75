//! Clients of other projects, on both brokers. `tests/run install` installs them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use roomcast::config::Settings;
use serde_json::json;

use crate::auth::{claims, close, token};
use crate::documents::is_set;
use crate::support::{DEADLINE, Gateway, World, number_from};

/// Requests to each operation in each phase of schemathesis, beside those at each parameter's limits. They are the
/// same in each run. `ROOMCAST_EXAMPLES` sets another number.
const EXAMPLES: u64 = 40;
/// Pause before an `EventSource` reconnects.
const RETRY: Duration = Duration::from_millis(100);
const SECOND: Duration = Duration::from_secs(1);
/// A heartbeat soon after an event that a stream skips.
const SHORT_HEARTBEAT: Duration = Duration::from_millis(200);

pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients")
}

/// Runs a program against the gateway, and returns its output. Panics with the output if the program failed.
pub async fn run(gateway: &Gateway, program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder()).env("ROOMCAST_URL", &gateway.url).stdin(Stdio::null());
    let running = tokio::task::spawn_blocking(move || command.output());
    // A script has its own limits, above that of a single wait here.
    let output = tokio::time::timeout(DEADLINE * 10, running).await.expect("the client ends");
    let output = output
        .unwrap()
        .unwrap_or_else(|error| panic!("{program} does not run ({error}); `tests/run install` installs it"));
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?} failed:\n{stdout}\n{stderr}");
    stdout
}

/// A gateway to which an `EventSource` reconnects soon.
async fn gateway(world: &World) -> Gateway {
    world.gateway_with(|settings| settings.streams.retry = RETRY).await
}

/// A gateway that leaves the browser module little time to wait for.
async fn module_gateway(world: &World) -> Gateway {
    let settings = |settings: &mut Settings| {
        (settings.streams.retry, settings.streams.heartbeat) = (RETRY, SECOND);
        settings.presence.grace = SECOND;
    };
    world.gateway_with(settings).await
}

/// The path of a program in the virtual environment of Python.
fn installed(name: &str) -> String {
    folder().join(".venv/bin").join(name).to_str().unwrap().to_owned()
}

/// Runs the clients of a language, each with what docs/clients.md says. Every heartbeat must pass unnoticed.
async fn resume(world: &World, language: &str) {
    let gateway =
        world.gateway_with(|settings| (settings.streams.retry, settings.streams.heartbeat) = (RETRY, RETRY)).await;
    run(&gateway, "node", &["sse/resume.mjs", language]).await;
}

/// Sends valid and invalid requests made from the OpenAPI document. The gateway must not fail, and each answer must
/// be in the document.
async fn send_generated_requests(gateway: &Gateway, headers: &[&str]) {
    let examples = number_from("ROOMCAST_EXAMPLES").unwrap_or(EXAMPLES).to_string();
    let document = format!("{}/openapi.json", gateway.url);
    let program = installed("schemathesis");
    let mut arguments = vec!["SCHEMATHESIS_HOOKS=python/short_waits.py", &program, "run", &document];
    arguments.extend(["--phases", "examples,coverage,fuzzing", "--max-examples", &examples, "--seed", "7"]);
    arguments.extend(["--generation-deterministic", "--no-color", "--warnings", "off"]);
    arguments.extend(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]);
    arguments.extend(["--checks", "response_headers_conformance,response_schema_conformance"]);
    // Streams do not end, so their routes are left out.
    arguments.extend(["--exclude-path-regex", "/stream$", "--request-timeout", "10", "--continue-on-failure"]);
    arguments.extend(headers.iter().flat_map(|header| ["--header", header]));
    run(gateway, "env", &arguments).await;
}

on_both_brokers! {
    async fn curl_publishes_streams_and_sets_values(world) {
        let gateway = world.gateway().await;
        let url = &gateway.url;
        let output = run(&gateway, "curl", &["-sS", "-d", "hello", &format!("{url}/v1/rooms/lobby/events")]).await;
        assert!(output.contains(r#""room":"lobby""#), "{output}");
        let stream = format!("{url}/v1/rooms/lobby/stream?from=earliest");
        // curl ends with 28 at its time limit, which is no failure here.
        let command = format!("curl -sSN --max-time 2 '{stream}' || test $? = 28");
        let output = run(&gateway, "sh", &["-c", &command]).await;
        assert!(output.contains("event: stream.open\n") && output.contains("data: hello\n"), "{output}");
        let field = format!("{url}/v1/hashes/lamp/fields/colour");
        let output = run(&gateway, "curl", &["-sS", "-X", "PUT", "-d", "green", &field]).await;
        assert!(output.contains(r#""value":"green""#), "{output}");
        let output = run(&gateway, "curl", &["-sS", "-H", "Accept: text/plain", &field]).await;
        assert_eq!(output, "green");
        let output = run(&gateway, "curl", &["-sS", "-o", "/dev/null", "-w", "%{http_code}", "-I", &field]).await;
        assert_eq!(output, "200");
    }

    async fn the_npm_package_eventsource_reads_and_resumes(world) {
        let gateway = gateway(&world).await;
        run(&gateway, "node", &["eventsource.mjs"]).await;
    }

    async fn clients_from_npm_resume_after_cuts_and_proper_ends(world) {
        resume(&world, "javascript").await;
    }

    async fn clients_from_pypi_resume_after_cuts_and_proper_ends(world) {
        resume(&world, "python").await;
    }

    async fn clients_in_go_resume_after_cuts_and_proper_ends(world) {
        if Command::new("go").arg("version").output().is_err() {
            println!("not run: no go");
            return;
        }
        resume(&world, "go").await;
    }

    async fn chromium_reads_and_resumes_with_its_own_eventsource(world) {
        let gateway = gateway(&world).await;
        run(&gateway, "node", &["browser.mjs"]).await;
    }

    async fn the_browser_module_works_in_node(world) {
        let gateway = module_gateway(&world).await;
        run(&gateway, "node", &["module/node.mjs"]).await;
        run(&gateway, "node", &["module/example.mjs"]).await;
    }

    async fn the_code_for_shared_values_works_as_it_is_on_the_pages(world) {
        let gateway = gateway(&world).await;
        run(&gateway, "node", &["shared_values.mjs"]).await;
    }

    async fn a_typescript_client_that_hey_api_generates_works(world) {
        let gateway = gateway(&world).await;
        run(&gateway, "node", &["typescript/run.mjs", "hey_api"]).await;
    }

    async fn a_generated_python_client_works(world) {
        let gateway = world.gateway().await;
        run(&gateway, &installed("python"), &["python/run.py"]).await;
    }

    async fn the_blocks_of_streams_are_as_the_document_says(world) {
        let gateway = world.gateway_with(|settings| settings.streams.heartbeat = SHORT_HEARTBEAT).await;
        run(&gateway, &installed("python"), &["python/stream_events.py"]).await;
    }

    async fn the_k6_smoke_test_passes(world) {
        let gateway = world.gateway().await;
        run_k6(&gateway, "smoke", &[]).await;
    }

    async fn p11_every_answer_to_a_generated_request_is_in_the_document(world) {
        send_generated_requests(&world.gateway().await, &[]).await;
    }
}

#[tokio::test]
async fn the_browser_module_misses_nothing_in_chromium() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    let redis = format!("REDIS_URL={}", world.server().url());
    let program = concat!("ROOMCAST_BIN=", env!("CARGO_BIN_EXE_roomcast"));
    run(&gateway, "env", &[&redis, program, "node", "module/browser.mjs"]).await;
    run(&gateway, "env", &[&redis, program, "node", "module/tabs.mjs"]).await;
}

#[tokio::test]
async fn the_console_works_in_chromium_with_and_without_a_token() {
    let gateway = module_gateway(&World::embedded()).await;
    let closed = Gateway::start(close).await;
    let grants = json!({"admin": true, "publish": ["*"], "subscribe": ["*"], "presence": ["*"], "read": ["*"]});
    let limited = json!({"publish": ["*"], "subscribe": ["*"]});
    let mut variables = vec![
        format!("CLOSED_URL={}", closed.url),
        format!("TOKEN={}", token(&claims(&grants))),
        format!("LIMITED_TOKEN={}", token(&claims(&limited))),
    ];
    if is_set("UPDATE_DOCS") {
        variables.push(concat!("PICTURE=", env!("CARGO_MANIFEST_DIR"), "/docs/console.png").into());
    }
    let arguments: Vec<_> = variables.iter().map(String::as_str).chain(["node", "console.mjs"]).collect();
    run(&gateway, "env", &arguments).await;
}

#[tokio::test]
async fn the_browser_module_works_in_firefox() {
    let gateway = module_gateway(&World::embedded()).await;
    run(&gateway, "node", &["module/firefox.mjs"]).await;
}

#[tokio::test]
async fn the_hooks_for_react_work() {
    let gateway = module_gateway(&World::embedded()).await;
    run(&gateway, "node", &["module/react.mjs"]).await;
}

#[tokio::test]
async fn the_browser_module_is_small_and_has_types() {
    let gateway = Gateway::start(|_| {}).await;
    run(&gateway, "node", &["module/size.mjs"]).await;
    run(&gateway, "node", &["module/types.mjs"]).await;
}

#[tokio::test]
async fn node_redis_redis_cli_and_the_gateway_share_a_hash() {
    let world = World::redis().await;
    let gateway = world.gateway().await;
    run(&gateway, "node", &["redis.mjs", &world.server().url()]).await;
}

#[tokio::test]
async fn typescript_clients_that_orval_and_openapi_typescript_generate_work() {
    let gateway = Gateway::start(|_| {}).await;
    for generator in ["orval", "openapi_typescript"] {
        run(&gateway, "node", &["typescript/run.mjs", generator]).await;
    }
}

#[test]
fn each_line_of_code_on_the_pages_of_clients_is_tested() {
    let clients = ["sse/follow.mjs", "sse/follow.py", "sse/go/main.go", "typescript/use_hey_api.ts"];
    for (page, files) in [("clients.md", &clients[..]), ("browser.md", &["module/example.mjs"])] {
        let read = |file: &&str| std::fs::read_to_string(folder().join(file)).unwrap();
        let tested = files.iter().map(read).collect::<String>();
        let tested: Vec<_> = tested.lines().map(str::trim).collect();
        let text = std::fs::read_to_string(folder().join("../../docs").join(page)).unwrap();
        let blocks = text.split("```").skip(1).step_by(2).filter_map(|block| block.split_once('\n'));
        let code = blocks.filter(|(language, _)| *language != "html").flat_map(|(_, code)| code.lines());
        let code: Vec<_> = code.map(str::trim).filter(|line| !line.is_empty()).collect();
        assert!(!code.is_empty(), "{page} has no code");
        for line in code {
            assert!(tested.contains(&line), "{page}: no client has the line {line}");
        }
    }
}

#[test]
fn linters_find_nothing_in_the_documents() {
    let mut command = Command::new("node");
    let output = command.arg("lint.mjs").current_dir(folder()).stdin(Stdio::null()).output();
    let output = output.expect("node is installed; `tests/run install` installs it");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[tokio::test]
async fn three_replicas_behind_nginx_work_as_compose_would_start_them() {
    let mut command = Command::new(installed("python"));
    command.arg("../topology.py").current_dir(folder()).env("ROOMCAST_BIN", env!("CARGO_BIN_EXE_roomcast"));
    let running = tokio::task::spawn_blocking(move || command.stdin(Stdio::null()).output());
    let output = tokio::time::timeout(DEADLINE * 8, running).await.expect("the topology test ends");
    let output = output.unwrap().expect("python is installed; `tests/run install` installs it");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{stdout}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.trim_end().ends_with(" 0 failed"), "{stdout}");
}

/// Runs a k6 script with these variables.
async fn run_k6(gateway: &Gateway, script: &str, variables: &[&str]) {
    let (k6, path) = (installed("k6"), format!("../../k6/{script}.js"));
    run(gateway, "env", &[variables, &[&k6, "run", "--quiet", &path]].concat()).await;
}

#[tokio::test]
async fn the_k6_scripts_work_with_the_variables_of_k6() {
    let gateway = Gateway::start(|_| {}).await;
    for variables in [
        &["K6_ITERATIONS=1"][..],
        &["K6_VUS=3", "K6_ITERATIONS=7"],
        &["K6_VUS=3", "K6_DURATION=1s"],
        &["K6_STAGES=1s:2"],
        &["K6_ITERATIONS=4", "K6_DISCARD_RESPONSE_BODIES=true"],
    ] {
        let watched = [variables, &["WATCH=1"]].concat();
        tokio::join!(
            run_k6(&gateway, "smoke", variables),
            run_k6(&gateway, "publish", variables),
            run_k6(&gateway, "hashes", variables),
            run_k6(&gateway, "hashes", &watched)
        );
    }
}

#[test]
fn the_k6_script_of_streams_says_what_it_needs() {
    for (variable, words) in
        [("A=1", "needs a k6 with the extension xk6-sse"), ("K6_VUS=3", "unset K6_VUS: STREAMS")]
    {
        let mut command = Command::new("env");
        command.args([variable, &installed("k6"), "run", "--quiet", "../../k6/streams.js"]).current_dir(folder());
        let output = command.output().expect("env is everywhere");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(words) && text.lines().count() == 1, "{text}");
    }
}

#[test]
fn the_image_can_be_built_from_the_files_that_docker_gets() {
    let output = Command::new("python3").arg("../image.py").current_dir(folder()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn p11_every_answer_of_a_closed_gateway_is_in_the_document_with_and_without_a_token() {
    let gateway = Gateway::start(close).await;
    let authorization = format!("Authorization: Bearer {}", token(&claims(&json!({"admin": true}))));
    let with_token = [authorization.as_str()];
    tokio::join!(send_generated_requests(&gateway, &[]), send_generated_requests(&gateway, &with_token));
}
