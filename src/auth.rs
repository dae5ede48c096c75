//! Access: the identity behind a signed token, or behind no token, and its permissions. This module does not know HTTP.

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

/// Most bytes of a token. Proxies in front of a gateway refuse larger ones, too.
pub const MAX_TOKEN_BYTES: usize = 8 * 1024;

/// Most bytes of a profile, the JSON that other members see of a subscriber.
pub const MAX_INFO_BYTES: usize = 1024;
/// Deepest nesting of a profile. The presence event around it must stay within the limit for events.
pub const MAX_INFO_DEPTH: usize = 32;
/// Bytes of the cache of verified tokens: some 30,000 usual tokens.
const VERIFIED_BYTES: u64 = 32 * 1024 * 1024;
/// An estimate of the bytes that a verified token takes besides its text and what the identity refers to.
const VERIFIED_OVERHEAD: u64 = 512;

/// The caller of a request, its permissions, and their end.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The token's `sub`.
    pub subject: Option<Arc<str>>,
    /// The token's `jti`.
    pub token_id: Option<Arc<str>>,
    /// The permissions.
    pub grants: Grants,
    /// The profile in the token (`roomcast.info`), as JSON.
    pub info: Option<Arc<str>>,
    /// The end of the token, skew included. None for callers without a token.
    pub expires_at: Option<SystemTime>,
    /// Whether the request has a token.
    pub has_token: bool,
}

impl Identity {
    fn has_expired(&self) -> bool {
        self.expires_at.is_some_and(|at| at <= SystemTime::now())
    }

    /// An upper estimate of the memory that the identity refers to, in bytes.
    fn heap_bytes(&self) -> usize {
        let texts = [&self.subject, &self.token_id, &self.info].into_iter().flatten();
        self.grants.heap_bytes() + texts.map(|text| text.len()).sum::<usize>()
    }

    fn anonymous(grants: Grants) -> Arc<Self> {
        Arc::new(Self { subject: None, token_id: None, info: None, grants, expires_at: None, has_token: false })
    }
}

/// Why a token is refused. Callers see the texts, so they quote nothing from the token but the names of its claims.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the texts say it")]
pub enum TokenError {
    #[error("the token is malformed: {0}")]
    Malformed(&'static str),
    #[error("the token is not signed with a known key: no key has its alg and kid, or its alg is not supported")]
    UnknownKey,
    #[error("the token's signature is wrong")]
    WrongSignature,
    #[error("the token has expired: see its claim exp")]
    Expired,
    #[error("the token is not valid yet: see its claim nbf")]
    NotYetValid,
    #[error("the token is for another audience: its claim aud must be one of --jwt-audience")]
    WrongAudience,
    #[error("the token is from another issuer: its claim iss must be one of --jwt-issuer or --jwks-of-issuer")]
    WrongIssuer,
    #[error("the token has no valid claim {0}, which is required")]
    ClaimMissing(String),
    #[error("the token's claim {0} is malformed")]
    ClaimMalformed(String),
    #[error("the keys that verify tokens have not been fetched yet")]
    KeysUnavailable,
}

/// The checks of a token besides its signature.
#[derive(Clone, Debug, Default)]
pub struct TokenRules {
    /// Accepted issuers, besides those that have keys of their own. Empty: every issuer.
    pub issuers: Vec<String>,
    /// Issuers that have keys of their own. No other key verifies their tokens.
    pub bound_issuers: Vec<Arc<str>>,
    /// Accepted audiences. Empty: every audience.
    pub audiences: Vec<String>,
    /// Allowed difference between the clocks of issuers and of this machine.
    pub skew: Duration,
}

/// The sources of keys.
#[derive(Debug, Default)]
pub struct KeySources {
    /// Keys that do not change.
    pub fixed: Vec<Key>,
    /// Key sets in files, which may change.
    pub files: Vec<KeySetFile>,
    /// Key sets at URLs, which may change.
    pub urls: Vec<KeySetUrl>,
}

/// Identifies callers by their tokens.
pub struct Access {
    /// The identity of callers without a token.
    anonymous: Arc<Identity>,
    /// None in an open gateway, where every caller may do everything.
    keys: Option<KeySets>,
    rules: TokenRules,
    verified: Cache<String, VerifiedToken, TokenWeighter>,
}

/// The identity of a verified token.
#[derive(Clone)]
struct VerifiedToken {
    identity: Arc<Identity>,
    /// The generation of the keys that verified the token; see [`KeySets::changes`].
    changes: u64,
}

#[derive(Clone)]
struct TokenWeighter;

impl Weighter<String, VerifiedToken> for TokenWeighter {
    fn weight(&self, token: &String, verified: &VerifiedToken) -> u64 {
        (token.len() + verified.identity.heap_bytes()) as u64 + VERIFIED_OVERHEAD
    }
}

fn empty_cache() -> Cache<String, VerifiedToken, TokenWeighter> {
    let items = usize::try_from(VERIFIED_BYTES / (2 * VERIFIED_OVERHEAD)).unwrap_or(usize::MAX);
    Cache::with_weighter(items, VERIFIED_BYTES, TokenWeighter)
}

impl Access {
    /// An open gateway: every caller may do everything.
    pub fn open() -> Self {
        Self {
            anonymous: Identity::anonymous(Grants::all()),
            keys: None,
            rules: TokenRules::default(),
            verified: empty_cache(),
        }
    }

    /// A closed gateway: a caller has the permissions of its token, or, without a token, those in `anonymous`. Runs the
    /// tasks that keep key sets up to date.
    pub fn with_keys(sources: KeySources, anonymous: Grants, rules: TokenRules, tasks: &Tasks) -> Self {
        Self {
            anonymous: Identity::anonymous(anonymous),
            keys: Some(KeySets::new(sources, tasks)),
            rules,
            verified: empty_cache(),
        }
    }

    /// Whether every caller may do everything.
    pub fn is_open(&self) -> bool {
        self.keys.is_none()
    }

    /// The identity of a caller with this token, or with none. An open gateway ignores tokens.
    pub async fn identify(&self, token: Option<&str>) -> Result<Arc<Identity>, TokenError> {
        let (Some(keys), Some(token)) = (&self.keys, token) else { return Ok(self.anonymous.clone()) };
        // Read before the token is verified. If keys are replaced meanwhile, the cached result counts as out of date.
        let changes = keys.changes();
        let cached = self.verified.get(token).filter(|cached| cached.changes == changes);
        if let Some(VerifiedToken { identity, .. }) = cached {
            return if identity.has_expired() { Err(TokenError::Expired) } else { Ok(identity) };
        }
        let signed = SignedToken::parse(token)?;
        let claims = match keys.verify(&signed, &self.rules) {
            // The issuer may have a new key.
            Err(TokenError::UnknownKey | TokenError::KeysUnavailable) if keys.renew().await => {
                keys.verify(&signed, &self.rules)
            }
            verified => verified,
        }?;
        let expires_at = SystemTime::UNIX_EPOCH + claims.exp.0 + self.rules.skew;
        let info = claims.roomcast.info.as_ref().map(ToString::to_string);
        if info.as_ref().is_some_and(|info| info.len() > MAX_INFO_BYTES || nesting(info) > MAX_INFO_DEPTH) {
            return Err(TokenError::ClaimMalformed("roomcast.info".into()));
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
