//! `/metrics`, for Prometheus.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use crate::http::App;
use crate::http::caller::Caller;
use crate::http::problem::Problem;
use crate::metrics::{CurrentState, OPENMETRICS_TYPE};

/// Get the replica's metrics
///
/// The response is `application/openmetrics-text`, for Prometheus. If the gateway has keys, this route needs `admin`.
/// A separate listener (`--metrics-listen`) serves the same without a token.
#[utoipa::path(
    get, path = "/metrics", operation_id = "getMetrics", tag = "Health",
    responses((status = 200, description = "The metrics of this replica", body = String,
        content_type = "application/openmetrics-text"))
)]
pub async fn get_metrics(caller: Caller, State(app): State<App>) -> Result<Response, Problem> {
    caller.require_admin()?;
    Ok(metrics(&app))
}

/// The metrics, for the listener of `--metrics-listen`.
pub async fn get_metrics_without_token(State(app): State<App>) -> Response {
    metrics(&app)
}

fn metrics(app: &App) -> Response {
    let health = app.log.health();
    let now = CurrentState {
        rooms: app.live.topic_count(),
        members: app.presence.member_count(),
        connections: app.connections.len(),
        commands_up: health.commands.is_none(),
        delivery_up: health.delivery.is_none(),
        round_trip: health.round_trip,
        memory_used: health.memory.map_or(0, |memory| memory.used),
        memory_limit: health.memory.map_or(0, |memory| memory.limit),
        written_rooms: app.log.watermarks().written_bytes(),
        malformed: app.live.malformed_announcements(),
        draining: app.drain.is_leaving(),
    };
    ([(header::CONTENT_TYPE, OPENMETRICS_TYPE)], app.metrics.text(&now)).into_response()
}
