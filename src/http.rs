//! Every route in one list, and the middleware in order.

mod address;
mod audit;
mod batch;
mod caller;
mod events;
mod extract;
mod guard;
mod hashes;
mod health;
mod idempotency;
mod metrics;
mod named;
pub mod openapi;
mod page;
pub mod problem;
mod removals;
mod rooms;
mod streams;

use std::convert::Infallible;
use std::ops::Deref;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{Route, get};
use futures_util::FutureExt;
use tokio_util::task::TaskTracker;
use tower::layer::layer_fn;
use tower::{ServiceExt, service_fn};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::{Span, info_span};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use self::address::Peer;
use self::caller::Stands;
use self::named::Named;
use self::problem::{Code, Problem};
pub use self::streams::{Fans, Held, Offer};
use crate::access::Access;
use crate::broker::HashStore;
use crate::config::{Origin, Settings};
use crate::hub::Hub;
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::shutdown::Drain;
use crate::trace;

/// Names a request in its answer, in problem documents and in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id that is taken over from a caller.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// Values and events are others' words: a browser is to run, guess and frame nothing of them. What somebody types into its
/// console beside one may still call the gateway.
const SECURITY_HEADERS: [(HeaderName, &str); 3] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; connect-src 'self'; frame-ancestors 'none'"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];
/// How long browsers remember that a page's requests are allowed.
const PREFLIGHT_LIFETIME: Duration = Duration::from_mins(10);

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
    /// Who may do what.
    pub access: Access,
    /// How much a caller may take. None: as much as it likes.
    pub limits: Option<Arc<Limits>>,
    /// What is counted.
    pub metrics: Metrics,
    /// The open connections.
    pub connections: TaskTracker,
    /// How to serve.
    pub settings: Arc<Settings>,
    /// This replica's name.
    pub replica: Arc<str>,
    /// Whether the replica is leaving.
    pub drain: Drain,
    /// Only this machine is served, without keys: requests that a foreign web page could make are refused.
    pub guarded: bool,
}

/// All routes, and the document that describes them.
fn routes() -> OpenApiRouter<App> {
    public_routes().merge(admin_routes())
}

/// What operators and moderators alone use.
fn admin_routes() -> OpenApiRouter<App> {
    OpenApiRouter::new()
        .routes(routes!(removals::remove_subscriber))
        .routes(routes!(removals::remove_user))
        .routes(routes!(removals::revoke_token))
        .routes(routes!(rooms::list_replicas))
}

fn public_routes() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(openapi::base())
        .routes(routes!(events::publish_event, events::list_events, events::delete_events))
        .routes(routes!(batch::publish_events))
        .routes(routes!(streams::stream_room))
        .routes(routes!(streams::stream_rooms))
        .routes(routes!(rooms::list_rooms))
        .routes(routes!(rooms::describe_room))
        .routes(routes!(rooms::list_subscribers))
        .routes(routes!(hashes::list_fields, hashes::patch_fields, hashes::delete_hash))
        .routes(routes!(hashes::get_field, hashes::set_field, hashes::delete_field))
        .routes(routes!(hashes::increment_field))
        .routes(routes!(health::get_liveness))
        .routes(routes!(health::get_readiness))
        .routes(routes!(health::get_health))
        .routes(routes!(metrics::get_metrics))
        .routes(routes!(openapi::get_openapi))
        .routes(routes!(openapi::get_openapi_3_2))
}

/// Everything that is served, but for what has a listener of its own.
pub fn router(app: &App) -> Router {
    let aside = app.settings.admin_listen.is_some();
    served(if aside { public_routes() } else { routes() }, app)
}

/// What is served on a listener for operators and moderators.
pub fn admin_alone(app: &App) -> Router {
    served(admin_routes(), app)
}

fn served(routes: OpenApiRouter<App>, app: &App) -> Router {
    let (routes, _) = routes.split_for_parts();
    let routes = routes
        .fallback(|| async { Problem::new(Code::RouteNotFound, "see /openapi.json for the routes there are") })
        .with_state(app.clone());
    dressed(routes, app)
}

/// For connections above the limit: everyone is told to come back later, in the way that each understands.
pub fn overloaded(app: &App) -> Router {
    dressed(Router::new().fallback(streams::refuse_overload).with_state(app.clone()), app)
}

/// What is served on a listener for metrics alone.
pub fn metrics_alone(app: &App) -> Router {
    let routes = Router::new().route("/metrics", get(metrics::get_open_metrics)).with_state(app.clone());
    dressed(routes.fallback(|| async { Problem::new(Code::RouteNotFound, "only /metrics is here") }), app)
}

fn dressed(routes: Router, app: &App) -> Router {
    let cors = cors(&app.settings.access.cors_origin);
    let app = app.clone();
    let routes = routes.layer(layer_fn(move |route: Route| {
        let app = app.clone();
        service_fn(move |request| dress(app.clone(), request, route.clone()))
    }));
    match cors {
        Some(cors) => routes.layer(cors),
        None => routes,
    }
}

