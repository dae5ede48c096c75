//! Keeps ARCHITECTURE.md true: which folder may use which, which library is named where, and how types are named.
//! `tidy/words.rs` holds the words that the code does not use.

mod source;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use source::{SourceFile, TokenKind, all_files, code_tokens, paths, root, shipped_files};

/// Each folder or file of `src` and `core/src`, lowest first, with the paths that it may use. A folder may use itself.
const LAYERS: [(&str, &[&str]); 22] = [
    ("names", &[]),
    ("log", &["names"]),
    ("cache", &["names", "log"]),
    ("mirror", &["names"]),
    ("shutdown", &[]),
    ("digest", &[]),
    ("timestamp", &[]),
    ("trace", &[]),
    ("broker", &["digest", "names", "log", "shutdown", "timestamp"]),
    ("rate_limit", &["broker"]),
    ("live", &["names", "log", "cache", "mirror", "broker", "rate_limit", "shutdown", "timestamp", "trace"]),
    ("presence", &["names", "broker", "live::LogClient", "shutdown"]),
    ("moderation", &["names", "broker", "live::LogClient", "presence::Presence", "shutdown", "timestamp"]),
    ("auth", &["names", "shutdown"]),
    ("metrics", &[]),
    (
        "delivery",
        &[
            "names",
            "log",
            "broker::Member",
            "live",
            "presence",
            "moderation",
            "auth::Identity",
            "rate_limit::OpenPermit",
            "metrics",
            "shutdown",
            "timestamp",
        ],
    ),
    ("config", &["names", "broker", "live", "presence", "auth", "rate_limit", "delivery"]),
    (
        "http",
        &[
            "digest",
            "names",
            "log",
            "broker",
            "live",
            "presence",
            "moderation",
            "auth",
            "rate_limit",
            "metrics",
            "delivery",
            "config",
            "shutdown",
            "timestamp",
            "trace",
        ],
    ),
    (
        "server",
        &[
            "names",
            "broker",
            "live",
            "presence",
            "moderation",
            "auth",
            "rate_limit",
            "metrics",
            "delivery",
            "config",
            "http",
            "shutdown",
        ],
    ),
    ("telemetry", &["config", "trace"]),
    ("cli", &["names", "auth", "config", "http", "server", "telemetry"]),
    ("main", &["cli"]),
];

/// Where each library may be named. A home is the beginning of a path.
const HOMES: [(&[&str], &[&str]); 18] = [
    (&["axum"], &["src/http", "src/server"]),
    (&["utoipa", "utoipa_axum", "tower_http", "serde_html_form"], &["src/http"]),
    (&["serde_path_to_error"], &["src/http", "src/auth"]),
    (&["tower"], &["src/http", "src/server"]),
    (&["hyper", "hyper_util"], &["src/auth/key_sets.rs", "src/server", "src/telemetry.rs", "src/cli"]),
    (&["http_body_util"], &["src/auth/key_sets.rs", "src/http", "src/telemetry.rs", "src/cli"]),
    (&["jsonwebtoken"], &["src/auth"]),
    (&["rustls", "hyper_rustls", "rustls_native_certs"], &["src/auth/key_sets.rs"]),
    (&["redis", "bb8"], &["src/broker/redis"]),
    (&["fjall"], &["src/broker/memory/store.rs"]),
    (&["prometheus_client"], &["src/metrics.rs"]),
    (&["opentelemetry", "opentelemetry_sdk", "tracing_opentelemetry"], &["src/telemetry.rs", "src/trace.rs"]),
    (&["opentelemetry_http", "opentelemetry_otlp", "tracing_subscriber"], &["src/telemetry.rs"]),
    // Two settings are enums of the part that they set, with their values on the command line.
    (&["clap"], &["src/cli", "src/config", "src/main.rs", "src/broker/memory/journal.rs", "src/rate_limit.rs"]),
    (&["humantime"], &["src/config", "src/cli", "src/timestamp.rs"]),
    (&["slab"], &["src/delivery/broadcaster.rs"]),
    (&["socket2"], &["src/broker/redis", "src/delivery/connection.rs", "src/server/connections.rs"]),
    (&["rlimit"], &["src/main.rs", "src/cli"]),
];

/// Modules without I/O: they get the time and the outcome of every call from their callers.
const PURE: [&str; 6] = [
    "core/src",
    "src/delivery/end_reason.rs",
    "src/delivery/format.rs",
    "src/delivery/http1.rs",
    "src/delivery/sse.rs",
    "src/presence/state.rs",
];

/// Parts of the standard library that a pure module does not use.
const IMPURE: [&str; 7] = ["env", "fs", "io", "net", "process", "thread", "os"];

