//! Roomcast: an HTTP gateway for realtime rooms and shared values.
//!
//! The parts, from what everything rests on to what knows everything; each uses only those above it:
//! `room` <- `follow` <- `broker` <- `hub` <- `http` <- `server`.

pub mod room;

pub mod follow;

pub mod broker;

pub mod sse;

pub mod hub;
pub mod limits;

pub mod access;

pub mod metrics;

pub mod config;

pub mod shutdown;

pub mod http;

pub mod server;

pub mod health_client;

pub mod telemetry;

pub mod trace;

#[cfg(test)]
mod fuzz;
