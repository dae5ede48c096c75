//! Words that the code does not use, with the term that stands for each. Ordinary English stays allowed: a word
//! that has an everyday meaning is forbidden only as a name, or with exceptions.

use super::source::{Token, TokenKind, tokens};

/// Names of the prelude, and of types of the standard library that every Rust programmer knows.
pub const STANDARD_NAMES: &str = "
    Any Arc AsMut AsRef Borrow Box Bound Bytes Cell Chain Child Clone Copy Cow Debug Default Deref Display
    DoubleEndedIterator Drop Duration Entry Eq Err Error ErrorKind ExactSizeIterator Extend Fn FnMut FnOnce
    From FromIterator FromStr Future Hash HashMap Hasher Instant Into IntoIterator Iterator Iter None Ok
    Once Option Ord Ordering Parts Path Pin Poll Range Read Result Send Some String Sync Vec Write";

/// A word, the term that stands for it, and phrases in which the word is allowed.
type Rule = (&'static [&'static str], &'static str, &'static [&'static str]);

/// Not used at all: neither as a part of a name nor in a comment.
const NOWHERE: &[Rule] = &[
    (&["fan", "fans"], "broadcaster", &["fan out", "fan-out", "fan_out", "fans out"]),
    (&["door", "doors"], "inbox", &["front door"]),
    (&["knock", "knocks", "knocked"], "notify", &[]),
    (&["bell", "bells"], "waker", &[]),
    (&["parted"], "diverged", &[]),
    (&["vouch", "vouches", "vouched"], "ensure_epoch, or 'check the head'", &[]),
    (&["doubt", "doubts", "doubted"], "invalidate", &["no doubt"]),
    (&["recall", "recalls", "recalled"], "retract", &[]),
    (&["suspect", "suspects", "suspected"], "conflict", &[]),
    (&["junk"], "malformed", &[]),
    (&["linger", "lingers", "lingering"], "idle TTL", &["set_zero_linger", "set_linger"]),
    (&["roster", "rosters"], "presence, members", &[]),
    (&["roll", "rolls"], "members", &["roll back", "rolls back", "roll_back", "roll over", "rolls over"]),
    (&["attend", "attends", "attended"], "update presence", &[]),
    (&["census"], "replica registry", &[]),
    (&["occupancy", "occupancies", "occupant", "occupants"], "subscriber counts", &[]),
    (&["stamp", "stamps", "stamped"], "generation", &[]),
    (&["ghost", "ghosts"], "stale member", &[]),
    (&["stray", "strays"], "orphan", &[]),
    (&["twin", "twins"], "AfterQuery, or 'the same as'", &[]),
    (&["unopened"], "OpenError", &[]),
    (&["dress", "dresses", "dressed"], "middleware", &[]),
    (&["ear", "ears"], "push handler", &[]),
    (&["soil", "soils", "soiled"], "mark as dirty", &[]),
    (&["ticket", "tickets"], "lsn", &[]),
    (&["news"], "announcement", &[]),
    (&["deaf"], "not_receiving", &[]),
    (&["ill"], "degraded", &[]),
    (&["keep out", "keeps out", "kept out", "keep_out", "kept_out"], "ban", &[]),
    (&["hub"], "live", &[]),
    (&["handover"], "detach", &[]),
    (&["whoever", "whomever", "whom", "whosoever"], "the noun: client, caller, subscriber, replica, member", &[]),
];

/// Ordinary words in a comment, and no parts of a name.
const NO_NAMES: &[Rule] = &[
    (&["aside"], "extra_listener", &[]),
    (&["awaited"], "durable_at", &[]),
    (&["card"], "profile", &["wildcard"]),
    (&["chain", "chains"], "epoch history", &[".chain", "error_chain"]),
    (&["lead", "leads", "led"], "group cursor, advance", &[]),
    (&["settled"], "reported", &[]),
    (&["stands"], "status", &[]),
    (&["tend", "tends"], "run", &[]),
    (&["told"], "reported, received", &[]),
    (&["whose"], "the noun", &[]),
    (&["wish", "wishes"], "options", &[]),
];

/// Complete names that are too short or too vague, though they may be parts of longer ones.
const NO_WHOLE_NAMES: &[Rule] = &[
    (&["mark", "marks"], "replication_id", &[".mark"]),
    (&["stay", "stays"], "session", &[]),
    (&["orders"], "terminations", &[]),
    (&["here"], "the noun", &[]),
    (&["place", "places"], "permit, slot, position", &[]),
];

/// Not the name of a type or of a variant.
const NO_TYPES: &[Rule] = &[
    (&["Ahead"], "CaughtUp", &[]),
    (&["By"], "Caller", &[]),
    (&["Cold"], "StreamState", &[]),
    (&["Exit"], "Detach", &[]),
    (&["Form"], "StreamFormat", &[]),
    (&["Held"], "ConnGuard, Cached", &[]),
    (&["Late"], "LateLoss", &[]),
    (&["Level"], "CaughtUp", &["tracing::Level", "Level::"]),
    (&["Line"], "StreamConn", &[]),
    (&["Link"], "Conn", &[]),
    (&["Of"], "RateKey", &[]),
    (&["Offer"], "DetachableStream", &[]),
    (&["Once"], "IdempotencyKey", &[]),
    (&["Share"], "LocalQuota", &[]),
    (&["Shown"], "MemberView", &[]),
    (&["Watched"], "IoTracker", &[]),
];

/// Not the complete name of a function.
const NO_FUNCTIONS: &[Rule] = &[
    (&["of", "by", "whose"], "new, from_…, or the noun that it returns", &[]),
    (&["admit"], "accept", &[]),
    (&["follow"], "resume", &[]),
    (&["go_past", "led_to"], "advance, advance_to", &[]),
    (&["judge"], "check", &[]),
    (&["look"], "poll", &[]),
    (&["obey"], "apply", &[]),
    (&["prove"], "promote", &[]),
    (&["served"], "with_fallback", &[]),
    (&["settle"], "record_write, report", &[]),
];

/// In comments only: what reads as the project's own dialect.
const NO_PHRASES: &[Rule] = &[
    (
        &["a mark", "the mark", "its mark", "own mark", "same mark", "another mark", "marks of"],
        "replication id",
        &[],
    ),
    (
        &["chain", "chains"],
        "epoch history",
        &["error chain", "chain of errors", "chain of causes", "source chain", "certificate chain"],
    ),
];

/// Every finding in a file, with its line.
pub fn findings(text: &str) -> Vec<(usize, String)> {
    let tokens = tokens(text);
    let mut findings = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        match token.kind {
            TokenKind::Comment => {
                for (offset, line) in token.text.lines().enumerate() {
                    let found = [NOWHERE, NO_PHRASES].into_iter().filter_map(|rules| find(rules, line));
                    findings.extend(found.map(|finding| (token.line + offset, finding)));
                }
            }
            TokenKind::Word => findings.extend(find_name(&tokens, index).map(|finding| (token.line, finding))),
            TokenKind::Punctuation | TokenKind::Literal => {}
        }
    }
    findings.dedup();
    findings
}

