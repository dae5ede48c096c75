//! What handlers extract from requests. Each extractor fails with a problem that names what is wrong.

use std::borrow::Cow;
use std::fmt;
use std::marker::PhantomData;

use axum::extract::{FromRequestParts, Path};
use axum::http::Uri;
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::request::Parts;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::App;
use super::caller::ACCESS_TOKEN;
use super::problem::{Code, Problem};
use crate::names::{EventName, FieldName, HashName, NameError, RoomName};

/// The query parameter with the last event's id of clients that reconnect and can't set headers.
const LAST_EVENT_ID: &str = "lastEventId";

/// What `eventsource-polyfill` adds to the query of each stream.
const POLYFILL_PARAMETERS: [&str; 2] = ["evs_buffer_size_limit", "evs_preamble"];

/// The room in the path.
pub struct RoomPath(pub RoomName);
/// The hash in the path.
pub struct HashPath(pub HashName);
/// The hash and the field in the path.
pub struct FieldPath(pub HashName, pub FieldName);

/// Parses a name from any part of a request. `what` stands before it in the problem's text, as in "the room".
pub fn parse_name<T>(what: &str, text: &str, new: impl FnOnce(&str) -> Result<T, NameError>) -> Result<T, Problem> {
    new(text).map_err(|why| Problem::new(Code::InvalidName, format!("{what} {text:?} is not a valid name: {why}")))
}

/// Parses the name of an event.
pub fn parse_event_name(text: &str) -> Result<EventName, Problem> {
    parse_name("the event", text, EventName::new)
}

/// The parameters of the path, decoded.
pub async fn path_params<T: DeserializeOwned + Send>(parts: &mut Parts, app: &App) -> Result<T, Problem> {
    if !is_percent_encoded(parts.uri.path()) {
        let detail = "the path has a % without two hexadecimal digits, or percent-encoded bytes that are not UTF-8";
        return Err(Problem::new(Code::InvalidName, detail));
    }
    let path = Path::<T>::from_request_parts(parts, app).await;
    path.map(|Path(path)| path).map_err(|rejection| Problem::new(Code::InvalidName, rejection.body_text()))
}

impl FromRequestParts<App> for RoomPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let room: String = path_params(parts, app).await?;
        Ok(Self(parse_name("the room", &room, RoomName::new)?))
    }
}

impl FromRequestParts<App> for HashPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let hash: String = path_params(parts, app).await?;
        Ok(Self(parse_name("the hash", &hash, HashName::new)?))
    }
}

impl FromRequestParts<App> for FieldPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &App) -> Result<Self, Problem> {
        let (hash, field): (String, String) = path_params(parts, app).await?;
        let hash = parse_name("the hash", &hash, HashName::new)?;
        Ok(Self(hash, parse_name("the field", &field, FieldName::new)?))
    }
}

/// The parameters of the query. A parameter that is a list may be repeated. An empty value counts as no parameter.
/// Unknown parameters are refused, so that a typo does not go unnoticed.
pub struct QueryParams<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<App> for QueryParams<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        parse_query(&parts.uri).map(Self)
    }
}

/// The query of a route without parameters.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParameters {}

/// Parses the query of an address.
pub fn parse_query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Problem> {
    let refuse = |detail: String| Problem::new(Code::InvalidQuery, detail);
    let query = uri.query().unwrap_or_default();
    if !is_percent_encoded(query) {
        let detail =
            "the query has a % without two hexadecimal digits, or percent-encoded bytes that are not UTF-8";
        return Err(refuse(detail.into()));
    }
    if let Some(name) = query.split('&').find(|pair| !pair.is_empty() && !pair.contains('=')) {
        return Err(refuse(format!(
            "the parameter {name:?} stands without = and a value; leave it out, or give it one"
        )));
    }
    let query = canonical_query(query);
    let query = form_urlencoded::parse(query.as_bytes());
    let query = serde_html_form::Deserializer::new(query);
    serde_path_to_error::deserialize(query).map_err(|error| {
        let parameter = error.path().to_string();
        refuse(query_error(&parameter, &error.into_inner().to_string()))
    })
}

/// Says in the words of a query what serde says of a struct's fields and Rust's parsers say of their types.
fn query_error(parameter: &str, why: &str) -> String {
    let quoted = |after: &str| Some(why.strip_prefix(after)?.split('`').next().unwrap_or_default());
    let known = || why.split('`').skip(3).step_by(2).collect::<Vec<_>>().join(", ");
    if let Some(name) = quoted("unknown field `") {
        let known = Some(known()).filter(|known| !known.is_empty());
        return format!(
            "there is no parameter {name:?} here; this route has {}",
            known.as_deref().unwrap_or("none")
        );
    }
    if let Some(name) = quoted("missing field `").or_else(|| quoted("duplicate field `")) {
        return format!("the parameter {name:?} must be given, once");
    }
    let expected = match why {
        _ if why.starts_with("unknown variant `") => format!("it must be {}", known()),
        "number too large to fit in target type" => "the number is too large".into(),
        _ if why.contains("digit") || why.contains("integer") => "it must be a whole number, 0 or above".into(),
        "unsupported value" => "it must be given only once".into(),
        _ if why.contains("\"true\"") => "it must be true or false".into(),
        other => other.to_owned(),
    };
    format!("{parameter}: {expected}")
}

