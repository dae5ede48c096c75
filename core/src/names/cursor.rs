//! The position of a stream that reads several rooms: one opaque text, short enough for a header.
//!
//! Each position is bound to its room. A client that reconnects with another list of rooms resumes the rooms that it
//! had before and starts the others at their end.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha1::{Digest, Sha1};

use super::{EventId, MAX_NUMBER, RoomName};

/// Most bytes of a cursor that is accepted: far more than a stream with the most rooms needs.
pub const MAX_CURSOR_BYTES: usize = 8192;

/// The prefix that names the format and its version.
const FORMAT: &str = "c1.";
/// Bytes of a room's digest. With eight, two rooms of one stream do not share a digest by chance.
const DIGEST_BYTES: usize = 8;

/// The positions of a multi-room stream, by room. It holds digests of the rooms' names, not the names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    positions: Vec<([u8; DIGEST_BYTES], EventId)>,
}

/// The text is not a cursor of a multi-room stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor of a multi-room stream; send back the last `id:` that the stream gave, unchanged")]
pub struct CursorError;

impl Cursor {
    /// A cursor of these positions.
    pub fn from_positions<'a>(positions: impl IntoIterator<Item = (&'a RoomName, EventId)>) -> Self {
        Self { positions: positions.into_iter().map(|(room, id)| (digest(room), id)).collect() }
    }

    /// The stream's position in a room; `None` if it did not read that room.
    pub fn position(&self, room: &RoomName) -> Option<EventId> {
        let wanted = digest(room);
        self.positions.iter().find(|(room, _)| *room == wanted).map(|(_, id)| *id)
    }

    /// The text for an SSE `id:`. It has no colon, no space, and no character that a URL would escape.
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(self.positions.len() * (DIGEST_BYTES + 12));
        for (room, id) in &self.positions {
            bytes.extend_from_slice(room);
            push_number(&mut bytes, id.epoch);
            push_number(&mut bytes, id.offset);
        }
        let mut text = String::from(FORMAT);
        URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
        text
    }

    /// Parses the text that [`Cursor::encode`] writes.
    pub fn decode(text: &str) -> Result<Self, CursorError> {
        let body = text.strip_prefix(FORMAT).filter(|_| text.len() <= MAX_CURSOR_BYTES);
        let bytes = URL_SAFE_NO_PAD.decode(body.ok_or(CursorError)?).map_err(|_| CursorError)?;
        let mut rest = bytes.as_slice();
        let mut positions = Vec::new();
        while !rest.is_empty() {
            let (room, tail) = rest.split_first_chunk().ok_or(CursorError)?;
            rest = tail;
            let epoch = take_number(&mut rest)?;
            let offset = take_number(&mut rest)?;
            positions.push((*room, EventId::new(epoch, offset)));
        }
        Ok(Self { positions })
    }
}

fn digest(room: &RoomName) -> [u8; DIGEST_BYTES] {
    let hash = Sha1::digest(room.as_str());
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
    use proptest::prelude::*;

    fn room(name: &str) -> RoomName {
        RoomName::new(name).unwrap()
    }

    #[test]
    fn a_cursor_of_twenty_rooms_stays_under_one_kibibyte() {
        let rooms: Vec<_> = (0..20).map(|n| room(&format!("{n:x<128}"))).collect();
        let cursor = Cursor::from_positions(rooms.iter().map(|room| (room, EventId::new(MAX_NUMBER, MAX_NUMBER))));
        let text = cursor.encode();
        assert!(text.len() < 1024, "{} bytes", text.len());
        assert_eq!(Cursor::decode(&text), Ok(cursor));
    }

    proptest! {
        #[test]
        fn an_encoded_cursor_decodes_to_the_same_cursor(
            positions in proptest::collection::vec(("[a-z]{1,20}", 0..=MAX_NUMBER, 0..=MAX_NUMBER), 0..30)
        ) {
            let positions: Vec<_> = positions.into_iter().map(|(n, e, o)| (room(&n), EventId::new(e, o))).collect();
            let cursor = Cursor::from_positions(positions.iter().map(|(room, id)| (room, *id)));
            let text = cursor.encode();
            prop_assert!(!text.contains([':', ' ', '\n', '\r']));
            prop_assert_eq!(Cursor::decode(&text), Ok(cursor.clone()));
            for (name, _) in &positions {
                prop_assert!(cursor.position(name).is_some());
            }
        }

        #[test]
        fn decoding_any_text_never_panics(text in ".{0,200}") {
            let _ = Cursor::decode(&text);
            let _ = Cursor::decode(&format!("c1.{text}"));
        }
    }
}
