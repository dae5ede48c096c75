//! The items of streams in the document: schemas of the data of each control event, of presence events, of changes of
//! hashes, and of the envelope on a stream of several rooms. The types only describe: `delivery` writes the blocks. Enums are inline, since
//! generated Go has one namespace for the values of all that have a name.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use utoipa::ToSchema;

use crate::http::api::hashes::TaggedValue;

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
    /// Seconds after which the stream gets a heartbeat if it is idle.
    #[schema(minimum = 0, example = 15)]
    heartbeat_seconds: f64,
    /// The time at which the stream ends because its token expires, RFC 3339 in UTC.
    #[schema(format = DateTime, nullable = false)]
    expires_at: Option<String>,
    /// The stream's rooms, by name.
    rooms: BTreeMap<String, OpenedRoomSchema>,
    /// The stream's hashes, by name. Missing if there are none.
    #[schema(nullable = false)]
    hashes: Option<BTreeMap<String, OpenedRoomSchema>>,
}

/// A room or a hash of a stream that opens.
#[derive(ToSchema)]
#[schema(as = OpenedRoom)]
pub(super) struct OpenedRoomSchema {
    /// The position at which the stream starts.
    position: String,
    #[schema(inline)]
    resume: ResumeSchema,
}

/// How a stream begins: `fresh`, not after an earlier one; `complete`, after an earlier one, and no event is missing;
/// `gap`, after an earlier one, and events may be missing; `snapshot`, of a hash, after an earlier one: no change is
/// missing, and a snapshot follows all the same.
#[derive(ToSchema)]
#[schema(as = Resume, rename_all = "snake_case")]
pub(super) enum ResumeSchema {
    Fresh,
    Complete,
    Gap,
    Snapshot,
}

/// The data of `stream.gap`: events after `from`, up to and including `to`, may be missing.
#[derive(ToSchema)]
#[schema(as = StreamGap)]
pub(super) struct StreamGapSchema {
    /// The room's name, if events of a room may be missing.
    #[schema(nullable = false)]
    room: Option<String>,
    /// The hash's name, if changes of a hash may be missing. A snapshot follows.
    #[schema(nullable = false)]
    hash: Option<String>,
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
pub(super) enum GapReasonSchema {
    Trimmed,
    Expired,
    LogLost,
    LostTail,
    Diverged,
    UnknownPosition,
}

/// The data of `stream.position`, which gives the position when no other block does: a heartbeat that a page sees.
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
    Finished,
    Removed,
    Superseded,
    TooManyRequests,
    TooManyStreams,
    TooManyConnections,
    TooSlow,
    HashTooLarge,
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

/// The data of `hash.snapshot`: a part of the present fields of a hash.
#[derive(ToSchema)]
pub(super) struct HashSnapshot {
    /// The hash's name.
    hash: String,
    /// The values, by the names of their fields.
    fields: BTreeMap<String, TaggedValue>,
    /// The number of the part, from 0.
    part: u64,
    /// Whether this is the last part. What the client had of the hash before is then to be replaced by the parts.
    last: bool,
}

/// The data of `hash.set`: fields that have other values now.
#[derive(ToSchema)]
pub(super) struct HashFieldsSet {
    /// The hash's name.
    hash: String,
    /// The new values, by the names of their fields.
    fields: BTreeMap<String, TaggedValue>,
    /// The subject of the token with which it was written. Null if that had none, and if another client of Redis wrote.
    #[schema(required = true)]
    by: Option<String>,
    /// The time of the write, or at which it was noticed, RFC 3339 in UTC.
    #[schema(format = DateTime)]
    changed_at: String,
}

/// The data of `hash.delete`: fields that have no value any more.
#[derive(ToSchema)]
pub(super) struct HashFieldsDeleted {
    /// The hash's name.
    hash: String,
    /// The names of the fields.
    fields: Vec<String>,
    /// As in `HashFieldsSet`.
    #[schema(required = true)]
    by: Option<String>,
    /// As in `HashFieldsSet`.
    #[schema(format = DateTime)]
    changed_at: String,
}

/// The data of `hash.clear`: the hash has no fields any more.
#[derive(ToSchema)]
pub(super) struct HashCleared {
    /// The hash's name.
    hash: String,
    #[schema(inline)]
    reason: HashClearReason,
    /// As in `HashFieldsSet`.
    #[schema(required = true)]
    by: Option<String>,
    /// As in `HashFieldsSet`.
    #[schema(format = DateTime)]
    changed_at: String,
}

/// Why: a caller has deleted it, it has expired, or another client of Redis has deleted or replaced it.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub(super) enum HashClearReason {
    Removed,
    Expired,
    External,
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
    /// Whether it is the last event of its room. Missing if not.
    #[schema(rename = "final", nullable = false)]
    is_final: Option<bool>,
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
/// Names and schemas of what streams tell of hashes.
const HASHES: [(&str, &str); 4] = [
    ("hash.snapshot", "HashSnapshot"),
    ("hash.set", "HashFieldsSet"),
    ("hash.delete", "HashFieldsDeleted"),
    ("hash.clear", "HashCleared"),
];

/// What a stream carries beside the control events.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Carries {
    /// The events of one room, as they were published.
    Room,
    /// The changes of one hash.
    Hash,
    /// The events of rooms in envelopes, and the changes of hashes.
    Both,
}

