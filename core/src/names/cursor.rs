//! The position of a stream that reads several rooms and hashes: one opaque text, short enough for a header.
//!
//! Each bookmark is bound to its topic. A client that reconnects with another list of topics resumes those that it had
//! before and starts the others at their end.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha1::{Digest, Sha1};

use super::{Bookmark, EventId, MAX_NUMBER, Topic, WatchBase};

/// Most bytes of a cursor that is accepted: far more than a stream with the most rooms needs.
pub const MAX_CURSOR_BYTES: usize = 8192;

/// The prefix that names the format and its version: for rooms alone.
const ROOMS_FORMAT: &str = "c1.";
/// The prefix of a cursor that has hashes: each position is followed by a number for what the client has of the topic.
const FORMAT: &str = "c2.";
/// The number for a room; a hash of which the client has nothing; and, before the number of the mirror, one whose state it
/// has.
const ROOM: u64 = 0;
const UNFINISHED: u64 = 1;
const MIRROR: u64 = 2;
/// Bytes of a topic's digest. With eight, two topics of one stream do not share a digest by chance.
const DIGEST_BYTES: usize = 8;

/// The bookmarks of a stream, by topic. It holds digests of the topics' names, not the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    bookmarks: Vec<([u8; DIGEST_BYTES], Bookmark)>,
}

/// The text is not a cursor of a multi-room stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of a multi-room stream; send back the last `id:` that the stream gave, unchanged")]
pub struct CursorError;

impl Cursor {
    /// A cursor of these bookmarks.
    pub fn from_bookmarks<'a>(bookmarks: impl IntoIterator<Item = (&'a Topic, Bookmark)>) -> Self {
        Self { bookmarks: bookmarks.into_iter().map(|(topic, bookmark)| (digest(topic), bookmark)).collect() }
    }

    /// The stream's bookmark in a topic; `None` if it did not read that topic.
    pub fn bookmark(&self, topic: &Topic) -> Option<Bookmark> {
        let wanted = digest(topic);
        self.bookmarks.iter().find(|(topic, _)| *topic == wanted).map(|(_, bookmark)| *bookmark)
    }

    /// The text for an SSE `id:`. It has no colon, no space, and no character that a URL would escape.
    pub fn encode(&self) -> String {
        let has_hashes = self.bookmarks.iter().any(|(_, bookmark)| bookmark.base.is_some());
        let mut bytes = Vec::with_capacity(self.bookmarks.len() * (DIGEST_BYTES + 20));
        for (topic, Bookmark { id, base }) in &self.bookmarks {
            bytes.extend_from_slice(topic);
            push_number(&mut bytes, id.epoch);
            push_number(&mut bytes, id.offset);
            match base {
                None if !has_hashes => {}
                None => push_number(&mut bytes, ROOM),
                Some(WatchBase::Unfinished) => push_number(&mut bytes, UNFINISHED),
                Some(WatchBase::Mirror(mirror)) => {
                    push_number(&mut bytes, MIRROR);
                    push_number(&mut bytes, *mirror);
                }
            }
        }
        let mut text = String::from(if has_hashes { FORMAT } else { ROOMS_FORMAT });
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        text
    }

    /// Parses the text that [`Cursor::encode`] writes.
    pub fn decode(text: &str) -> Result<Self, CursorError> {
        let has_hashes = text.starts_with(FORMAT);
        let body = text.strip_prefix(if has_hashes { FORMAT } else { ROOMS_FORMAT });
        let body = body.filter(|_| text.len() <= MAX_CURSOR_BYTES);
        let bytes = URL_SAFE_NO_PAD.decode(body.ok_or(CursorError)?).map_err(|_| CursorError)?;
        let mut rest = bytes.as_slice();
        let mut bookmarks = Vec::new();
        while !rest.is_empty() {
            let (topic, tail) = rest.split_first_chunk().ok_or(CursorError)?;
            rest = tail;
            let id = EventId::new(take_number(&mut rest)?, take_number(&mut rest)?);
            let base = match if has_hashes { take_number(&mut rest)? } else { ROOM } {
                ROOM => None,
                UNFINISHED => Some(WatchBase::Unfinished),
                MIRROR => Some(WatchBase::Mirror(take_number(&mut rest)?)),
                _ => return Err(CursorError),
            };
            bookmarks.push((*topic, Bookmark { id, base }));
        }
        Ok(Self { bookmarks })
    }
}

