//! What the documents say of settings, and what the code does.

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
