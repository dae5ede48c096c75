//! Fuzz targets: patterns, tokens, key sets.

use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::grants::{Permission, RoomcastClaim};
use super::keys::{Key, SignedToken};
use super::token::{NewToken, mint};
use super::{TokenError, TokenRules};
use crate::fuzz::shaped_text;

const SECRET: &str = "a-secret-for-tests-that-is-long-enough";

/// A second implementation of patterns: the pieces between the stars occur in order, the outer ones at the ends.
fn matches(pattern: &str, name: &str) -> bool {
    if pattern.contains('\0') {
        return false;
    }
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(mut left) = name.strip_prefix(first) else { return false };
    let mut pieces: Vec<_> = rest.split('*').collect();
    let last = pieces.pop().unwrap_or_default();
    for piece in pieces {
        let Some((_, after)) = left.split_once(piece) else { return false };
        left = after;
    }
    left.ends_with(last)
}

#[test]
fn fuzz_patterns() {
    const SAMPLES: [&str; 6] = ["chat.*", "*a*b*", "user.{sub}", "{sub}*{sub}", "lobb?", "größe.*"];
    bolero::check!().for_each(|bytes: &[u8]| {
        let (first, second) = bytes.split_at(bytes.len() / 2);
        let pattern = shaped_text(&SAMPLES, first);
        let name = shaped_text(&["chat.lobby", "user.ann", "annann", "xaybz"], second).replace('\0', "");
        let grants = |subject: Option<&str>| {
            RoomcastClaim { read: vec![pattern.clone()], ..RoomcastClaim::default() }.into_grants(subject)
        };
        let allowed = |subject| grants(subject).allow(Permission::Read, &name);
        if pattern.contains("{sub}") {
            assert!(!allowed(None), "without a subject the pattern matches nothing");
            assert_eq!(allowed(Some("ann")), matches(&pattern.replace("{sub}", "ann"), &name), "{pattern} {name}");
            assert!(!allowed(Some("*")));
        } else {
            assert_eq!(allowed(None), matches(&pattern, &name), "{pattern} {name}");
            assert_eq!(allowed(Some("ann")), allowed(None));
        }
        assert!(!grants(Some("ann")).allow(Permission::Write, &name));
    });
}

#[test]
fn fuzz_tokens() {
    let new = NewToken {
        subject: Some("ann".into()),
        grants: vec![(Permission::Publish, "chat.*".into())],
        admin: false,
        lifetime: Duration::from_hours(1),
        issuer: None,
        audience: None,
    };
    let right = mint(new, SECRET, SystemTime::now()).unwrap();
    let keys = [Key::secret(SECRET).unwrap()];
    let rules = TokenRules::default();
    let verify = |token: &str| SignedToken::parse(token)?.verify(keys.iter(), &rules);
    assert!(verify(&right).is_ok());
    bolero::check!().for_each(|bytes: &[u8]| {
        let token = shaped_text(&[&right, "a.b.c", "eyJhbGciOiJub25lIn0.e30."], bytes);
        match verify(&token) {
            // An accepted token has the claims that were signed.
            Ok(claims) => {
                assert_eq!(claims.sub.as_deref(), Some("ann"));
                assert_eq!(
                    claims.roomcast,
                    RoomcastClaim { publish: vec!["chat.*".into()], ..RoomcastClaim::default() }
                );
            }
            Err(TokenError::Expired | TokenError::KeysUnavailable) => panic!("{token}"),
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    });
}

#[test]
fn fuzz_key_sets() {
    const SAMPLES: [&str; 5] = [
        r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"a","alg":"EdDSA","use":"sig"}]}"#,
        r#"{"keys":[{"kty":"EC","crv":"P-256","x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4","y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM"}]}"#,
        r#"{"keys":[{"kty":"oct","k":"c2hvcnQ","alg":"HS256"},{"kty":"RSA","n":"AQAB","e":"AQAB"},{"kty":"OKP","crv":"Ed25519","x":"AQAB"},7]}"#,
        "[]",
        "7",
    ];
    let counts = SAMPLES.map(|sample| Key::set(sample, None).map_or(0, |keys| keys.len()));
    assert_eq!(counts, [1, 1, 0, 0, 0], "keys that are too short are left out");
    let tokens: Vec<_> = [r#"{"alg":"EdDSA"}"#, r#"{"alg":"ES256"}"#, r#"{"alg":"RS256"}"#, r#"{"alg":"HS256"}"#]
        .map(|header| format!("{}.e30.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode([7; 64])))
        .into();
    bolero::check!().for_each(|bytes: &[u8]| {
        let text = shaped_text(&SAMPLES, bytes);
        match Key::set(&text, None) {
            // Every accepted key can be used for verification.
            Ok(keys) => {
                for token in &tokens {
                    let verified = SignedToken::parse(token).unwrap().verify(keys.iter(), &TokenRules::default());
                    assert!(verified.is_err());
                }
            }
            Err(why) => assert!(!why.to_string().is_empty()),
        }
    });
}
