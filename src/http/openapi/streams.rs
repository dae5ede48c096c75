//! The items of streams in the document: schemas of the data of each control event, of presence events, and of the
//! envelope on a stream of several rooms. The types only describe: `delivery` writes the blocks. Enums are inline, since
//! generated Go has one namespace for the values of all that have a name.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::config::OpenApiVersion;

/// A block of a stream.
#[derive(ToSchema)]
pub(super) struct ServerEvent {
    /// The position after the event: the value to send back as `Last-Event-ID`.
    #[schema(nullable = false)]
    id: Option<String>,
    /// The event's name, or that of a control event: `stream.open`, `stream.gap`, `stream.position` or `stream.end`.
    #[schema(nullable = false)]
    event: Option<String>,
    /// The event's data, as text.
    data: String,
    /// The time to wait before a reconnect, in milliseconds.
    #[schema(nullable = false)]
    retry: Option<u64>,
}

/// The data of `stream.open`, the first block of a stream.
#[derive(ToSchema)]
#[schema(as = StreamOpen)]
pub(super) struct StreamOpenSchema {
    /// The subscriber's id.
    subscriber: String,
    /// The name of the replica that serves the stream.
    replica: String,
    /// The time at which the stream ends because its token expires, RFC 3339 in UTC.
    #[schema(format = DateTime, nullable = false)]
    expires_at: Option<String>,
    /// The stream's rooms, by name.
    rooms: BTreeMap<String, OpenedRoomSchema>,
}

/// A room of a stream that opens.
#[derive(ToSchema)]
#[schema(as = OpenedRoom)]
pub(super) struct OpenedRoomSchema {
    /// The position at which the stream starts.
    position: String,
    #[schema(inline)]
    resume: ResumeSchema,
}

/// How a stream begins: `fresh`, not after an earlier one; `complete`, after an earlier one, and no event is missing;
/// `gap`, after an earlier one, and events may be missing.
#[derive(ToSchema)]
#[schema(as = Resume, rename_all = "snake_case")]
pub(super) enum ResumeSchema {
    Fresh,
    Complete,
    Gap,
}

/// The data of `stream.gap`: events after `from`, up to and including `to`, may be missing.
#[derive(ToSchema)]
#[schema(as = StreamGap)]
pub(super) struct StreamGapSchema {
    /// The room's name.
    room: String,
    /// The last position up to which no event is missing.
    from: String,
    /// The position after which the stream continues.
    to: String,
    /// Why events may be missing.
    reason: GapReasonSchema,
}

/// Why events may be missing.
#[derive(ToSchema)]
#[schema(as = GapReason, rename_all = "snake_case")]
pub(in crate::http) enum GapReasonSchema {
    Trimmed,
    Expired,
    LogLost,
    LostTail,
    Diverged,
    UnknownPosition,
}

/// The data of `stream.position`, which gives the position when no other block does.
#[derive(ToSchema)]
#[schema(as = StreamPosition)]
pub(super) struct StreamPositionSchema {
    /// The position, or the cursor of a stream of several rooms.
    position: String,
}

/// The data of `stream.end`, the last block of a stream.
#[derive(ToSchema)]
#[schema(as = StreamEnd)]
pub(super) struct StreamEndSchema {
    #[schema(inline)]
    reason: StreamEndReason,
    #[schema(inline)]
    reconnect: Reconnect,
}

/// Why the stream ends, or was refused.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum StreamEndReason {
    Draining,
    Lifetime,
    TokenExpired,
    TokenRevoked,
    Removed,
    Superseded,
    TooManyRequests,
    TooManyStreams,
    TooManyConnections,
    Unavailable,
    NoReplica,
}

/// When to reconnect.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum Reconnect {
    Now,
    Later,
    Never,
}

/// The data of `presence.join` and `presence.leave`.
#[derive(ToSchema)]
pub(super) struct PresenceChange {
    /// The members that have joined or left.
    members: Vec<PresenceMember>,
    /// The number of members after the change.
    present: u64,
}

