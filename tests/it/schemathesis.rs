//! Requests made from the OpenAPI document, the wrong ones too: no failure of the gateway's own, and no answer that the document
//! lacks. The test command installs schemathesis.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use super::access::{claims, close, token};
use crate::support::Gateway;

/// Requests to each operation in each phase, beside those that cover each parameter's limits. A budget, so that it ends.
const EXAMPLES: &str = "100";

/// Runs schemathesis, and shows what it found.
async fn examine(gateway: &Gateway, headers: &[String]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients");
    let work = tempfile::tempdir().unwrap();
    let mut command = Command::new(folder.join(".venv/bin/schemathesis"));
    command.current_dir(work.path()).args(["run", &format!("{}/openapi.json", gateway.url)]);
    command.args(["--phases", "examples,coverage,fuzzing", "--max-examples", EXAMPLES, "--seed", "7"]);
    command.args(["--generation-deterministic", "--no-color", "--warnings", "off"]);
    command.args(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]);
    command.args(["--checks", "response_headers_conformance,response_schema_conformance"]);
    // A stream has no end to wait for.
    command.args(["--exclude-path-regex", "/stream$", "--request-timeout", "10", "--continue-on-failure"]);
    for header in headers {
        command.args(["--header", header]);
    }
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.expect("schemathesis runs; tests/run installs it");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
}

on_both_brokers! {
    async fn p11_no_request_that_the_document_allows_or_forbids_gets_an_answer_that_it_lacks(world) {
        examine(&world.gateway().await, &[]).await;
    }
}

#[tokio::test]
async fn p11_so_it_is_with_a_token_and_with_none_where_one_is_wanted() {
    let gateway = Gateway::start(close).await;
    examine(&gateway, &[]).await;
    let token = token(&claims(&json!({"admin": true})));
    examine(&gateway, &[format!("Authorization: Bearer {token}")]).await;
}
