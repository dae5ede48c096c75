//! Names of keys and channels, as docs/redis.md lists them.

use super::hash_key::{HashKeyTemplate, HashKeys};
use crate::digest::sha1_hex;
use crate::names::{HashName, RoomName, Topic};

/// The names of a deployment's keys and channels.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    hashes: HashKeys,
    replica: String,
    /// `<replica>/<random>`: tells this process from an earlier one with the same replica name.
    process: String,
}

impl Keys {
    pub(super) fn new(prefix: &str, hash_key: &HashKeyTemplate, replica: &str) -> Self {
        // A slash, since replica names have none.
        let process = format!("{replica}/{:08x}", fastrand::u32(..));
        Self { prefix: prefix.into(), hashes: hash_key.resolve(prefix), replica: replica.into(), process }
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
        self.topic_name(&hash.clone().into(), "refresh")
    }

    /// A key or channel of a topic. Those of one topic share a hash tag, and so a slot.
    fn topic_name(&self, topic: &Topic, suffix: &str) -> String {
        match topic {
            Topic::Room(room) => [&self.prefix, ":{", room.as_str(), "}:", suffix].concat(),
            Topic::Hash(hash) => [&self.prefix, ":hash:{", &self.hashes.tag(hash), "}:", suffix].concat(),
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
            Some(tag) => self.hashes.hash_of_tag(tag).map(Topic::Hash),
            None => RoomName::new(name.strip_prefix(":{")?).ok().map(Topic::Room),
        }
    }

    pub(super) fn hash(&self, hash: &HashName) -> String {
        self.hashes.key(hash)
    }

    /// The hash with this key.
    pub(super) fn hash_of_key(&self, key: &str) -> Option<HashName> {
        self.hashes.hash(key)
    }

    /// A pattern of Redis that matches the keys of hashes whose names begin with `prefix`.
    pub(super) fn hash_pattern(&self, prefix: &str) -> String {
        self.hashes.pattern(prefix)
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

    fn keys(prefix: &str, template: &str) -> Keys {
        Keys::new(prefix, &template.parse().unwrap(), "r1")
    }

    #[test]
    fn a_channel_names_its_topic() {
        for template in ["{prefix}:hash:{{hash}}", "user:{hash}", "{prefix}:hash:{hash}"] {
            let keys = keys("rc", template);
            let room = Topic::from(RoomName::new("chat:42").unwrap());
            assert_eq!(keys.live(&room), "rc:{chat:42}:live");
            let hash = Topic::from(HashName::new("chat:42").unwrap());
            for topic in [room, hash] {
                assert_eq!(keys.topic_of_channel(&keys.live(&topic)), Some(topic));
            }
            for other in ["rc:{chat:42}:log", "other:{a}:live", "rc:{}:live", "rc:{a b}:live", &keys.probe("live")]
            {
                assert_eq!(keys.topic_of_channel(other), None, "{other}");
            }
        }
    }

    /// The hash tag of a key, as Redis Cluster finds it.
    fn hash_tag(key: &str) -> &str {
        let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
        tag.filter(|tag| !tag.is_empty()).unwrap_or(key)
    }

    #[test]
    fn no_name_of_a_hash_reaches_another_key_of_the_gateway() {
        let parts = ["", "r", "rc", "rc:", "rc:hash", "rc:hash:", "rc:hash:x", ":once:d", ":log", "x", ":x"];
        let names = [
            "a",
            "rc",
            "rc:hash:a",
            "hash:a",
            ":a",
            "c:rate:d",
            ":data-set",
            "data-set",
            "replicas",
            "control",
            "removals",
            "removals:ends",
            "replica:r1",
            "a:log",
            "once:d",
            "hash:a:once:d",
            "ate:d",
            "ash:a:log",
        ];
        let (mut safe, mut unsafe_names) = (0, 0);
        for (before, after, name_part) in parts.iter().flat_map(|before| {
            parts.iter().flat_map(move |after| ["{hash}", "{{hash}}"].map(|name_part| (before, after, name_part)))
        }) {
            let template: HashKeyTemplate = format!("{before}{name_part}{after}").parse().unwrap();
            let keys = Keys::new("rc", &template, "r1");
            let is_safe = template.keeps_clear_of("rc");
            safe += usize::from(is_safe);
            let room = RoomName::new("a").unwrap();
            let topics = || {
                names.iter().flat_map(|name| {
                    [Topic::Room(RoomName::new(name).unwrap()), Topic::Hash(HashName::new(name).unwrap())]
                })
            };
            let of_topics = topics().flat_map(|topic| {
                [
                    keys.head(&topic),
                    keys.log(&topic),
                    keys.presence_log(&topic),
                    keys.live(&topic),
                    keys.idempotency(&topic, "d"),
                ]
            });
            let own: Vec<_> = of_topics
                .chain([keys.members(&room), keys.presence(&room), keys.data_set(), keys.removals()])
                .chain([keys.removal_ends(), keys.control(), keys.processes(), keys.lease("r1"), keys.probe("log")])
                .chain([keys.subscriber_counts("r1"), "rc:rate:d".into()])
                .collect();
            for name in names {
                let hash = HashName::new(name).unwrap();
                let key = keys.hash(&hash);
                let reaches = own.contains(&key) || topics().any(|topic| key == keys.topic_name(&topic, "refresh"));
                unsafe_names += usize::from(reaches);
                assert!(!(is_safe && reaches), "{template} {key}");
                assert_eq!(hash_tag(&key), hash_tag(&keys.refresh(&hash)), "{template}: one slot");
            }
        }
        assert!(safe > 20 && unsafe_names > 5, "{safe} {unsafe_names}");
        let is_safe = |template: &str, prefix| template.parse::<HashKeyTemplate>().unwrap().keeps_clear_of(prefix);
        for template in
            ["{prefix}:hash:{{hash}}", "{prefix}:hash:{hash}", "user:{hash}", "user:{{hash}}", "rd{hash}"]
        {
            assert!(is_safe(template, "rc"), "{template}");
        }
        for template in
            ["{hash}", "{{hash}}:x:y", "r{hash}", "{prefix}{hash}", "{prefix}:{{hash}}:log", "rc:{hash}"]
        {
            assert_eq!(is_safe(template, "rc"), template.starts_with("{{"), "{template}");
        }
        assert!(is_safe("rc:{hash}", "other") && !is_safe("{prefix}:hash:{{hash}}:once:d", "rc"));
    }
}
