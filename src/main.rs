//! The binary: reads the command line, starts logs, binds and runs. No logic.

use std::io::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::Parser;
use roomcast::config::{Command, CommandLine, Settings};
use roomcast::{auth, health_client, http, server, telemetry};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A bad setting.
const BAD_SETTING: u8 = 2;
/// A second signal: 128 and SIGINT's number, as shells count.
const INTERRUPTED: i32 = 130;

fn main() -> ExitCode {
    let line = match CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) => return refuse_arguments(&error),
    };
    let runtime = tokio::runtime::Runtime::new().expect("the system gives threads to a new process");
    match line.command {
        // As a task: what accepts connections then shares a thread's memory with what serves them.
        None => runtime.block_on(runtime.spawn(serve(line.settings))).expect("serving does not panic"),
        Some(Command::Openapi { version }) => {
            say(http::openapi::text(version).trim_end());
            ExitCode::SUCCESS
        }
        Some(Command::Token(arguments)) => {
            let (token, secret) = arguments.into_token();
            match auth::mint(token, secret.expose(), SystemTime::now()) {
                Ok(token) => {
                    say(&token);
                    ExitCode::SUCCESS
                }
                Err(why) => complain(&why.to_string(), BAD_SETTING),
            }
        }
        Some(Command::Health { url }) => match runtime.block_on(health_client::ask(&url)) {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => complain(&why, 1),
        },
    }
}

async fn serve(mut settings: Settings) -> ExitCode {
    if let Err(why) = settings.check() {
        return complain(&why.to_string(), BAD_SETTING);
    }
    let _telemetry = match telemetry::start(&settings) {
        Ok(telemetry) => telemetry,
        Err(why) => return complain(&why, BAD_SETTING),
    };
    // A stream is an open file each.
    let files = usize::try_from(rlimit::increase_nofile_limit(u64::MAX).unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    settings.max_connections = settings.max_connections.min(files.saturating_sub(server::RESERVED_FILES).max(1));
    let listener = match TcpListener::bind(settings.listen).await {
        Ok(listener) => listener,
        Err(why) => return complain(&format!("--listen {}: {why}", settings.listen), BAD_SETTING),
    };
    let address = listener.local_addr().unwrap_or(settings.listen);
    let stop = CancellationToken::new();
    let mut signals = Signals::listen();
    let greeting = greeting(&settings, address);
    let ended = tokio::select! {
        ended = server::run(settings, listener, || say(&greeting), stop.clone().cancelled_owned()) => ended,
        // The first signal asks to leave politely, the second to leave: without another word of any task.
        () = async { signals.next().await; stop.cancel(); signals.next().await } => std::process::exit(INTERRUPTED),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.is_settings_error() => complain(&error.to_string(), BAD_SETTING),
        Err(error) => complain(&error.to_string(), 1),
    }
}

/// SIGTERM and SIGINT.
struct Signals(Signal, Signal);

impl Signals {
    fn listen() -> Self {
        let listen = |kind| signal(kind).expect("a fresh process can listen to signals");
        Self(listen(SignalKind::terminate()), listen(SignalKind::interrupt()))
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
    }
}

fn greeting(settings: &Settings, address: std::net::SocketAddr) -> String {
    let broker = match (&settings.redis_url, &settings.data_dir) {
        (Some(url), _) => format!("Redis at {url}"),
        (None, Some(folder)) => format!("embedded, kept in {}", folder.display()),
        (None, None) => {
            "embedded: this process's memory (--data-dir to keep it, --redis-url for replicas over Redis)".into()
        }
    };
    let url = format!("http://{address}");
    let (access, header) = if settings.access.has_keys() {
        (
            "access: tokens say who may do what (TOKEN=$(roomcast token --admin) makes one)\n",
            " -H \"authorization: Bearer $TOKEN\"",
        )
    } else {
        ("", "")
    };
    format!(
        "roomcast {version} listens on {url}\nbroker: {broker}\n{access}\nTry, in two terminals:\n  \
         curl -N{header} {url}/v1/rooms/lobby/stream\n  \
         curl{header} -d 'hello' {url}/v1/rooms/lobby/events\n  \
         curl{header} -X PUT -d 'green' {url}/v1/hashes/lamp/fields/colour\n  \
         curl{header} {url}/v1/hashes/lamp/fields/colour\n",
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// One line, whatever was wrong.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        say(error.render().to_string().trim_end());
        return ExitCode::SUCCESS;
    }
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more"));
    let words: Vec<_> = lines.map(str::trim).filter(|line| !line.is_empty()).collect();
    complain(words.join("; ").trim_start_matches("error: "), BAD_SETTING)
}

fn complain(why: &str, code: u8) -> ExitCode {
    // Nobody may be listening, which is no reason to fail differently.
    let _ = writeln!(std::io::stderr(), "roomcast: {why}");
    ExitCode::from(code)
}

fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
