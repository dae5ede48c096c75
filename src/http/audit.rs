//! Lines of the log about who was refused and who was removed, under a target of their own: `--log info,audit=warn` is without them.

use std::net::IpAddr;

use super::caller::By;
use super::problem::Problem;
use super::{App, named};

/// Somebody was refused.
pub fn refused(problem: &Problem, subject: Option<&str>, address: Option<IpAddr>) {
    let (code, detail) = (problem.code().name(), problem.detail());
    let address = address.map(tracing::field::display);
    named::log(|| tracing::info!(target: "audit", code, subject, address, detail, "refused"));
}

/// Somebody was removed, or kept out, by somebody.
pub fn removed(app: &App, by: &By, what: &'static str, whom: &str, deny_seconds: u64) {
    let (subject, address) = (by.caller().subject.as_deref(), by.address().map(tracing::field::display));
    app.metrics.removed(what);
    named::log(|| tracing::info!(target: "audit", subject, address, what, whom, deny_seconds, "removed"));
}
