//! Compares pages with their sources. `UPDATE_DOCS=1 cargo test documents` writes `docs/configuration.md`, from the
//! command line's definition. `UPDATE_FAULTS=1 cargo test documents` writes the list of faults in
//! `docs/fault-tests.md`, from the results that the tests of faults have left.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, CommandFactory};
use roomcast::cli::CommandLine;

/// Longest line of a page, in characters.
const COLUMNS: usize = 100;
/// Most bytes of a page.
const MAX_PAGE_BYTES: usize = 14_000;

const INTRODUCTION: &str = "\
# Configuration

`roomcast --help` prints the same settings. Each has a flag and a variable; the flag wins. Without a command, \
`roomcast` serves.

- **Durations** (`TIME`) are `30` (seconds), `500ms`, `5m`, `24h`, and the like.
- **Repeatable settings** take several values: repeat the flag, or put spaces between the values of the variable.
- **Exit codes**: 0 after an orderly shutdown, 1 after a failure, 2 for a setting that can't be used, 130 after a second SIGTERM or SIGINT.

The other commands are:

- `roomcast health` exits with 0 if the gateway at `--url` (`ROOMCAST_HEALTH_URL`), else at `--listen`, is ready, else \
with 1.
- `roomcast token` makes a token for development; see [access](auth.md#tokens).
- `roomcast openapi` prints the [OpenAPI](api.md) document, `--version 3.2` the newer one.
- `roomcast completions SHELL` prints a completion script for `bash`, `zsh`, `fish`, `elvish` or `powershell`.
- `roomcast man [COMMAND]` prints the manual page; `| man -l -` shows it.
";

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs").join(name)
}

pub fn is_set(variable: &str) -> bool {
    crate::support::number_from(variable).is_some()
}

/// Breaks a text into lines, as long as possible, without a break inside a word. Lines after the first begin with
/// `indent`.
fn wrap(text: &str, indent: &str) -> String {
    let mut wrapped = String::new();
    let mut width = 0;
    for word in text.split_whitespace() {
        let length = word.chars().count();
        if width > 0 && width + 1 + length > COLUMNS {
            wrapped.push('\n');
            wrapped += indent;
            width = indent.len();
        } else if width > 0 {
            wrapped.push(' ');
            width += 1;
        }
        wrapped += word;
        width += length;
    }
    wrapped + "\n"
}

/// A list item for a setting.
fn setting(setting: &Arg) -> String {
    let flag = setting.get_long().unwrap();
    let is_switch = matches!(setting.get_action(), ArgAction::SetTrue);
    let value = setting.get_value_names().filter(|_| !is_switch).map(|names| format!(" {}", names[0]));
    let variable = setting.get_env().unwrap().to_str().unwrap();
    let defaults: Vec<_> = setting.get_default_values().iter().map(|value| value.to_str().unwrap()).collect();
    let default = match defaults.as_slice() {
        [default] if !is_switch => format!(", default `{default}`"),
        _ => String::new(),
    };
    let help = setting.get_long_help().or(setting.get_help()).unwrap().to_string();
    // clap drops the full stop at the end of a help text.
    let item = format!("- `--{flag}{}` (`{variable}`{default}): {help}.", value.unwrap_or_default());
    wrap(&item, "  ")
}

/// The text of `docs/configuration.md`.
fn configuration() -> String {
    let mut text = String::new();
    for line in INTRODUCTION.lines() {
        let indent = if line.starts_with("- ") { "  " } else { "" };
        text += &wrap(line, indent);
    }
    let command = CommandLine::command();
    let mut heading = None;
    for argument in command.get_arguments().filter(|argument| argument.get_env().is_some()) {
        if argument.get_help_heading() != heading {
            heading = argument.get_help_heading();
            write!(text, "\n## {}\n\n", heading.unwrap()).unwrap();
        }
        text += &setting(argument);
    }
    text
}

#[test]
fn the_configuration_page_is_the_command_lines_definition() {
    let (path, expected) = (page("configuration.md"), configuration());
    if is_set("UPDATE_DOCS") {
        std::fs::write(&path, &expected).unwrap();
    }
    for line in expected.lines() {
        assert!(line.chars().count() <= COLUMNS, "too long: {line}");
    }
    assert!(expected.len() <= MAX_PAGE_BYTES, "{} bytes", expected.len());
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(written == expected, "UPDATE_DOCS=1 cargo test documents writes docs/configuration.md again");
}

