//! Bodies of requests and answers. A handler reads a request's body after it has checked the caller's permission, and
//! holds it until it answers. A large answer is held until its client has taken it.
//!
//! All bodies together have a budget of bytes, `--max-total-body-bytes`. The bodies of one caller may take as many
//! bytes of it as are free, so that however many callers send bodies, there is room for one more. Small bodies may take
//! twice as many: a caller with unfinished large bodies can still publish. Small answers are not counted.

use std::collections::HashMap;
use std::error::Error;
use std::io::{self, Write};
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, header};
use axum::response::Response;
use bytes::BytesMut;
use flate2::write::MultiGzDecoder;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::App;
use super::caller::{Caller, CallerSlot};
use super::extract::{BodyType, list_members, refuse_untyped_members};
use super::problem::{Code, Problem};
use crate::rate_limit::RateKey;

/// A body of up to so many bytes is small.
const SMALL_BYTES: usize = 16 * 1024;
/// Why a body is refused while there is no room for it.
const TOO_MANY: &str = "the replica holds too many bytes of requests and unread answers, or too many of this caller's \
                        (--max-total-body-bytes); nothing was stored; try again";

/// Counts the bytes, decoded, of all bodies that have arrived and that a handler still holds, and of answers that wait
/// for their clients.
pub struct BodyBudget {
    max_bytes: usize,
    held: Mutex<HeldBytes>,
}

#[derive(Default)]
struct HeldBytes {
    total: usize,
    callers: HashMap<RateKey, usize>,
}

impl BodyBudget {
    /// A budget of so many bytes.
    pub fn new(max_bytes: usize) -> Arc<Self> {
        Arc::new(Self { max_bytes, held: Mutex::default() })
    }

    fn held(&self) -> MutexGuard<'_, HeldBytes> {
        self.held.lock().expect("no holder of the lock panics")
    }
}

/// A part of the budget. It is free again when this is dropped.
pub struct BodyPermit {
    budget: Arc<BodyBudget>,
    caller: RateKey,
    bytes: usize,
}

impl BodyPermit {
    fn new(budget: &Arc<BodyBudget>, caller: RateKey) -> Self {
        Self { budget: budget.clone(), caller, bytes: 0 }
    }

    /// Takes further bytes. Returns false if the caller may not have them now; a caller that `must` has them in any case.
    fn extend(&mut self, bytes: usize, must: bool) -> bool {
        let mut held = self.budget.held();
        let of_caller = held.callers.get(&self.caller).copied().unwrap_or_default() + bytes;
        let free = self.budget.max_bytes.saturating_sub(held.total + bytes);
        let is_small = self.bytes + bytes <= SMALL_BYTES;
        if of_caller > if is_small { 2 * free } else { free } && !must {
            return false;
        }
        held.total += bytes;
        held.callers.insert(self.caller.clone(), of_caller);
        self.bytes += bytes;
        true
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        let mut held = self.budget.held();
        held.total -= self.bytes;
        if let Some(of_caller) = held.callers.get_mut(&self.caller) {
            *of_caller -= self.bytes;
            if *of_caller == 0 {
                held.callers.remove(&self.caller);
            }
        }
    }
}

/// A whole body, with its part of the budget.
pub struct RequestBody {
    bytes: Bytes,
    _permit: BodyPermit,
}

