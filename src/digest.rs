//! SHA-1 digests as text. Redis's scripts compute the same with `sha1hex`.

use std::fmt::Write;

use sha1::{Digest, Sha1};

/// The SHA-1 of these bytes, as 40 hexadecimal digits.
pub fn sha1_hex(bytes: &[u8]) -> String {
    Sha1::digest(bytes).iter().fold(String::with_capacity(40), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
