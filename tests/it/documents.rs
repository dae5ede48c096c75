//! What the documents say of settings and of faults, and what the code does. `UPDATE_FAULTS=1 cargo test documents` writes
//! the table of faults from what their tests came to.

use std::path::Path;

use clap::CommandFactory;
use roomcast::config::CommandLine;

#[test]
fn the_readme_lists_every_setting_with_its_variable_and_default() {
    let readme = include_str!("../../README.md");
    for argument in CommandLine::command().get_arguments() {
        let Some(flag) = argument.get_long().filter(|flag| !matches!(*flag, "help" | "version")) else { continue };
        let row = readme.lines().find(|line| line.starts_with(&format!("| `--{flag}`")));
        let row = row.unwrap_or_else(|| panic!("README has no row for --{flag}"));
        let variable = argument.get_env().unwrap().to_str().unwrap();
        assert!(row.contains(&format!("`{variable}`")), "{row} lacks {variable}");
        for default in argument.get_default_values() {
            let default = default.to_str().unwrap();
            let is_flag = matches!(argument.get_action(), clap::ArgAction::SetTrue);
            assert!(is_flag || row.contains(&format!("`{default}`")), "{row} lacks {default}");
        }
    }
}

/// The table of faults in README stands between these.
const TABLE: [&str; 2] = ["<!-- faults: UPDATE_FAULTS=1 cargo test documents -->\n", "<!-- end of faults -->"];
/// Files in `tests/it/faults` that have tests, in the order of the table.
const FAULTS: [&str; 7] = ["replicas", "links", "redis", "failovers", "data", "announcements", "clients"];

/// The tests of faults with their file's text, in the order of the files.
fn fault_tests() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/faults");
    let tests = |module: &&str| {
        let text = std::fs::read_to_string(folder.join(module).with_extension("rs")).unwrap();
        let names = text.lines().filter_map(|line| line.trim().strip_prefix("async fn p")?.split('(').next());
        let names = names.filter(|name| name.starts_with(|first: char| first.is_ascii_digit()));
        names.map(|name| (format!("p{name}"), text.clone())).collect::<Vec<_>>()
    };
    FAULTS.iter().flat_map(tests).collect()
}

/// A row of the table, from what a test has left behind.
fn fault_row(test: &str) -> String {
    let folder = crate::faults::outcome::folder();
    let files = [format!("{test}.json"), format!("{test}.on_redis.json")];
    let left = files.iter().find_map(|file| std::fs::read_to_string(folder.join(file)).ok());
    let left = left.unwrap_or_else(|| panic!("{test} has left no outcome: cargo test faults, and then again"));
    let outcome: serde_json::Value = serde_json::from_str(&left).unwrap();
    let word = |name: &str| outcome[name].as_str().unwrap().to_owned();
    let cells = ["fault", "told", "lost_unsaid", "twice_or_out_of_order"].map(word);
    format!("| {} | `{test}` |\n", cells.join(" | "))
}

#[test]
fn the_readme_has_a_row_for_every_fault_that_is_tested() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once(TABLE[0]).expect("README has a table of faults");
    let (table, after) = rest.split_once(TABLE[1]).expect("the table of faults ends");
    let head = "| Fault | Gaps that are told | Lost unsaid | Twice, or out of order | Test |\n\
                | --- | --- | --- | --- | --- |\n";
    let tests = fault_tests();
    if crate::support::number_from("UPDATE_FAULTS").is_some() {
        let rows: String = tests.iter().map(|(test, _)| fault_row(test)).collect();
        std::fs::write(&path, format!("{before}{}{head}{rows}{}{after}", TABLE[0], TABLE[1])).unwrap();
        return;
    }
    let rows: Vec<Vec<&str>> = table.lines().skip(2).map(|row| row.split(" | ").collect()).collect();
    let named: Vec<_> = rows.iter().map(|row| row[4].trim_end_matches(" |").trim_matches('`')).collect();
    let there: Vec<_> = tests.iter().map(|(test, _)| test.as_str()).collect();
    assert_eq!(
        named, there,
        "UPDATE_FAULTS=1 cargo test documents makes the table afresh, after cargo test faults"
    );
    for (row, (test, source)) in rows.iter().zip(&tests) {
        let fault = row[0].trim_start_matches("| ");
        assert!(source.contains(&format!("\"{fault}\"")), "{test} does not call its fault {fault:?}");
    }
}
