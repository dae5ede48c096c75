//! `roomcast completions`: prints a completion script.

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::CommandLine;

/// The arguments of `roomcast completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// Shell that reads the script.
    shell: Shell,
}

pub(super) fn run(arguments: &CompletionsArgs) {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut CommandLine::command(), "roomcast", &mut script);
    super::print(String::from_utf8_lossy(&script).trim_end());
}
