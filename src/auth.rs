//! Who a identity is and what it may do: from a signed token, or from there being none. Knows nothing of HTTP.

mod grants;
mod key_sets;
mod keys;
mod token;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use self::grants::{Grants, Permission};
pub use self::key_sets::{KeySetFile, KeySetUrl};
pub use self::keys::{Key, KeyError};
pub use self::token::{MAX_ID_BYTES, MintError, NewToken, mint};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use self::key_sets::KeySets;
use self::keys::SignedToken;
use crate::names::nesting;
use crate::shutdown::Tasks;

/// Longest token. Larger ones would not pass the servers in front of a gateway either.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Most bytes of what others are shown of a subscriber, as JSON.
pub const MAX_INFO_BYTES: usize = 1024;
/// Deepest nesting of it: with what it stands in, it must be an event that can be read.
pub const MAX_INFO_DEPTH: usize = 32;
/// Bytes of tokens whose signatures need not be looked at again: some 50,000 of usual length.
const VERIFIED_BYTES: u64 = 32 * 1024 * 1024;
/// What a verified token costs beside its text: an estimate.
const VERIFIED_OVERHEAD: u64 = 512;

/// Who a request is from, what it may do, and until when.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The token's `sub`.
    pub subject: Option<Arc<str>>,
    /// The token's `jti`.
    pub token_id: Option<Arc<str>>,
    /// What it may do.
    pub grants: Grants,
    /// What the token says of its subject for others to see, as JSON.
    pub info: Option<Arc<str>>,
    /// When the token ends, skew included. Never, for callers without one.
    pub expires_at: Option<SystemTime>,
    /// Whether there was a token.
    pub has_token: bool,
}

impl Identity {
    fn has_expired(&self) -> bool {
        self.expires_at.is_some_and(|at| at <= SystemTime::now())
    }

    fn anonymous(grants: Grants) -> Arc<Self> {
        Arc::new(Self { subject: None, token_id: None, info: None, grants, expires_at: None, has_token: false })
    }
}

/// Why a token is not taken. The texts go to callers: nothing of the token is in them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum TokenError {
    #[error("the token can't be read")]
    Malformed,
    #[error("no key that is known here has signed the token")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    WrongSignature,
    #[error("the token has expired")]
    Expired,
    #[error("the token is not valid yet")]
    NotYetValid,
    #[error("the token is for another audience")]
    WrongAudience,
    #[error("the token is from another issuer")]
    WrongIssuer,
    #[error("the token lacks a claim that it needs: exp, and iss and aud where the gateway checks them")]
    ClaimMissing,
    #[error("a claim of the token can't be read")]
    ClaimMalformed,
    #[error("the keys that tokens are checked with could not be fetched yet")]
    KeysUnavailable,
}

/// What tokens are held against beside their signatures.
#[derive(Clone, Debug, Default)]
pub struct TokenRules {
    /// Issuers that are taken; any, if there are none.
    pub issuers: Vec<String>,
    /// Audiences that are taken; any, if there are none.
    pub audiences: Vec<String>,
    /// How far the clocks of issuers and of this machine may be apart.
    pub skew: Duration,
}

/// Where keys come from.
#[derive(Debug, Default)]
pub struct KeySources {
    /// Keys that do not change.
    pub fixed: Vec<Key>,
    /// A set that does, in a file.
    pub file: Option<KeySetFile>,
    /// A set that does, elsewhere.
    pub url: Option<KeySetUrl>,
}

/// Tells who a identity is.
pub struct Access {
    /// Whoever has no token.
    anonymous: Arc<Identity>,
    /// None: the gateway is open, and everyone may do everything.
    keys: Option<KeySets>,
    rules: TokenRules,
    verified: Cache<String, VerifiedToken, ByBytes>,
}

/// A token that was verified.
#[derive(Clone)]
struct VerifiedToken {
    identity: Arc<Identity>,
    /// How often keys had been replaced before.
    changes: u64,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<String, VerifiedToken> for ByBytes {
    fn weight(&self, token: &String, _: &VerifiedToken) -> u64 {
        token.len() as u64 + VERIFIED_OVERHEAD
    }
}

fn empty_cache() -> Cache<String, VerifiedToken, ByBytes> {
    let items = usize::try_from(VERIFIED_BYTES / (2 * VERIFIED_OVERHEAD)).unwrap_or(usize::MAX);
    Cache::with_weighter(items, VERIFIED_BYTES, ByBytes)
}

impl Access {
    /// Everyone may do everything.
    pub fn open() -> Self {
        Self {
            anonymous: Identity::anonymous(Grants::all()),
            keys: None,
            rules: TokenRules::default(),
            verified: empty_cache(),
        }
    }

    /// Only what tokens grant may be done, and what `anonymous` grants to those who have none. Key sets are kept fresh by
    /// `tasks`.
    pub fn with_keys(sources: KeySources, anonymous: Grants, rules: TokenRules, tasks: &Tasks) -> Self {
        Self {
            anonymous: Identity::anonymous(anonymous),
            keys: Some(KeySets::new(sources, tasks)),
            rules,
            verified: empty_cache(),
        }
    }

    /// Whether everyone may do everything.
    pub fn is_open(&self) -> bool {
        self.keys.is_none()
    }

    /// Who a identity is that has shown this token, or none. In an open gateway a token says nothing.
    pub async fn identify(&self, token: Option<&str>) -> Result<Arc<Identity>, TokenError> {
        let (Some(keys), Some(token)) = (&self.keys, token) else { return Ok(self.anonymous.clone()) };
        // Before the keys are looked at: what is verified with keys that are being replaced is not verified for long.
        let changes = keys.changes();
        let verified = self.verified.get(token).filter(|verified| verified.changes == changes);
        if let Some(VerifiedToken { identity, .. }) = verified {
            return if identity.has_expired() { Err(TokenError::Expired) } else { Ok(identity) };
        }
        let signed = SignedToken::parse(token)?;
        let claims = match keys.verify(&signed, &self.rules) {
            // A key that is new there, perhaps.
            Err(TokenError::UnknownKey | TokenError::KeysUnavailable) if keys.renew().await => {
                keys.verify(&signed, &self.rules)
            }
            verified => verified,
        }?;
        let expires_at = SystemTime::UNIX_EPOCH + claims.exp.0 + self.rules.skew;
        let info = claims.roomcast.info.as_ref().map(ToString::to_string);
        if info.as_ref().is_some_and(|info| info.len() > MAX_INFO_BYTES || nesting(info) > MAX_INFO_DEPTH) {
            return Err(TokenError::ClaimMalformed);
        }
        let subject: Option<Arc<str>> = claims.sub.map(Into::into);
        let identity = Arc::new(Identity {
            info: info.map(Into::into),
            grants: claims.roomcast.into_grants(subject.as_deref()),
            subject,
            token_id: claims.jti.map(Into::into),
            expires_at: Some(expires_at),
            has_token: true,
        });
        if identity.has_expired() {
            return Err(TokenError::Expired);
        }
        self.verified.insert(token.into(), VerifiedToken { identity: identity.clone(), changes });
        Ok(identity)
    }
}

#[cfg(test)]
mod fuzz;
