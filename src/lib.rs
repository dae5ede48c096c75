//! Roomcast: an HTTP gateway for realtime rooms and shared values.
//!
//! The layers, from what everything rests on to what knows everything; each uses only those before it:
//! `names` <- `log` <- `broker` <- `live` <- `presence`, `moderation` <- `delivery` <- `http` <- `server`.

pub use roomcast_core::{cache, log, names};

pub mod digest;
pub mod shutdown;
pub mod trace;

pub mod broker;

pub mod live;

pub mod moderation;
pub mod presence;

pub mod auth;
pub mod metrics;
pub mod rate_limit;

pub mod delivery;

pub mod config;

pub mod http;

pub mod server;

pub mod health_client;
pub mod telemetry;

#[cfg(test)]
#[path = "../core/src/fuzz.rs"]
mod fuzz;
