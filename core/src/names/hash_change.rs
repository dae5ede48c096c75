//! A change of a shared hash: the form in which the hash's log stores it, and the event that watchers get.
//!
//! The stored form is a line of JSON, a line that says what was changed, and then names and values with their lengths,
//! so that a script can write any bytes without encoding them:
//!
//! ```text
//! {"published_at":"2026-01-02T03:04:05.678Z","by":"ann"}
//! set 1790000000000 2                  kind, expiry of the hash in ms since 1970 or 0, number of parts
//! 6 5                                  bytes of name and value
//! colourgreen5 0                       the first field, and the lengths of the second one
//! empty
//! ```
//!
//! The parts of `remove` are a length and a name each. `clear` has one part, the reason. `expiry` has none.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use sha1::{Digest, Sha1};

use super::{Data, Event, EventName, HashName, MalformedEvent};

/// A change of a hash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashChange {
    /// When the gateway accepted it, RFC 3339 in UTC.
    pub published_at: String,
    /// The subject of the token with which it was made. None if nobody is known to have made it.
    pub by: Option<String>,
    /// When the hash expires after the change, in milliseconds since 1970; 0 if it does not.
    pub expires_at: u64,
    /// What was changed.
    pub kind: ChangeKind,
}

/// What a change has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// These fields have these values now.
    Set(Vec<(String, Bytes)>),
    /// These fields have no value any more.
    Remove(Vec<String>),
    /// The hash has no fields any more.
    Clear(ClearReason),
    /// The hash expires at another time.
    Expiry,
}

/// Why a hash has no fields any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClearReason {
    /// A caller has deleted it.
    Removed,
    /// It has expired.
    Expired,
    /// Another client of the server has deleted or replaced it.
    External,
}

impl ClearReason {
    const ALL: [Self; 3] = [Self::Removed, Self::Expired, Self::External];

    /// The name in `hash.clear`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Removed => "removed",
            Self::Expired => "expired",
            Self::External => "external",
        }
    }
}

/// The first line of a stored change.
#[derive(Serialize, Deserialize)]
struct ChangeHeader {
    // First, so that a script finds it without parsing the rest.
    published_at: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
}

/// The first line of a stored change, without its end.
pub fn change_header(published_at: &str, by: Option<&str>) -> String {
    let header = ChangeHeader { published_at: published_at.into(), by: by.map(str::to_owned) };
    serde_json::to_string(&header).expect("texts are JSON")
}

impl ChangeKind {
    /// The size of the stored form, about.
    pub fn bytes(&self) -> usize {
        const HEADER: usize = 256;
        HEADER
            + match self {
                Self::Set(fields) => fields.iter().map(|(field, value)| field.len() + value.len() + 16).sum(),
                Self::Remove(fields) => fields.iter().map(|field| field.len() + 8).sum(),
                Self::Clear(_) | Self::Expiry => 0,
            }
    }
}

impl HashChange {
    /// The stored form.
    pub fn encode(&self) -> Bytes {
        let mut stored = change_header(&self.published_at, self.by.as_deref()).into_bytes();
        let mut line = |kind: &str, count: usize| {
            stored.extend_from_slice(format!("\n{kind} {} {count}\n", self.expires_at).as_bytes());
        };
        match &self.kind {
            ChangeKind::Set(fields) => {
                line("set", fields.len());
                for (field, value) in fields {
                    stored.extend_from_slice(format!("{} {}\n{field}", field.len(), value.len()).as_bytes());
                    stored.extend_from_slice(value);
                }
            }
            ChangeKind::Remove(fields) => {
                line("remove", fields.len());
                for field in fields {
                    stored.extend_from_slice(format!("{}\n{field}", field.len()).as_bytes());
                }
            }
            ChangeKind::Clear(reason) => {
                line("clear", 1);
                stored.extend_from_slice(reason.name().as_bytes());
            }
            ChangeKind::Expiry => line("expiry", 0),
        }
        stored.into()
    }

    /// Parses the stored form. It has all its lengths, so a truncated one is never taken for a smaller change.
    pub fn decode(stored: &Bytes) -> Result<Self, MalformedEvent> {
        Self::parse(stored).ok_or(MalformedEvent)
    }