/// Libraries of the core.
const CORE_LIBRARIES: [&str; 7] = ["base64", "bytes", "icu_properties", "serde", "serde_json", "sha1", "thiserror"];

/// Most lines of code in a file. A longer file has two subjects.
const MAX_LINES: usize = 500;

/// Fails with every finding, so that one run shows them all.
#[track_caller]
fn assert_none(findings: &[String]) {
    assert!(findings.is_empty(), "{} findings:\n{}", findings.len(), findings.join("\n"));
}

/// The folder or file below `src` or `core/src`, for example `live`.
fn layer(file: &SourceFile) -> &str {
    file.module().first().copied().unwrap_or(if file.path.ends_with("main.rs") { "main" } else { "lib" })
}

/// Whether a path is an entry of the list, or is below one.
fn is_allowed(path: &[String], allowed: &[&str]) -> bool {
    allowed.iter().any(|entry| entry.split("::").zip(path).all(|(expected, name)| expected == name))
}

/// Whether a file is one of the homes, or in one of them. `src/http` is the file `src/http.rs` too.
fn is_at_home(file: &SourceFile, homes: &[&str]) -> bool {
    homes.iter().any(|home| {
        let rest = file.path.strip_prefix(home);
        rest.is_some_and(|rest| rest.is_empty() || rest == ".rs" || rest.starts_with('/'))
    })
}