impl Deref for RequestBody {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Reads the whole body, up to `--max-body-bytes` and within `--request-timeout`, and decodes it. The caller's
/// permission has to be checked before.
async fn read_body(request: Request, app: &App, caller: &Caller) -> Result<RequestBody, Problem> {
    let limit = app.settings.requests.request_timeout;
    let max_bytes = app.settings.requests.max_body_bytes;
    let coding = ContentCoding::from_headers(request.headers())?;
    let collected = CollectedBody::new(BodyPermit::new(&app.bodies, caller.key()), max_bytes);
    // The timeout covers only the arrival of the body. Calls to the broker have limits of their own: a call that is
    // cut short would hide whether the write was done.
    let arrival = tokio::time::timeout(limit, collect(request.into_body(), coding, collected)).await;
    let arrived = arrival.map_err(|_| {
        let detail = format!("the body did not arrive within {limit:?} (--request-timeout)");
        Problem::new(Code::RequestTimeout, detail)
    })?;
    arrived.map_err(|error| match error {
        BodyError::TooLarge => {
            Problem::new(Code::BodyTooLarge, format!("the body has more than {max_bytes} bytes (--max-body-bytes)"))
        }
        BodyError::NoBudget => too_many_bodies(app),
        BodyError::Broken | BodyError::NotChunked | BodyError::NotGzip => {
            Problem::new(Code::InvalidBody, error.to_string())
        }
    })
}

/// Reads the whole body of a type; see [`read_body`]. Refuses a JSON object and a form without a type of their own.
pub async fn read_typed_body(
    body_type: BodyType,
    request: Request,
    app: &App,
    caller: &Caller,
) -> Result<RequestBody, Problem> {
    let body = read_body(request, app, caller).await?;
    if body_type == BodyType::Untyped {
        refuse_untyped_members(&body)?;
    }
    Ok(body)
}

/// Reads the whole body of type JSON; see [`read_body`].
pub async fn read_json_body(request: Request, app: &App, caller: &Caller) -> Result<RequestBody, Problem> {
    match BodyType::from_headers(request.headers())? {
        BodyType::Json => read_body(request, app, caller).await,
        BodyType::Text | BodyType::Untyped | BodyType::Bytes => Err(Problem::new(
            Code::UnsupportedMediaType,
            "the Content-Type must be application/json: add -H 'Content-Type: application/json'",
        )),
    }
}

/// How a body is encoded.
enum ContentCoding {
    Identity,
    Gzip,
}

impl ContentCoding {
    /// Reads `Content-Encoding`.
    fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut codings = list_members(headers, &header::CONTENT_ENCODING)
            .filter(|coding| !coding.eq_ignore_ascii_case(b"identity"));
        match (codings.next(), codings.next()) {
            (None, _) => Ok(Self::Identity),
            (Some(coding), None)
                if [&b"gzip"[..], b"x-gzip"].iter().any(|gzip| coding.eq_ignore_ascii_case(gzip)) =>
            {
                Ok(Self::Gzip)
            }
            _ => Err(Problem::new(
                Code::UnsupportedEncoding,
                "the Content-Encoding must be gzip, once, or identity; other encodings are not supported",
            )),
        }
    }
}

/// Why a body can't be read.
#[derive(Debug, thiserror::Error)]
enum BodyError {
    #[error("the body is too large")]
    TooLarge,
    #[error("there is no room for the body")]
    NoBudget,
    #[error("the connection broke before the whole body had arrived")]
    Broken,
    #[error("the body is not in valid chunks, as its Transfer-Encoding says")]
    NotChunked,
    #[error("the body is not valid gzip, as its Content-Encoding says")]
    NotGzip,
}

impl From<io::Error> for BodyError {
    /// Errors of the decoder: its own, and those of the [`CollectedBody`] that it writes to.
    fn from(error: io::Error) -> Self {
        error.downcast().unwrap_or(Self::NotGzip)
    }
}

/// The bytes of a body that have arrived, decoded.
struct CollectedBody {
    permit: BodyPermit,
    max_bytes: usize,
    // The usual body comes in one piece, which is not copied. Others are, because each piece would take memory of its
    // own besides its bytes.
    first: Bytes,
    rest: BytesMut,
}

impl CollectedBody {
    fn new(permit: BodyPermit, max_bytes: usize) -> Self {
        Self { permit, max_bytes, first: Bytes::new(), rest: BytesMut::new() }
    }

    /// Takes a part of the budget for further bytes.
    fn reserve(&mut self, bytes: usize) -> Result<(), BodyError> {
        if self.permit.bytes + bytes > self.max_bytes {
            return Err(BodyError::TooLarge);
        }
        if self.permit.extend(bytes, false) { Ok(()) } else { Err(BodyError::NoBudget) }
    }

