//! Keys, each for one algorithm, and the verification of tokens with them.

use std::fmt;
use std::sync::Arc;

use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, DecodingKeyKind, Header, Validation, decode, decode_header};
use serde_json::Value;

use super::token::Claims;
use super::{MAX_TOKEN_BYTES, TokenError, TokenRules};

/// A secret for HS256 has at least as many bytes as the hash (RFC 7518, 3.2).
pub const MIN_SECRET_BYTES: usize = 32;
/// An uncompressed point on P-256. Points on the other curves are longer.
const P256_POINT_BYTES: usize = 65;
const ED25519_BYTES: usize = 32;
/// Moduli of 2,048 bits (RFC 7518, 3.3) to 4,096 bits, the most that the library supports.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=512;
/// Bytes of an RSA key in DER besides its modulus: headers, a sign byte, and the usual exponent.
const RSA_DER_BYTES: usize = 14;

/// Why a key can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// A secret that is easily guessed.
    #[error("a secret for HS256 needs at least {MIN_SECRET_BYTES} bytes; `openssl rand -base64 32` makes one")]
    ShortSecret,
    /// Not a public key in PEM form.
    #[error(
        "it is not a public key in PEM form: expected RSA (for RS256), P-256 (for ES256) or Ed25519 (for EdDSA)"
    )]
    NotPublicKey,
    /// Not a key set.
    #[error("it is not a JWKS: expected an object with a list \"keys\"")]
    NotKeySet,
    /// A key set without a usable key.
    #[error("it has no usable key for signatures with HS256, RS256, ES256 or EdDSA")]
    NoKeys,
}

/// A key, with the one algorithm that it is for. The token does not choose the algorithm.
pub struct Key {
    /// The only issuer whose tokens it verifies, if it is bound to one.
    issuer: Option<Arc<str>>,
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
        Ok(Self {
            issuer: None,
            id: None,
            algorithm: Algorithm::HS256,
            verifier: DecodingKey::from_secret(secret.as_bytes()),
        })
    }

    /// A public key in PEM form. The kind of the key decides the algorithm.
    pub fn public(pem: &[u8]) -> Result<Self, KeyError> {
        // The library would read a private RSA key as a public one that verifies nothing.
        if String::from_utf8_lossy(pem).contains("PRIVATE KEY") {
            return Err(KeyError::NotPublicKey);
        }
        let key = |algorithm, verifier| Self { issuer: None, id: None, algorithm, verifier };
        let rsa = DecodingKey::from_rsa_pem(pem).map(|rsa| key(Algorithm::RS256, rsa));
        let ec = || DecodingKey::from_ec_pem(pem).map(|ec| key(Algorithm::ES256, ec));
        let ed = || DecodingKey::from_ed_pem(pem).map(|ed| key(Algorithm::EdDSA, ed));
        let key = rsa.or_else(|_| ec()).or_else(|_| ed()).ok().filter(Self::has_valid_size);
        key.ok_or(KeyError::NotPublicKey)
    }

    fn has_valid_size(&self) -> bool {
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

    /// The keys of a JWKS (RFC 7517), bound to `issuer` if there is one. Keys for other purposes and algorithms are left
    /// out.
    pub fn set(text: &str, issuer: Option<&Arc<str>>) -> Result<Vec<Self>, KeyError> {
        let mut set: Value = serde_json::from_str(text).map_err(|_| KeyError::NotKeySet)?;
        let Some(Value::Array(keys)) = set.get_mut("keys").map(Value::take) else {
            return Err(KeyError::NotKeySet);
        };
        let keys = keys.into_iter().filter_map(|key| Self::from_jwk(serde_json::from_value(key).ok()?));
        let keys: Vec<_> = keys.map(|key| Self { issuer: issuer.cloned(), ..key }).collect();
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
        let for_signatures =
            jwk.common.public_key_use.as_ref().is_none_or(|key_use| *key_use == PublicKeyUse::Signature);
        let for_algorithm = jwk.common.key_algorithm.as_ref().is_none_or(|other| *other == name);
        let verifier = DecodingKey::from_jwk(&jwk).ok().filter(|_| for_signatures && for_algorithm)?;
        Some(Self { issuer: None, id: jwk.common.key_id, algorithm, verifier }).filter(Self::has_valid_size)
    }

    /// Whether a token with this header may be signed with the key.
    fn may_have_signed(&self, header: &Header) -> bool {
        let id_fits = self.id.is_none() || header.kid.is_none() || self.id == header.kid;
        self.algorithm == header.alg && id_fits
    }
}

