//! What handlers take from requests, with our own words for what can't be taken.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::header::{self, HeaderMap, HeaderName};
use axum::http::request::Parts;
use http_body_util::{BodyExt, Collected, LengthLimitError, Limited};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::App;
use super::caller::ACCESS_TOKEN;
use super::problem::{Code, Problem};
use crate::names::{EventName, FieldName, HashName, NameError, RoomName};

/// The room in the path.
pub struct RoomPath(pub RoomName);
/// The hash in the path.
pub struct HashPath(pub HashName);
/// The hash and the field in the path.
pub struct FieldPath(pub HashName, pub FieldName);

/// Checks a name, wherever it stood.
pub fn name<T>(what: &str, text: &str, new: impl FnOnce(&str) -> Result<T, NameError>) -> Result<T, Problem> {
    new(text).map_err(|why| Problem::new(Code::InvalidName, format!("{what} {text:?} is not a name: {why}")))
}

pub async fn path<T: DeserializeOwned + Send>(parts: &mut Parts, app: &App) -> Result<T, Problem> {
    let path = Path::<T>::from_request_parts(parts, app).await;
    path.map(|Path(path)| path).map_err(|rejection| Problem::new(Code::InvalidName, rejection.body_text()))
}

impl FromRequestParts<App> for RoomPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let room: String = path(parts, app).await?;
        Ok(Self(name("the room", &room, RoomName::new)?))
    }
}

impl FromRequestParts<App> for HashPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let hash: String = path(parts, app).await?;
        Ok(Self(name("the hash", &hash, HashName::new)?))
    }
}

impl FromRequestParts<App> for FieldPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let (hash, field): (String, String) = path(parts, app).await?;
        Ok(Self(name("the hash", &hash, HashName::new)?, name("the field", &field, FieldName::new)?))
    }
}

/// The query; names may be repeated, and unknown ones are refused, so that a slip of the pen does not pass unseen.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        let query = without_token(parts.uri.query().unwrap_or_default());
        let query = form_urlencoded::parse(query.as_bytes());
        let query = serde_html_form::Deserializer::new(query);
        serde_path_to_error::deserialize(query).map(Self).map_err(|error| {
            let place = error.path().to_string();
            let why = error.into_inner().to_string();
            let detail = if place == "." || why.contains('`') { why } else { format!("{place}: {why}") };
            Problem::new(Code::InvalidQuery, detail)
        })
    }
}

/// A query without its token, which is for [`Caller`](super::caller::Caller) alone.
fn without_token(query: &str) -> Cow<'_, str> {
    let is_token = |pair: &str| form_urlencoded::parse(pair.as_bytes()).any(|(name, _)| name == ACCESS_TOKEN);
    if query.split('&').any(is_token) {
        query.split('&').filter(|pair| !is_token(pair)).collect::<Vec<_>>().join("&").into()
    } else {
        query.into()
    }
}

/// Checks the name of an event that came in a query.
pub fn event_name(text: &str) -> Result<EventName, Problem> {
    name("the event", text, EventName::new)
}

/// A JSON object. Serde alone would take an array of an object's values for it.
#[derive(Debug)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }
        deserializer.deserialize_map(Members(PhantomData)).map(Self)
    }
}

/// A body of JSON.
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned> FromRequest<App> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &App) -> Result<Self, Problem> {
        let headers = request.headers().clone();
        match media(&headers)? {
            Media::Json => json(&body(request, app).await?).map(Self),
            Media::Text | Media::Bytes => {
                Err(Problem::new(Code::UnsupportedMediaType, "the body has to be application/json"))
            }
        }
    }
}

/// What a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// `application/json` and types that end in `+json`.
    Json,
    /// `text/…`, no type at all, and what `curl -d` says of its text.
    Text,
    /// `application/octet-stream`.
    Bytes,
}

/// Reads `Content-Type`.
pub fn media(headers: &HeaderMap) -> Result<Media, Problem> {
    let Some(value) = header_text(headers, &header::CONTENT_TYPE)? else { return Ok(Media::Text) };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    match essence.as_str() {
        "" | "application/x-www-form-urlencoded" => Ok(Media::Text),
        "application/octet-stream" => Ok(Media::Bytes),
        "application/json" => Ok(Media::Json),
        text if text.starts_with("text/") => Ok(Media::Text),
        json if json.starts_with("application/") && json.ends_with("+json") => Ok(Media::Json),
        other => Err(Problem::new(
            Code::UnsupportedMediaType,
            format!("{other:?} is not taken here; application/json and text/plain are"),
        )),
    }
}

/// A header's text, if there is such a header.
pub fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let text = value.to_str();
    text.map(Some)
        .map_err(|_| Problem::new(Code::InvalidHeader, format!("{name} has characters that are not ASCII")))
}

/// The whole body, within the limit.
pub async fn body(request: Request, app: &App) -> Result<Bytes, Problem> {
    let (limit, most) = (app.settings.requests.request_timeout, app.settings.requests.max_body_bytes);
    // Only the body's arrival is bounded here: the broker's calls have limits of their own, and cutting one short would
    // hide whether it was done.
    let arrival = tokio::time::timeout(limit, Limited::new(request.into_body(), most).collect()).await;
    let arrival = arrival
        .map_err(|_| Problem::new(Code::RequestTimeout, format!("the body was not complete within {limit:?}")))?;
    arrival.map(Collected::to_bytes).map_err(|error| {
        if error.is::<LengthLimitError>() {
            Problem::new(Code::BodyTooLarge, format!("bodies are at most {most} bytes"))
        } else {
            Problem::new(Code::InvalidBody, "the body did not arrive whole")
        }
    })
}

/// A body's text.
pub fn text(body: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|_| Problem::new(Code::InvalidBody, "the body is not UTF-8"))
}

/// A body's JSON.
pub fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let refuse = |why: serde_json::Error| Problem::new(Code::InvalidBody, format!("not the JSON expected: {why}"));
    serde_json::from_str(text(body)?).map_err(refuse)
}