    fn finish(self) -> RequestBody {
        let bytes = if self.rest.is_empty() { self.first } else { self.rest.freeze() };
        RequestBody { bytes, _permit: self.permit }
    }
}

impl Write for CollectedBody {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.reserve(bytes.len()).map_err(io::Error::other)?;
        self.rest.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn collect(
    body: Body,
    coding: ContentCoding,
    mut collected: CollectedBody,
) -> Result<RequestBody, BodyError> {
    let max_bytes = collected.max_bytes;
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(BodyError::TooLarge);
    }
    let mut body = Limited::new(body, max_bytes);
    match coding {
        ContentCoding::Identity => {
            while let Some(data) = next_data(&mut body).await? {
                collected.reserve(data.len())?;
                if collected.permit.bytes == data.len() && body.is_end_stream() {
                    collected.first = data;
                } else {
                    collected.rest.extend_from_slice(&data);
                }
            }
            Ok(collected.finish())
        }
        ContentCoding::Gzip => {
            let mut decoder = MultiGzDecoder::new(collected);
            while let Some(data) = next_data(&mut body).await? {
                decoder.write_all(&data)?;
            }
            Ok(decoder.finish()?.finish())
        }
    }
}

/// The next bytes of a body.
async fn next_data(body: &mut Limited<Body>) -> Result<Option<Bytes>, BodyError> {
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match &*error {
            error if error.is::<LengthLimitError>() => BodyError::TooLarge,
            error if is_malformed(error) => BodyError::NotChunked,
            _ => BodyError::Broken,
        })?;
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
    Ok(None)
}

/// Whether hyper could not read a body that did arrive. Of a body with a length it reads any bytes.
fn is_malformed(error: &(dyn Error + 'static)) -> bool {
    let kind = error.downcast_ref().map(io::Error::kind);
    matches!(kind, Some(io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
        || error.source().is_some_and(is_malformed)
}

/// A large answer, with its part of the budget and its read. It lasts as long as a byte of it waits for the client.
struct HeldAnswer {
    bytes: Bytes,
    _permit: BodyPermit,
    _caller: CallerSlot,
}

impl AsRef<[u8]> for HeldAnswer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn too_many_bodies(app: &App) -> Problem {
    app.metrics.rejected("body_bytes", "request");
    Problem::new(Code::TooManyBodies, TOO_MANY)
}

/// Takes the part of the budget that the answer to a write will need, before the write: once it is done, its answer has to
/// say so.
pub fn reserve_answer(app: &App, caller: &Caller, bytes: usize) -> Result<(), Problem> {
    if bytes > SMALL_BYTES {
        let mut permit = BodyPermit::new(&app.bodies, caller.key());
        if !permit.extend(bytes, false) {
            return Err(too_many_bodies(app));
        }
        caller.slot().keep_for_answer(permit);
    }
    Ok(())
}

/// Counts a large answer until its client has taken it. Refuses that of a read, or of a write that was not done, if the
/// caller has too many bytes.
pub async fn hold_answer(
    response: Response,
    app: &App,
    caller: CallerSlot,
    is_read: bool,
) -> Result<Response, Problem> {
    let reserved = caller.take_kept_for_answer();
    let size = response.body().size_hint().exact().and_then(|size| usize::try_from(size).ok());
    caller.has_answered(size.unwrap_or_default());
    if size.is_none_or(|size| size <= SMALL_BYTES) {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let whole = body.collect().await.map_err(|error| Problem::new(Code::Internal, error.to_string()))?;
    let bytes = whole.to_bytes();
    let mut permit = reserved.unwrap_or_else(|| BodyPermit::new(&app.bodies, caller.key()));
    let is_done = !is_read && parts.status.is_success();
    if !permit.extend(bytes.len().saturating_sub(permit.bytes), is_done) {
        return Err(too_many_bodies(app));
    }
    let held = HeldAnswer { bytes, _permit: permit, _caller: caller };
    Ok(Response::from_parts(parts, Body::from(Bytes::from_owner(held))))
}
