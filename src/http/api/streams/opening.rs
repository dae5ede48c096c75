//! Opening a stream: checks of the subscriber, limits, bans, the subscription, and the place in the rooms.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::value::RawValue;
use tokio::time::{Instant, timeout_at};

use super::refusal::{refuse, refuse_caller, stream_headers};
use crate::auth::{MAX_INFO_BYTES, MAX_INFO_DEPTH, Permission};
use crate::broker::{BrokerError, Fault, FaultKind, Member};
use crate::config::PresenceInfo;
use crate::delivery::{
    DetachableStream, EndReason, Ending, HeartbeatOptions, SessionOptions, StreamFormat, StreamSession, Subscriber,
};
use crate::digest::sha1_hex;
use crate::http::App;
use crate::http::caller::Caller;
use crate::http::extract::{json_error, parse_event_name, parse_name};
use crate::http::problem::{Code, Problem};
use crate::live::{Start, Subscription};
use crate::names::{EventName, FieldName, RoomName, SubscriberId, Topic, nesting, without_white_space};
use crate::presence::{JoinError, JoinPlan};

/// Event names that one stream can select.
const MAX_SELECTED: usize = 50;
/// Fields of hashes that one stream can select.
const MAX_SELECTED_FIELDS: usize = 100;
/// The seconds between heartbeats that a stream can ask for.
const HEARTBEAT_SECONDS: RangeInclusive<u64> = 5..=300;
/// Longest time from a request's arrival until its stream joins the rooms or is refused, without the wait for its turn.
const OPEN_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest time that a stream waits for its turn, while others of its caller open.
const TURN_TIMEOUT: Duration = Duration::from_secs(10);

/// What a request says about its stream, apart from its topics.
#[derive(Default)]
pub(super) struct StreamOptions<'a> {
    pub(super) format: StreamFormat,
    pub(super) ending: Ending,
    /// Seconds between heartbeats. None: those of the settings.
    pub(super) heartbeat: Option<u64>,
    /// Whether a heartbeat is an event and no comment.
    pub(super) heartbeat_event: bool,
    /// Names of events to select. Empty: all events.
    pub(super) event: &'a [String],
    /// Names of the fields of hashes to select. Empty: all fields.
    pub(super) field: &'a [String],
    /// The subscriber id that the client has chosen.
    pub(super) subscriber: Option<String>,
    /// Whether the stream gets `presence.join` and `presence.leave`.
    pub(super) presence: bool,
    /// The subscriber's profile, as JSON.
    pub(super) info: Option<String>,
    /// Whether the client wants the head of the response only. It gets no stream.
    pub(super) is_head: bool,
    /// The client's position. A refusal repeats it.
    pub(super) last_id: Option<String>,
}

/// Why a stream was not opened.
pub(in crate::http::api) enum OpenError {
    /// The caller was removed for a time.
    Banned,
    /// The client comes back to rooms that are finished, and has had all that they have.
    Finished,
    /// The caller's token is no longer valid.
    Token(Problem),
    Broker(BrokerError),
    /// The name of the limit: `subject` or `address`.
    TooManyStreams(&'static str),
    /// The subscriber name belongs to another caller in this room.
    NameTaken(RoomName),
}

impl From<BrokerError> for OpenError {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

impl From<JoinError> for OpenError {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::NameTaken(room) => Self::NameTaken(room),
            JoinError::Broker(error) => Self::Broker(error),
        }
    }
}

