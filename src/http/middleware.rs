//! What surrounds every response: request ids, CORS, security headers, panics, metrics, and refusals that apply to
//! every route.

mod guard;
mod head;
pub(super) mod request_context;

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use axum::Router;
use axum::extract::{MatchedPath, Request};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::response::{IntoResponse, Response};
use axum::routing::Route;
use futures_util::FutureExt;
use tower::layer::layer_fn;
use tower::{ServiceExt, service_fn};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};
use tracing::{Span, info_span};
use uuid::Uuid;

use self::request_context::{RequestContext, cut};
use super::address::{Peer, client_address};
use super::body::hold_answer;
use super::caller::CallerSlot;
use super::prefer::PREFERENCE_APPLIED;
use super::problem::{self, Code, Problem};
use super::{App, audit, idempotency};
use crate::config::Origin;
use crate::trace;

/// Identifies a request in its response, in problem documents and in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longest request id of a caller that is kept.
const MAX_REQUEST_ID_BYTES: usize = 128;
/// Values and events come from other people: a browser must not run, sniff or frame them. `connect-src 'self'` lets a
/// person call the gateway from the console of a browser that shows a value.
const SECURITY_HEADERS: [(HeaderName, &str); 3] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; connect-src 'self'; frame-ancestors 'none'"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];
/// Other headers that every response gets: its length, its request id, its cache policy.
const MORE_HEADERS: usize = 3;
/// How long browsers remember that a page may send requests.
const PREFLIGHT_LIFETIME: Duration = Duration::from_mins(10);

/// Surrounds routes with the middleware. `is_guarded`: they refuse what a web page of another site could send.
pub(super) fn with_middleware(routes: Router, app: &App, is_guarded: bool) -> Router {
    let cors = cors(&app.settings.access.cors_origin);
    let app = app.clone();
    let routes = routes.layer(layer_fn(move |route: Route| {
        let app = app.clone();
        service_fn(move |request| middleware(app.clone(), is_guarded, request, route.clone()))
    }));
    match cors {
        Some(cors) => routes.layer(cors),
        None => routes,
    }
}

/// Allows pages of these origins to use the gateway from another site, with cookies.
fn cors(origins: &[Origin]) -> Option<CorsLayer> {
    let allowed: Vec<_> = origins.iter().filter_map(|origin| HeaderValue::from_str(origin.as_str()).ok()).collect();
    let layer = CorsLayer::new()
        .allow_origin(AllowOrigin::list(allowed))
        .allow_credentials(true)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE])
        // Pages that are allowed may send any header. Libraries add their own, as for traces.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers([
            header::ETAG,
            header::LINK,
            header::RETRY_AFTER,
            header::WWW_AUTHENTICATE,
            problem::RATE_LIMIT,
            problem::RATE_LIMIT_POLICY,
            idempotency::REPLAYED,
            PREFERENCE_APPLIED,
            REQUEST_ID,
        ])
        .max_age(PREFLIGHT_LIFETIME);
    (!origins.is_empty()).then_some(layer)
}

