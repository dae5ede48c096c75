//! Behaviour through the front door: real gateways, real Redis processes, real clients.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]
#![allow(clippy::print_stdout, reason = "what a test says is shown if it fails: its seed, for one")]

#[macro_use]
mod support;

mod auth;
mod cli;
mod clients;
mod connections;
mod contract;
mod documents;
mod faults;
mod hashes;
mod idempotency;
mod limits;
mod log;
mod metrics;
mod openapi;
mod outages;
mod persistence;
mod presence;
mod rawbytes;
mod redis;
mod removals;
mod replicas;
mod scripts;
mod shutdown;
mod streams;
mod tidy;
mod traces;
mod validation;
