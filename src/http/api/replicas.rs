//! The list of the gateway's replicas.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use crate::broker::Replica;
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::problem::Problem;

/// The gateway's replicas.
#[derive(Serialize, ToSchema)]
pub struct ReplicaList {
    /// The replicas, sorted by name.
    replicas: Vec<ReplicaDescription>,
}

/// A replica, as it last reported.
#[derive(Serialize, ToSchema)]
pub struct ReplicaDescription {
    /// The replica's name.
    replica: String,
    /// The replica's version.
    version: String,
    /// The number of open streams on the replica.
    streams: u64,
    /// The number of rooms that have subscribers on the replica.
    rooms: u64,
    /// The time of the report, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    reported_at: String,
}

/// List the gateway's replicas
///
/// The list has the replicas that have reported within their lease (`--replica-lease`). This route needs `admin`.
#[utoipa::path(
    get, path = "/v1/replicas", operation_id = "listReplicas", tag = "Presence",
    responses((status = 200, description = "The replicas", body = ReplicaList)),
)]
pub async fn list_replicas(caller: Caller, State(app): State<App>) -> Result<Json<ReplicaList>, Problem> {
    caller.require_admin()?;
    let mut replicas: Vec<_> = app.registry.replicas().await?.into_iter().map(ReplicaDescription::from).collect();
    replicas.sort_by(|one, other| one.replica.cmp(&other.replica));
    Ok(Json(ReplicaList { replicas }))
}

impl From<Replica> for ReplicaDescription {
    fn from(Replica { replica, version, streams, rooms, reported_at }: Replica) -> Self {
        Self { replica, version, streams, rooms, reported_at }
    }
}
