//! The claims of a token, and the making of tokens for development.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use jsonwebtoken::{EncodingKey, Header, encode};
use serde::{Deserialize, Deserializer, Serialize};

use super::grants::{RoomcastClaim, null_as_left_out};
use super::keys::{Key, KeyError};
use super::{Permission, TokenError};

/// Most bytes of a token's subject, and of its id.
pub const MAX_ID_BYTES: usize = 256;

/// The claims that the gateway reads.
#[derive(Deserialize)]
pub(super) struct Claims {
    // The library checks that it is there.
    #[serde(default)]
    pub(super) exp: NumericDate,
    /// A text. The library also accepts a list.
    #[serde(default)]
    iss: serde_json::Value,
    #[serde(default)]
    pub(super) sub: Option<String>,
    #[serde(default)]
    pub(super) jti: Option<String>,
    #[serde(default, deserialize_with = "null_as_left_out")]
    pub(super) roomcast: RoomcastClaim,
}

impl Claims {
    /// Fails if the subject or the token's id can't be named in the path of a removal.
    pub(super) fn check_ids(&self) -> Result<(), TokenError> {
        for (claim, id) in [("sub", &self.sub), ("jti", &self.jti)] {
            if id.as_ref().is_some_and(|id| id.is_empty() || id.len() > MAX_ID_BYTES) {
                return Err(TokenError::IdMalformed(claim));
            }
        }
        Ok(())
    }

    /// Whether one of the issuers of the token is among these.
    pub(super) fn is_issued_by_any(&self, issuers: &[Arc<str>]) -> bool {
        let own = self.iss.as_array().map_or(std::slice::from_ref(&self.iss), Vec::as_slice);
        own.iter().filter_map(serde_json::Value::as_str).any(|own| issuers.iter().any(|issuer| **issuer == *own))
    }
}

/// Seconds since 1970 (RFC 7519, 2), fractions allowed.
#[derive(Default)]
pub(super) struct NumericDate(pub(super) Duration);

impl<'de> Deserialize<'de> for NumericDate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The end of the year 9999, the last one that RFC 3339 can write.
        const LAST: f64 = 253_402_300_799.0;
        let seconds = f64::deserialize(deserializer)?;
        Ok(Self(Duration::from_secs_f64(seconds.clamp(0.0, LAST).round())))
    }
}

/// A token to make.
pub struct NewToken {
    /// The user (`sub`).
    pub subject: Option<String>,
    /// The permissions, each with a pattern of names.
    pub grants: Vec<(Permission, String)>,
    /// Whether the token grants everything.
    pub admin: bool,
    /// The time until the token expires.
    pub lifetime: Duration,
    /// The issuer (`iss`).
    pub issuer: Option<String>,
    /// The audience (`aud`).
    pub audience: Option<String>,
}

/// Why a token can't be made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// The secret can't be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The library could not sign.
    #[error("the token could not be signed: {0}")]
    Signing(#[from] jsonwebtoken::errors::Error),
}

/// Makes a token that is signed with a shared secret.
pub fn mint(token: NewToken, secret: &str, now: SystemTime) -> Result<String, MintError> {
    #[derive(Serialize)]
    struct TokenClaims {
        #[serde(skip_serializing_if = "Option::is_none")]
        sub: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        iss: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        aud: Option<String>,
        iat: u64,
        exp: u64,
        jti: String,
        roomcast: RoomcastClaim,
    }
    // The gateway that verifies the token checks the secret in the same way.
    Key::secret(secret)?;
    let claim = RoomcastClaim { admin: token.admin, ..RoomcastClaim::from_grants(token.grants) };
    let iat = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let claims = TokenClaims {
        sub: token.subject,
        iss: token.issuer,
        aud: token.audience,
        iat,
        exp: iat + token.lifetime.as_secs(),
        jti: uuid::Uuid::now_v7().to_string(),
        roomcast: claim,
    };
    Ok(encode(&Header::default(), &claims, &EncodingKey::from_secret(secret.as_bytes()))?)
}
