//! What browsers load from the gateway: the console, the page of the API, and the browser module. The files are in the
//! binary, and need no token: what they show, they ask the API for.

use std::borrow::Cow;
use std::sync::{Arc, LazyLock};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde_json::json;
use utoipa_swagger_ui::Config;

use super::App;
use super::caller::count_without_token;
use super::entity_tags::{Tags, quoted};
use super::problem::{Code, Problem};
use crate::broker::entity_tag;
use crate::rate_limit::BYTES_OF_A_REQUEST;

/// What a page of the gateway may load and do: its own files, and requests to the gateway.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
                           connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Swagger UI sets styles in its code.
const API_PAGE_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; \
                               img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                               frame-ancestors 'none'";

/// A file of the console: its path, its media type and its text.
type ConsoleFile = (&'static str, &'static str, &'static str);

const CONSOLE: [ConsoleFile; 2] = [
    ("/console/console.css", "text/css; charset=utf-8", include_str!("../../console/console.css")),
    ("/console/console.js", "text/javascript; charset=utf-8", include_str!("../../console/console.js")),
];
const CONSOLE_PAGE: &str = include_str!("../../console/index.html");
const BROWSER_MODULE: &str = include_str!("../../clients/js/roomcast.js");

/// The index at `/`, and the browser module. With the console, also the console and the page of the API.
pub(super) fn pages(has_console: bool) -> Router<App> {
    let module = get(async |parts: Parts, app| {
        serve("text/javascript; charset=utf-8", Cow::Borrowed(BROWSER_MODULE.as_bytes()), None, &parts, app).await
    });
    let routes = Router::new().route("/roomcast.js", module);
    if !has_console {
        return routes.route("/", get(|| async { Json(index(false)) }));
    }
    let files = CONSOLE.into_iter().fold(routes, |routes, (path, media_type, text)| {
        routes.route(
            path,
            get(move |parts: Parts, app| async move {
                serve(media_type, Cow::Borrowed(text.as_bytes()), Some(PAGE_POLICY), &parts, app).await
            }),
        )
    });
    files
        .route("/", get(get_root))
        .route("/docs", get(|| async { Redirect::permanent("/docs/") }))
        .route("/docs/", get(async |parts, app| get_api_page(Path(String::new()), parts, app).await))
        .route("/docs/{*file}", get(get_api_page))
}

/// The console for browsers, and an index for programs.
async fn get_root(parts: Parts, app: State<App>) -> Result<Response, Problem> {
    let is_browser = accepts_html(&parts.headers);
    let mut response = if is_browser {
        let page = Cow::Borrowed(CONSOLE_PAGE.as_bytes());
        serve("text/html; charset=utf-8", page, Some(PAGE_POLICY), &parts, app).await?
    } else {
        Json(index(true)).into_response()
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("accept"));
    Ok(response)
}

/// Whether the request names HTML among the types that it accepts, as browsers do for a page.
fn accepts_html(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(header::ACCEPT).into_iter();
    lines.filter_map(|line| line.to_str().ok()).any(|line| line.to_ascii_lowercase().contains("text/html"))
}

fn index(has_console: bool) -> serde_json::Value {
    let mut index = json!({
        "name": "roomcast",
        "version": env!("CARGO_PKG_VERSION"),
        "openapi": "/openapi.json",
        "health": "/healthz",
        "browser_module": "/roomcast.js",
    });
    if has_console {
        index["console"] = json!("/");
        index["api_page"] = json!("/docs/");
    }
    index
}

/// A file of Swagger UI.
async fn get_api_page(Path(file): Path<String>, parts: Parts, app: State<App>) -> Result<Response, Problem> {
    static CONFIG: LazyLock<Arc<Config<'static>>> = LazyLock::new(|| {
        let config = Config::from("/openapi.json").use_base_layout().try_it_out_enabled(true);
        Arc::new(config.display_request_duration(true).validator_url("none"))
    });
    let Some(found) = utoipa_swagger_ui::serve(&file, CONFIG.clone()).ok().flatten() else {
        return Err(Problem::new(Code::RouteNotFound, "the page of the API has no such file; it begins at /docs/"));
    };
    serve(&found.content_type, found.bytes, Some(API_PAGE_POLICY), &parts, app).await
}

/// Answers with a file, or with 304 if the browser has it. It counts for the limits of callers without a token, for as many
/// requests as it has 64 KiB.
async fn serve(
    media_type: &str,
    bytes: Cow<'static, [u8]>,
    policy: Option<&'static str>,
    parts: &Parts,
    State(app): State<App>,
) -> Result<Response, Problem> {
    count_without_token(parts, &app, 1 + (bytes.len() / BYTES_OF_A_REQUEST) as u64).await?;
    let tag = entity_tag(&bytes);
    let known = Tags::from_header(&parts.headers, &header::IF_NONE_MATCH)?;
    let body = match bytes {
        Cow::Borrowed(bytes) => Bytes::from_static(bytes),
        Cow::Owned(bytes) => bytes.into(),
    };
    let mut response = if known.is_some_and(|known| known.matches(&tag)) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        let media_type = HeaderValue::from_str(media_type).expect("media types are visible ASCII");
        ([(header::CONTENT_TYPE, media_type)], body).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, quoted(&tag));
    // With each page load the browser asks whether the file is still this one: another version of the gateway has others.
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    if let Some(policy) = policy {
        headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(policy));
        headers.insert(HeaderName::from_static("referrer-policy"), HeaderValue::from_static("no-referrer"));
    }
    Ok(response)
}
