//! Every route in one list, and the middleware in order.

mod batch;
mod events;
mod extract;
mod guard;
mod hashes;
mod health;
mod idempotency;
pub mod openapi;
mod page;
pub mod problem;
mod rooms;
mod streams;

use std::ops::Deref;
use std::sync::Arc;

use axum::Router;
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::trace::TraceLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::problem::{Code, Problem};
pub use self::streams::{Fans, Held, Offer};
use crate::broker::HashStore;
use crate::config::Settings;
use crate::hub::Hub;
use crate::shutdown::Drain;

/// Names a request in its answer, in problem documents and in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken over from a caller.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// What handlers work with. Clones are the same.
#[derive(Clone)]
pub struct App(Arc<Parts>);

impl App {
    /// Puts the parts together.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }
}

impl Deref for App {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

/// What an [`App`] is made of.
pub struct Parts {
    /// The live rooms.
    pub hub: Arc<Hub>,
    /// The shared hashes.
    pub hashes: Arc<dyn HashStore>,
    /// How to serve.
    pub settings: Arc<Settings>,
    /// This replica's name.
    pub replica: Arc<str>,
    /// Whether the replica is leaving.
    pub drain: Drain,
    /// Only this machine is served, without keys: requests that a foreign web page could make are refused.
    pub guarded: bool,
}

/// The routes, and the document that describes them.
fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(events::publish_event, events::list_events, events::delete_events))
        .routes(routes!(batch::publish_events))
        .routes(routes!(streams::stream_room))
        .routes(routes!(streams::stream_rooms))
        .routes(routes!(rooms::list_rooms))
        .routes(routes!(rooms::describe_room))
        .routes(routes!(hashes::list_fields, hashes::patch_fields, hashes::delete_hash))
        .routes(routes!(hashes::get_field, hashes::set_field, hashes::delete_field))
        .routes(routes!(hashes::increment_field))
        .routes(routes!(health::get_liveness))
        .routes(routes!(health::get_readiness))
        .routes(routes!(health::get_health))
        .routes(routes!(openapi::get_openapi))
        .routes(routes!(openapi::get_openapi_3_2))
}

/// Everything that is served.
pub fn router(app: &App) -> Router {
    let (routes, _) = routes().split_for_parts();
    let limit = app.settings.max_body_bytes;
    let routes = routes
        .fallback(|| async { Problem::new(Code::RouteNotFound, "see /openapi.json for the routes there are") })
        .layer(DefaultBodyLimit::max(limit))
        .layer(middleware::from_fn(refuse_idempotency_key))
        .layer(middleware::from_fn_with_state(app.clone(), guard::refuse_foreign))
        .layer(CatchPanicLayer::custom(|_| Problem::new(Code::Internal, "a handler panicked").into_response()))
        .with_state(app.clone());
    dressed(routes, app)
}

/// For connections above the limit: everyone is told to come back later, in the way that each understands.
pub fn overloaded(app: &App) -> Router {
    let routes = Router::new().fallback(streams::refuse_overload).with_state(app.clone());
    dressed(routes, app)
}

/// What surrounds every answer, outermost last.
fn dressed(routes: Router, app: &App) -> Router {
    routes
        .layer(middleware::from_fn_with_state(app.drain.clone(), close_when_leaving))
        .layer(middleware::from_fn(problem::finish))
        .layer(TraceLayer::new_for_http().make_span_with(span).on_failure(()))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(middleware::from_fn(drop_hostile_request_id))
}

/// No query in it: that may hold a token.
fn span<B>(request: &axum::http::Request<B>) -> tracing::Span {
    let request_id = request_id(request.headers());
    tracing::info_span!("request", %request_id, method = %request.method(), path = request.uri().path())
}

/// The id of the request that these headers came with.
fn request_id(headers: &HeaderMap) -> String {
    headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned()
}

/// A caller's id goes into logs and answers: only a short and visible one.
async fn drop_hostile_request_id(mut request: Request, next: Next) -> Response {
    let fine = |id: &HeaderValue| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    if request.headers().get(REQUEST_ID).is_some_and(|id| !fine(id)) {
        request.headers_mut().remove(REQUEST_ID);
    }
    next.run(request).await
}

/// Better refused than taken for granted: a caller that sends a key means to be safe when it repeats the request.
async fn refuse_idempotency_key(request: Request, next: Next) -> Response {
    let of_hashes = request.uri().path().starts_with("/v1/hashes");
    if of_hashes && request.headers().contains_key(idempotency::IDEMPOTENCY_KEY) {
        let detail = "writes to hashes take no Idempotency-Key; If-Match makes one safe to repeat";
        return Problem::new(Code::InvalidHeader, detail).into_response();
    }
    next.run(request).await
}

/// A leaving replica lets go of kept-alive connections with their next answer.
async fn close_when_leaving(State(drain): State<Drain>, request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    if drain.is_leaving() {
        response.headers_mut().insert(axum::http::header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// Now, RFC 3339 in UTC with milliseconds.
fn now() -> String {
    let now = jiff::Timestamp::now();
    format!("{now:.3}")
}

#[cfg(test)]
mod fuzz;
