//! Outcomes of the fault tests: a small file for each in `target/faults`, from which the list in
//! docs/fault-tests.md is made.

use std::path::PathBuf;

use serde_json::json;

use super::stage::Promise;
use crate::support::Account;

/// The folder of the files.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("faults")
}

/// Writes a test's outcome to a file with the test's name. Figures that differ from run to run are not in the list.
pub fn record(fault: &str, promise: Promise, account: &Account) {
    let told = match promise {
        Promise::NoGap => "none".to_owned(),
        Promise::OptionalGap(reasons) => format!("{} if need be", list(reasons)),
        Promise::Gap(reasons) => list(reasons),
    };
    let thread = std::thread::current();
    let path = thread.name().expect("the test harness names each thread after its test");
    let parts: Vec<_> = path.split("::").filter(|part| *part != "faults").collect();
    let name = parts.last().expect("a path is not empty");
    let broker = parts.iter().find(|part| part.starts_with("on_"));
    let outcome = json!({
        "test": name, "module": parts[0], "fault": fault, "told": told,
        // The check panics at any other number.
        "lost_unsaid": "0",
        "twice_or_out_of_order": "0",
        "acknowledged": account.acknowledged, "refused": account.refused, "unknown": account.unknown,
        "subscribers": account.subscribers, "delivered": account.delivered, "lost": account.lost,
        "refused_streams": account.refused_streams, "forged_deliveries": account.forged_deliveries,
        "forged_conflicts": account.forged_conflicts, "gaps": account.gaps,
    });
    let file = broker.map_or_else(|| format!("{name}.json"), |broker| format!("{name}.{broker}.json"));
    std::fs::create_dir_all(folder()).unwrap();
    std::fs::write(folder().join(file), format!("{outcome:#}\n")).unwrap();
    println!("{outcome}");
}

fn list(reasons: &[&str]) -> String {
    let quoted: Vec<_> = reasons.iter().map(|reason| format!("`{reason}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}
