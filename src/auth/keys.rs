//! Keys, each for one algorithm, and tokens that one of them must have signed.

use std::fmt;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Header, Validation, decode, decode_header};
use serde_json::Value;

use super::token::Claims;
use super::{MAX_TOKEN_BYTES, TokenError, TokenRules};

/// A secret for HS256 has as many bytes as the hash at least (RFC 7518, 3.2).
pub const MIN_SECRET_BYTES: usize = 32;
/// An uncompressed point on P-256: other curves' are longer.
const P256_POINT_BYTES: usize = 65;
const ED25519_BYTES: usize = 32;
/// Moduli of 2,048 bits (RFC 7518, 3.3) to 4,096, which is the most that the library verifies with.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;
/// What an RSA key has in DER beside its modulus: headers, a sign, and the usual exponent.
const RSA_DER_BYTES: usize = 14;

/// Why a key can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Easily guessed.
    #[error("a secret for HS256 has at least {MIN_SECRET_BYTES} bytes; `openssl rand -base64 32` makes one")]
    ShortSecret,
    /// Not a PEM of a public key.
    #[error("it is no public key in PEM form: RSA (for RS256), P-256 (for ES256) or Ed25519 (for EdDSA)")]
    NotPublicKey,
    /// Not a set of keys.
    #[error("it is no JWKS: an object with a list \"keys\"")]
    NotKeySet,
    /// A set without any key that is of use.
    #[error("none of its keys is for signatures with HS256, RS256, ES256 or EdDSA")]
    NoKeys,
}

/// A key, with the one algorithm that it is for: which one is never the token's choice.
pub struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    verifier: DecodingKey,
}

impl Key {
    /// A shared secret, for HS256.
    pub fn secret(secret: &str) -> Result<Self, KeyError> {
        if secret.len() < MIN_SECRET_BYTES {
            return Err(KeyError::ShortSecret);
        }
        Ok(Self { id: None, algorithm: Algorithm::HS256, verifier: DecodingKey::from_secret(secret.as_bytes()) })
    }

    /// A public key in PEM form: the kind of key decides the algorithm.
    pub fn public(pem: &[u8]) -> Result<Self, KeyError> {
        // The library would take a private RSA key for a public one, and then verify nothing.
        if String::from_utf8_lossy(pem).contains("PRIVATE KEY") {
            return Err(KeyError::NotPublicKey);
        }
        let key = |algorithm, verifier| Self { id: None, algorithm, verifier };
        let rsa = DecodingKey::from_rsa_pem(pem).map(|rsa| key(Algorithm::RS256, rsa));
        let ec = || DecodingKey::from_ec_pem(pem).map(|ec| key(Algorithm::ES256, ec));
        let ed = || DecodingKey::from_ed_pem(pem).map(|ed| key(Algorithm::EdDSA, ed));
        let key = rsa.or_else(|_| ec()).or_else(|_| ed()).ok().filter(Self::has_its_size);
        key.ok_or(KeyError::NotPublicKey)
    }

    fn has_its_size(&self) -> bool {
        match (self.algorithm, self.verifier.kind()) {
            (Algorithm::HS256, DecodingKeyKind::SecretOrDer(secret)) => secret.len() >= MIN_SECRET_BYTES,
            (Algorithm::ES256, DecodingKeyKind::SecretOrDer(point)) => point.len() == P256_POINT_BYTES,
            (Algorithm::EdDSA, DecodingKeyKind::SecretOrDer(point)) => point.len() == ED25519_BYTES,
            (Algorithm::RS256, DecodingKeyKind::RsaModulusExponent { n, .. }) => RSA_BYTES.contains(&n.len()),
            (Algorithm::RS256, DecodingKeyKind::SecretOrDer(der)) => {
                RSA_BYTES.contains(&der.len().saturating_sub(RSA_DER_BYTES))
            }
            _ => false,
        }
    }

    /// The keys of a JWKS (RFC 7517). Those for other purposes and algorithms are left out.
    pub fn set(text: &str) -> Result<Vec<Self>, KeyError> {
        let mut set: Value = serde_json::from_str(text).map_err(|_| KeyError::NotKeySet)?;
        let Some(Value::Array(keys)) = set.get_mut("keys").map(Value::take) else {
            return Err(KeyError::NotKeySet);
        };
        let keys: Vec<_> =
            keys.into_iter().filter_map(|key| Self::from_jwk(serde_json::from_value(key).ok()?)).collect();
        if keys.is_empty() { Err(KeyError::NoKeys) } else { Ok(keys) }
    }

