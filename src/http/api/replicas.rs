//! Which replicas the gateway has.

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
    /// By name.
    replicas: Vec<ReplicaDescription>,
}

/// A replica as it reported itself.
#[derive(Serialize, ToSchema)]
pub struct ReplicaDescription {
    /// Its name.
    replica: String,
    /// Its version.
    version: String,
    /// Open streams.
    streams: u64,
    /// Rooms that have subscribers there.
    rooms: u64,
    /// When it said so, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    reported_at: String,
}

/// List the gateway's replicas
///
/// Those that have been heard of within their lease. It takes `admin`.
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