/// A member that has joined or left.
#[derive(ToSchema)]
pub(super) struct PresenceMember {
    /// The member's name in the room.
    #[schema(example = "ann")]
    subscriber: String,
    /// The subject of the member's token.
    #[schema(nullable = false)]
    user: Option<String>,
    /// The member's profile: any JSON, from its token or from its request.
    #[schema(required = false)]
    info: Value,
    /// The time at which the member joined, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    since: String,
}

/// The data of an event on a stream of several rooms.
#[derive(ToSchema)]
pub(super) struct RoomEvent {
    /// The room's name.
    room: String,
    /// The event's id in its room.
    #[schema(example = "1790000000000000-42")]
    id: String,
    /// The event's name, or null if it has none.
    #[schema(required = true)]
    event: Option<String>,
    /// The event's data as it was published. Text is a JSON string. That of `presence.join` and `presence.leave` is a
    /// `PresenceChange`.
    data: Value,
    /// The time of the publication, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    published_at: String,
    /// The id that the copies of one publish to several rooms share.
    #[schema(nullable = false)]
    publish_id: Option<String>,
}

/// Names and schemas of the control events.
const CONTROL: [(&str, &str); 4] = [
    ("stream.open", "StreamOpen"),
    ("stream.gap", "StreamGap"),
    ("stream.position", "StreamPosition"),
    ("stream.end", "StreamEnd"),
];
/// Names of presence events.
const PRESENCE: [&str; 2] = ["presence.join", "presence.leave"];

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

/// Describes what both streams carry. In 3.2 an item is a block. Older versions can't tell items from the whole, and
/// generators that know streams take the schema for that of one block's data.
pub(super) fn describe(document: &mut Value, version: OpenApiVersion) {
    for (path, room_event) in [("/v1/rooms/{room}/stream", None), ("/v1/stream", Some("RoomEvent"))] {
        let content = &mut document["paths"][path]["get"]["responses"]["200"]["content"]["text/event-stream"];
        if version == OpenApiVersion::V32 {
            content["itemSchema"] = item(room_event);
            content.as_object_mut().expect("a media type is an object").remove("schema");
        } else {
            content["schema"] = data(room_event);
        }
    }
    if version != OpenApiVersion::V32 {
        document["components"]["schemas"].as_object_mut().expect("there are schemas").remove("ServerEvent");
    }
}

/// One block: its data is JSON that depends on the event's name.
fn item(room_event: Option<&str>) -> Value {
    let block = |name: &str, schema: Value| {
        let data = json!({ "contentMediaType": "application/json", "contentSchema": schema });
        json!({ "properties": { "event": { "const": name }, "data": data }, "required": ["event"] })
    };
    let mut blocks: Vec<_> = CONTROL.into_iter().map(|(name, schema)| block(name, reference(schema))).collect();
    let reserved: Vec<_> = CONTROL.into_iter().map(|(name, _)| name).chain(PRESENCE).collect();
    let others = json!({ "event": { "not": { "enum": reserved } } });
    match room_event {
        None => {
            blocks.extend(PRESENCE.into_iter().map(|name| block(name, reference("PresenceChange"))));
            blocks.push(json!({ "properties": others }));
        }
        Some(schema) => {
            blocks.extend(PRESENCE.into_iter().map(|name| block(name, reference(schema))));
            let data = json!({ "contentMediaType": "application/json", "contentSchema": reference(schema) });
            blocks.push(json!({ "properties": { "event": others["event"], "data": data } }));
        }
    }
    json!({ "allOf": [reference("ServerEvent")], "anyOf": blocks })
}

/// The data of one block, decoded.
fn data(room_event: Option<&str>) -> Value {
    let mut choices: Vec<_> = CONTROL.into_iter().map(|(_, schema)| reference(schema)).collect();
    match room_event {
        None => {
            choices.push(reference("PresenceChange"));
            choices.push(json!({ "description": "The data of an event, as it was published" }));
        }
        Some(schema) => choices.push(reference(schema)),
    }
    json!({ "anyOf": choices })
}
