//! Permissions: patterns of names for each.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};
use wildmatch::WildMatchPattern;

use crate::names::RoomName;

/// The part of a pattern that is replaced by the token's subject.
const SUBJECT: &str = "{sub}";

/// A permission for rooms or hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// Publish to rooms.
    Publish,
    /// Stream rooms and read their logs.
    Subscribe,
    /// See the members of rooms.
    Presence,
    /// Read hashes.
    Read,
    /// Change hashes.
    Write,
}

impl Permission {
    /// All permissions.
    pub const ALL: [Self; 5] = [Self::Publish, Self::Subscribe, Self::Presence, Self::Read, Self::Write];

    /// Its name in tokens and responses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Subscribe => "subscribe",
            Self::Presence => "presence",
            Self::Read => "read",
            Self::Write => "write",
        }
    }
}

/// The claim `roomcast` of a token. In a pattern, `*` stands for any characters, including dots and none, and `{sub}`
/// for the token's subject. Every other character stands for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default)]
pub struct RoomcastClaim {
    #[serde(deserialize_with = "null_as_left_out", skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    #[serde(deserialize_with = "null_as_left_out", skip_serializing_if = "Vec::is_empty")]
    pub subscribe: Vec<String>,
    #[serde(deserialize_with = "null_as_left_out", skip_serializing_if = "Vec::is_empty")]
    pub presence: Vec<String>,
    #[serde(deserialize_with = "null_as_left_out", skip_serializing_if = "Vec::is_empty")]
    pub read: Vec<String>,
    #[serde(deserialize_with = "null_as_left_out", skip_serializing_if = "Vec::is_empty")]
    pub write: Vec<String>,
    #[serde(deserialize_with = "null_as_left_out", skip_serializing_if = "std::ops::Not::not")]
    pub admin: bool,
    /// The profile that other members see.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub info: Option<serde_json::Value>,
}

/// Reads a claim, or its default for null, which many libraries write for what is not there.
pub(super) fn null_as_left_out<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl RoomcastClaim {
    /// A claim with these permissions.
    pub fn from_grants(grants: impl IntoIterator<Item = (Permission, String)>) -> Self {
        let mut claim = Self::default();
        for (permission, pattern) in grants {
            claim.patterns_mut(permission).push(pattern);
        }
        claim
    }

    fn patterns_mut(&mut self, permission: Permission) -> &mut Vec<String> {
        match permission {
            Permission::Publish => &mut self.publish,
            Permission::Subscribe => &mut self.subscribe,
            Permission::Presence => &mut self.presence,
            Permission::Read => &mut self.read,
            Permission::Write => &mut self.write,
        }
    }

    /// The permissions of a token with this subject.
    pub fn into_grants(mut self, subject: Option<&str>) -> Grants {
        let mut lacks_subject = false;
        let patterns = Permission::ALL.map(|permission| {
            let texts = std::mem::take(self.patterns_mut(permission));
            lacks_subject |= subject.is_none() && texts.iter().any(|text| text.contains(SUBJECT));
            texts.iter().filter_map(|text| Pattern::new(text, subject)).collect::<Vec<_>>().into_boxed_slice()
        });
        Grants(Arc::new(GrantPatterns { patterns, admin: self.admin, lacks_subject }))
    }
}

/// The permissions of a caller. Clones share them.
#[derive(Clone, Default)]
pub struct Grants(Arc<GrantPatterns>);

#[derive(Default)]
struct GrantPatterns {
    /// In the order of [`Permission::ALL`].
    patterns: [Box<[Pattern]>; 5],
    admin: bool,
    /// Whether a pattern grants nothing because the token has no subject.
    lacks_subject: bool,
}

impl Grants {
    /// Every permission for all names, and `admin`.
    pub fn all() -> Self {
        RoomcastClaim { admin: true, ..RoomcastClaim::default() }.into_grants(None)
    }

    /// Permissions from rules such as `subscribe=public.*`.
    pub fn from_rules(rules: impl IntoIterator<Item = (Permission, String)>) -> Self {
        RoomcastClaim::from_grants(rules).into_grants(None)
    }

    /// Whether the caller may do everything.
    pub fn is_admin(&self) -> bool {
        self.0.admin
    }

    /// Whether the caller has the permission for the room or hash with this name.
    pub fn allow(&self, permission: Permission, name: &str) -> bool {
        self.0.admin || self.patterns(permission).iter().any(|pattern| pattern.0.matches(name))
    }

