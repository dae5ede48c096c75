//! Letters, digits and their marks, of any script, by the properties of Unicode.

use icu_properties::props::{CanonicalCombiningClass, DefaultIgnorableCodePoint, GeneralCategory, JoiningType};
use icu_properties::{CodePointMapData, CodePointSetData};

const ZERO_WIDTH_NON_JOINER: char = '\u{200c}';
const ZERO_WIDTH_JOINER: char = '\u{200d}';

/// Whether a character between these texts is a letter or a digit, or belongs to the one before it. Invisible letters
/// are not.
pub(super) fn is_letter_or_digit(before: &str, c: char, after: &str) -> bool {
    if c.is_ascii() {
        return c.is_ascii_alphanumeric();
    }
    if matches!(c, ZERO_WIDTH_NON_JOINER | ZERO_WIDTH_JOINER) {
        return may_join(before, c, after);
    }
    if CodePointSetData::new::<DefaultIgnorableCodePoint>().contains(c) {
        return false;
    }
    let category = CodePointMapData::<GeneralCategory>::new().get(c);
    if matches!(category, GeneralCategory::NonspacingMark | GeneralCategory::SpacingMark) {
        // What is not ASCII and was accepted is a letter, a digit or one of their marks.
        return before.chars().next_back().is_some_and(|c| c.is_ascii_alphanumeric() || !c.is_ascii());
    }
    c.is_alphanumeric()
}

/// Whether a joiner changes how the letters around it look: after a virama or, for the non-joiner, between letters that
/// would join (RFC 5892, appendix A.1 and A.2). Elsewhere it is invisible.
fn may_join(before: &str, joiner: char, after: &str) -> bool {
    let combining = CodePointMapData::<CanonicalCombiningClass>::new();
    if before.chars().next_back().is_some_and(|c| combining.get(c) == CanonicalCombiningClass::Virama) {
        return true;
    }
    let joins_after =
        matches!(joining_type(before.chars().rev()), JoiningType::LeftJoining | JoiningType::DualJoining);
    let joins_before = matches!(joining_type(after.chars()), JoiningType::RightJoining | JoiningType::DualJoining);
    joiner == ZERO_WIDTH_NON_JOINER && joins_after && joins_before
}

/// How the nearest of these characters joins. Marks do not count.
fn joining_type(chars: impl Iterator<Item = char>) -> JoiningType {
    let joining = CodePointMapData::<JoiningType>::new();
    let mut types = chars.map(|c| joining.get(c));
    types.find(|joining| *joining != JoiningType::Transparent).unwrap_or(JoiningType::NonJoining)
}
