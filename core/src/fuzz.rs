//! Shared code of the fuzz targets. A target is a test: `cargo test fuzz` tries random inputs for a moment, and
//! `cargo bolero test` searches for inputs guided by code coverage. CONTRIBUTING.md describes both.

/// Makes an input out of a fuzzer's bytes: one of the samples with a few edits, or the bytes unchanged. Edited samples
/// let random inputs get past the first check of a parser, too.
pub(crate) fn shaped(samples: &[&str], bytes: &[u8]) -> Vec<u8> {
    let [choice, edits, rest @ ..] = bytes else { return Vec::new() };
    let Some(sample) = samples.get(usize::from(*choice) % (samples.len() + 1)) else { return rest.to_vec() };
    let mut text = sample.as_bytes().to_vec();
    for edit in rest.chunks_exact(3).take(usize::from(edits % 8)) {
        let at = usize::from(edit[0]) * (text.len() + 1) / 256;
        match edit[1] % 4 {
            0 if at < text.len() => text[at] = edit[2],
            1 if at < text.len() => drop(text.remove(at)),
            2 => {
                let copy = text[at..].iter().copied().take(usize::from(edit[2])).collect::<Vec<_>>();
                text.splice(at..at, copy);
            }
            _ => text.insert(at, edit[2]),
        }
    }
    text
}

/// [`shaped`] as text; invalid UTF-8 is replaced.
pub(crate) fn shaped_text(samples: &[&str], bytes: &[u8]) -> String {
    String::from_utf8_lossy(&shaped(samples, bytes)).into_owned()
}
