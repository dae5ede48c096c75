//! The health of a replica: whether it runs, accepts work, and could deliver a publish.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Serialize;
use utoipa::ToSchema;

use crate::broker::{Fault, OtherClients};
use crate::http::App;

/// The state of this replica.
#[derive(Serialize, ToSchema)]
pub struct Status {
    /// `ok`, or `draining` while the replica is shutting down.
    status: &'static str,
}

/// Check that the process runs
///
/// For the supervisor that restarts a process. A process that does not answer should be restarted.
#[utoipa::path(
    get, path = "/livez", operation_id = "getLiveness", tag = "Health",
    responses((status = 200, description = "The process runs", body = Status))
)]
pub async fn get_liveness() -> Json<Status> {
    Json(Status { status: "ok" })
}

/// Check that this replica accepts new work
///
/// For load balancers and containers. The answer is about this replica only, never about Redis: if all replicas became
/// unready together with Redis, a load balancer would answer 503, which ends every `EventSource` for good.
#[utoipa::path(
    get, path = "/readyz", operation_id = "getReadiness", tag = "Health",
    responses(
        (status = 200, description = "The replica accepts new work", body = Status),
        (status = 503, description = "The replica is shutting down", body = Status),
    )
)]
pub async fn get_readiness(State(app): State<App>) -> (StatusCode, Json<Status>) {
    app.drain.watch();
    if app.drain.is_leaving() {
        (StatusCode::SERVICE_UNAVAILABLE, Json(Status { status: "draining" }))
    } else {
        (StatusCode::OK, Json(Status { status: "ok" }))
    }
}

/// Whether a publish would be delivered now.
#[derive(Serialize, ToSchema)]
pub struct HealthReport {
    /// `ok` or `degraded`.
    status: &'static str,
    /// The name of this replica.
    replica: String,
    /// The version of this replica.
    version: &'static str,
    /// `embedded` or `redis`.
    broker: &'static str,
    /// The state of commands to the broker: `ok`, or the kind of fault.
    commands: &'static str,
    /// The state of announcements from the broker: `ok`, or the kind of fault.
    delivery: &'static str,
    /// The number of messages on the rooms' channels that were not announcements, since the replica has started.
    malformed_announcements: u64,
    /// Whether Redis notifies this replica of what other clients change in watched hashes. If not, hashes are compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    keyspace_notifications: Option<bool>,
}

/// Check that a publish would be delivered now
///
/// For monitors, not for load balancers. Within 5 s of a fault the status is 503, and the report says which part fails.
#[utoipa::path(
    get, path = "/healthz", operation_id = "getHealth", tag = "Health",
    responses(
        (status = 200, description = "A publish would be delivered", body = HealthReport),
        (status = 503, description = "A publish would not be delivered", body = HealthReport),
    )
)]
pub async fn get_health(State(app): State<App>) -> (StatusCode, Json<HealthReport>) {
    let health = app.log.health();
    let part = |fault: &Option<Fault>| fault.as_ref().map_or("ok", |fault| fault.kind.name());
    let (code, status) =
        if health.is_well() { (StatusCode::OK, "ok") } else { (StatusCode::SERVICE_UNAVAILABLE, "degraded") };
    let report = HealthReport {
        status,
        replica: app.replica.to_string(),
        version: env!("CARGO_PKG_VERSION"),
        broker: app.broker_kind,
        commands: part(&health.commands),
        delivery: part(&health.delivery),
        malformed_announcements: app.live.malformed_announcements(),
        keyspace_notifications: match app.hashes.other_clients() {
            OtherClients::None => None,
            OtherClients::Notified => Some(true),
            OtherClients::Unnoticed => Some(false),
        },
    };
    (code, Json(report))
}