fn find_name(tokens: &[Token<'_>], index: usize) -> Option<String> {
    let name = tokens[index].text;
    let before = index.checked_sub(1).map_or("", |index| tokens[index].text);
    let after = tokens.get(index + 1).map_or("", |token| token.text);
    // With the dot of a method or a field, and with what follows in a path: rules make exceptions for both.
    let dot = if before == "." { "." } else { "" };
    let separator = if after == "::" { "::" } else { "" };
    let context = format!("{dot}{}{separator}", snake_case(name));
    let whole = |rules: &[Rule], name: &str| {
        let is_exception =
            |rule: &Rule| rule.2.iter().any(|exception| format!("{dot}{name}{separator}").contains(exception));
        rules.iter().find(|rule| rule.0.contains(&name) && !is_exception(rule)).map(|rule| report(name, rule))
    };
    let of_type = if before == "::" { None } else { whole(NO_TYPES, name) };
    let of_function = if before == "fn" { whole(NO_FUNCTIONS, name) } else { None };
    find(NOWHERE, &context)
        .or_else(|| find(NO_NAMES, &context))
        .or_else(|| whole(NO_WHOLE_NAMES, name))
        .or(of_type)
        .or(of_function)
}

/// The first word of a text that a rule forbids. Words end at anything but a letter; a phrase is several words.
fn find(rules: &[Rule], text: &str) -> Option<String> {
    let text = text.to_lowercase();
    for rule in rules {
        let allowed = |start: usize| {
            rule.2.iter().any(|exception| {
                text.match_indices(exception).any(|(at, _)| (at..at + exception.len()).contains(&start))
            })
        };
        for word in rule.0 {
            let is_letter = |c: Option<char>| c.is_some_and(char::is_alphabetic);
            let found = text.match_indices(word).any(|(start, _)| {
                let (before, after) = (&text[..start], &text[start + word.len()..]);
                !is_letter(before.chars().next_back()) && !is_letter(after.chars().next()) && !allowed(start)
            });
            if found {
                return Some(report(word, rule));
            }
        }
    }
    None
}

fn report(word: &str, (_, instead, _): &Rule) -> String {
    format!("'{word}': say {instead}")
}

/// `LogCache` as `log_cache`.
fn snake_case(name: &str) -> String {
    let mut words = String::new();
    let mut is_after_lower = false;
    for c in name.chars() {
        if c.is_uppercase() && is_after_lower {
            words.push('_');
        }
        is_after_lower = c.is_lowercase() || c.is_ascii_digit();
        words.extend(c.to_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn forbidden(code: &str) -> Vec<String> {
        let word = |(_, finding): (usize, String)| finding.split('\'').nth(1).unwrap().to_owned();
        findings(code).into_iter().map(word).collect()
    }

    #[test]
    fn words_are_found_in_names_and_comments() {
        assert_eq!(forbidden("let fan =\n    FanSettings::new();\n    // the fan"), ["fan", "fan", "fan"]);
        assert_eq!(forbidden("fn keep_out() {}\n/// Whom it is about, and junk."), ["keep_out", "junk"]);
        assert_eq!(forbidden("struct Held; enum A { Offer(Ticket) }"), ["Held", "Offer", "ticket"]);
        assert_eq!(
            forbidden("fn of(told: u8) { self.mark(); let mark = chain; }"),
            ["of", "told", "mark", "chain"]
        );
    }

    #[test]
    fn ordinary_english_and_other_words_that_contain_them_are_allowed() {
        let code =
            "// Fan-out of timestamps: it tends to lead on, is held aside, and newspapers are told of a mirror.";
        assert_eq!(forbidden(code), [""; 0]);
        let code = "a.chain(b); let timestamp = bookmark; tracing::Level::INFO; mark_all_dirty(); held(infant);";
        assert_eq!(forbidden(code), [""; 0]);
        assert_eq!(forbidden("let text = \"the fan\";"), [""; 0]);
    }
}