/// Opens a stream, or refuses it.
pub(super) async fn open(
    app: &App,
    caller: Caller,
    topics: Vec<(Topic, Start)>,
    options: StreamOptions<'_>,
) -> Result<Response, Problem> {
    // A stream with a name changes the members of its rooms, and each stream takes one of its subject's streams.
    caller.require_allowed_page(options.subscriber.is_some() || options.presence)?;
    let (format, ending) = (options.format, options.ending);
    let (last_id, is_head) = (options.last_id.clone(), options.is_head);
    let names: Vec<_> = topics.iter().filter_map(|(topic, _)| topic.room().cloned()).collect();
    // Counted first, so that the stream checks every termination that comes while it opens.
    let terminations = app.moderation.terminations();
    let heartbeat = heartbeat(app, &options)?;
    let mut subscriber = subscriber(app, &caller, &names, options)?;
    let refuse = |reason| Ok(refuse(app, reason, last_id.as_deref(), ending));
    if app.drain.is_leaving() {
        return refuse(EndReason::Draining);
    }
    if is_head {
        return Ok(stream_headers().into_response());
    }
    let comes_back = last_id.is_some();
    // The join has no deadline: one that was cut off would have ended the caller's other streams for a refused one.
    let opened = match begin(app, &caller, &mut subscriber, &names, topics).await {
        Ok((subscription, _)) if comes_back && subscription.is_finished() => Err(OpenError::Finished),
        Ok((subscription, plan)) => {
            // A stream that ends at once enters no room.
            let plan = plan.filter(|_| !subscription.is_finished());
            subscriber.join(&app.presence, &names, plan).await.map(|()| subscription).map_err(OpenError::from)
        }
        Err(error) => Err(error),
    };
    match opened {
        Ok(subscription) => {
            let lifetime = app.delivery.settings.random_lifetime();
            let options = SessionOptions { format, ending, heartbeat, lifetime };
            let session = StreamSession::new(app.delivery.clone(), subscription, subscriber, options, terminations);
            let stream = DetachableStream::new(session);
            let mut response = (stream_headers(), Body::from_stream(stream.body())).into_response();
            response.extensions_mut().insert(stream);
            Ok(response)
        }
        // At 204, an EventSource gives up.
        Err(OpenError::Banned) => {
            app.metrics.stream_refused(EndReason::Banned.name());
            let detail = "the subscriber was removed, and may not open a stream yet";
            caller.audit(&Problem::new(Code::Forbidden, detail));
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Err(OpenError::Finished) => {
            app.metrics.stream_refused(EndReason::Finished.name());
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Err(OpenError::Token(problem)) => refuse_caller(app, problem, last_id.as_deref(), ending),
        Err(OpenError::Broker(BrokerError::Unavailable(fault) | BrokerError::OutcomeUnknown(fault))) => {
            tracing::debug!(%fault, "a stream was refused for now: the broker is unavailable");
            refuse(EndReason::Unavailable)
        }
        Err(OpenError::Broker(error)) => Err(error.into()),
        Err(OpenError::TooManyStreams(limit)) => {
            app.metrics.rejected(limit, "stream");
            caller.audit(&too_many_streams(limit));
            refuse(EndReason::TooManyStreams)
        }
        Err(OpenError::NameTaken(room)) => {
            let detail = format!(
                "the subscriber name belongs to another caller in the room {room:?}; choose another subscriber="
            );
            let problem = Problem::new(Code::SubscriberTaken, detail);
            caller.audit(&problem);
            Err(problem)
        }
    }
}

/// Takes a stream permit, checks removals, waits for the stream's turn, subscribes to the rooms, and plans to join them. In
/// this order, so that a member gets the event of its own join.
pub(in crate::http::api) async fn begin(
    app: &App,
    caller: &Caller,
    subscriber: &mut Subscriber,
    names: &[RoomName],
    topics: Vec<(Topic, Start)>,
) -> Result<(Subscription, Option<JoinPlan>), OpenError> {
    if let Some(limits) = &app.limits {
        let permit = limits.open_stream(subscriber.identity.subject.as_ref(), subscriber.address);
        subscriber.hold(permit.map_err(OpenError::TooManyStreams)?);
    }
    let mut deadline = caller.slot().began() + OPEN_TIMEOUT;
    in_time(deadline, check_removals(app, caller, subscriber, names)).await?;
    let waiting_since = Instant::now();
    let turn = async { Ok(caller.turn_to_open(app, topics.len()).await) };
    let _turn = in_time(waiting_since + TURN_TIMEOUT, turn).await?;
    // While the broker fails, those before it in the queue were refused after this time, and so is this one.
    if app.log.health().follow_fault().is_none() {
        deadline += waiting_since.elapsed();
    }
    let opening = async {
        let payer = app.limits.as_ref().and_then(|limits| limits.payer_for_streams(caller.key()));
        let wanted = |event: &_| subscriber.wants(event);
        let subscription = app.live.subscribe(topics, subscriber.view(), payer, wanted).await?;
        // That took a while. A caller that was removed meanwhile must not end the owner's other streams.
        check_removals(app, caller, subscriber, names).await?;
        let plan = subscriber.plan_join(&app.presence, names).await?;
        Ok((subscription, plan))
    };
    in_time(deadline, opening).await
}

/// Waits for a step of opening a stream until a deadline.
async fn in_time<T>(deadline: Instant, step: impl Future<Output = Result<T, OpenError>>) -> Result<T, OpenError> {
    timeout_at(deadline, step).await.unwrap_or_else(|_| {
        let detail = "opening the stream took too long";
        Err(OpenError::Broker(BrokerError::Unavailable(Fault::new(FaultKind::TimedOut, detail))))
    })
}

/// Checks the caller's token and bans. Terminations are counted already, so those that come later end the stream.
async fn check_removals(
    app: &App,
    caller: &Caller,
    subscriber: &Subscriber,
    rooms: &[RoomName],
) -> Result<(), OpenError> {
    caller.recheck_token(app).await.map_err(OpenError::Token)?;
    if app.moderation.is_banned(rooms.iter().cloned(), &subscriber.stream_identity()).await? {
        return Err(OpenError::Banned);
    }
    Ok(())
}

/// The problem of a caller that has reached its limit of open streams.
pub(in crate::http::api) fn too_many_streams(limit: &str) -> Problem {
    let detail = format!("the limit of open streams for one {limit} is reached (--max-streams-per-{limit})");
    Problem::later(Code::TooManyRequests, detail, Duration::from_secs(1))
}

/// The id of a subscriber that has not chosen one.
pub(in crate::http::api) fn random_subscriber_id() -> SubscriberId {
    SubscriberId::new(&uuid::Uuid::new_v4().to_string()).expect("a UUID is a name")
}

/// Checks what a request says about its heartbeats.
fn heartbeat(app: &App, options: &StreamOptions<'_>) -> Result<HeartbeatOptions, Problem> {
    let interval = match options.heartbeat {
        None => app.delivery.settings.heartbeat,
        Some(seconds) if HEARTBEAT_SECONDS.contains(&seconds) => Duration::from_secs(seconds),
        Some(_) => {
            let (least, most) = HEARTBEAT_SECONDS.into_inner();
            let detail = format!("heartbeat must be between {least} and {most}");
            return Err(Problem::new(Code::InvalidQuery, detail));
        }
    };
    Ok(HeartbeatOptions::new(interval, options.heartbeat_event))
}

/// Checks what a request says about its subscriber.
fn subscriber(
    app: &App,
    caller: &Caller,
    rooms: &[RoomName],
    options: StreamOptions<'_>,
) -> Result<Subscriber, Problem> {
    if options.event.len() > MAX_SELECTED {
        let detail = format!("the query selects more than {MAX_SELECTED} event names");
        return Err(Problem::new(Code::InvalidQuery, detail));
    }
    let selected: Box<[EventName]> =
        options.event.iter().map(|name| parse_event_name(name)).collect::<Result<_, _>>()?;
    if options.field.len() > MAX_SELECTED_FIELDS {
        let detail = format!("the query selects more than {MAX_SELECTED_FIELDS} fields");
        return Err(Problem::new(Code::InvalidQuery, detail));
    }
    let fields: Box<[FieldName]> =
        options.field.iter().map(|name| parse_name("the field", name, FieldName::new)).collect::<Result<_, _>>()?;
    if options.presence {
        for room in rooms {
            caller.require(Permission::Presence, room.as_str())?;
        }
        if let Some(room) = rooms.iter().find(|room| !app.presence.is_enabled(room)) {
            let detail =
                format!("presence: the room {room:?} has no presence; the gateway's --presence selects the rooms");
            return Err(Problem::new(Code::InvalidQuery, detail));
        }
    }
    // A subscriber with a random id is not listed as a member: its id would change at each reconnect.
    let is_chosen = options.subscriber.is_some();
    let id = match &options.subscriber {
        Some(id) => parse_name("the subscriber", id, SubscriberId::new)?,
        None => random_subscriber_id(),
    };
    let info = info(app, caller, options.info)?;
    let identity = caller.identity();
    let member = is_chosen.then(|| Member {
        subscriber: id.clone(),
        owner: sha1_hex(caller.owner().as_bytes()).into(),
        address: caller.address().filter(|_| identity.subject.is_none()),
        profile: profile(&id, identity.subject.as_deref(), info.as_deref()),
    });
    Ok(Subscriber::new(id, identity.clone(), caller.address())
        .with_selected(selected)
        .with_fields(fields)
        .with_member(member)
        .with_presence(options.presence))
}

/// The subscriber's profile: from its token, or from the request if the gateway allows that.
fn info(app: &App, caller: &Caller, requested: Option<String>) -> Result<Option<Box<RawValue>>, Problem> {
    let allowed = app.settings.presence.info;
    if requested.is_some() && allowed != PresenceInfo::Query {
        let detail = "info: the gateway accepts a profile in the query only with --presence-info query";
        return Err(Problem::new(Code::InvalidQuery, detail));
    }
    let signed = caller.identity().info.clone().filter(|_| allowed != PresenceInfo::None);
    let text = match (signed, requested) {
        (Some(signed), _) => signed.to_string(),
        (None, Some(requested)) => check_info(&requested)?,
        (None, None) => return Ok(None),
    };
    Ok(RawValue::from_string(text).ok())
}

/// Checks a profile in a request. Returns it as it was sent, so that numbers keep their digits, but without white space.
fn check_info(requested: &str) -> Result<String, Problem> {
    let refuse = |detail: String| Err(Problem::new(Code::InvalidQuery, detail));
    if let Err(why) = serde_json::from_str::<serde_json::Value>(requested) {
        return refuse(format!("info is not JSON: {}", json_error(&why.to_string())));
    }
    let text = without_white_space(requested);
    if text.len() > MAX_INFO_BYTES {
        return refuse(format!("info has more than {MAX_INFO_BYTES} bytes"));
    }
    if nesting(&text) > MAX_INFO_DEPTH {
        return refuse(format!("info nests arrays and objects deeper than {MAX_INFO_DEPTH}"));
    }
    Ok(text)
}

/// A member's profile in the form in which brokers store it: the members of a JSON object, without the braces.
/// Brokers add members of their own.
fn profile(subscriber: &SubscriberId, user: Option<&str>, info: Option<&RawValue>) -> Arc<str> {
    #[derive(Serialize)]
    struct ProfileText<'a> {
        subscriber: &'a SubscriberId,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        info: Option<&'a RawValue>,
    }
    let text = serde_json::to_string(&ProfileText { subscriber, user, info }).expect("names and JSON are JSON");
    text[1..text.len() - 1].into()
}