    fn parse(stored: &Bytes) -> Option<Self> {
        let mut rest = Rest(stored.clone());
        let ChangeHeader { published_at, by } = serde_json::from_slice(&rest.line()?).ok()?;
        let line = rest.line()?;
        let mut words = std::str::from_utf8(&line).ok()?.split(' ');
        let (kind, expires_at, count) = (words.next()?, number(words.next()?)?, number(words.next()?)?);
        let kind = match (kind, count) {
            ("set", _) => ChangeKind::Set((0..count).map(|_| rest.field()).collect::<Option<_>>()?),
            ("remove", _) => ChangeKind::Remove((0..count).map(|_| rest.name()).collect::<Option<_>>()?),
            ("clear", 1) => {
                let name = std::mem::take(&mut rest.0);
                let reason = ClearReason::ALL.into_iter().find(|reason| name == reason.name().as_bytes());
                ChangeKind::Clear(reason?)
            }
            ("expiry", 0) => ChangeKind::Expiry,
            _ => return None,
        };
        let is_whole = rest.0.is_empty() && words.next().is_none();
        is_whole.then_some(Self { published_at, by, expires_at, kind })
    }

    /// The event that watchers of the hash get.
    pub fn to_event(&self, hash: &HashName) -> Event {
        let by = self.by.as_deref();
        let (hash, changed_at) = (hash.as_str(), &*self.published_at);
        let data = match &self.kind {
            ChangeKind::Set(fields) => {
                let fields = fields.iter().map(|(field, value)| (&**field, WatchedValue::new(value))).collect();
                json(&SetData { hash, fields, by, changed_at })
            }
            ChangeKind::Remove(fields) => json(&RemoveData { hash, fields, by, changed_at }),
            ChangeKind::Clear(reason) => json(&ClearData { hash, reason: reason.name(), by, changed_at }),
            // Not told: it changes no field.
            ChangeKind::Expiry => json(&()),
        };
        let name = match &self.kind {
            ChangeKind::Set(_) => EventName::HASH_SET,
            ChangeKind::Remove(_) => EventName::HASH_DELETE,
            ChangeKind::Clear(_) => EventName::HASH_CLEAR,
            ChangeKind::Expiry => EventName::HASH_EXPIRY,
        };
        Event {
            name: Some(EventName::of_gateway(name)),
            data: Data::Json(data),
            published_at: self.published_at.clone(),
            except: Vec::new(),
            publish_id: None,
            traceparent: None,
            is_final: false,
            last_message: None,
        }
    }

    /// What the change does to a copy of the hash.
    pub fn effect(&self) -> ChangeEffect {
        let fields = match &self.kind {
            ChangeKind::Set(fields) => {
                fields.iter().map(|(field, value)| (field.as_str().into(), Some(digest(value)))).collect()
            }
            ChangeKind::Remove(fields) => fields.iter().map(|field| (field.as_str().into(), None)).collect(),
            ChangeKind::Clear(_) | ChangeKind::Expiry => Box::default(),
        };
        let clears = matches!(self.kind, ChangeKind::Clear(_));
        ChangeEffect { clears, fields, expires_at: self.expires_at }
    }
}

/// What a change does to a copy of the hash that has digests in place of values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChangeEffect {
    /// Whether the hash loses all fields first.
    pub clears: bool,
    /// The [`digest`]s of the fields' new values; none for those that were removed.
    pub fields: Box<[(Box<str>, Option<u64>)]>,
    /// When the hash expires, in milliseconds since 1970; 0 if it does not.
    pub expires_at: u64,
}

/// A short digest of a value, for comparison.
pub fn digest(value: &[u8]) -> u64 {
    let hash = Sha1::digest(value);
    u64::from_be_bytes(hash[..8].try_into().expect("a SHA-1 has 20 bytes"))
}

/// A value in an event or a snapshot: `value` if it is UTF-8, otherwise `value_base64`; and its entity tag, as
/// `If-Match` takes it.
#[derive(Serialize)]
pub struct WatchedValue<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
    etag: String,
}

impl<'a> WatchedValue<'a> {
    /// A value as watchers get it.
    pub fn new(value: &'a [u8]) -> Self {
        let text = std::str::from_utf8(value).ok();
        let hash = Sha1::digest(value);
        let etag = hash.iter().fold(String::from("\""), |tag, byte| tag + &format!("{byte:02x}")) + "\"";
        Self { value: text, value_base64: text.is_none().then(|| STANDARD.encode(value)), etag }
    }
}

