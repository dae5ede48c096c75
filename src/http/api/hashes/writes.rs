//! What the writes to hashes have in common: idempotency keys, and how much a response has.

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::broker::{BrokerError, Fault, FaultKind, HashWrite, MemoryUse, WriteContext, WriteEffect, WriteOutcome};
use crate::http::caller::Caller;
use crate::http::prefer::{PREFERENCE_APPLIED, Return};
use crate::http::problem::Problem;
use crate::http::{App, idempotency};
use crate::names::HashName;

/// The headers of a write that do not depend on what it writes.
pub(super) struct WriteHeaders {
    key: Option<String>,
    preferred: Option<Return>,
}

/// A write that is done.
pub(super) struct DoneWrite {
    pub effect: WriteEffect,
    /// Whether an earlier request with the same key has done it.
    pub is_replayed: bool,
    preferred: Option<Return>,
}

impl WriteHeaders {
    pub fn from_headers(headers: &HeaderMap) -> Result<Self, Problem> {
        let key = idempotency::key_from_headers(headers)?.map(str::to_owned);
        Ok(Self { key, preferred: Return::from_headers(headers) })
    }

    /// Whether the response needs a body.
    pub fn want_body(&self) -> bool {
        self.preferred != Some(Return::Minimal)
    }

    /// Makes the write. `refused` makes the problem of a write that changes nothing.
    pub async fn write(
        self,
        app: &App,
        caller: &Caller,
        hash: &HashName,
        write: &HashWrite,
        refused: impl AsyncFnOnce(WriteOutcome) -> Problem,
    ) -> Result<DoneWrite, Problem> {
        let key = self.key.map(|key| idempotency::write_key(&caller.owner(), &key, write));
        let watermarks = app.log.watermarks().take_for_call(&hash.clone().into());
        let by = caller.identity().subject.as_deref();
        let context = WriteContext { key: key.as_ref(), by, watermarks: &watermarks };
        match app.hashes.write(hash, write, context).await? {
            WriteOutcome::Done(effect, is_replayed) => {
                Ok(DoneWrite { effect, is_replayed, preferred: self.preferred })
            }
            outcome => Err(Box::pin(refused(outcome)).await),
        }
    }
}

impl DoneWrite {
    /// The response. Without a body, the status 200 becomes 204. A body with an entity tag is a representation of a field.
    pub fn respond(
        self,
        status: StatusCode,
        tag: Option<HeaderValue>,
        body: Option<impl IntoResponse>,
    ) -> Response {
        let applied = match self.preferred {
            Some(Return::Representation) if tag.is_none() => None,
            preferred => preferred,
        };
        let mut response = match body {
            Some(body) => (status, body).into_response(),
            None if status == StatusCode::OK => StatusCode::NO_CONTENT.into_response(),
            None => status.into_response(),
        };
        let replayed = self.is_replayed.then(|| HeaderValue::from_static("true"));
        let applied = applied.map(Return::applied);
        for (name, value) in [(header::ETAG, tag), (idempotency::REPLAYED, replayed), (PREFERENCE_APPLIED, applied)]
        {
            if let Some(value) = value {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }
}

/// Refuses values while the broker is nearly full: the last part of its memory is kept for events.
pub(super) fn require_memory(app: &App) -> Result<(), Problem> {
    if app.log.health().memory.is_some_and(MemoryUse::is_nearly_full) {
        let detail = "the broker's memory is nearly full, and takes no more values; delete fields or hashes";
        return Err(BrokerError::Unavailable(Fault::new(FaultKind::OutOfMemory, detail)).into());
    }
    Ok(())
}
