//! What the tests of faults came to: a small file each below `target/faults`, from which README's table is made.

use std::path::PathBuf;

use serde_json::json;

use super::stage::Promise;
use crate::support::Account;

/// Where the files are.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).with_file_name("faults")
}

/// Keeps a test's outcome under the test's name. What differs from run to run is in the file alone, not in the table.
pub fn record(fault: &str, promise: Promise, account: &Account) {
    let told = match promise {
        Promise::NoGap => "none".to_owned(),
        Promise::Perhaps(reasons) => format!("{} if need be", listed(reasons)),
        Promise::Told(reasons) => listed(reasons),
    };
    let thread = std::thread::current();
    let path = thread.name().expect("the harness names its threads after the tests");
    let parts: Vec<_> = path.split("::").filter(|part| *part != "faults").collect();
    let name = parts.last().expect("a path has a last part");
    let place = parts.iter().find(|part| part.starts_with("on_"));
    let outcome = json!({
        "test": name, "module": parts[0], "fault": fault, "told": told,
        // The account has panicked at anything else.
        "lost_unsaid": "0",
        "twice_or_out_of_order": "0",
        "acknowledged": account.acknowledged, "refused": account.refused, "unknown": account.unknown,
        "subscribers": account.subscribers, "delivered": account.delivered, "lost": account.lost,
        "refused_streams": account.refusals, "stand_ins": account.stand_ins,
        "mistaken": account.mistaken, "gaps": account.gaps,
    });
    let file = place.map_or_else(|| format!("{name}.json"), |place| format!("{name}.{place}.json"));
    std::fs::create_dir_all(folder()).unwrap();
    std::fs::write(folder().join(file), format!("{outcome:#}\n")).unwrap();
    println!("{outcome}");
}

fn listed(reasons: &[&str]) -> String {
    let quoted: Vec<_> = reasons.iter().map(|reason| format!("`{reason}`")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, rest)) => format!("{} or {last}", rest.join(", ")),
        None => String::new(),
    }
}
