//! Serving: starts logs and traces, binds the listener, and runs the gateway until a signal ends it.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::Poll;

use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::{CommandError, variables};
use crate::config::Settings;
use crate::{server, telemetry};

/// The exit code after a second signal: 128 and the number of SIGINT, as shells count.
const INTERRUPTED: i32 = 130;

pub(super) fn run(settings: Settings) -> Result<(), CommandError> {
    settings.check().map_err(CommandError::usage)?;
    let runtime = super::runtime();
    // Dropped on this thread, while the runtime's threads still send the last spans.
    let _telemetry = {
        let _entered = runtime.enter();
        telemetry::start(&settings.telemetry, settings.server.replica_id.as_deref()).map_err(CommandError::usage)?
    };
    // As a task, `serve` runs on a worker thread: accepting connections then uses the memory of a thread that serves
    // them.
    runtime.block_on(runtime.spawn(serve(settings))).expect("serving does not panic")
}

async fn serve(mut settings: Settings) -> Result<(), CommandError> {
    let files = limit_connections(&mut settings);
    let listen = settings.server.listen;
    let listener = TcpListener::bind(listen).await;
    let listener = listener.map_err(|why| CommandError::usage(format!("--listen {listen}: {why}")))?;
    let greeting = greeting(&settings, listener.local_addr().unwrap_or(listen));
    let ready = || {
        super::print(&greeting);
        if let Some(FileLimit { files, wanted, left }) = files {
            tracing::warn!(
                files,
                max_connections = wanted,
                "the limit of open files leaves {left} connections: raise it (LimitNOFILE=, ulimit -Hn)"
            );
        }
        variables::warn_of_unknown();
    };
    let stop = CancellationToken::new();
    let mut signals = ExitSignals::listen();
    let served = tokio::select! {
        served = server::run(settings, listener, ready, stop.clone().cancelled_owned()) => served,
        // The first signal begins an orderly shutdown. The second one ends the process at once; no task may log
        // anything.
        () = async { signals.first().await; stop.cancel(); signals.next().await } => std::process::exit(INTERRUPTED),
    };
    served.map_err(|error| {
        if error.is_settings_error() { CommandError::usage(error) } else { CommandError::failure(error) }
    })
}

/// A limit of open files that is too low for the wanted connections.
struct FileLimit {
    files: usize,
    wanted: usize,
    left: usize,
}

/// Raises the limit of open files as far as the system allows. Each connection is an open file, so no more connections
/// are accepted than files remain.
fn limit_connections(settings: &mut Settings) -> Option<FileLimit> {
    let files = usize::try_from(rlimit::increase_nofile_limit(u64::MAX).unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let left = files.saturating_sub(server::RESERVED_FILES).max(1);
    let wanted = settings.requests.max_connections;
    settings.requests.max_connections = wanted.min(left);
    (left < wanted).then_some(FileLimit { files, wanted, left })
}

/// SIGTERM, SIGINT, SIGQUIT and SIGHUP.
struct ExitSignals {
    ends: [Signal; 3],
    /// None if the process ignores it, as `nohup` wants.
    hangup: Option<Signal>,
}

impl ExitSignals {
    fn listen() -> Self {
        let listen = |kind| signal(kind).expect("a new process can listen to signals");
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::quit()];
        let hangup = Some(SignalKind::hangup()).filter(|kind| !is_ignored(*kind));
        Self { ends: kinds.map(listen), hangup: hangup.map(listen) }
    }

    async fn first(&mut self) {
        self.next().await;
        // A terminal that closes may send it twice.
        self.hangup = None;
    }

    async fn next(&mut self) {
        poll_fn(|cx| {
            let mut signals = self.ends.iter_mut().chain(&mut self.hangup);
            if signals.any(|signal| signal.poll_recv(cx).is_ready()) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

/// Whether the process ignores a signal, by its state in /proc; false on systems without it.
fn is_ignored(kind: SignalKind) -> bool {
    let state = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = state.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or_default();
    ignored >> (kind.as_raw_value() - 1) & 1 == 1
}

/// The text on standard output once the gateway serves. Its first line ends with the URL, which scripts read.
fn greeting(settings: &Settings, address: SocketAddr) -> String {
    let url = format!("http://{address}");
    let broker = match (&settings.redis.url, &settings.embedded.data_dir) {
        (Some(redis), _) => format!("Redis at {redis}"),
        (None, Some(folder)) => format!("embedded, with its data in {}", folder.display()),
        (None, None) => "embedded, in memory only (--data-dir keeps data, --redis-url connects replicas)".into(),
    };
    let (access, header) = if settings.access.has_keys() {
        (
            "access: requests need a token (TOKEN=$(roomcast token --admin) makes one)\n",
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
