//! A page of a room's log in the document. The types only describe: `delivery` writes the page.

use utoipa::ToSchema;

use super::GapReasonSchema;

/// A part of a room's log.
#[derive(ToSchema)]
#[schema(as = EventList)]
pub(in crate::http) struct EventListSchema {
    /// The room's name.
    room: String,
    /// The events, oldest first.
    events: Vec<LoggedEventSchema>,
    /// The id of the oldest event in the log. Null if the log is empty, or if the answer has waited.
    #[schema(required = true)]
    oldest: Option<String>,
    /// The last position of the log. A stream that opens now starts after it.
    #[schema(example = "1790000000000000-42")]
    head: String,
    /// The gap between `after` and the events, if the log no longer reaches back to `after`. Otherwise null.
    gap: Option<GapDescriptionSchema>,
    /// The position to go on from, as `after` of the next request: that of the last event, or a later one. Null if the
    /// request has `before`.
    #[schema(required = true, example = "1790000000000000-42")]
    next: Option<String>,
    /// Whether nothing follows `next`, since the room has its final event.
    finished: bool,
}

/// An event in a log.
#[derive(ToSchema)]
#[schema(as = LoggedEvent)]
pub(in crate::http) struct LoggedEventSchema {
    /// The event's id.
    #[schema(example = "1790000000000000-42")]
    id: String,
    /// The event's name, or null if it has none.
    #[schema(required = true)]
    event: Option<String>,
    /// The event's data as it was published. Text is a JSON string.
    data: serde_json::Value,
    /// The time of the publication, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    published_at: String,
    /// The id that the copies of one publish to several rooms share.
    #[schema(nullable = false)]
    publish_id: Option<String>,
    /// Whether it is the room's last event. Missing if not.
    #[schema(rename = "final", required = false)]
    is_final: bool,
}

/// A gap: events after `from`, up to and including `to`, may be missing.
#[derive(ToSchema)]
#[schema(as = GapDescription)]
pub(in crate::http) struct GapDescriptionSchema {
    /// The last position up to which no event is missing.
    from: String,
    /// The position after which the list continues.
    to: String,
    /// Why events may be missing.
    reason: GapReasonSchema,
}
