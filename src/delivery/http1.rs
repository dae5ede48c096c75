//! Chunks of an HTTP/1.1 body (RFC 9112, section 7.1).

/// Ends a chunked body.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Wraps data in one chunk. The data must not be empty, because an empty chunk ends the body.
pub(super) fn chunk(data: &[u8]) -> Vec<u8> {
    let mut chunk = format!("{:x}\r\n", data.len()).into_bytes();
    chunk.reserve_exact(data.len() + 2);
    chunk.extend(data);
    chunk.extend(b"\r\n");
    chunk
}

/// The data inside a chunk.
pub(super) fn chunk_data(chunk: &[u8]) -> &[u8] {
    let start = chunk.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    &chunk[start..chunk.len().saturating_sub(2).max(start)]
}
