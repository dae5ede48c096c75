//! `roomcast man`: prints the manual page, from the same definition as `--help`.

use clap::{Args, CommandFactory};
use clap_mangen::Man;

use super::{CommandError, CommandLine};

/// The arguments of `roomcast man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Command whose page to print, for example `token`. If left out, the page of roomcast.
    command: Option<String>,
}

pub(super) fn run(arguments: &ManArgs) -> Result<(), CommandError> {
    let mut command = CommandLine::command().disable_help_subcommand(true);
    command.build();
    let command = match &arguments.command {
        None => command,
        Some(name) => command.find_subcommand(name).cloned().ok_or_else(|| {
            let names: Vec<_> = command.get_subcommands().map(|known| known.get_name().to_owned()).collect();
            CommandError::usage(format!("expected a command of roomcast: {}", names.join(", ")))
        })?,
    };
    let mut page = Vec::new();
    Man::new(command).render(&mut page).map_err(CommandError::failure)?;
    super::print(String::from_utf8_lossy(&page).trim_end());
    Ok(())
}
