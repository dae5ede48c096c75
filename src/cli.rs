//! The command line: one module for each command. Without a command, `roomcast` serves.

mod completions;
mod health;
mod man;
mod openapi;
mod serve;
mod token;
mod variables;

use std::fmt;
use std::io::Write;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};

use self::completions::CompletionsArgs;
use self::health::HealthArgs;
use self::man::ManArgs;
use self::openapi::OpenapiArgs;
use self::token::TokenArgs;
use crate::config::Settings;

/// The end of `--help`.
const AFTER_HELP: &str = "\
Durations: 30 (seconds), 500ms, 5m, 24h.
Each setting has a flag and a ROOMCAST_* variable; the flag wins. A repeatable setting takes several values: repeat \
the flag, or separate the values in the variable with spaces.

Exit codes: 0 after an orderly shutdown, 1 after a failure, 2 for a setting that can't be used, 130 after a second \
signal.";

/// HTTP gateway for realtime rooms and shared values.
///
/// Publishers POST events to rooms. Browsers and services read rooms as Server-Sent Events. Clients read and set values
/// in shared hashes. Without a command, roomcast serves.
#[derive(Debug, Parser)]
#[command(name = "roomcast", version, args_conflicts_with_subcommands = true, after_long_help = AFTER_HELP)]
pub struct CommandLine {
    /// The command to run instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The settings of the gateway.
    #[command(flatten)]
    pub settings: Settings,
}

/// The commands besides serving.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the OpenAPI document.
    Openapi(OpenapiArgs),
    /// Exit with 0 if a running gateway is ready, else with 1. For health checks of containers.
    Health(HealthArgs),
    /// Make a token for development, signed with HS256.
    Token(Box<TokenArgs>),
    /// Print a completion script for a shell.
    Completions(CompletionsArgs),
    /// Print the manual page in troff, as `man -l -` reads it.
    Man(ManArgs),
}

/// Reads the command line and runs its command. The error of a command is one line on standard error.
pub fn run() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => return refuse_arguments(error),
    };
    match line.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error.report(),
    }
}

impl CommandLine {
    fn run(self) -> Result<(), CommandError> {
        match self.command {
            None => serve::run(self.settings)?,
            Some(Command::Openapi(arguments)) => openapi::run(&arguments),
            Some(Command::Health(arguments)) => health::run(&arguments)?,
            Some(Command::Token(arguments)) => token::run(*arguments)?,
            Some(Command::Completions(arguments)) => completions::run(&arguments),
            Some(Command::Man(arguments)) => man::run(&arguments)?,
        }
        Ok(())
    }
}

/// Why a command failed: the line that it prints, and its exit code.
struct CommandError {
    text: String,
    code: u8,
}

impl CommandError {
    /// An argument or a setting can't be used.
    fn usage(why: impl fmt::Display) -> Self {
        Self { text: why.to_string(), code: 2 }
    }

    /// The command began, and failed.
    fn failure(why: impl fmt::Display) -> Self {
        Self { text: why.to_string(), code: 1 }
    }

    fn report(&self) -> ExitCode {
        // A closed standard error is no reason for another exit code.
        let _ = writeln!(std::io::stderr(), "roomcast: {}", self.text);
        ExitCode::from(self.code)
    }
}

/// Prints help or the version if the arguments ask for it. Else shortens clap's message, which has several lines and a
/// usage text, to one line.
fn refuse_arguments(mut error: clap::Error) -> ExitCode {
    if !error.use_stderr() {
        print(error.render().to_string().trim_end());
        return ExitCode::SUCCESS;
    }
    if let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg)
        && error.kind() == ErrorKind::UnknownArgument
        && is_flag_for_listen(flag)
    {
        return CommandError::usage(format!("there is no {flag}: write --listen 127.0.0.1:8080")).report();
    }
    let is_misplaced = hide_secrets(&mut error);
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let parts: Vec<_> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
    // Arguments that are missing stand on lines of their own. The other texts are those of Rust's parsers.
    let text = parts
        .join("; ")
        .replace(":; ", ": ")
        .replace("invalid digit found in string", "it must be a whole number")
        .replace("cannot parse integer from empty string", "it must be a whole number")
        .replace("number too large to fit in target type", "the number is too large")
        .replace("invalid float literal", "it must be a number");
    // The setting's own parser may have quoted a part of the value.
    let text = text.split_once("': ").filter(|_| is_misplaced).map_or(text.clone(), |(head, _)| format!("{head}'"));
    CommandError::usage(text.trim_start_matches("error: ")).report()
}

/// Whether other servers call the flag for their address so.
fn is_flag_for_listen(flag: &str) -> bool {
    matches!(flag, "--port" | "-p" | "--host" | "--bind" | "-b" | "--addr" | "--address")
}

/// Hides the value that clap's message quotes, if it may have a secret in it: any value of a setting that is marked
/// with `hide_env_values`, whose parser quotes nothing, and elsewhere what can only be there by mistake. Returns whether
/// it hides a value of a setting that is not marked.
fn hide_secrets(error: &mut clap::Error) -> bool {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => text.as_str(),
        _ => "",
    };
    let (argument, value) = (context(ContextKind::InvalidArg), context(ContextKind::InvalidValue));
    let mut commands = CommandLine::command();
    commands.build();
    let is_marked = std::iter::once(&commands).chain(commands.get_subcommands()).any(|command| {
        command.get_arguments().any(|known| known.to_string() == argument && known.is_hide_env_values_set())
    });
    let is_url = value.contains(":/");
    let is_plain = |word: &str| word.chars().all(|c| c.is_ascii_lowercase() || c == '-');
    let hidden = match error.kind() {
        ErrorKind::UnknownArgument if !is_plain(argument) => ContextKind::InvalidArg,
        ErrorKind::InvalidSubcommand if !is_plain(context(ContextKind::InvalidSubcommand)) => {
            ContextKind::InvalidSubcommand
        }
        ErrorKind::TooManyValues => ContextKind::InvalidValue,
        _ if is_marked || is_url => ContextKind::InvalidValue,
        _ => return false,
    };
    // The tip to write the word after `--` quotes it, too.
    error.remove(ContextKind::Suggested);
    error.insert(hidden, ContextValue::String("***".into()));
    is_url && !is_marked
}

/// Prints a text and a line end. A reader that has gone, as in `roomcast openapi | head`, is no error.
fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().expect("the system gives threads to a new process")
}
