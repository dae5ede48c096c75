//! Names of rooms, hashes, events, fields and subscribers: their allowed characters and lengths.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

use super::letters::is_letter_or_digit;

/// Most bytes in the name of a room, a hash, an event or a subscriber.
pub const MAX_NAME_BYTES: usize = 128;
/// Most bytes in the name of a hash's field.
pub const MAX_FIELD_BYTES: usize = 256;
/// Characters of names besides letters, digits and their marks.
const PUNCTUATION: &str = "._~:@+=-";
/// Event names with one of these prefixes belong to the gateway.
const RESERVED: [&str; 3] = ["stream.", "presence.", "hash."];
/// Names of the events that a browser's `EventSource` dispatches itself (HTML, section 9.2). An event of this name would
/// call a page's `onopen` or `onerror`.
const BROWSER_EVENTS: [&str; 2] = ["open", "error"];

/// Why a text is not a valid name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text is empty.
    #[error("it is empty")]
    Empty,
    /// The text is longer than the limit.
    #[error("it is longer than {limit} bytes")]
    TooLong {
        /// Most bytes allowed.
        limit: usize,
    },
    /// A name that means something else in a path.
    #[error("a path can't contain the names . and ..")]
    Dots,
    /// A character that is not allowed in names, or not at this place.
    #[error("{0:?} is not allowed here; visible letters with their marks, digits and . _ ~ : @ + = - are")]
    Character(char),
    /// A control character in the name of a field.
    #[error("control characters are not allowed")]
    Control,
    /// An event name with a prefix that only the gateway may use.
    #[error("names that begin with stream., presence. or hash. are reserved for the gateway")]
    Reserved,
    /// An event name that the client of a stream uses itself.
    #[error("events named open and error would call a page's handlers onopen and onerror")]
    BrowserEvent,
}

fn check_name(text: &str) -> Result<(), NameError> {
    check_length(text, MAX_NAME_BYTES)?;
    check_dots(text)?;
    let mut chars = text.char_indices();
    let forbidden = chars.find(|(at, c)| {
        let (before, after) = (&text[..*at], &text[at + c.len_utf8()..]);
        !PUNCTUATION.contains(*c) && !is_letter_or_digit(before, *c, after)
    });
    match forbidden {
        Some((_, forbidden)) => Err(NameError::Character(forbidden)),
        None => Ok(()),
    }
}

/// Clients leave out a segment `.` of a path, and `..` with the segment before it.
fn check_dots(text: &str) -> Result<(), NameError> {
    if matches!(text, "." | "..") { Err(NameError::Dots) } else { Ok(()) }
}

fn check_event_name(text: &str) -> Result<(), NameError> {
    check_name(text)?;
    if RESERVED.iter().any(|prefix| text.starts_with(prefix)) {
        return Err(NameError::Reserved);
    }
    if BROWSER_EVENTS.contains(&text) {
        return Err(NameError::BrowserEvent);
    }
    Ok(())
}

fn check_field_name(text: &str) -> Result<(), NameError> {
    check_length(text, MAX_FIELD_BYTES)?;
    check_dots(text)?;
    if text.chars().any(char::is_control) { Err(NameError::Control) } else { Ok(()) }
}

fn check_length(text: &str, limit: usize) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty),
        length if length > limit => Err(NameError::TooLong { limit }),
        _ => Ok(()),
    }
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident by $check:ident;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// A name of this text, if the text is valid.
            pub fn new(text: &str) -> Result<Self, NameError> {
                $check(text)?;
                Ok(Self(text.into()))
            }

            /// The name's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Self::new(&text).map_err(|why| {
                    serde::de::Error::custom(format_args!("{text:?} is not a name: {why}"))
                })
            }
        }
    )*};
}

names! {
    /// A room's name: 1 to 128 bytes of visible letters, their marks and digits of any script and `. _ ~ : @ + = -`,
    /// other than `.` and `..`. Names are compared byte for byte.
    RoomName by check_name;
    /// The name of a shared hash, with the same rules as a room's name.
    HashName by check_name;
    /// A publisher's name for a kind of event, with the same rules as a room's name, without the gateway's prefixes,
    /// and other than `open` and `error`.
    EventName by check_event_name;
    /// The name of a field of a shared hash: 1 to 256 bytes without control characters.
    FieldName by check_field_name;
    /// The id of a subscriber, chosen by the client or by the gateway, with the same rules as a room's name.
    SubscriberId by check_name;
}

