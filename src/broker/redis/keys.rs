//! Names of keys and channels, as docs/redis.md lists them.

use crate::digest::sha1_hex;
use crate::names::{HashName, RoomName, Topic};

/// The names of a deployment's keys and channels.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    replica: String,
    /// `<replica>/<random>`: tells this process from an earlier one with the same replica name.
    process: String,
}

impl Keys {
    pub(super) fn new(prefix: &str, replica: &str) -> Self {
        // A slash, since replica names have none.
        let process = format!("{replica}/{:08x}", fastrand::u32(..));
        Self { prefix: prefix.into(), replica: replica.into(), process }
    }

    pub(super) fn head(&self, topic: &Topic) -> String {
        self.topic_name(topic, "head")
    }

    pub(super) fn log(&self, topic: &Topic) -> String {
        self.topic_name(topic, "log")
    }

    /// The presence events of a room's log.
    pub(super) fn presence_log(&self, topic: &Topic) -> String {
        self.topic_name(topic, "presence-log")
    }

    pub(super) fn live(&self, topic: &Topic) -> String {
        self.topic_name(topic, "live")
    }

    /// The key under which an idempotency key's result is stored.
    pub(super) fn idempotency(&self, topic: &Topic, key: &str) -> String {
        format!("{}:{key}", self.topic_name(topic, "once"))
    }

    /// The lifetime of a hash that each write begins anew.
    pub(super) fn refresh(&self, hash: &HashName) -> String {
        format!("{}:refresh", self.hash(hash))
    }

    /// A key or channel of a topic. Those of one topic share a hash tag, and so a slot.
    fn topic_name(&self, topic: &Topic, suffix: &str) -> String {
        match topic {
            Topic::Room(room) => format!("{}:{{{room}}}:{suffix}", self.prefix),
            Topic::Hash(hash) => format!("{}:{suffix}", self.hash(hash)),
        }
    }

    pub(super) fn members(&self, room: &RoomName) -> String {
        format!("{}:{{{room}}}:members", self.prefix)
    }

    pub(super) fn presence(&self, room: &RoomName) -> String {
        format!("{}:{{{room}}}:presence", self.prefix)
    }

    /// A rate limit's bucket. Its name is a digest, since the key names a caller: it may be long, and it is personal
    /// data.
    pub(super) fn bucket(&self, key: &str) -> String {
        format!("{}:rate:{}", self.prefix, sha1_hex(key.as_bytes()))
    }

    /// Names the data set: it lives as long as any other key.
    pub(super) fn data_set(&self) -> String {
        format!("{}:data-set", self.prefix)
    }

    pub(super) fn removals(&self) -> String {
        format!("{}:removals", self.prefix)
    }

    /// The times until which removals are kept.
    pub(super) fn removal_ends(&self) -> String {
        format!("{}:ends", self.removals())
    }

    /// The channel for messages to all replicas.
    pub(super) fn control(&self) -> String {
        format!("{}:control", self.prefix)
    }

    /// The topic that a channel belongs to.
    pub(super) fn topic_of_channel(&self, channel: &str) -> Option<Topic> {
        let name = channel.strip_prefix(&self.prefix)?.strip_suffix("}:live")?;
        match name.strip_prefix(":hash:{") {
            Some(hash) => HashName::new(hash).ok().map(Topic::Hash),
            None => RoomName::new(name.strip_prefix(":{")?).ok().map(Topic::Room),
        }
    }

    /// The hash that is stored under a key.
    pub(super) fn hash_of_key(&self, key: &str) -> Option<HashName> {
        let name = key.strip_prefix(&self.prefix)?.strip_prefix(":hash:{")?.strip_suffix('}')?;
        HashName::new(name).ok()
    }

    pub(super) fn hash(&self, hash: &HashName) -> String {
        format!("{}:hash:{{{hash}}}", self.prefix)
    }

    /// A key or channel of the replica's probe. No room or hash can have such a name.
    pub(super) fn probe(&self, suffix: &str) -> String {
        format!("{}:probe:{{{}}}:{suffix}", self.prefix, self.replica)
    }

    /// The set of all processes.
    pub(super) fn processes(&self) -> String {
        format!("{}:replicas", self.prefix)
    }

    pub(super) fn lease(&self, process: &str) -> String {
        format!("{}:replica:{process}", self.prefix)
    }

    /// The subscriber counts of a process, by room.
    pub(super) fn subscriber_counts(&self, process: &str) -> String {
        format!("{}:replica:{process}:rooms", self.prefix)
    }

    /// This replica's name.
    pub(super) fn replica(&self) -> &str {
        &self.replica
    }

    /// This process, under which its lease, its counts and its members are stored.
    pub(super) fn process(&self) -> &str {
        &self.process
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_names_its_room() {
        let keys = Keys::new("rc", "r1");
        let room = Topic::from(RoomName::new("chat:42").unwrap());
        assert_eq!(keys.live(&room), "rc:{chat:42}:live");
        assert_eq!(keys.topic_of_channel("rc:{chat:42}:live"), Some(room));
        for other in ["rc:{chat:42}:log", "other:{a}:live", "rc:{}:live", "rc:{a b}:live", &keys.probe("live")] {
            assert_eq!(keys.topic_of_channel(other), None, "{other}");
        }
    }
}
