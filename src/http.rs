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
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use tracing::{Instrument, info_span};
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
    let routes = routes
        .fallback(|| async { Problem::new(Code::RouteNotFound, "see /openapi.json for the routes there are") })
        .with_state(app.clone());
    dressed(routes, app)
}

/// For connections above the limit: everyone is told to come back later, in the way that each understands.
pub fn overloaded(app: &App) -> Router {
    dressed(Router::new().fallback(streams::refuse_overload).with_state(app.clone()), app)
}

fn dressed(routes: Router, app: &App) -> Router {
    let panics = CatchPanicLayer::custom(|_| Problem::new(Code::Internal, "a handler panicked").into_response());
    routes.layer((middleware::from_fn_with_state(app.clone(), dress), panics))
}

/// What surrounds every answer. One middleware, since each further one costs a publish as much as a delivery.
async fn dress(State(app): State<App>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let began = Instant::now();
    // No query in it: that may hold a token.
    let span = info_span!("request", request_id = %id, method = %request.method(), path = request.uri().path());
    async move {
        let response = match admit(&app, &request) {
            Ok(()) => next.run(request).await,
            Err(problem) => problem.into_response(),
        };
        let mut response = problem::finish(response, &id);
        tracing::debug!(status = response.status().as_u16(), after = ?began.elapsed(), "answered");
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, HeaderValue::from_str(&id).expect("visible ASCII is a header's"));
        if app.drain.is_leaving() {
            // A leaving replica lets go of kept-alive connections with their next answer.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
    .instrument(span)
    .await
}

/// The caller's id, if it is short and visible: it goes into logs and answers. A new one otherwise.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let fine = |id: &&str| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    given.filter(fine).map_or_else(
        // It has to differ from others, not to be unguessable, so the kernel need not be asked for it.
        || uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid().to_string(),
        str::to_owned,
    )
}

/// What is refused whatever the route.
fn admit(app: &App, request: &Request) -> Result<(), Problem> {
    if app.guarded {
        guard::refuse_foreign(request.uri(), request.headers())?;
    }
    refuse_idempotency_key(request)
}

/// Better refused than taken for granted: a caller that sends a key means to be safe when it repeats the request.
fn refuse_idempotency_key(request: &Request) -> Result<(), Problem> {
    let of_hashes = request.uri().path().starts_with("/v1/hashes");
    if of_hashes && request.headers().contains_key(idempotency::IDEMPOTENCY_KEY) {
        let detail = "writes to hashes take no Idempotency-Key; If-Match makes one safe to repeat";
        return Err(Problem::new(Code::InvalidHeader, detail));
    }
    Ok(())
}

/// Now, RFC 3339 in UTC with milliseconds.
fn now() -> String {
    let now = jiff::Timestamp::now();
    format!("{now:.3}")
}

#[cfg(test)]
mod fuzz;