/// Lets pages of these origins use the gateway from another site, with cookies too.
fn cors(origins: &[Origin]) -> Option<CorsLayer> {
    let allowed: Vec<_> = origins.iter().filter_map(|origin| HeaderValue::from_str(origin.as_str()).ok()).collect();
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(allowed))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::IF_MATCH,
            header::IF_NONE_MATCH,
            HeaderName::from_static("last-event-id"),
            idempotency::IDEMPOTENCY_KEY,
            REQUEST_ID,
        ])
        .expose_headers([
            header::ETAG,
            header::LINK,
            header::RETRY_AFTER,
            header::WWW_AUTHENTICATE,
            problem::RATE_LIMIT,
            problem::RATE_LIMIT_POLICY,
            idempotency::REPLAYED,
            REQUEST_ID,
        ])
        .max_age(PREFLIGHT_LIFETIME);
    (!origins.is_empty()).then_some(layer)
}

/// What surrounds every answer. One layer, since each further one costs a publish as much as a delivery.
async fn dress(app: App, mut request: Request, route: Route) -> Result<Response, Infallible> {
    let id = request_id(request.headers());
    let began = Instant::now();
    let method = method_name(request.method());
    let path = request.extensions().get::<MatchedPath>().cloned();
    let span = trace::is_sent().then(|| traced(&id, method, &request));
    let named = Named { id: id.clone(), method, uri: request.uri().clone() };
    let stands = app.limits.as_ref().map(|_| Stands::default());
    if let Some(stands) = &stands {
        request.extensions_mut().insert(stands.clone());
    }
    let answer = async move {
        let response = match admit(&app, &request) {
            Ok(()) => match AssertUnwindSafe(route.oneshot(request)).catch_unwind().await {
                Ok(Ok(response)) => response,
                Err(_) => Problem::new(Code::Internal, "a handler panicked").into_response(),
            },
            Err(problem) => problem.into_response(),
        };
        let mut response = problem::finish(response, &id, |code| app.metrics.problem(code.name()));
        let path = path.as_ref().map_or("none", MatchedPath::as_str);
        app.metrics.answered(method, path, response.status().as_u16());
        tracing::debug!(status = response.status().as_u16(), after = ?began.elapsed(), "answered");
        let headers = response.headers_mut();
        // With the length, and what the id and caches are told.
        headers.reserve(SECURITY_HEADERS.len() + 3);
        for (name, value) in SECURITY_HEADERS {
            headers.insert(name, HeaderValue::from_static(value));
        }
        if let Some(standing) =
            stands.as_ref().and_then(Stands::standing).filter(|_| !headers.contains_key(problem::RATE_LIMIT))
        {
            problem::add_standing(headers, standing);
        }
        // What one caller is told is nothing that a cache may tell another.
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.insert(REQUEST_ID, HeaderValue::from_str(&id).expect("visible ASCII is a header's"));
        if app.drain.is_leaving() {
            // A leaving replica lets go of kept-alive connections with their next answer.
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    };
    named.answer(span, answer).await
}

/// A span for those who read traces; it may be a part of its caller's. No query in it: that may hold a token.
fn traced(id: &str, method: &str, request: &Request) -> Span {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
    let name = format!("{method} {route}");
    let path = request.uri().path();
    let span = info_span!("request", request_id = id, %method, path, otel.name = name, otel.kind = "server");
    let named = request.headers().get(trace::TRACEPARENT).and_then(|named| named.to_str().ok());
    if let Some(named) = named {
        trace::follow(&span, named);
    }
    span
}

/// Of those that routes have; whatever else comes is one.
fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
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
        let allowed = |origin: &[u8]| app.settings.access.allows_origin(origin);
        let guarded = guard::refuse_foreign(request.uri(), request.headers(), allowed);
        guarded.inspect_err(|problem| audit::refused(problem, None, None))?;
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
    time_text(SystemTime::now())
}

/// A time, RFC 3339 in UTC with milliseconds.
fn time_text(time: SystemTime) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;

    #[tokio::test]
    async fn a_handler_that_panics_is_a_failure_of_the_gateway() {
        async fn panics() {
            panic!("as the test wants it");
        }
        let app = fuzz::app();
        let router = dressed(Router::new().route("/panics", get(panics)), &app);
        let request = Request::get("/panics").header("host", "localhost").header(REQUEST_ID, "mine");
        let Ok(response) = router.oneshot(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()[REQUEST_ID], "mine");
        let document = response.into_body().collect().await.unwrap().to_bytes();
        let document: Value = serde_json::from_slice(&document).unwrap();
        assert_eq!((&document["code"], &document["request_id"]), (&"internal".into(), &"mine".into()));
    }
}