#[test]
fn lines_are_wrapped_at_100_columns_without_a_break_inside_a_word() {
    let (full, rest) = ("x".repeat(49) + " " + &"y".repeat(50), "z".repeat(98));
    assert_eq!(wrap(&format!("{full} {rest} z"), "  "), format!("{full}\n  {rest}\n  z\n"));
    assert_eq!(wrap(&"ü".repeat(120), "  "), "ü".repeat(120) + "\n");
}

/// The list of faults stands between these two lines.
const LIST: [&str; 2] = ["<!-- faults: UPDATE_FAULTS=1 cargo test documents -->\n", "<!-- end of faults -->\n"];
/// The files in `tests/it/faults` that have tests, in the order of the list.
const FAULTS: [&str; 8] =
    ["replicas", "links", "redis", "failovers", "data", "announcements", "clients", "watched_hashes"];

/// The names of the tests of faults, each with the text of its file, in the order of the files.
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

/// A list item for a fault.
struct FaultItem<'a> {
    fault: &'a str,
    told: &'a str,
    lost: &'a str,
    repeated: &'a str,
    test: &'a str,
}

impl<'a> FaultItem<'a> {
    fn text(&self) -> String {
        let Self { fault, told, lost, repeated, test } = self;
        let outcome = format!(
            "- **{fault}** — gaps told: {told}; lost without a gap: {lost}; repeated or out of order: {repeated}."
        );
        format!("{}  `{test}`\n", wrap(&outcome, "  "))
    }

    /// Reads an item whose outcome is on one line.
    fn parse(outcome: &'a str, test: &'a str) -> Option<Self> {
        let (fault, rest) = outcome.strip_prefix("- **")?.split_once("** — gaps told: ")?;
        let (told, rest) = rest.split_once("; lost without a gap: ")?;
        let (lost, rest) = rest.split_once("; repeated or out of order: ")?;
        let repeated = rest.strip_suffix('.')?;
        let test = test.strip_prefix("  `")?.strip_suffix('`')?;
        Some(Self { fault, told, lost, repeated, test })
    }
}

/// The list item for a test, from the result that the test has left.
fn fault_item(test: &str) -> String {
    let folder = crate::faults::outcome::folder();
    let files = [format!("{test}.json"), format!("{test}.on_redis.json")];
    let result = files.iter().find_map(|file| std::fs::read_to_string(folder.join(file)).ok());
    let result = result.unwrap_or_else(|| panic!("{test} has left no result: run cargo test faults first"));
    let result: serde_json::Value = serde_json::from_str(&result).unwrap();
    let word = |name: &str| result[name].as_str().unwrap();
    let (fault, told) = (word("fault"), word("told"));
    FaultItem { fault, told, lost: word("lost_unsaid"), repeated: word("twice_or_out_of_order"), test }.text()
}

#[test]
fn the_page_of_faults_has_an_item_for_every_fault_that_is_tested() {
    let path = page("fault-tests.md");
    let text = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = text.split_once(LIST[0]).expect("the page has a list of faults");
    let (list, after) = rest.split_once(LIST[1]).expect("the list of faults ends");
    let tests = fault_tests();
    if is_set("UPDATE_FAULTS") {
        let list: String = tests.iter().map(|(test, _)| fault_item(test)).collect();
        std::fs::write(&path, format!("{before}{}{list}{}{after}", LIST[0], LIST[1])).unwrap();
        return;
    }
    let mut items = Vec::new();
    let mut outcome = String::new();
    for line in list.lines() {
        if line.starts_with("  `p") {
            items.push((std::mem::take(&mut outcome), line));
        } else if outcome.is_empty() {
            line.clone_into(&mut outcome);
        } else {
            outcome.push(' ');
            outcome += line.trim_start();
        }
    }
    assert!(outcome.is_empty(), "no test for {outcome}");
    let items: Vec<_> = items
        .iter()
        .map(|(outcome, test)| FaultItem::parse(outcome, test).unwrap_or_else(|| panic!("{outcome}\n{test}")))
        .collect();
    let listed: Vec<_> = items.iter().map(|item| item.test).collect();
    let tested: Vec<_> = tests.iter().map(|(test, _)| test.as_str()).collect();
    assert_eq!(listed, tested, "UPDATE_FAULTS=1 cargo test documents writes the list, after cargo test faults");
    for (item, (test, source)) in items.iter().zip(&tests) {
        assert!(source.contains(&format!("\"{}\"", item.fault)), "{test} has no fault {:?}", item.fault);
    }
    let expected: String = items.iter().map(FaultItem::text).collect();
    assert_eq!(list, expected, "the list is not wrapped as UPDATE_FAULTS=1 cargo test documents wraps it");
}
