//! Names of keys and channels. The README documents them.

use crate::digest::sha1_hex;
use crate::names::{HashName, RoomName, Topic};

/// Where this deployment's keys begin, and how its hashes are named.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    replica: String,
    /// Tells this process from an earlier one of the same name.
    incarnation: String,
}

impl Keys {
    pub(super) fn new(prefix: &str, replica: &str) -> Self {
        // No name has a slash in it.
        let incarnation = format!("{replica}/{:08x}", fastrand::u32(..));
        Self { prefix: prefix.into(), replica: replica.into(), incarnation }
    }

    pub(super) fn head(&self, topic: &Topic) -> String {
        self.log_part(topic, "head")
    }

    pub(super) fn log(&self, topic: &Topic) -> String {
        self.log_part(topic, "log")
    }

    pub(super) fn live(&self, topic: &Topic) -> String {
        self.log_part(topic, "live")
    }

    /// What an idempotency key has done.
    pub(super) fn idempotency(&self, topic: &Topic, key: &str) -> String {
        format!("{}:{key}", self.log_part(topic, "once"))
    }

    /// A key or channel of a topic's log: all of them share a slot.
    fn log_part(&self, topic: &Topic, part: &str) -> String {
        match topic {
            Topic::Room(room) => format!("{}:{{{room}}}:{part}", self.prefix),
            Topic::Hash(hash) => format!("{}:{part}", self.hash(hash)),
        }
    }

    pub(super) fn members(&self, room: &RoomName) -> String {
        format!("{}:{{{room}}}:members", self.prefix)
    }

    pub(super) fn presence(&self, room: &RoomName) -> String {
        format!("{}:{{{room}}}:presence", self.prefix)
    }

    /// A digest, since it is of a caller: it may be long, and is nobody's business.
    pub(super) fn bucket(&self, key: &str) -> String {
        format!("{}:rate:{}", self.prefix, sha1_hex(key.as_bytes()))
    }

    pub(super) fn removals(&self) -> String {
        format!("{}:removals", self.prefix)
    }

    /// The channel of what concerns all replicas.
    pub(super) fn control(&self) -> String {
        format!("{}:control", self.prefix)
    }

    /// The topic whose channel this is.
    pub(super) fn topic_of_channel(&self, channel: &str) -> Option<Topic> {
        let name = channel.strip_prefix(&self.prefix)?.strip_suffix("}:live")?;
        match name.strip_prefix(":hash:{") {
            Some(hash) => HashName::new(hash).ok().map(Topic::Hash),
            None => RoomName::new(name.strip_prefix(":{")?).ok().map(Topic::Room),
        }
    }

    pub(super) fn hash(&self, hash: &HashName) -> String {
        format!("{}:hash:{{{hash}}}", self.prefix)
    }

    /// The probe is appended like an event, under keys that no room's name can reach.
    pub(super) fn probe(&self, part: &str) -> String {
        format!("{}:probe:{{{}}}:{part}", self.prefix, self.replica)
    }

    pub(super) fn replicas(&self) -> String {
        format!("{}:replicas", self.prefix)
    }

    pub(super) fn lease(&self, replica: &str) -> String {
        format!("{}:replica:{replica}", self.prefix)
    }

    pub(super) fn rooms_of(&self, replica: &str) -> String {
        format!("{}:replica:{replica}:rooms", self.prefix)
    }

    /// This replica's name.
    pub(super) fn replica(&self) -> &str {
        &self.replica
    }

    /// This process, under which it keeps its lease.
    pub(super) fn incarnation(&self) -> &str {
        &self.incarnation
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_leads_back_to_its_room() {
        let keys = Keys::new("rc", "r1");
        let room = Topic::from(RoomName::new("chat:42").unwrap());
        assert_eq!(keys.live(&room), "rc:{chat:42}:live");
        assert_eq!(keys.topic_of_channel("rc:{chat:42}:live"), Some(room));
        for other in ["rc:{chat:42}:log", "other:{a}:live", "rc:{}:live", "rc:{a b}:live", &keys.probe("live")] {
            assert_eq!(keys.topic_of_channel(other), None, "{other}");
        }
    }
}