const STREAMS: [(&str, Carries); 3] = [
    ("/v1/rooms/{room}/stream", Carries::Room),
    ("/v1/hashes/{hash}/stream", Carries::Hash),
    ("/v1/stream", Carries::Both),
];

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

/// Describes what streams carry. In 3.2 an item is a block. Older versions can't tell items from the whole, and
/// generators that know streams take the schema for that of one block's data.
pub(super) fn describe(document: &mut Value, version: OpenApiVersion) {
    for (path, carries) in STREAMS {
        let content = &mut document["paths"][path]["get"]["responses"]["200"]["content"]["text/event-stream"];
        if version == OpenApiVersion::V32 {
            content["itemSchema"] = item(carries);
            content.as_object_mut().expect("a media type is an object").remove("schema");
        } else {
            content["schema"] = data(carries);
        }
    }
    if version != OpenApiVersion::V32 {
        document["components"]["schemas"].as_object_mut().expect("there are schemas").remove("ServerEvent");
    }
}

/// Names and schemas of the blocks whose data does not depend on a publisher.
fn named(carries: Carries) -> Vec<(&'static str, &'static str)> {
    let presence = match carries {
        Carries::Room => Some("PresenceChange"),
        Carries::Hash => None,
        Carries::Both => Some("RoomEvent"),
    };
    let presence = presence.into_iter().flat_map(|schema| PRESENCE.map(|name| (name, schema)));
    let hashes = HASHES.into_iter().filter(|_| carries != Carries::Room);
    CONTROL.into_iter().chain(presence).chain(hashes).collect()
}

/// One block: its data is JSON that depends on the event's name.
fn item(carries: Carries) -> Value {
    let block = |name: &str, schema: Value| {
        let data = json!({ "contentMediaType": "application/json", "contentSchema": schema });
        json!({ "properties": { "event": { "const": name }, "data": data }, "required": ["event"] })
    };
    let mut blocks: Vec<_> =
        named(carries).into_iter().map(|(name, schema)| block(name, reference(schema))).collect();
    let reserved: Vec<_> = named(carries).into_iter().map(|(name, _)| name).collect();
    let others = json!({ "not": { "enum": reserved } });
    match carries {
        Carries::Room => blocks.push(json!({ "properties": { "event": others } })),
        Carries::Hash => {}
        Carries::Both => {
            let data = json!({ "contentMediaType": "application/json", "contentSchema": reference("RoomEvent") });
            blocks.push(json!({ "properties": { "event": others, "data": data } }));
        }
    }
    json!({ "allOf": [reference("ServerEvent")], "anyOf": blocks })
}

/// The data of one block, decoded.
fn data(carries: Carries) -> Value {
    let mut schemas: Vec<_> = named(carries).into_iter().map(|(_, schema)| schema).collect();
    schemas.dedup();
    let mut choices: Vec<_> = schemas.into_iter().map(reference).collect();
    match carries {
        Carries::Room => choices.push(json!({ "description": "The data of an event, as it was published" })),
        Carries::Hash | Carries::Both => {}
    }
    json!({ "anyOf": choices })
}