impl EventName {
    /// The name of the event for a member that joined a room.
    pub const JOIN: &str = "presence.join";
    /// The name of the event for a member that left a room.
    pub const LEAVE: &str = "presence.leave";
    /// The name of the event for fields of a watched hash that were set.
    pub const HASH_SET: &str = "hash.set";
    /// The name of the event for fields of a watched hash that were removed.
    pub const HASH_DELETE: &str = "hash.delete";
    /// The name of the event for a watched hash that has no fields any more.
    pub const HASH_CLEAR: &str = "hash.clear";
    /// The name of a change of a hash's expiry, which is not told to watchers.
    pub const HASH_EXPIRY: &str = "hash.expiry";

    /// One of the names above.
    pub(super) fn of_gateway(name: &'static str) -> Self {
        Self(name.into())
    }

    /// The name of an event in a log: a publisher's, or one that the gateway writes to logs.
    pub fn from_log(text: &str) -> Result<Self, NameError> {
        if matches!(text, Self::JOIN | Self::LEAVE) { Ok(Self(text.into())) } else { Self::new(text) }
    }

    /// Whether it is `presence.join` or `presence.leave`.
    pub fn is_presence(&self) -> bool {
        matches!(self.as_str(), Self::JOIN | Self::LEAVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_script_are_allowed_and_separators_are_not() {
        let scripts = [
            "größe",
            "房间",
            "हिन्दी",
            "தமிழ்",
            "ที่",
            "ශ්‍රී",
            "می‌خواهم",
            "שָׁלוֹם",
            "e\u{301}",
            "ភាសាខ្មែរ",
            "မြန်မာ",
            "한국어",
        ];
        for valid in ["a", "...", "chat.42", "a:b@c+d=e-f~g_h", &"x".repeat(128)].into_iter().chain(scripts) {
            assert!(RoomName::new(valid).is_ok(), "{valid}");
        }
        for invalid in [
            "",
            ".",
            "..",
            "a b",
            "a/b",
            "{a}",
            "a\n",
            "a\0",
            "a?b",
            "a%2Fb",
            "a*",
            &"x".repeat(129),
            &"ß".repeat(65),
        ] {
            assert!(RoomName::new(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn invisible_letters_and_marks_without_a_letter_are_refused() {
        for invisible in "\u{115f}\u{1160}\u{3164}\u{ffa0}\u{34f}\u{17b4}\u{17b5}\u{180b}\u{200b}\u{200c}\u{200d}\u{2060}\u{ad}\u{fe0f}\u{e0100}\u{e0061}\u{202e}\u{feff}".chars() {
            for name in [format!("{invisible}"), format!("a{invisible}b"), format!("房{invisible}")] {
                assert_eq!(RoomName::new(&name), Err(NameError::Character(invisible)), "{name:?}");
            }
        }
        for accent in ["\u{301}", ".\u{301}", "a.\u{94d}", "\u{93e}"] {
            assert!(RoomName::new(accent).is_err(), "{accent:?}");
        }
    }

    #[test]
    fn event_names_with_the_gateways_prefixes_are_refused() {
        assert!(EventName::new("chat").is_ok());
        assert!(EventName::new("streaming").is_ok());
        for invalid in ["stream.open", "presence.join", "hash.set", "open", "error", "a\nb", "a\rb"] {
            assert!(EventName::new(invalid).is_err(), "{invalid:?}");
        }
    }

    #[test]
    fn field_names_may_hold_anything_but_control_characters() {
        assert!(FieldName::new("a b/c{d}?").is_ok());
        for invalid in ["", ".", "..", "a\tb", "a\u{85}b", &"x".repeat(257)] {
            assert!(FieldName::new(invalid).is_err(), "{invalid:?}");
        }
    }
}
