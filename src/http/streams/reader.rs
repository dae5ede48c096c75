//! Who reads a stream, and what of it.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Poll, Waker};

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::value::RawValue;

use crate::access::{Caller, MAX_INFO_BYTES, MAX_INFO_DEPTH, Permission};
use crate::broker::{Member, sha1_hex};
use crate::config::PresenceInfo;
use crate::http::caller::By;
use crate::http::extract::{event_name, name};
use crate::http::problem::{Code, Problem};
use crate::http::{App, audit};
use crate::hub::{Encoded, Stay, Watch, Whose};
use crate::limits::Place;
use crate::room::{EventName, RoomName, SubscriberId, nesting};

/// Event names that one stream can select.
const MAX_SELECTED: usize = 50;

/// What a query asks for.
pub struct Wish<'a> {
    /// Names of events.
    pub event: &'a [String],
    /// A name for the subscriber.
    pub subscriber: Option<String>,
    /// Whether it wants to hear who comes and goes.
    pub presence: bool,
    /// What others are to be shown of it, as JSON.
    pub info: Option<String>,
}

/// Who reads, and what of it.
pub(super) struct Reader {
    pub(super) subscriber: SubscriberId,
    pub(super) caller: Arc<Caller>,
    /// Orders to end streams that it has looked at.
    pub(super) orders: u64,
    /// What only some have.
    more: Option<Box<More>>,
    address: Option<IpAddr>,
    wants_presence: bool,
}

#[derive(Default)]
struct More {
    /// Names of the events that it gets; of all, if there are none.
    selected: Box<[EventName]>,
    /// As it is to be on rosters, if it is to be there.
    member: Option<Member>,
    stays: Vec<Stay>,
    watches: Vec<Watch>,
    place: Option<Place>,
}

impl Reader {
    /// A reader of some rooms. Fails on what can't be read, and on what it may not see.
    pub(super) fn new(app: &App, by: By, rooms: &[RoomName], wish: Wish<'_>) -> Result<Self, Problem> {
        if wish.event.len() > MAX_SELECTED {
            let detail = format!("a stream selects {MAX_SELECTED} event names at most");
            return Err(Problem::new(Code::InvalidQuery, detail));
        }
        let selected: Box<[_]> = wish.event.iter().map(|name| event_name(name)).collect::<Result<_, _>>()?;
        if wish.presence {
            for room in rooms {
                by.require(Permission::Presence, room.as_str())?;
            }
            if !rooms.iter().all(|room| app.hub.keeps_presence(room)) {
                let detail =
                    "presence: of a room it is not known who is in it; the gateway's --presence says of which";
                return Err(Problem::new(Code::InvalidQuery, detail));
            }
        }
        // A name that is made up here would be another one at each reconnect.
        let is_named = wish.subscriber.is_some();
        let subscriber = wish.subscriber.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let subscriber = name("the subscriber", &subscriber, SubscriberId::new)?;
        let info = info(app, &by, wish.info)?;
        let member = is_named.then(|| Member {
            subscriber: subscriber.clone(),
            owner: sha1_hex(by.owner().as_bytes()).into(),
            address: by.address().filter(|_| by.caller().subject.is_none()),
            card: card(&subscriber, by.caller().subject.as_deref(), info.as_deref()),
        });
        Ok(Self {
            subscriber,
            orders: app.hub.orders(),
            more: (member.is_some() || !selected.is_empty())
                .then(|| Box::new(More { selected, member, ..More::default() })),
            address: by.address(),
            caller: by.into_caller(),
            wants_presence: wish.presence,
        })
    }

