//! Bodies of requests. A handler reads one after it has checked the caller's permission, and holds it until it answers.
//!
//! All bodies together have a budget of bytes, `--max-total-body-bytes`. The bodies of one caller may take as many
//! bytes of it as are free, so that however many callers send bodies, there is room for one more. Small bodies may take
//! twice as many: a caller with unfinished large bodies can still publish.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use bytes::BytesMut;
use http_body_util::{BodyExt, LengthLimitError, Limited};

use super::App;
use super::caller::Caller;
use super::extract::BodyType;
use super::problem::{Code, Problem};
use crate::rate_limit::RateKey;

/// A body of up to so many bytes is small.
const SMALL_BYTES: usize = 16 * 1024;

/// Counts the bytes of all bodies that have arrived and that a handler still holds.
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
struct BodyPermit {
    budget: Arc<BodyBudget>,
    caller: RateKey,
    bytes: usize,
}

impl BodyPermit {
    fn new(budget: &Arc<BodyBudget>, caller: RateKey) -> Self {
        Self { budget: budget.clone(), caller, bytes: 0 }
    }

    /// Takes further bytes. Returns false if the caller may not have them now.
    fn extend(&mut self, bytes: usize) -> bool {
        let mut held = self.budget.held();
        let of_caller = held.callers.get(&self.caller).copied().unwrap_or_default() + bytes;
        let free = self.budget.max_bytes.saturating_sub(held.total + bytes);
        let is_small = self.bytes + bytes <= SMALL_BYTES;
        if of_caller > if is_small { 2 * free } else { free } {
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

/// Reads the whole body, up to `--max-body-bytes` and within `--request-timeout`. The caller's permission has to be
/// checked before.
pub async fn read_body(request: Request, app: &App, caller: &Caller) -> Result<RequestBody, Problem> {
    let limit = app.settings.requests.request_timeout;
    let permit = BodyPermit::new(&app.bodies, caller.key());
    // The timeout covers only the arrival of the body. Calls to the broker have limits of their own: a call that is
    // cut short would hide whether the write was done.
    let arrival = tokio::time::timeout(limit, collect(request.into_body(), app, permit)).await;
    arrival.map_err(|_| {
        let detail = format!("the body did not arrive within {limit:?} (--request-timeout)");
        Problem::new(Code::RequestTimeout, detail)
    })?
}

/// Reads the whole body of type JSON; see [`read_body`].
pub async fn read_json_body(request: Request, app: &App, caller: &Caller) -> Result<RequestBody, Problem> {
    match BodyType::from_headers(request.headers())? {
        BodyType::Json => read_body(request, app, caller).await,
        BodyType::Text | BodyType::Bytes => {
            Err(Problem::new(Code::UnsupportedMediaType, "the Content-Type must be application/json"))
        }
    }
}

async fn collect(body: Body, app: &App, mut permit: BodyPermit) -> Result<RequestBody, Problem> {
    let max = app.settings.requests.max_body_bytes;
    let too_large =
        || Problem::new(Code::BodyTooLarge, format!("the body has more than {max} bytes (--max-body-bytes)"));
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    let mut body = Limited::new(body, max);
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                too_large()
            } else {
                Problem::new(Code::InvalidBody, "the connection broke before the whole body had arrived")
            }
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if !permit.extend(data.len()) {
            app.metrics.rejected("body_bytes", "request");
            let detail = "the replica holds too many bytes of request bodies, or too many of this caller's \
                          (--max-total-body-bytes); nothing was stored; try again";
            return Err(Problem::new(Code::TooManyBodies, detail));
        }
        // The usual body comes in one piece, which is not copied. Others are, because each piece would take memory of
        // its own besides its bytes.
        if first.is_empty() && rest.is_empty() && body.is_end_stream() {
            first = data;
        } else {
            rest.extend_from_slice(&data);
        }
    }
    let bytes = if rest.is_empty() { first } else { rest.freeze() };
    Ok(RequestBody { bytes, _permit: permit })
}
