//! Integration tests: real gateways, real Redis processes and real clients, through the public interface.

#![allow(clippy::unwrap_used, reason = "a panic fails the test")]
#![allow(clippy::print_stdout, reason = "the harness shows the output of a failed test, for example its seed")]

#[macro_use]
mod support;

mod auth;
mod cli;
mod clients;
mod conditional_publish;
mod connections;
mod contract;
mod documents;
mod faults;
mod finished_rooms;
mod hashes;
mod heartbeats;
mod http;
mod idempotency;
mod limits;
mod log;
mod long_poll;
mod metrics;
mod openapi;
mod outages;
mod pages;
mod persistence;
mod presence;
mod rawbytes;
mod recipes;
mod redis;
mod removals;
mod replicas;
mod scripts;
mod shutdown;
mod start;
mod stream_ends;
mod streams;
mod tidy;
mod traces;
mod untyped;
mod validation;
