//! Roomcast: an HTTP gateway for realtime rooms and shared values.
//!
//! The layers, from the bottom to the top; each uses only those before it:
//! `names` <- `log` <- `cache`, `broker` <- `live` <- `presence`, `moderation` <- `delivery` <- `http` <- `server`
//! <- `cli`.

// The pure rules, without I/O: names, the log's epochs and heads, the live cache, the mirror of a hash.
pub use roomcast_core::{cache, log, mirror, names};

// Digests, background tasks, times and traces, used by every layer.
pub mod digest;
pub mod shutdown;
pub mod timestamp;
pub mod trace;

// The contracts for logs, hashes, presence and moderation, with the embedded broker and the one over Redis.
pub mod broker;

// The topics that have subscribers on this replica.
pub mod live;

// Members of rooms; removals and revocations.
pub mod moderation;
pub mod presence;

// Permissions, metrics, and limits of callers.
pub mod auth;
pub mod metrics;
pub mod rate_limit;

// Streams: from a position to the bytes on a connection.
pub mod delivery;

// The settings.
pub mod config;

// Routes, requests and responses.
pub mod http;

// Connections, start and shutdown.
pub mod server;

// Logs, and the command line.
pub mod cli;
pub mod telemetry;

#[cfg(test)]
#[path = "../core/src/fuzz.rs"]
mod fuzz;
