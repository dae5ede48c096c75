//! HTTP: all routes in one list. Handlers are in `api`, one file for each resource. The middleware, the extractors
//! and problem documents have files of their own.

mod address;
mod api;
mod app;
mod audit;
mod body;
mod caller;
mod entity_tags;
mod extract;
mod idempotency;
mod middleware;
pub mod openapi;
mod origin;
mod page;
mod pages;
mod prefer;
pub mod problem;

use axum::Router;
use axum::routing::get;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use self::address::Peer;
use self::api::hashes::{expiry, fields, names};
use self::api::streams::refusal;
use self::api::{batch, events, hashes, health, metrics, moderation, replicas, rooms, streams, subscribers};
pub use self::app::App;
use self::middleware::with_middleware;
use self::problem::{Code, Problem};

/// All routes, with the document that describes them.
fn routes() -> OpenApiRouter<App> {
    public_routes().merge(admin_routes())
}

/// The routes for operators and moderators.
fn admin_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(moderation::remove_subscriber))
        .routes(routes!(moderation::remove_user))
        .routes(routes!(moderation::revoke_token))
        .routes(routes!(replicas::list_replicas))
        .routes(routes!(events::delete_events))
}

fn public_routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(events::publish_event, events::list_events))
        .routes(routes!(batch::publish_events))
        .routes(routes!(streams::stream_room))
        .routes(routes!(streams::stream_rooms))
        .routes(routes!(streams::stream_hash))
        .routes(routes!(rooms::list_rooms))
        .routes(routes!(rooms::describe_room))
        .routes(routes!(subscribers::list_subscribers))
        .routes(routes!(names::list_hashes))
        .routes(routes!(hashes::list_fields, hashes::patch_fields, hashes::delete_hash))
        .routes(routes!(expiry::set_expiry))
        .routes(routes!(fields::get_field, fields::set_field, fields::delete_field))
        .routes(routes!(fields::increment_field))
        .routes(routes!(health::get_liveness))
        .routes(routes!(health::get_readiness))
        .routes(routes!(health::get_health))
        .routes(routes!(metrics::get_metrics))
        .routes(routes!(openapi::get_openapi))
        .routes(routes!(openapi::get_openapi_3_0))
        .routes(routes!(openapi::get_openapi_3_2))
}

/// The routes of the main listener: all of them, or all but those that `--admin-listen` moves to another listener.
pub fn router(app: &App) -> Router {
    let has_admin_listener = app.settings.server.admin_listen.is_some();
    let routes = if has_admin_listener { public_routes() } else { routes() };
    with_fallback(routes.merge(pages::pages(!app.settings.server.no_console).into()), app)
}

/// The routes for operators and moderators, for the listener of `--admin-listen`.
pub fn admin_router(app: &App) -> Router {
    with_fallback(admin_routes(), app)
}

/// `/metrics`, for the listener of `--metrics-listen`. If other machines can reach it, they do so by any name.
pub fn metrics_router(app: &App) -> Router {
    let routes = Router::new().route("/metrics", get(metrics::get_metrics_without_token)).with_state(app.clone());
    let fallback = || async { Problem::new(Code::RouteNotFound, "this listener serves only /metrics") };
    let is_local = app.settings.server.metrics_listen.is_some_and(|address| address.ip().is_loopback());
    with_middleware(routes.fallback(fallback), app, app.guarded && is_local)
}

/// Refuses every request, for connections above the limit. Clients learn that they should retry, each in the form
/// that it understands.
pub fn overload_router(app: &App) -> Router {
    with_middleware(Router::new().fallback(refusal::refuse_overload).with_state(app.clone()), app, app.guarded)
}

fn with_fallback(routes: OpenApiRouter<App>, app: &App) -> Router {
    let (routes, _) = routes.split_for_parts();
    let fallback = || async { Problem::new(Code::RouteNotFound, "/openapi.json lists the routes") };
    with_middleware(routes.fallback(fallback).with_state(app.clone()), app, app.guarded)
}

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod test_app;
#[cfg(test)]
pub(crate) use test_app::test_app;