    /// Whether a pattern with `{sub}` grants nothing because the token has no subject.
    pub fn lacks_subject(&self) -> bool {
        self.0.lacks_subject
    }

    /// Whether the caller has the permission for any name.
    pub fn allow_some(&self, permission: Permission) -> bool {
        self.0.admin || !self.patterns(permission).is_empty()
    }

    /// How many patterns a name is compared with to tell whether the caller has the permission for it, at most.
    pub fn pattern_count(&self, permission: Permission) -> usize {
        if self.0.admin { 0 } else { self.patterns(permission).len() }
    }

    /// An upper estimate of the memory of the patterns, in bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.0.patterns.iter().flatten().map(|pattern| size_of::<Pattern>() + pattern.heap_bytes()).sum()
    }

    fn patterns(&self, permission: Permission) -> &[Pattern] {
        &self.0.patterns[permission as usize]
    }
}

impl fmt::Debug for Grants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grants").field("admin", &self.0.admin).finish_non_exhaustive()
    }
}

/// A pattern of names. The library also wants a wildcard for a single character: NUL, which is in no name.
struct Pattern(WildMatchPattern<'*', '\0'>);

impl Pattern {
    /// None if the pattern can't match: it has `{sub}`, and the subject is missing or is not a valid name. So a
    /// subject, such as `*`, is never read as a pattern.
    fn new(text: &str, subject: Option<&str>) -> Option<Self> {
        // NUL is in no name, but the matcher would read it as a wildcard.
        if text.contains('\0') {
            return None;
        }
        if !text.contains(SUBJECT) {
            return Some(Self(WildMatchPattern::new(text)));
        }
        let subject = subject.filter(|subject| RoomName::new(subject).is_ok())?;
        Some(Self(WildMatchPattern::new(&text.replace(SUBJECT, subject))))
    }

    /// The matcher's vector of characters has grown by doubling, from four. The allocator adds its own bytes.
    fn heap_bytes(&self) -> usize {
        2 * size_of_val(self.0.pattern_chars()).max(8) + 16
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, subject: Option<&str>, name: &str) -> bool {
        let claim = RoomcastClaim { publish: vec![pattern.into()], ..RoomcastClaim::default() };
        claim.into_grants(subject).allow(Permission::Publish, name)
    }

    #[test]
    fn a_star_matches_any_characters_and_all_else_matches_itself() {
        for (pattern, name, expected) in [
            ("*", "anything.at:all", true),
            ("chat.*", "chat.lobby", true),
            ("chat.*", "chat.lobby.deep", true),
            ("chat.*", "chat.", true),
            ("chat.*", "chat", false),
            ("chat.*", "xchat.lobby", false),
            ("*.public", "a.b.public", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("lobby", "lobby", true),
            ("lobby", "lobby2", false),
            ("lobby", "Lobby", false),
            ("lobb?", "lobby", false),
            ("l[o]bby", "lobby", false),
            ("lobb\0", "lobby", false),
            ("", "lobby", false),
        ] {
            assert_eq!(allows(pattern, None, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn a_subject_matches_itself_and_is_never_a_pattern() {
        assert!(allows("user.{sub}", Some("ann"), "user.ann"));
        assert!(allows("user.{sub}.*", Some("ann"), "user.ann.inbox"));
        assert!(!allows("user.{sub}", Some("ann"), "user.bob"));
        assert!(!allows("user.{sub}", Some("ann"), "user.{sub}"));
        for hostile in ["*", "a*", "", "ann bob", "{sub}", "a\0", "ann/bob"] {
            for name in ["user.ann", "user.*", "user.", "user.{sub}"] {
                assert!(!allows("user.{sub}", Some(hostile), name), "{hostile} {name}");
            }
        }
        assert!(!allows("user.{sub}", None, "user."));
    }

    #[test]
    fn one_permission_is_not_another() {
        let grants = Grants::from_rules([(Permission::Read, "a".into()), (Permission::Presence, "b".into())]);
        for permission in Permission::ALL {
            assert_eq!(grants.allow(permission, "a"), permission == Permission::Read);
            assert_eq!(grants.allow(permission, "b"), permission == Permission::Presence);
            assert!(Grants::all().allow(permission, "a"));
            assert!(!Grants::default().allow_some(permission));
        }
    }
}
