//! The contract for presence: the members of each room, on all replicas.

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::BrokerError;
use crate::names::{EventId, RoomName, SubscriberId};

/// Orders the presence sessions of one subscriber in a room: microseconds since 1970, or more if that number was used
/// already.
pub type Generation = u64;

/// A subscriber that is listed in a room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The subscriber's id in the room.
    pub subscriber: SubscriberId,
    /// A digest, without spaces, that identifies the owner of the id. While the member is present, the id belongs to
    /// this owner alone.
    pub owner: Box<str>,
    /// The client's address, if nothing else is known of the owner.
    pub address: Option<IpAddr>,
    /// What others are shown of the member: the fields of a JSON object, without the braces.
    pub profile: Arc<str>,
}

/// A change of a room's members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A member enters, or is still present.
    Join {
        /// The member.
        member: Arc<Member>,
        /// The session that goes on. None begins a new session, which ends any earlier session of the same owner.
        generation: Option<Generation>,
    },
    /// A member leaves.
    Leave {
        /// The member.
        member: Arc<Member>,
        /// The session that ends; a later session goes on. None ends the session that the broker has for this replica:
        /// the replica does not know its generation, because it got no answer.
        generation: Option<Generation>,
    },
}

/// The outcome of one change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberOutcome {
    /// The member is in the room, with this session.
    Present(Generation),
    /// The member, or that session, is not in the room.
    Absent,
    /// The id belongs to another owner.
    NameTaken,
    /// A later session has replaced this one.
    Superseded,
}

/// The outcome of a step that changed a room's members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PresenceUpdate {
    /// The outcome of each change, in the order of the changes.
    pub outcomes: Vec<MemberOutcome>,
    /// Whether members of dead replicas are left, because there were more than one step removes.
    pub has_stale: bool,
}

/// What a broker knows of a room's members.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PresenceSummary {
    /// How many members the broker counts for this replica.
    pub own: u64,
    /// Whether the next step has something to correct, such as members of dead replicas.
    pub has_stale: bool,
    /// Whether a stream has ever asked for the room's joins and leaves.
    pub watched: bool,
}

/// A member as a list shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberView {
    /// The subscriber's id in the room.
    pub subscriber: SubscriberId,
    /// The fields of a JSON object, without the braces.
    pub profile: Arc<str>,
    /// When the member entered, RFC 3339 in UTC.
    pub since: String,
    /// The name of the replica that has the member's stream.
    pub replica: String,
    /// Whether that is this replica.
    pub is_here: bool,
    /// The member's session.
    pub generation: Generation,
    /// The client's address, if nothing else is known of the owner. Not to be shown to others.
    pub address: Option<IpAddr>,
}

/// What a profile holds besides the subscriber's id.
#[derive(Debug, Default, Deserialize)]
pub struct Profile {
    /// The subject of the member's token.
    pub user: Option<String>,
    /// Any JSON.
    pub info: Option<Box<RawValue>>,
}

impl MemberView {
    /// The member's profile. None if it can't be read.
    pub fn profile(&self) -> Option<Profile> {
        serde_json::from_str(&format!("{{{}}}", self.profile)).ok()
    }
}

/// Some members of a room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemberPage {
    /// The members.
    pub members: Vec<MemberView>,
    /// Where the next page starts. None if this is the last page.
    pub next: Option<String>,
}

impl MemberPage {
    /// The size of the profiles together.
    pub fn bytes(&self) -> usize {
        self.members.iter().map(|member| member.profile.len()).sum()
    }
}

/// Receives a broker's announcements about presence. It must not block.
pub trait PresenceListener: Send + Sync {
    /// A later session of a subscriber in a room has begun on another replica.
    fn superseded(&self, room: &RoomName, subscriber: &SubscriberId, generation: Generation);
}

/// Keeps the members of rooms.
#[async_trait]
pub trait PresenceStore: Send + Sync {
    /// Changes the members of a room, and removes members of dead replicas, in one step.
    ///
    /// If `watched` is true, or once was for this room, the step also appends `presence.join` and `presence.leave` to
    /// the room's log, for the members that are present after the step and were not before, and the reverse.
    async fn update_presence(
        &self,
        room: &RoomName,
        watermarks: &[EventId],
        changes: &[MemberChange],
        watched: bool,
    ) -> Result<PresenceUpdate, BrokerError>;

    /// What the broker knows of some rooms' members. Renews the lifetime of that data.
    async fn presence_summaries(&self, rooms: &[RoomName]) -> Result<Vec<PresenceSummary>, BrokerError>;

    /// About `limit` members, from where an earlier page ended, without those of dead replicas. A member that is
    /// present during the whole listing is on some page. While many members come and go, one may be on two pages.
    async fn members(&self, room: &RoomName, from: Option<&str>, limit: usize) -> Result<MemberPage, BrokerError>;

    /// The owner of a subscriber id in each of some rooms. None where it has no member, or one of a dead replica.
    async fn owners(
        &self,
        rooms: &[RoomName],
        subscriber: &SubscriberId,
    ) -> Result<Vec<Option<Box<str>>>, BrokerError>;

    /// One member.
    async fn member(&self, room: &RoomName, subscriber: &SubscriberId) -> Result<Option<MemberView>, BrokerError>;
}
