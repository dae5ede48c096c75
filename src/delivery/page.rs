//! A page of a room's log as JSON: the answer to a read of the log, and to one that has waited for events.

use std::borrow::Cow;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::log::Gap;
use crate::names::{Event, EventId, EventName, RoomName};

/// A page of a room's log.
#[derive(Serialize)]
pub struct EventPage<'a> {
    /// The room's name.
    pub room: &'a RoomName,
    /// The events, oldest first.
    pub events: Vec<PageEvent<'a>>,
    /// The id of the oldest event in the log. `None` if the log is empty, and after a wait, which does not read the log.
    pub oldest: Option<String>,
    /// The last position of the log.
    pub head: String,
    /// The gap before the events.
    pub gap: Option<PageGap>,
    /// The position after which the next page forward goes on.
    pub next: Option<String>,
    /// Whether nothing follows that position, since the room has its final event.
    pub finished: bool,
}

/// An event in a page.
#[derive(Serialize)]
pub struct PageEvent<'a> {
    id: String,
    event: Option<&'a str>,
    data: Cow<'a, RawValue>,
    published_at: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    publish_id: Option<&'a str>,
    #[serde(rename = "final", skip_serializing_if = "std::ops::Not::not")]
    is_final: bool,
}

/// A gap: events after `from`, up to and including `to`, may be missing.
#[derive(Serialize)]
pub struct PageGap {
    from: String,
    to: String,
    reason: &'static str,
}

impl<'a> PageEvent<'a> {
    /// An event with its id.
    pub fn new(id: EventId, event: &'a Event) -> Self {
        Self {
            id: id.to_string(),
            event: event.name.as_ref().map(EventName::as_str),
            data: event.data.as_json(),
            published_at: &event.published_at,
            publish_id: event.publish_id.as_deref(),
            is_final: event.is_final,
        }
    }
}

impl From<&Gap> for PageGap {
    fn from(gap: &Gap) -> Self {
        Self { from: gap.from.to_string(), to: gap.to.to_string(), reason: gap.reason.name() }
    }
}