/// Whether each `%` of a text begins an encoded byte, and the decoded text is UTF-8.
fn is_percent_encoded(text: &str) -> bool {
    let is_byte =
        |rest: &str| rest.as_bytes().get(..2).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit));
    !text.contains('%')
        || text.split('%').skip(1).all(is_byte) && percent_encoding::percent_decode_str(text).decode_utf8().is_ok()
}

/// A query without its token, which only [`Caller`](super::caller::Caller) reads, without parameters of a polyfill, and
/// without those that have an empty value, as forms and generated clients send them. All spellings of `lastEventId`
/// become that one. Names lose the brackets of lists.
pub fn canonical_query(query: &str) -> String {
    let kept = query.split('&').filter_map(|pair| {
        let (name, _) = form_urlencoded::parse(pair.as_bytes()).next()?;
        let plain_name = without_brackets(&name);
        match pair.split_once('=') {
            _ if name == ACCESS_TOKEN || POLYFILL_PARAMETERS.contains(&&*name) => None,
            Some((_, "")) => None,
            Some((_, value)) if is_last_event_id(plain_name) => Some(format!("{LAST_EVENT_ID}={value}").into()),
            Some((_, value)) if plain_name != name => {
                let plain_name: String = form_urlencoded::byte_serialize(plain_name.as_bytes()).collect();
                Some(format!("{plain_name}={value}").into())
            }
            _ => Some(Cow::Borrowed(pair)),
        }
    });
    kept.collect::<Vec<_>>().join("&")
}

/// The name of a parameter that a library has written as a list: `field[]` (axios, jQuery) or `field[0]` (qs).
fn without_brackets(name: &str) -> &str {
    let opened = name.strip_suffix(']').map(|name| name.trim_end_matches(|digit: char| digit.is_ascii_digit()));
    opened.and_then(|name| name.strip_suffix('[')).unwrap_or(name)
}

/// Whether a parameter is one that clients add when they reconnect: `lastEventId`, `lastEventID`, `Last-Event-ID` or
/// `evs_last_event_id`.
fn is_last_event_id(name: &str) -> bool {
    let name = name.strip_prefix("evs_").unwrap_or(name);
    name.replace(['-', '_'], "").eq_ignore_ascii_case(LAST_EVENT_ID)
}

/// A JSON object. serde alone would also accept an array of the object's values.
#[derive(Debug)]
pub struct JsonObject<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for JsonObject<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ObjectVisitor<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
            type Value = T;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
                T::deserialize(MapAccessDeserializer::new(members))
            }
        }
        deserializer.deserialize_map(ObjectVisitor(PhantomData)).map(Self)
    }
}

/// The type of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyType {
    /// `application/json`, its older name `text/json`, and types that end in `+json`.
    Json,
    /// `text/…`.
    Text,
    /// No type, and `application/x-www-form-urlencoded`, the type that `curl -d` gives to any text.
    Untyped,
    /// Any other type.
    Bytes,
}

impl BodyType {
    /// Reads `Content-Type` of a value: types that are not known are bytes, other kinds of JSON among them. Only JSON has
    /// to be UTF-8.
    pub fn of_value(headers: &HeaderMap) -> Result<Self, Problem> {
        Ok(match essence(headers)?.as_deref() {
            None | Some("" | "application/x-www-form-urlencoded") => Self::Untyped,
            Some("application/json" | "text/json") => {
                require_utf_8(headers)?;
                Self::Json
            }
            Some(text) if text.starts_with("text/") => Self::Text,
            Some(_) => Self::Bytes,
        })
    }

    /// Reads `Content-Type`.
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let is_json = |kind: &str| kind.starts_with("application/") && kind.ends_with("+json");
        let body_type = match Self::of_value(headers)? {
            Self::Bytes if essence(headers)?.is_some_and(|kind| is_json(&kind)) => Self::Json,
            Self::Bytes => return Ok(Self::Bytes),
            other => other,
        };
        require_utf_8(headers)?;
        Ok(body_type)
    }
}

/// Refuses a JSON object and a form without a type of their own. As text, they would reach their readers in another form
/// than their sender means, and nobody would notice.
pub fn refuse_untyped_members(body: &[u8]) -> Result<(), Problem> {
    /// How a form of an event or of a value begins.
    const FORMS: [&[u8]; 4] = [b"event=", b"data=", b"value=", b"value_base64="];
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body);
    let detail = if serde_json::from_slice::<JsonObject<IgnoredAny>>(body).is_ok() {
        "the body is a JSON object, but its Content-Type does not say so: add -H 'Content-Type: application/json', \
         or text/plain to send it as text"
    } else if FORMS.iter().any(|form| body.starts_with(form)) {
        "the body is a form, which is not decoded: send JSON, and add -H 'Content-Type: application/json', \
         or text/plain to send it as text"
    } else {
        return Ok(());
    };
    Err(Problem::new(Code::UnsupportedMediaType, detail))
}