#[derive(Serialize)]
struct SetData<'a> {
    hash: &'a str,
    fields: BTreeMap<&'a str, WatchedValue<'a>>,
    by: Option<&'a str>,
    changed_at: &'a str,
}

#[derive(Serialize)]
struct RemoveData<'a> {
    hash: &'a str,
    fields: &'a [String],
    by: Option<&'a str>,
    changed_at: &'a str,
}

#[derive(Serialize)]
struct ClearData<'a> {
    hash: &'a str,
    reason: &'a str,
    by: Option<&'a str>,
    changed_at: &'a str,
}

fn json(data: &impl Serialize) -> Box<serde_json::value::RawValue> {
    serde_json::value::to_raw_value(data).expect("texts and numbers are JSON")
}

/// What is left to parse.
struct Rest(Bytes);

impl Rest {
    fn line(&mut self) -> Option<Bytes> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = self.0.split_to(end);
        let _ = self.0.split_to(1);
        Some(line)
    }

    fn take(&mut self, length: u64) -> Option<Bytes> {
        let length = usize::try_from(length).ok().filter(|length| *length <= self.0.len())?;
        Some(self.0.split_to(length))
    }

    fn text(&mut self, length: u64) -> Option<String> {
        String::from_utf8(self.take(length)?.to_vec()).ok()
    }

    fn field(&mut self) -> Option<(String, Bytes)> {
        let line = self.line()?;
        let (name, value) = std::str::from_utf8(&line).ok()?.split_once(' ')?;
        let (name, value) = (number(name)?, number(value)?);
        // A copy, since the stored form would stay in memory with it.
        Some((self.text(name)?, self.take(value)?))
    }

    fn name(&mut self) -> Option<String> {
        let line = self.line()?;
        self.text(number(std::str::from_utf8(&line).ok()?)?)
    }
}

/// A number in plain decimal digits.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn change(kind: ChangeKind) -> HashChange {
        HashChange { published_at: "2026-01-02T03:04:05.678Z".into(), by: Some("ann".into()), expires_at: 7, kind }
    }

    #[test]
    fn the_stored_form_is_the_one_that_scripts_write() {
        let stored = change(ChangeKind::Set(vec![("a b".into(), "x\ny".into())])).encode();
        let expected = "{\"published_at\":\"2026-01-02T03:04:05.678Z\",\"by\":\"ann\"}\nset 7 1\n3 3\na bx\ny";
        assert_eq!(stored, expected);
    }

    #[test]
    fn a_value_that_is_not_utf_8_is_sent_in_base64_and_every_value_has_its_tag() {
        let hash = HashName::new("lamp").unwrap();
        let fields = vec![("a".into(), "on".into()), ("b".into(), Bytes::from_static(&[255, 0]))];
        let event = change(ChangeKind::Set(fields)).to_event(&hash);
        assert_eq!(event.name.unwrap().as_str(), "hash.set");
        let data = r#"{"hash":"lamp","fields":{"a":{"value":"on","etag":"\"f2fe7dc7f7d2eb57f2deacb1adde71e1b4cb3b8a\""},"b":"#;
        let text = event.data.as_text();
        assert!(text.contains(r#""value_base64":"/wA=""#) && text.contains(r#""by":"ann""#), "{text}");
        assert_eq!(text[..44], data[..44]);
    }

    fn kinds() -> impl Strategy<Value = ChangeKind> {
        let value = proptest::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from);
        prop_oneof![
            proptest::collection::vec((".{0,8}", value), 0..4).prop_map(ChangeKind::Set),
            proptest::collection::vec(".{0,8}", 0..4).prop_map(ChangeKind::Remove),
            proptest::sample::select(ClearReason::ALL.to_vec()).prop_map(ChangeKind::Clear),
            Just(ChangeKind::Expiry),
        ]
    }

    proptest! {
        #[test]
        fn an_encoded_change_decodes_to_the_same_change_and_no_prefix_of_it_decodes(
            kind in kinds(), cut in any::<proptest::sample::Index>()
        ) {
            let change = change(kind);
            let stored = change.encode();
            prop_assert_eq!(&HashChange::decode(&stored).unwrap(), &change);
            let cut = cut.index(stored.len());
            prop_assert!(HashChange::decode(&stored.slice(..cut)).is_err());
        }

        #[test]
        fn decoding_any_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = HashChange::decode(&bytes.into());
        }
    }
}
