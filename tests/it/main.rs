//! Behaviour through the front door: real gateways, real Redis processes, real clients.

#![allow(clippy::unwrap_used, reason = "a test that panics is a test that fails")]

#[macro_use]
mod support;

mod cli;
mod clients;
mod connections;
mod contract;
mod documents;
mod faults;
mod hashes;
mod input;
mod leaving;
mod log;
mod once;
mod openapi;
mod redis;
mod replicas;
mod scripts;
mod streams;
mod tidy;