/// The media type in `Content-Type`, in lower case and without parameters, which may have any bytes.
fn essence(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let essence = |kind: &HeaderValue| {
        let kind = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
        String::from_utf8_lossy(kind).trim().to_ascii_lowercase()
    };
    Ok(single(headers, &header::CONTENT_TYPE)?.map(essence))
}

/// Refuses a body in another charset, which would be read as another text.
fn require_utf_8(headers: &HeaderMap) -> Result<(), Problem> {
    let Some(kind) = single(headers, &header::CONTENT_TYPE)? else { return Ok(()) };
    let kind = String::from_utf8_lossy(kind.as_bytes()).to_ascii_lowercase();
    let charset = kind.split(';').find_map(|parameter| parameter.trim().strip_prefix("charset="));
    match charset.map(|charset| charset.trim_matches([' ', '"'])) {
        None | Some("" | "utf-8" | "utf8" | "us-ascii") => Ok(()),
        Some(other) => Err(Problem::new(
            Code::UnsupportedMediaType,
            format!(
                "the charset {other:?} is not supported: send the body in UTF-8, with charset=utf-8 or without"
            ),
        )),
    }
}

/// Whether `Content-Type` is this media type.
pub fn has_media_type(headers: &HeaderMap, media_type: &str) -> Result<bool, Problem> {
    Ok(essence(headers)?.as_deref() == Some(media_type))
}

/// The text of a header that a request may have once. `None` if the request does not have it.
pub fn header_text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, Problem> {
    let text = single(headers, name)?.map(HeaderValue::to_str).transpose();
    text.map_err(|_| Problem::new(Code::InvalidHeader, format!("{name} has characters that are not visible ASCII")))
}

/// A header that a request may have once. Lines that repeat it, which some proxies add, are one header; two values are
/// an error.
fn single<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a HeaderValue>, Problem> {
    let mut lines = headers.get_all(name).into_iter();
    let value = lines.next();
    if lines.any(|line| Some(line) != value) {
        return Err(Problem::new(Code::InvalidHeader, format!("{name} is there twice, with different values")));
    }
    Ok(value)
}

/// The members of a header that is a list, from all its lines. A comma inside double quotes is a part of a member.
pub fn list_members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let members = headers.get_all(name).into_iter().flat_map(|line| {
        let mut is_quoted = false;
        line.as_bytes().split(move |byte| {
            is_quoted ^= *byte == b'"';
            *byte == b',' && !is_quoted
        })
    });
    members.map(<[u8]>::trim_ascii).filter(|member| !member.is_empty())
}

/// The text of a body.
pub fn body_text(body: &[u8]) -> Result<&str, Problem> {
    std::str::from_utf8(body).map_err(|_| Problem::new(Code::InvalidBody, "the body is not UTF-8"))
}

/// Parses a body as JSON. A byte order mark before it is ignored (RFC 8259, section 8.1).
pub fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let refuse = |detail| Problem::new(Code::InvalidBody, detail);
    let text = body_text(body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body))?;
    if text.trim_ascii().is_empty() {
        return Err(refuse("the body is empty; JSON is expected".into()));
    }
    serde_json::from_str(text)
        .map_err(|why| refuse(format!("the body is not the expected JSON: {}", json_error(&why.to_string()))))
}

/// Says in the words of JSON what serde says of Rust's types.
pub fn json_error(why: &str) -> String {
    const LONE_SURROGATE: &str = "it has a lone surrogate, such as \\ud800, which is no character,";
    const WORDS: [(&str, &str); 11] = [
        ("lone leading surrogate in hex escape", LONE_SURROGATE),
        ("unexpected end of hex escape", LONE_SURROGATE),
        ("EOF while parsing a list", "the body ends within an array"),
        ("EOF while parsing", "the body ends within"),
        ("invalid type: integer", "invalid type: number"),
        ("invalid type: floating point", "invalid type: number"),
        ("invalid type: sequence", "invalid type: array"),
        ("invalid type: map", "invalid type: object"),
        ("expected a sequence", "expected an array"),
        ("expected a map", "expected an object"),
        ("unknown field", "unknown member"),
    ];
    for (start, end) in [("missing field `", "` is missing"), ("duplicate field `", "` is there twice")] {
        if let Some((name, at)) = why.strip_prefix(start).and_then(|rest| rest.split_once('`')) {
            return format!("the member `{name}{end}{at}");
        }
    }
    WORDS.iter().fold(why.to_owned(), |why, (word, plain)| why.replacen(word, plain, 1))
}