/// A room's digest is that of its name. No room's name begins like the text of a hash.
fn digest(topic: &Topic) -> [u8; DIGEST_BYTES] {
    let hash = match topic {
        Topic::Room(room) => Sha1::digest(room.as_str()),
        Topic::Hash(hash) => Sha1::digest(format!("hash {hash}")),
    };
    let mut short = [0; DIGEST_BYTES];
    short.copy_from_slice(&hash[..DIGEST_BYTES]);
    short
}

/// Appends a number in LEB128: seven bits per byte, least significant first.
fn push_number(bytes: &mut Vec<u8>, mut number: u64) {
    loop {
        let low = (number & 0x7f).to_le_bytes()[0];
        number >>= 7;
        if number == 0 {
            return bytes.push(low);
        }
        bytes.push(low | 0x80);
    }
}

/// Removes a LEB128 number from the front. An error if it is cut off or above [`MAX_NUMBER`].
fn take_number(bytes: &mut &[u8]) -> Result<u64, CursorError> {
    let mut number = 0u64;
    for shift in (0..56).step_by(7) {
        let (byte, rest) = bytes.split_first().ok_or(CursorError)?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return if number <= MAX_NUMBER { Ok(number) } else { Err(CursorError) };
        }
    }
    Err(CursorError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{HashName, RoomName};
    use proptest::prelude::*;

    fn topic(name: &str, is_hash: bool) -> Topic {
        if is_hash { HashName::new(name).unwrap().into() } else { RoomName::new(name).unwrap().into() }
    }

    #[test]
    fn a_cursor_of_twenty_topics_stays_under_one_kibibyte() {
        for base in [None, Some(WatchBase::Mirror(MAX_NUMBER))] {
            let topics: Vec<_> = (0..20).map(|n| topic(&format!("{n:x<128}"), base.is_some())).collect();
            let bookmark = Bookmark { id: EventId::new(MAX_NUMBER, MAX_NUMBER), base };
            let cursor = Cursor::from_bookmarks(topics.iter().map(|topic| (topic, bookmark)));
            let text = cursor.encode();
            assert!(text.len() < 1024, "{} bytes", text.len());
            assert_eq!(Cursor::decode(&text), Ok(cursor));
        }
    }

    #[test]
    fn a_room_and_a_hash_of_one_name_have_places_of_their_own() {
        let (room, hash) = (topic("a", false), topic("a", true));
        let bookmark = Bookmark { id: EventId::new(1, 2), base: Some(WatchBase::Unfinished) };
        let cursor = Cursor::from_bookmarks([(&room, EventId::new(3, 4).into()), (&hash, bookmark)]);
        let cursor = Cursor::decode(&cursor.encode()).unwrap();
        assert_eq!(
            (cursor.bookmark(&room), cursor.bookmark(&hash)),
            (Some(EventId::new(3, 4).into()), Some(bookmark))
        );
    }

    fn bases() -> impl Strategy<Value = Option<WatchBase>> {
        prop_oneof![
            Just(None),
            Just(Some(WatchBase::Unfinished)),
            (0..=MAX_NUMBER).prop_map(|number| Some(WatchBase::Mirror(number)))
        ]
    }

    proptest! {
        #[test]
        fn an_encoded_cursor_decodes_to_the_same_cursor(
            bookmarks in proptest::collection::vec(("[a-z]{1,20}", 0..=MAX_NUMBER, 0..=MAX_NUMBER, bases()), 0..30)
        ) {
            let bookmark = |(name, epoch, offset, base): &(String, u64, u64, Option<WatchBase>)| {
                (topic(name, base.is_some()), Bookmark { id: EventId::new(*epoch, *offset), base: *base })
            };
            let bookmarks: Vec<_> = bookmarks.iter().map(bookmark).collect();
            let cursor = Cursor::from_bookmarks(bookmarks.iter().map(|(topic, bookmark)| (topic, *bookmark)));
            let text = cursor.encode();
            prop_assert!(!text.contains([':', ' ', '\n', '\r']));
            prop_assert_eq!(Cursor::decode(&text), Ok(cursor.clone()));
            for (topic, _) in &bookmarks {
                prop_assert!(cursor.bookmark(topic).is_some());
            }
        }

        #[test]
        fn decoding_any_text_never_panics(text in ".{0,200}") {
            let _ = Cursor::decode(&text);
            let _ = Cursor::decode(&format!("c1.{text}"));
            let _ = Cursor::decode(&format!("c2.{text}"));
        }
    }
}
