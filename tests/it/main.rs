//! Behaviour through the front door: real gateways, real Redis processes, real clients.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]
#![allow(clippy::print_stdout, reason = "what a test says is shown if it fails: its seed, for one")]

#[macro_use]
mod support;

mod access;
mod cli;
mod clients;
mod connections;
mod contract;
mod documents;
mod durable;
mod faults;
mod hashes;
mod input;
mod leaving;
mod limits;
mod log;
mod metrics;
mod once;
mod openapi;
mod outages;
mod presence;
mod rawbytes;
mod redis;
mod removals;
mod replicas;
mod scripts;
mod streams;
mod tidy;
mod traces;
