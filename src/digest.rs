//! SHA-1 digests as text. Redis's scripts compute the same with `sha1hex`.

use sha1::{Digest, Sha1};

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The SHA-1 of these bytes, as 40 hexadecimal digits.
pub fn sha1_hex(bytes: &[u8]) -> String {
    let halves = Sha1::digest(bytes).into_iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    halves.map(|half| char::from(DIGITS[usize::from(half)])).collect()
}
