//! The names of the keys of hashes, which can be hashes that other programs have made.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::names::HashName;

/// Most bytes of a template.
const MAX_TEMPLATE_BYTES: usize = 256;
/// Stands for the hash's name.
const HASH: &str = "{hash}";
/// Stands for the hash's name as the hash tag of the key, in braces.
const TAGGED_HASH: &str = "{{hash}}";
/// Stands for the prefix of the deployment.
const PREFIX: &str = "{prefix}";

/// A template of the keys of hashes, such as `{prefix}:hash:{{hash}}` or `user:{hash}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashKeyTemplate {
    before: String,
    after: String,
    has_tag: bool,
}

/// Why a text is no template.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashKeyError {
    /// The hash's name is missing, or there are several.
    #[error("it must have {HASH} once, or {TAGGED_HASH} for a hash tag")]
    HashCount,
    /// Other braces would mark another hash tag.
    #[error("its braces must be those of {HASH}, {TAGGED_HASH} or {PREFIX}")]
    Braces,
    /// A character that is not allowed, or too many of them.
    #[error("it must have at most {MAX_TEMPLATE_BYTES} visible ASCII characters")]
    Characters,
}

impl FromStr for HashKeyTemplate {
    type Err = HashKeyError;

    fn from_str(text: &str) -> Result<Self, HashKeyError> {
        if text.len() > MAX_TEMPLATE_BYTES || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(HashKeyError::Characters);
        }
        let tagged = text.split_once(TAGGED_HASH);
        let (before, after) = tagged.or_else(|| text.split_once(HASH)).ok_or(HashKeyError::HashCount)?;
        if before.contains(HASH) || after.contains(HASH) {
            return Err(HashKeyError::HashCount);
        }
        if [before, after].iter().any(|part| part.replace(PREFIX, "").contains(['{', '}'])) {
            return Err(HashKeyError::Braces);
        }
        Ok(Self { before: before.into(), after: after.into(), has_tag: tagged.is_some() })
    }
}

impl fmt::Display for HashKeyTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.before, if self.has_tag { TAGGED_HASH } else { HASH }, self.after)
    }
}

impl HashKeyTemplate {
    /// Whether no hash's key can be another key of the deployment with this prefix. All of those begin with the prefix and a
    /// colon. Those of hashes go on with `hash:{`, and have a colon after the brace that closes.
    pub fn keeps_clear_of(&self, prefix: &str) -> bool {
        let HashKeys { start, end, .. } = self.resolve(prefix);
        let own = format!("{prefix}:");
        match start.strip_prefix(&own).map(|rest| rest.strip_prefix("hash:")) {
            // A name could complete the prefix.
            None => !own.starts_with(&start),
            Some(None) => false,
            Some(Some("{")) => end == "}",
            // No name begins with a brace.
            Some(Some(_)) => true,
        }
    }

    pub(super) fn resolve(&self, prefix: &str) -> HashKeys {
        let (open, close) = if self.has_tag { ("{", "}") } else { ("", "") };
        HashKeys {
            start: self.before.replace(PREFIX, prefix) + open,
            end: format!("{close}{}", self.after.replace(PREFIX, prefix)),
            has_tag: self.has_tag,
        }
    }
}

/// The keys of the hashes of a deployment.
#[derive(Clone, Debug)]
pub(super) struct HashKeys {
    start: String,
    end: String,
    has_tag: bool,
}

impl HashKeys {
    pub(super) fn key(&self, hash: &HashName) -> String {
        [&self.start, hash.as_str(), &self.end].concat()
    }

    /// The hash with this key.
    pub(super) fn hash(&self, key: &str) -> Option<HashName> {
        HashName::new(key.strip_prefix(&self.start)?.strip_suffix(&self.end)?).ok()
    }

    /// The hash tag of further keys of a hash, which puts them into its slot: its own tag, or else all of its key.
    pub(super) fn tag<'a>(&self, hash: &'a HashName) -> Cow<'a, str> {
        if self.has_tag { hash.as_str().into() } else { self.key(hash).into() }
    }

    /// The hash with this [`tag`](Self::tag).
    pub(super) fn hash_of_tag(&self, tag: &str) -> Option<HashName> {
        if self.has_tag { HashName::new(tag).ok() } else { self.hash(tag) }
    }

    /// A pattern of Redis that matches the keys of hashes whose names begin with `prefix`.
    pub(super) fn pattern(&self, prefix: &str) -> String {
        format!("{}{}*{}", literal(&self.start), literal(prefix), literal(&self.end))
    }
}

/// A text as a pattern of Redis that matches nothing else.
fn literal(text: &str) -> String {
    let is_special = |char: &char| "*?[]\\".contains(*char);
    text.chars().flat_map(|char| [Some('\\').filter(|_| is_special(&char)), Some(char)]).flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(text: &str) -> HashKeyTemplate {
        let template: HashKeyTemplate = text.parse().unwrap();
        assert_eq!(template.to_string(), text);
        template
    }

    #[test]
    fn a_template_has_one_place_for_the_name() {
        for text in
            ["{prefix}:hash:{{hash}}", "user:{hash}", "{{hash}}", "{hash}:user", "a{prefix}b{hash}c{prefix}"]
        {
            template(text);
        }
        let long = format!("{{hash}}{}", "x".repeat(MAX_TEMPLATE_BYTES));
        for (text, why) in [
            ("", HashKeyError::HashCount),
            ("user", HashKeyError::HashCount),
            ("user:{Hash}", HashKeyError::HashCount),
            ("{hash}{hash}", HashKeyError::HashCount),
            ("{{hash}}{hash}", HashKeyError::HashCount),
            ("{{hash}}{{hash}}", HashKeyError::HashCount),
            ("{{{hash}}}", HashKeyError::Braces),
            ("{app}:{hash}", HashKeyError::Braces),
            ("{hash}}", HashKeyError::Braces),
            ("{prefix:{hash}", HashKeyError::Braces),
            ("user {hash}", HashKeyError::Characters),
            ("ü:{hash}", HashKeyError::Characters),
            (&long, HashKeyError::Characters),
        ] {
            assert_eq!(text.parse::<HashKeyTemplate>(), Err(why), "{text}");
        }
    }

    #[test]
    fn a_key_names_its_hash_and_a_pattern_matches_its_prefix() {
        let hash = HashName::new("a.b").unwrap();
        for (text, key, tag, pattern) in [
            ("{prefix}:hash:{{hash}}", "rc:hash:{a.b}", "a.b", r"rc:hash:{a*}"),
            ("user:{hash}", "user:a.b", "user:a.b", "user:a*"),
            ("[x]*:{{hash}}:?", "[x]*:{a.b}:?", "a.b", r"\[x\]\*:{a*}:\?"),
        ] {
            let keys = template(text).resolve("rc");
            assert_eq!((keys.key(&hash), keys.tag(&hash)), (key.into(), tag.into()));
            assert_eq!((keys.hash(key), keys.hash_of_tag(tag)), (Some(hash.clone()), Some(hash.clone())));
            assert_eq!(keys.pattern("a"), pattern);
            for other in ["", "rc", &key[1..], &key[..key.len() - 1], "user:", "user:a b", "rc:hash:{}", "user:{a}"]
            {
                assert_ne!(keys.hash(other), Some(hash.clone()), "{text} {other}");
            }
        }
    }
}
