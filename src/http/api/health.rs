//! Whether the replica lives, takes requests, and could deliver a publish.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::broker::Fault;
use crate::http::App;

/// The replica's own state.
#[derive(Serialize, ToSchema)]
pub struct Status {
    /// `ok`, or `draining` while the replica leaves.
    status: &'static str,
}

/// Ask whether the process lives
///
/// For containers: a process that does not answer should be started anew.
#[utoipa::path(
    get, path = "/livez", operation_id = "getLiveness", tag = "Health",
    responses((status = 200, description = "It does", body = Status))
)]
pub async fn get_liveness() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// Ask whether this replica takes new work
///
/// About this replica alone, never about Redis: were every replica unready with Redis, a balancer would answer 503, which
/// ends every EventSource for good.
#[utoipa::path(
    get, path = "/readyz", operation_id = "getReadiness", tag = "Health",
    responses(
        (status = 200, description = "It does", body = Status),
        (status = 503, description = "It is leaving", body = Status),
    )
)]
pub async fn get_readiness(State(app): State<App>) -> (StatusCode, Json<Status>) {
    if app.drain.is_leaving() {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Status { status: "draining" }))
    } else {
        (StatusCode::OK, Json(Status { status: "ok" }))
    }
}

/// Whether a publish would be delivered now.
#[derive(Serialize, ToSchema)]
pub struct HealthReport {
    /// `ok`, or `ill`.
    status: &'static str,
    /// This replica.
    replica: String,
    /// Its version.
    version: &'static str,
    /// `embedded` or `redis`.
    broker: &'static str,
    /// `ok`, or the kind of fault that commands to the broker meet.
    commands: &'static str,
    /// `ok`, or the kind of fault that announcements from it meet.
    delivery: &'static str,
    /// Messages on the rooms' channels that were no announcements, since the start.
    malformed_announcements: u64,
}

/// Ask whether a publish would be delivered now
///
/// For monitors, not for balancers. Within 5 s of a fault it is 503 and says which part is ill.
#[utoipa::path(
    get, path = "/healthz", operation_id = "getHealth", tag = "Health",
    responses(
        (status = 200, description = "It would", body = HealthReport),
        (status = 503, description = "It would not", body = HealthReport),
    )
)]
pub async fn get_health(State(app): State<App>) -> (StatusCode, Json<HealthReport>) {
    let health = app.log.health();
    let part = |fault: &Option<Fault>| fault.as_ref().map_or("ok", |fault| fault.kind.name());
    let (status, word) =
        if health.is_well() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "degraded") };
    let report = HealthReport {
        status: word,
        replica: app.replica.to_string(),
        version: env!("CARGO_PKG_VERSION"),
        broker: app.broker_kind,
        commands: part(&health.commands),
        delivery: part(&health.delivery),
        malformed_announcements: app.live.malformed_announcements(),
    };
    (status, Json(report))
}
