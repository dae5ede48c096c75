//! The audit log: refusals and removals, with a target of their own. `--log info,audit=off` leaves them out.

use std::net::IpAddr;

use super::App;
use super::caller::Caller;
use super::middleware::request_context::{self, cut};
use super::problem::Problem;

/// Logs that a request or a stream was refused. Of many refusals of one address for one reason, some are
/// left out.
pub fn refused(problem: &Problem, subject: Option<&str>, address: Option<IpAddr>) {
    let code = problem.code().name();
    request_context::log_limited(code, |omitted| {
        let detail = &*cut(problem.detail());
        let address = address.map(tracing::field::display);
        tracing::info!(target: "audit", code, subject, address, detail, omitted, "refused");
    });
}

/// Logs and counts a removal that a caller has requested. `kind` is `subscriber`, `user` or `token`; `name` is its
/// name.
pub fn removed(app: &App, caller: &Caller, kind: &'static str, name: &str, deny_seconds: u64) {
    let (subject, address) = (caller.identity().subject.as_deref(), caller.address().map(tracing::field::display));
    app.metrics.removed(kind);
    request_context::log(|| tracing::info!(target: "audit", subject, address, kind, name, deny_seconds, "removed"));
}