    /// Takes one of the places that its caller has. The limit's name, if it has none left.
    pub(super) fn take_place(&mut self, app: &App) -> Result<(), &'static str> {
        let Some(limits) = &app.limits else { return Ok(()) };
        let place = limits.open_stream(self.caller.subject.as_ref(), self.address)?;
        self.more.get_or_insert_default().place = Some(place);
        Ok(())
    }

    /// Has it see who is in its rooms, if it asks for that, and puts it on their rosters, if it has a name. All at once, since each may
    /// take a moment. Fails with a room in which the name is another's.
    pub(super) async fn check_in(&mut self, app: &App, rooms: &[RoomName]) -> Result<(), RoomName> {
        let member = self.more.as_ref().and_then(|more| more.member.clone());
        if member.is_none() && !self.wants_presence {
            return Ok(());
        }
        let watching = rooms.iter().filter(|_| self.wants_presence).map(|room| app.hub.watch(room));
        let kept = rooms.iter().filter(|room| app.hub.keeps_presence(room));
        let entering = kept
            .filter_map(|room| Some((room, member.clone()?)))
            .map(async |(room, member)| app.hub.check_in(room, member).await.ok_or_else(|| room.clone()));
        let (watches, stays) = tokio::join!(join_all(watching), join_all(entering));
        let more = self.more.get_or_insert_default();
        more.watches = watches;
        more.stays = stays.into_iter().collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Notes that it was refused.
    pub(super) fn refused(&self, problem: &Problem) {
        audit::refused(problem, self.caller.subject.as_deref(), self.address);
    }

    /// Whose stream it is.
    pub(super) fn whose(&self) -> Whose<'_> {
        Whose {
            subscriber: Some(&self.subscriber),
            user: self.caller.subject.as_deref(),
            address: self.address,
            token: self.caller.token_id.as_deref(),
        }
    }

    /// Leaves its rooms for good.
    pub(super) fn leave(&self) {
        self.more.iter().flat_map(|more| &more.stays).for_each(Stay::leave);
    }

    /// Whether another has taken its place in one of its rooms. If not, the waker is woken when one does.
    pub(super) fn is_superseded(&self, waker: &Waker) -> bool {
        let mut stays = self.more.iter().flat_map(|more| &more.stays);
        stays.any(|stay| stay.is_superseded(waker))
    }

    /// Resolves when another has taken its place.
    pub(super) async fn superseded(&self) {
        poll_fn(|cx| if self.is_superseded(cx.waker()) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Whether it gets all that publishers send, but for what is not for this subscriber.
    pub(super) fn takes_all(&self) -> bool {
        self.selected().is_empty()
    }

    fn selected(&self) -> &[EventName] {
        self.more.as_ref().map_or(&[], |more| &more.selected)
    }

    /// Whether it gets an event.
    pub(super) fn gets(&self, event: &Encoded) -> bool {
        let event = event.event();
        if event.is_presence() {
            return self.wants_presence;
        }
        let selected = self.selected();
        let is_selected = selected.is_empty() || event.name.as_ref().is_some_and(|name| selected.contains(name));
        is_selected && !event.except.contains(&self.subscriber)
    }
}

/// What others are shown of it: what the signer of its token says, or itself, where that is allowed.
fn info(app: &App, by: &By, asked: Option<String>) -> Result<Option<Box<RawValue>>, Problem> {
    let allowed = app.settings.roster.presence_info;
    if asked.is_some() && allowed != PresenceInfo::Query {
        let detail = "info: the gateway shows nobody what a query says of its sender (--presence-info)";
        return Err(Problem::new(Code::InvalidQuery, detail));
    }
    let signed = by.caller().info.clone().filter(|_| allowed != PresenceInfo::None);
    let text = match (signed, asked) {
        (Some(signed), _) => signed.to_string(),
        (None, Some(asked)) if asked.len() <= MAX_INFO_BYTES => {
            let value: serde_json::Value = serde_json::from_str(&asked)
                .map_err(|why| Problem::new(Code::InvalidQuery, format!("info is no JSON: {why}")))?;
            let text = value.to_string();
            if nesting(&text) > MAX_INFO_DEPTH {
                let detail = format!("info nests arrays and objects deeper than {MAX_INFO_DEPTH}");
                return Err(Problem::new(Code::InvalidQuery, detail));
            }
            text
        }
        (None, Some(_)) => {
            return Err(Problem::new(Code::InvalidQuery, format!("info has {MAX_INFO_BYTES} bytes at most")));
        }
        (None, None) => return Ok(None),
    };
    Ok(RawValue::from_string(text).ok())
}

fn card(subscriber: &SubscriberId, user: Option<&str>, info: Option<&RawValue>) -> Arc<str> {
    #[derive(Serialize)]
    struct Card<'a> {
        subscriber: &'a SubscriberId,
        #[serde(skip_serializing_if = "Option::is_none")]
        user: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        info: Option<&'a RawValue>,
    }
    let text = serde_json::to_string(&Card { subscriber, user, info }).expect("names and checked JSON are JSON");
    // Without the braces: brokers add to it what only they know.
    text[1..text.len() - 1].into()
}