#[test]
fn each_folder_uses_only_those_below_it() {
    let mut findings = Vec::new();
    for file in shipped_files() {
        let layer = layer(&file);
        if layer == "lib" {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) else {
            findings.push(format!("{}: {layer} is missing in the list of layers", file.path));
            continue;
        };
        for path in paths(&file, &file.shipped_text()) {
            let is_own_crate = matches!(path[0].as_str(), "crate" | "roomcast");
            let Some(used) = path.get(1).filter(|_| is_own_crate) else { continue };
            if used != layer && !is_allowed(&path[1..], allowed) {
                findings.push(format!("{}: {layer} may not use {}", file.path, path.join("::")));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn the_brokers_do_not_use_each_other_and_their_contract_uses_neither() {
    const BROKERS: [&str; 2] = ["memory", "redis"];
    let mut findings = Vec::new();
    for file in shipped_files().iter().filter(|file| layer(file) == "broker") {
        let own = file.module().get(1).copied();
        for path in paths(file, &file.shipped_text()) {
            let is_broker = path[0] == "crate" && path.get(1).is_some_and(|name| name == "broker");
            let used = path.get(2).map(String::as_str).filter(|used| is_broker && BROKERS.contains(used));
            if used.is_some() && used != own {
                findings.push(format!("{}: it may not use {}", file.path, path.join("::")));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn each_library_is_named_only_where_it_belongs() {
    let mut findings = Vec::new();
    for file in shipped_files() {
        for path in paths(&file, &file.shipped_text()) {
            let rule = HOMES.iter().find(|(libraries, _)| libraries.contains(&path[0].as_str()));
            if rule.is_some_and(|(_, homes)| !is_at_home(&file, homes)) {
                findings.push(format!("{}: it may not name {}", file.path, path.join("::")));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn the_environment_is_read_by_the_configuration_alone() {
    let mut findings = Vec::new();
    for file in shipped_files() {
        if is_at_home(&file, &["src/config", "src/cli"]) {
            continue;
        }
        let text = file.shipped_text();
        let reads = paths(&file, &text).iter().any(|path| path[0] == "std" && path[1] == "env");
        let is_setting = code_tokens(&text).windows(3).any(|tokens| {
            tokens[0].text == "env" && tokens[1].text == "=" && tokens[2].text.starts_with("\"ROOMCAST_")
        });
        if reads || is_setting {
            findings.push(format!("{}: it reads the environment", file.path));
        }
    }
    assert_none(&findings);
}

#[test]
fn pure_modules_do_no_io_and_read_no_clock() {
    let mut findings = Vec::new();
    for file in shipped_files().iter().filter(|file| is_at_home(file, &PURE)) {
        let is_core = file.path.starts_with("core/");
        for path in paths(file, &file.shipped_text()) {
            let is_clock = path.last().is_some_and(|name| name == "now");
            let is_impure = match path[0].as_str() {
                "std" => IMPURE.contains(&path[1].as_str()) || is_core && path[1] == "time",
                "tokio" | "tokio_util" => true,
                _ => false,
            };
            if is_impure || is_clock {
                findings.push(format!("{}: it may not name {}", file.path, path.join("::")));
            }
        }
    }
    assert_none(&findings);
    let libraries: BTreeSet<_> =
        dependencies("core/Cargo.toml", "[dependencies]").into_iter().map(|(name, _)| name).collect();
    assert_eq!(libraries, CORE_LIBRARIES.map(str::to_owned).into());
}

#[test]
fn every_file_says_what_it_is_for_and_has_one_subject() {
    let mut findings = Vec::new();
    for file in all_files() {
        if !file.text.starts_with("//!") {
            findings.push(format!("{}: it does not begin with its purpose", file.path));
        }
        let name = file.module().last().copied().unwrap_or("lib");
        if matches!(name, "mod" | "common" | "helpers" | "manager" | "util" | "utils") {
            findings.push(format!("{}: its name says nothing", file.path));
        }
        let text = file.shipped_text();
        let lines: BTreeSet<_> = code_tokens(&text).iter().map(|token| token.line).collect();
        if !file.is_test && lines.len() > MAX_LINES {
            findings.push(format!("{}: {} lines of code are two subjects", file.path, lines.len()));
        }
    }
    assert_none(&findings);
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let mut findings = Vec::new();
    for manifest in ["Cargo.toml", "core/Cargo.toml"] {
        for section in ["[dependencies]", "[dev-dependencies]"] {
            let unexplained = dependencies(manifest, section).into_iter().filter(|(_, line)| !line.contains("# "));
            findings.extend(unexplained.map(|(_, line)| format!("{manifest}: no reason: {line}")));
        }
    }
    assert_none(&findings);
}

/// Names and lines of a section of a manifest.
fn dependencies(manifest: &str, section: &str) -> Vec<(String, String)> {
    let text = std::fs::read_to_string(root().join(manifest)).unwrap();
    let lines = text.lines().skip_while(|line| *line != section).skip(1).take_while(|line| !line.starts_with('['));
    let named = lines.filter_map(|line| Some((line.split_once(" = ")?.0.to_owned(), line.to_owned())));
    named.collect()
}

/// Types at the level of modules, with the line that declares them.
fn types(text: &str) -> Vec<(&str, usize)> {
    let tokens = code_tokens(text);
    let mut types = Vec::new();
    // Whether each open brace is a module's.
    let mut braces = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        match token.text {
            "{" => braces.push(index >= 2 && tokens[index - 2].text == "mod"),
            "}" => {
                braces.pop();
            }
            "struct" | "enum" | "trait" | "union" | "type" if braces.iter().all(|is_module| *is_module) => {
                let name = tokens.get(index + 1).filter(|name| name.kind == TokenKind::Word);
                types.extend(name.map(|name| (name.text, name.line)));
            }
            _ => {}
        }
    }
    types
}

#[test]
fn each_type_has_a_name_of_its_own() {
    let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in shipped_files() {
        for (name, line) in types(&file.shipped_text()) {
            places.entry(name.to_owned()).or_default().push(format!("{}:{line}", file.path));
        }
    }
    places.retain(|_, places| places.len() > 1);
    let findings: Vec<_> = places.iter().map(|(name, places)| format!("{name}: {}", places.join(", "))).collect();
    assert_none(&findings);
}

#[test]
fn no_type_has_the_name_of_one_that_the_code_imports() {
    let files: Vec<_> = shipped_files().into_iter().map(|file| (file.shipped_text(), file)).collect();
    let standard = words::STANDARD_NAMES.split_whitespace();
    let mut taken: BTreeMap<String, String> =
        standard.map(|name| (name.to_owned(), "the standard library".to_owned())).collect();
    let dependencies = ["Cargo.toml", "core/Cargo.toml"].map(|manifest| dependencies(manifest, "[dependencies]"));
    let names = dependencies.iter().flatten().map(|(name, _)| name.replace('-', "_"));
    let libraries: BTreeSet<_> = names.chain(["std", "core", "alloc"].map(str::to_owned)).collect();
    for (text, file) in &files {
        for path in paths(file, text) {
            let is_own = matches!(path[0].as_str(), "crate" | "roomcast" | "roomcast_core" | "Self");
            let is_library = !is_own && libraries.contains(&path[0]);
            let type_name = path.iter().find(|name| name.starts_with(|c: char| c.is_ascii_uppercase()));
            if let Some(name) = type_name.filter(|_| is_library) {
                taken.entry(name.clone()).or_insert_with(|| path.join("::"));
            }
        }
    }
    let mut findings = Vec::new();
    for (text, file) in &files {
        for (name, line) in types(text) {
            if let Some(other) = taken.get(name) {
                findings.push(format!("{}:{line}: {name} is also a type of {other}", file.path));
            }
        }
    }
    assert_none(&findings);
}

#[test]
fn code_and_comments_use_the_glossarys_words() {
    let mut findings = Vec::new();
    for file in all_files() {
        findings.extend(
            words::findings(&file.text)
                .into_iter()
                .map(|(line, finding)| format!("{}:{line}: {finding}", file.path)),
        );
    }
    assert_none(&findings);
}