/// Equal keys verify the same tokens.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let same_bytes = match (self.verifier.kind(), other.verifier.kind()) {
            (DecodingKeyKind::SecretOrDer(a), DecodingKeyKind::SecretOrDer(b)) => a == b,
            (
                DecodingKeyKind::RsaModulusExponent { n, e },
                DecodingKeyKind::RsaModulusExponent { n: other_n, e: other_e },
            ) => n == other_n && e == other_e,
            _ => false,
        };
        same_bytes && self.issuer == other.issuer && self.id == other.id && self.algorithm == other.algorithm
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

const NOT_A_JWT: TokenError = TokenError::Malformed("it is not a JWT, header.claims.signature");

/// A token whose signature has not been verified yet.
pub(super) struct SignedToken<'a> {
    token: &'a str,
    header: Header,
}

impl<'a> SignedToken<'a> {
    pub(super) fn parse(token: &'a str) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN_BYTES {
            return Err(TokenError::Malformed("it is too long"));
        }
        let header = decode_header(token).map_err(|error| match error.kind() {
            ErrorKind::Json(_) => {
                TokenError::Malformed("its header is not JSON, or has an alg that is not supported")
            }
            _ => NOT_A_JWT,
        })?;
        // A recipient must refuse critical headers that it does not support (RFC 7515, 4.1.11). This one supports none.
        if header.crit.is_some() {
            return Err(TokenError::Malformed("its header has crit, which is not supported"));
        }
        Ok(Self { token, header })
    }

    /// The claims of the token, if one of the keys has signed it and the claims follow the rules.
    pub(super) fn verify<'k>(
        &self,
        keys: impl Iterator<Item = &'k Key>,
        rules: &TokenRules,
    ) -> Result<Claims, TokenError> {
        let mut refusal = TokenError::UnknownKey;
        for key in keys.filter(|key| key.may_have_signed(&self.header)) {
            match decode::<Value>(self.token, &key.verifier, &validation(key, rules)) {
                Ok(decoded) => {
                    let claims: Claims = serde_path_to_error::deserialize(decoded.claims)
                        .map_err(|error| TokenError::ClaimMalformed(error.path().to_string()))?;
                    if key.issuer.is_some() || !claims.is_issued_by_any(&rules.bound_issuers) {
                        return Ok(claims);
                    }
                    // A bound key of the issuer may have signed it, too.
                    refusal = TokenError::WrongIssuer;
                }
                Err(error) => match error.kind() {
                    // Another key of the same kind may be the right one.
                    ErrorKind::InvalidSignature if refusal == TokenError::WrongIssuer => {}
                    ErrorKind::InvalidSignature => refusal = TokenError::WrongSignature,
                    // Several issuers may have the same key.
                    ErrorKind::InvalidIssuer if key.issuer.is_some() => refusal = TokenError::WrongIssuer,
                    ErrorKind::MissingRequiredClaim(claim) if key.issuer.is_some() && claim == "iss" => {
                        refusal = TokenError::WrongIssuer;
                    }
                    // The fault is in the key, not in the token.
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

    /// Whether the token has the id of one of the keys.
    pub(super) fn has_key_id_in(&self, keys: &[Key]) -> bool {
        self.header.kid.is_some() && keys.iter().any(|key| key.id == self.header.kid)
    }
}

fn validation(key: &Key, rules: &TokenRules) -> Validation {
    let mut validation = Validation::new(key.algorithm);
    // The library counts whole seconds, and accepts a token during the second of its end. `Access::identify` therefore
    // checks the expiry again.
    validation.leeway = rules.skew.as_secs() + u64::from(rules.skew.subsec_nanos() > 0);
    validation.validate_nbf = true;
    let mut required = vec!["exp"];
    let issuers = key
        .issuer
        .as_deref()
        .map_or_else(|| rules.issuers.iter().map(String::as_str).collect::<Vec<_>>(), |issuer| vec![issuer]);
    if !issuers.is_empty() {
        validation.set_issuer(&issuers);
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
        ErrorKind::MissingRequiredClaim(claim) => TokenError::ClaimMissing(claim.clone()),
        ErrorKind::InvalidClaimFormat(claim) => TokenError::ClaimMalformed(claim.clone()),
        ErrorKind::Json(_) => TokenError::Malformed("its claims are not a JSON object that has each member once"),
        _ => NOT_A_JWT,
    }
}