/// All the middleware is one layer: each further layer would cost a publish about as much as a delivery does.
///
/// Not an `async fn`, which would keep a second place for the request and for the answer.
fn middleware(
    app: App,
    is_guarded: bool,
    mut request: Request,
    route: Route,
) -> impl Future<Output = Result<Response, Infallible>> {
    let id = request_id(request.headers());
    let method = method_name(request.method());
    let path = request.extensions().get::<MatchedPath>().cloned();
    let span = trace::is_enabled().then(|| trace_span(&id, method, &request));
    let address = client_address(request.extensions(), request.headers(), &app.settings.limits.trusted_proxy);
    let (uri, lines) = (request.uri().clone(), app.log_lines.clone());
    let context = RequestContext { id: id.clone(), method, uri, address, lines };
    let caller = CallerSlot::new(address);
    // In the place of the peer, which nothing else needs: one extension more would make their map grow.
    request.extensions_mut().remove::<Peer>();
    request.extensions_mut().insert(caller.clone());
    let is_read = request.method().is_safe();
    let answer = async move {
        let response = match check_request(&app, is_guarded, &request) {
            Ok(()) => match AssertUnwindSafe(route.oneshot(request)).catch_unwind().await {
                Ok(Ok(response)) => response,
                Err(_) => {
                    let detail = "the handler panicked; the gateway's standard error has the details";
                    Problem::new(Code::Internal, detail).into_response()
                }
            },
            Err(problem) => problem.into_response(),
        };
        let finish = |response| problem::finish(response, &id, |code| app.metrics.problem(code.name()));
        let held = hold_answer(finish(response), &app, caller.clone(), is_read).await;
        let mut response = held.unwrap_or_else(|problem| finish(problem.into_response()));
        let path = path.as_ref().map_or("none", MatchedPath::as_str);
        app.metrics.answered(method, path, response.status().as_u16());
        tracing::debug!(status = response.status().as_u16(), after = ?caller.began().elapsed(), "answered");
        let headers = response.headers_mut();
        headers.reserve(SECURITY_HEADERS.len() + MORE_HEADERS);
        for (name, value) in SECURITY_HEADERS {
            // Pages of the gateway have a policy of their own.
            headers.entry(name).or_insert(HeaderValue::from_static(value));
        }
        if let Some(status) = caller.rate_status().filter(|_| !headers.contains_key(problem::RATE_LIMIT)) {
            problem::add_rate_status(headers, status);
        }
        // A cache must not give one caller's answer to another.
        headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        headers.insert(REQUEST_ID, HeaderValue::from_str(&id).expect("a request id is visible ASCII"));
        if app.drain.is_leaving() {
            // While the replica shuts down, each kept-alive connection is closed with its next response.
            close_after(&mut response);
        }
        Ok(response)
    };
    context.run(span, answer)
}

/// A response whose connection is cut: it does not announce that the connection ends. undici, and so `fetch` in Node,
/// would take its body for complete.
#[derive(Clone)]
pub(super) struct IsCut;

/// Announces that the connection ends with a response.
pub(super) fn close_after(response: &mut Response) {
    if response.extensions().get::<IsCut>().is_none() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
}

/// The span of a request in traces; a child of the caller's span, if the request names one. It has no query, which
/// may contain a token.
fn trace_span(id: &str, method: &str, request: &Request) -> Span {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
    let name = format!("{method} {route}");
    let path = &*cut(request.uri().path());
    let span = info_span!("request", request_id = id, %method, path, otel.name = name, otel.kind = "server");
    let parent = request.headers().get(trace::TRACEPARENT).and_then(|parent| parent.to_str().ok());
    if let Some(parent) = parent {
        trace::set_parent(&span, parent);
    }
    span
}

/// The method as a label of metrics. Methods that no route has share one label, so that clients can't create labels.
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

/// The caller's request id, if it is short and visible ASCII: it goes into the log and into responses. Otherwise a
/// new one.
fn request_id(headers: &HeaderMap) -> String {
    let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_harmless = |id: &&str| {
        (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
    };
    given.filter(is_harmless).map_or_else(
        // An id must be unique, but may be guessable, so no random bytes of the kernel are needed.
        || {
            let id = uuid::Builder::from_random_bytes(fastrand::u128(..).to_ne_bytes()).into_uuid();
            id.hyphenated().encode_lower(&mut Uuid::encode_buffer()).to_owned()
        },
        str::to_owned,
    )
}

/// Refusals that apply to every route.
fn check_request(app: &App, is_guarded: bool, request: &Request) -> Result<(), Problem> {
    head::check_head(request)?;
    if is_guarded {
        let allowed = |origin: &[u8]| app.settings.access.allows_origin(origin);
        let guarded = guard::refuse_foreign(request.uri(), request.headers(), allowed);
        guarded.inspect_err(|problem| audit::refused(problem, None, None))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::get;
    use http_body_util::BodyExt;
    use serde_json::Value;

    use super::*;
    use crate::http::test_app;

    #[tokio::test]
    async fn a_panic_in_a_handler_is_answered_with_500() {
        async fn panics() {
            panic!("as the test wants it");
        }
        let app = test_app();
        let router = with_middleware(Router::new().route("/panics", get(panics)), &app, app.guarded);
        let request = Request::get("/panics").header("host", "localhost").header(REQUEST_ID, "mine");
        let Ok(response) = router.oneshot(request.body(Body::empty()).unwrap()).await;
        assert_eq!(response.status(), 500);
        assert_eq!(response.headers()[REQUEST_ID], "mine");
        let document = response.into_body().collect().await.unwrap().to_bytes();
        let document: Value = serde_json::from_slice(&document).unwrap();
        assert_eq!((&document["code"], &document["request_id"]), (&"internal".into(), &"mine".into()));
    }
}
