//! A subscriber: the client that reads a stream, and the selection of events that it gets.

use std::future::poll_fn;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Poll, Waker};

use futures_util::future::join_all;

use crate::auth::Identity;
use crate::broker::Member;
use crate::live::LiveEvent;
use crate::log::LogView;
use crate::moderation::StreamIdentity;
use crate::names::{EventName, FieldName, RoomName, SubscriberId};
use crate::presence::{JoinError, JoinPlan, Presence, PresenceSession, PresenceWatch, StreamToken};
use crate::rate_limit::OpenPermit;

/// The client that reads a stream, and the selection of events that it gets.
pub struct Subscriber {
    /// The subscriber id: chosen by the client, or random.
    pub id: SubscriberId,
    /// The caller that opened the stream.
    pub identity: Arc<Identity>,
    /// The client's address; for IPv6 the first address of its /64.
    pub address: Option<IpAddr>,
    wants_presence: bool,
    /// What few subscribers have, apart to keep the others small.
    extra: Option<Box<Extra>>,
}

#[derive(Default)]
struct Extra {
    /// Names of the events that the subscriber gets. Empty: all events.
    selected: Box<[EventName]>,
    /// The fields of hashes that it gets. Empty: all fields.
    fields: Box<[FieldName]>,
    /// The subscriber as a member of its rooms, if it has chosen its id.
    member: Option<Member>,
    sessions: Vec<PresenceSession>,
    watches: Vec<PresenceWatch>,
    permit: Option<OpenPermit>,
}

impl Subscriber {
    /// A subscriber that gets every published event and is not a member of its rooms.
    pub fn new(id: SubscriberId, identity: Arc<Identity>, address: Option<IpAddr>) -> Self {
        Self { id, identity, address, wants_presence: false, extra: None }
    }

    /// Restricts it to events with these names. No names: no restriction.
    #[must_use]
    pub fn with_selected(mut self, selected: Box<[EventName]>) -> Self {
        if !selected.is_empty() {
            self.extra().selected = selected;
        }
        self
    }

    /// Restricts it to these fields of hashes. No fields: no restriction.
    #[must_use]
    pub fn with_fields(mut self, fields: Box<[FieldName]>) -> Self {
        if !fields.is_empty() {
            self.extra().fields = fields;
        }
        self
    }

    /// Makes it a member of its rooms once it [joins](Self::join) them.
    #[must_use]
    pub fn with_member(mut self, member: Option<Member>) -> Self {
        if member.is_some() {
            self.extra().member = member;
        }
        self
    }

    /// Sets whether it gets `presence.join` and `presence.leave`.
    #[must_use]
    pub fn with_presence(mut self, wants_presence: bool) -> Self {
        self.wants_presence = wants_presence;
        self
    }

    /// Keeps one of the streams that its caller may open, as long as the subscriber lives.
    pub fn hold(&mut self, permit: OpenPermit) {
        self.extra().permit = Some(permit);
    }

    fn extra(&mut self) -> &mut Extra {
        self.extra.get_or_insert_default()
    }

    /// Checks that it may become a member of its rooms, if it has chosen its id. Changes nothing.
    pub async fn plan_join(
        &self,
        presence: &Arc<Presence>,
        rooms: &[RoomName],
    ) -> Result<Option<JoinPlan>, JoinError> {
        let Some(member) = self.extra.as_ref().and_then(|extra| extra.member.clone()) else { return Ok(None) };
        let Identity { subject, token_id, .. } = &*self.identity;
        let token = StreamToken { subject: subject.clone(), id: token_id.clone() };
        presence.plan_join(rooms, member, token, self.wants_presence).await.map(Some)
    }

    /// Starts to watch the presence of its rooms, if it gets presence events, and becomes a member of those of a plan: of
    /// all of them, or of none.
    pub async fn join(
        &mut self,
        presence: &Arc<Presence>,
        rooms: &[RoomName],
        plan: Option<JoinPlan>,
    ) -> Result<(), JoinError> {
        let joining = async {
            match &plan {
                Some(plan) => presence.join(plan).await,
                None => Ok(Vec::new()),
            }
        };
        let watching = rooms.iter().filter(|_| self.wants_presence).map(|room| presence.watch(room));
        let (watches, sessions) = tokio::join!(join_all(watching), joining);
        let sessions = sessions?;
        if !watches.is_empty() || !sessions.is_empty() {
            let extra = self.extra();
            (extra.watches, extra.sessions) = (watches, sessions);
        }
        Ok(())
    }

    /// What identifies its stream to removals.
    pub fn stream_identity(&self) -> StreamIdentity<'_> {
        StreamIdentity {
            subscriber: Some(&self.id),
            user: self.identity.subject.as_deref(),
            address: self.address,
            token: self.identity.token_id.as_deref(),
        }
    }

    /// Leaves its rooms without a grace period.
    pub(super) fn leave(&self) {
        self.sessions().for_each(PresenceSession::leave);
    }

    /// Whether a newer session has replaced its own in one of its rooms. If not, the waker is woken when one does.
    pub(super) fn is_superseded(&self, waker: &Waker) -> bool {
        self.sessions().any(|session| session.is_superseded(waker))
    }

    /// Resolves when a newer session has replaced its own in one of its rooms.
    pub(super) async fn superseded(&self) {
        poll_fn(|cx| if self.is_superseded(cx.waker()) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    fn sessions(&self) -> impl Iterator<Item = &PresenceSession> {
        self.extra.iter().flat_map(|extra| &extra.sessions)
    }

    /// Whether it gets every published event, except those that exclude it by `except`.
    pub(super) fn has_no_selection(&self) -> bool {
        self.selected().is_empty()
    }

    fn selected(&self) -> &[EventName] {
        self.extra.as_ref().map_or(&[], |extra| &extra.selected)
    }

    /// The fields of hashes that it gets, if not all.
    pub(super) fn fields(&self) -> Option<&[FieldName]> {
        self.extra.as_ref().map(|extra| &*extra.fields).filter(|fields| !fields.is_empty())
    }

    /// What it gets of its rooms' logs.
    pub fn view(&self) -> LogView {
        if self.wants_presence { LogView::All } else { LogView::Messages }
    }

    /// Whether it gets an event.
    pub fn wants(&self, event: &LiveEvent) -> bool {
        if event.effect().is_some() {
            return event.is_reported();
        }
        let event = event.event();
        if event.is_presence() {
            return self.wants_presence;
        }
        let selected = self.selected();
        let is_selected = selected.is_empty() || event.name.as_ref().is_some_and(|name| selected.contains(name));
        is_selected && !event.except.contains(&self.id)
    }
}
