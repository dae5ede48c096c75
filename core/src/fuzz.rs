//! What the fuzz targets share. A target is a test: `cargo test fuzz` tries random inputs for a moment, and
//! `cargo bolero test` looks for inputs with the compiler's help; CONTRIBUTING says how.

/// Makes an input out of a fuzzer's bytes: one of the samples with a few edits, or the bytes as they are. So that those who
/// try at random get past the first check, too.
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

/// The same as text.
pub(crate) fn shaped_text(samples: &[&str], bytes: &[u8]) -> String {
    String::from_utf8_lossy(&shaped(samples, bytes)).into_owned()
}
