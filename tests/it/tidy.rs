//! Keeps the picture in ARCHITECTURE.md true: who may use whom, and who may touch what.

use std::path::{Path, PathBuf};

/// Modules in the order of their dependence; each uses only those before it.
const ORDER: [(&str, &[&str]); 15] = [
    ("room", &[]),
    ("follow", &["room"]),
    ("shutdown", &[]),
    ("trace", &[]),
    ("sse", &[]),
    ("broker", &["room", "follow", "shutdown"]),
    ("hub", &["room", "follow", "broker", "sse", "shutdown", "trace"]),
    ("access", &["room", "shutdown"]),
    ("metrics", &[]),
    ("limits", &["broker"]),
    ("config", &["room", "broker", "hub", "access", "limits"]),
    (
        "http",
        &["room", "follow", "broker", "sse", "hub", "access", "config", "limits", "metrics", "shutdown", "trace"],
    ),
    ("server", &["broker", "hub", "access", "config", "http", "limits", "metrics", "shutdown"]),
    ("health_client", &[]),
    ("telemetry", &["config", "trace"]),
];

/// Files that are compiled for tests alone.
const ONLY_TESTS: [&str; 8] = [
    "follow/tests.rs",
    "fuzz.rs",
    "hub/encoded/tests.rs",
    "hub/mirror/model.rs",
    "hub/mirror/tests.rs",
    "hub/ring/tests.rs",
    "server/handover/tests.rs",
    "sse/tests.rs",
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<(PathBuf, String)> {
    let mut folders = vec![root().join("src")];
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|kind| kind == "rs")
                && !ONLY_TESTS.iter().any(|name| path.ends_with(name))
            {
                let text = std::fs::read_to_string(&path).unwrap();
                files.push((path.strip_prefix(root().join("src")).unwrap().to_owned(), text));
            }
        }
    }
    files
}

fn module(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The code of a file without its tests and comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]").next().unwrap();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

#[test]
fn each_module_uses_only_those_below_it() {
    for (path, text) in sources() {
        let module = module(&path);
        if matches!(module.as_str(), "lib" | "main") {
            continue;
        }
        let (_, allowed) =
            ORDER.iter().find(|(name, _)| *name == module).unwrap_or_else(|| panic!("{module} has no place"));
        for used in code(&text).split("crate::").skip(1) {
            let used: String = used.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            assert!(used == module || allowed.contains(&used.as_str()), "{} uses {used}", path.display());
        }
    }
}

#[test]
fn each_library_is_named_only_where_it_belongs() {
    let rules: [(&[&str], &[&str]); 9] = [
        (&["opentelemetry"], &["telemetry.rs", "trace.rs"]),
        (&["redis::", "bb8::"], &["broker/redis", "server.rs", "config.rs"]),
        (&["fjall::"], &["broker/memory/store.rs"]),
        (&["axum::"], &["http", "server"]),
        (&["hyper::"], &["access", "http", "server", "health_client"]),
        (&["jsonwebtoken::", "rustls::", "hyper_rustls::"], &["access"]),
        (&["prometheus_client::"], &["metrics.rs"]),
        (&["std::env", "env = \"ROOMCAST"], &["config"]),
        (
            &["tokio::", "std::time", "Instant", "std::net", "std::fs"],
            &[
                "access",
                "limits",
                "metrics",
                "broker",
                "hub",
                "http",
                "server",
                "main",
                "config",
                "shutdown",
                "health_client",
                "telemetry",
            ],
        ),
    ];
    for (path, text) in sources() {
        let place = path.to_str().unwrap();
        let code = code(&text);
        for (words, homes) in rules {
            if !homes.iter().any(|home| place.starts_with(home)) {
                for word in words {
                    assert!(!code.contains(word), "{place} names {word}");
                }
            }
        }
    }
}

#[test]
fn every_file_says_what_it_is_for_and_has_one_subject() {
    for (path, text) in sources() {
        assert!(text.starts_with("//!"), "{} does not open with what it is for", path.display());
        let lines = code(&text).lines().count();
        assert!(lines <= 500, "{} has {lines} lines: two subjects?", path.display());
        assert!(!path.ends_with("mod.rs"), "{}", path.display());
    }
}

#[test]
fn every_dependency_says_why_it_is_there() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let mut inside = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]");
        } else if inside && !line.is_empty() {
            assert!(line.contains("# "), "no reason: {line}");
        }
    }
}