    fn from_jwk(jwk: Jwk) -> Option<Self> {
        let (algorithm, name) = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => (Algorithm::RS256, KeyAlgorithm::RS256),
            AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
                (Algorithm::ES256, KeyAlgorithm::ES256)
            }
            AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
                (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
            }
            AlgorithmParameters::OctetKey(_) => (Algorithm::HS256, KeyAlgorithm::HS256),
            _ => return None,
        };
        let for_signatures = jwk.common.public_key_use.as_ref().is_none_or(|of| *of == PublicKeyUse::Signature);
        let for_this = jwk.common.key_algorithm.as_ref().is_none_or(|other| *other == name);
        let verifier = DecodingKey::from_jwk(&jwk).ok().filter(|_| for_signatures && for_this)?;
        Some(Self { id: jwk.common.key_id, algorithm, verifier }).filter(Self::has_its_size)
    }

    /// Whether it may have signed a token with this header.
    fn may_have_signed(&self, header: &Header) -> bool {
        let named = self.id.is_none() || header.kid.is_none() || self.id == header.kid;
        self.algorithm == header.alg && named
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

/// A token whose signature has not been looked at yet.
pub(super) struct SignedToken<'a> {
    token: &'a str,
    header: Header,
}

impl<'a> SignedToken<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed);
        }
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        // What must be understood and is not (RFC 7515, 4.1.11).
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        Ok(Self { token, header })
    }

    /// What the token says, if one of the keys has signed it and the rules take it.
    pub(super) fn verify<'k>(
        &self,
        keys: impl Iterator<Item = &'k Key>,
        rules: &TokenRules,
    ) -> Result<Claims, TokenError> {
        let mut refusal = TokenError::UnknownKey;
        for key in keys.filter(|key| key.may_have_signed(&self.header)) {
            match decode::<Claims>(self.token, &key.verifier, &validation(key.algorithm, rules)) {
                Ok(decoded) => return Ok(decoded.claims),
                Err(error) => match error.kind() {
                    // Another key of the same kind may be the right one.
                    ErrorKind::InvalidSignature => refusal = TokenError::WrongSignature,
                    // That is the key's fault.
                    ErrorKind::InvalidEcdsaKey
                    | ErrorKind::InvalidEddsaKey
                    | ErrorKind::InvalidRsaKey(_)
                    | ErrorKind::InvalidKeyFormat => {}
                    kind => return Err(token_error(kind)),
                },
            }
        }
        Err(refusal)
    }

    /// Whether one of the keys has the very name of the key that the token says has signed it.
    pub(super) fn names_one_of(&self, keys: &[Key]) -> bool {
        self.header.kid.is_some() && keys.iter().any(|key| key.id == self.header.kid)
    }
}

fn validation(algorithm: Algorithm, rules: &TokenRules) -> Validation {
    let mut validation = Validation::new(algorithm);
    // In whole seconds, and a token is taken in the very second of its end: who identifies the identity looks again.
    validation.leeway = rules.skew.as_secs() + u64::from(rules.skew.subsec_nanos() > 0);
    validation.validate_nbf = true;
    let mut required = vec!["exp"];
    if !rules.issuers.is_empty() {
        validation.set_issuer(&rules.issuers);
        required.push("iss");
    }
    validation.validate_aud = !rules.audiences.is_empty();
    if !rules.audiences.is_empty() {
        validation.set_audience(&rules.audiences);
        required.push("aud");
    }
    validation.set_required_spec_claims(&required);
    validation
}

fn token_error(kind: &ErrorKind) -> TokenError {
    match kind {
        ErrorKind::ExpiredSignature => TokenError::Expired,
        ErrorKind::ImmatureSignature => TokenError::NotYetValid,
        ErrorKind::InvalidAudience => TokenError::WrongAudience,
        ErrorKind::InvalidIssuer => TokenError::WrongIssuer,
        ErrorKind::MissingRequiredClaim(_) => TokenError::ClaimMissing,
        ErrorKind::InvalidClaimFormat(_) | ErrorKind::Json(_) => TokenError::ClaimMalformed,
        _ => TokenError::Malformed,
    }
}
