//! Names of rooms, hashes, events, fields and subscribers: what they may be made of.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// Most bytes in the name of a room, a hash, an event or a subscriber.
pub const MAX_NAME_BYTES: usize = 128;
/// Most bytes in the name of a hash's field.
pub const MAX_FIELD_BYTES: usize = 256;
/// Event names that begin with one of these are the gateway's own.
const RESERVED: [&str; 3] = ["stream.", "presence.", "hash."];

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No bytes at all.
    #[error("it is empty")]
    Empty,
    /// Over the limit.
    #[error("it is longer than {limit} bytes")]
    TooLong {
        /// Most bytes allowed.
        limit: usize,
    },
    /// A character that names may not have.
    #[error("{0:?} is not allowed; letters, digits and . _ ~ : @ + = - are")]
    Character(char),
    /// A control character, in a field's name.
    #[error("control characters are not allowed")]
    Control,
    /// An event name that only the gateway itself uses.
    #[error("names that begin with stream., presence. or hash. are the gateway's own")]
    Reserved,
}

fn check_name(text: &str) -> Result<(), NameError> {
    check_length(text, MAX_NAME_BYTES)?;
    let allowed = |c: char| c.is_alphanumeric() || "._~:@+=-".contains(c);
    match text.chars().find(|c| !allowed(*c)) {
        Some(wrong) => Err(NameError::Character(wrong)),
        None => Ok(()),
    }
}

fn check_event_name(text: &str) -> Result<(), NameError> {
    check_name(text)?;
    if RESERVED.iter().any(|prefix| text.starts_with(prefix)) {
        return Err(NameError::Reserved);
    }
    Ok(())
}

fn check_field_name(text: &str) -> Result<(), NameError> {
    check_length(text, MAX_FIELD_BYTES)?;
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
            /// Checks the text and makes it a name.
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
    /// A room's name: 1 to 128 bytes of letters and digits of any script and `. _ ~ : @ + = -`.
    RoomName by check_name;
    /// A shared hash's name, made like a room's.
    HashName by check_name;
    /// A publisher's name for a kind of event, made like a room's, and none of the gateway's own.
    EventName by check_event_name;
    /// The name of a field of a shared hash: 1 to 256 bytes of anything but control characters.
    FieldName by check_field_name;
    /// The id that a subscriber chose or was given, made like a room's name.
    SubscriberId by check_name;
}

impl EventName {
    /// Of an event that says who came.
    pub const JOIN: &str = "presence.join";
    /// Of an event that says who has gone.
    pub const LEAVE: &str = "presence.leave";

    /// A name that stands in a log, where the gateway's own may be.
    pub fn from_log(text: &str) -> Result<Self, NameError> {
        if matches!(text, Self::JOIN | Self::LEAVE) { Ok(Self(text.into())) } else { Self::new(text) }
    }

    /// Whether the event says who came or has gone.
    pub fn is_presence(&self) -> bool {
        matches!(self.as_str(), Self::JOIN | Self::LEAVE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_any_script_are_allowed_and_what_could_mislead_is_not() {
        for good in ["a", "chat.42", "größe", "房间", "a:b@c+d=e-f~g_h", &"x".repeat(128)] {
            assert!(RoomName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "a/b", "{a}", "a\n", "a\0", "a?b", "a%2Fb", "a*", &"x".repeat(129), &"ß".repeat(65)]
        {
            assert!(RoomName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn event_names_leave_the_gateways_own_alone() {
        assert!(EventName::new("chat").is_ok());
        assert!(EventName::new("streaming").is_ok());
        for bad in ["stream.open", "presence.join", "hash.set", "a\nb", "a\rb"] {
            assert!(EventName::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn field_names_may_hold_anything_but_control_characters() {
        assert!(FieldName::new("a b/c{d}?").is_ok());
        for bad in ["", "a\tb", "a\u{85}b", &"x".repeat(257)] {
            assert!(FieldName::new(bad).is_err(), "{bad:?}");
        }
    }
}
