//! Lines of the log about who was refused and who was removed, under a target of their own: `--log info,audit=warn` is without them.

use std::net::IpAddr;

use super::App;
use super::caller::Caller;
use super::middleware::request_context;
use super::problem::Problem;

/// Somebody was refused.
pub fn refused(problem: &Problem, subject: Option<&str>, address: Option<IpAddr>) {
    let (code, detail) = (problem.code().name(), problem.detail());
    let address = address.map(tracing::field::display);
    request_context::log(|| tracing::info!(target: "audit", code, subject, address, detail, "refused"));
}

/// Somebody was removed, or kept out, by somebody.
pub fn removed(app: &App, caller: &Caller, what: &'static str, whom: &str, deny_seconds: u64) {
    let (subject, address) = (caller.identity().subject.as_deref(), caller.address().map(tracing::field::display));
    app.metrics.removed(what);
    request_context::log(|| tracing::info!(target: "audit", subject, address, what, whom, deny_seconds, "removed"));
}
