//! Settings of who may do what.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use url::Url;

use super::{between, is_loopback_host};
use crate::auth::{Grants, Key, KeySetFile, KeySetUrl, KeySources, NewToken, Permission, TokenRules};

/// Who may do what. With any key the gateway is closed: only what tokens grant may be done.
#[derive(Args, Clone, Debug)]
pub struct AccessSettings {
    /// Secret of at least 32 bytes that signs tokens with HS256. May be repeated, to change it without a break; in the variable, secrets
    /// have a space between them.
    #[arg(
        long,
        env = "ROOMCAST_JWT_HS256_SECRET",
        value_name = "SECRET",
        value_delimiter = ' ',
        hide_env_values = true
    )]
    pub jwt_hs256_secret: Vec<Secret>,

    /// Public key in PEM form that tokens are checked with: RSA with RS256, P-256 with ES256, Ed25519 with EdDSA. May be repeated; in
    /// the variable, files have a space between them.
    #[arg(long, env = "ROOMCAST_JWT_PUBLIC_KEY", value_name = "FILE", value_delimiter = ' ')]
    pub jwt_public_key: Vec<PathBuf>,

    /// JWKS with keys that tokens are checked with. It is read again when it changes.
    #[arg(long, env = "ROOMCAST_JWKS_FILE", value_name = "FILE")]
    pub jwks_file: Option<PathBuf>,

    /// URL of such a JWKS: https, or on this machine http. Keys stay valid while it can't be fetched.
    #[arg(long, env = "ROOMCAST_JWKS_URL", value_name = "URL")]
    pub jwks_url: Option<JwksUrl>,

    /// How often it is fetched; at once, too, when a token comes whose key is not known, but no more than every 10 s.
    #[arg(long, env = "ROOMCAST_JWKS_REFRESH", default_value = "5m", value_parser = refresh, value_name = "TIME")]
    pub jwks_refresh: Duration,

    /// Issuer that tokens must have in `iss`. May be repeated: one of them.
    #[arg(long, env = "ROOMCAST_JWT_ISSUER", value_name = "NAME", value_delimiter = ' ')]
    pub jwt_issuer: Vec<String>,

    /// Audience that tokens must have in `aud`. May be repeated: one of them.
    #[arg(long, env = "ROOMCAST_JWT_AUDIENCE", value_name = "NAME", value_delimiter = ' ')]
    pub jwt_audience: Vec<String>,

    /// How far clocks may be apart: tokens are taken this much before `nbf` and after `exp`.
    #[arg(long, env = "ROOMCAST_JWT_SKEW", default_value = "10s", value_parser = skew, value_name = "TIME")]
    pub jwt_skew: Duration,

    /// Cookie in which a browser may send its token.
    #[arg(long, env = "ROOMCAST_TOKEN_COOKIE", default_value = "__Host-roomcast", value_parser = cookie, value_name = "NAME")]
    pub token_cookie: String,

    /// What callers without a token may do, where there are keys: publish, subscribe, presence, read or write, and a pattern of
    /// names, as in `subscribe=public.*`. May be repeated; in the variable, rules have a space between them.
    #[arg(long, env = "ROOMCAST_ANONYMOUS", value_name = "PERMISSION=PATTERN", value_delimiter = ' ')]
    pub anonymous: Vec<Grant>,

    /// Origin of web pages that may use the gateway from another site, as in `https://app.example`. May be repeated; in the variable,
    /// origins have a space between them.
    #[arg(long, env = "ROOMCAST_CORS_ORIGIN", value_name = "ORIGIN", value_delimiter = ' ')]
    pub cors_origin: Vec<Origin>,
}

impl AccessSettings {
    /// Whether tokens can be checked; else the gateway is open.
    pub fn has_keys(&self) -> bool {
        !self.jwt_hs256_secret.is_empty()
            || !self.jwt_public_key.is_empty()
            || self.jwks_file.is_some()
            || self.jwks_url.is_some()
    }

    /// Reads the keys. Fails with the flag that names one that can't be used, and why.
    pub fn key_sources(&self) -> Result<KeySources, String> {
        let mut fixed = Vec::new();
        for secret in &self.jwt_hs256_secret {
            fixed.push(Key::secret(secret.expose()).map_err(|why| format!("--jwt-hs256-secret: {why}"))?);
        }
        for path in &self.jwt_public_key {
            let say = |why: &dyn fmt::Display| format!("--jwt-public-key {}: {why}", path.display());
            let pem = std::fs::read(path).map_err(|why| say(&why))?;
            fixed.push(Key::public(&pem).map_err(|why| say(&why))?);
        }
        let file = self
            .jwks_file
            .as_ref()
            .map(|path| KeySetFile::open(path).map_err(|why| format!("--jwks-file {}: {why}", path.display())));
        let url = self.jwks_url.as_ref().map(|url| {
            KeySetUrl::new(url.0.clone(), self.jwks_refresh).map_err(|why| format!("--jwks-url {}: {why}", url.0))
        });
        Ok(KeySources { fixed, file: file.transpose()?, url: url.transpose()? })
    }

    /// What tokens are held against beside their signatures.
    pub fn rules(&self) -> TokenRules {
        TokenRules { issuers: self.jwt_issuer.clone(), audiences: self.jwt_audience.clone(), skew: self.jwt_skew }
    }

    /// What callers without a token may do, where there are keys.
    pub fn anonymous(&self) -> Grants {
        Grants::from_rules(self.anonymous.iter().map(|grant| (grant.permission, grant.pattern.clone())))
    }

    /// Whether web pages of an origin may use the gateway from another site.
    pub fn allows_origin(&self, origin: &[u8]) -> bool {
        self.cors_origin.iter().any(|allowed| allowed.as_str().as_bytes() == origin)
    }
}

/// How to make a token for development.
#[derive(Args, Debug)]
pub struct TokenArguments {
    /// Secret that signs it: one of those that the gateway was given.
    #[arg(
        long,
        env = "ROOMCAST_JWT_HS256_SECRET",
        value_name = "SECRET",
        required = true,
        value_delimiter = ' ',
        hide_env_values = true
    )]
    jwt_hs256_secret: Vec<Secret>,
    /// Whose token it is.
    #[arg(long, value_name = "SUBJECT")]
    sub: Option<String>,
    /// Rooms to publish to, as a pattern with `*`; may be repeated, as may the others.
    #[arg(long, value_name = "PATTERN")]
    publish: Vec<String>,
    /// Rooms to stream and to read the logs of.
    #[arg(long, value_name = "PATTERN")]
    subscribe: Vec<String>,
    /// Rooms in which to see who is there.
    #[arg(long, value_name = "PATTERN")]
    presence: Vec<String>,
    /// Hashes to read.
    #[arg(long, value_name = "PATTERN")]
    read: Vec<String>,
    /// Hashes to change.
    #[arg(long, value_name = "PATTERN")]
    write: Vec<String>,
    /// Everything, in all rooms and hashes.
    #[arg(long)]
    admin: bool,
    /// How long it is valid.
    #[arg(long, default_value = "1h", value_parser = super::lifetime, value_name = "TIME")]
    lifetime: Duration,
    /// What stands in `iss`.
    #[arg(long, env = "ROOMCAST_JWT_ISSUER", value_name = "NAME")]
    issuer: Option<String>,
    /// What stands in `aud`.
    #[arg(long, env = "ROOMCAST_JWT_AUDIENCE", value_name = "NAME")]
    audience: Option<String>,
}

impl TokenArguments {
    /// The token to make, and the secret to sign it with.
    pub fn into_token(self) -> (NewToken, Secret) {
        let permissions = [
            (Permission::Publish, self.publish),
            (Permission::Subscribe, self.subscribe),
            (Permission::Presence, self.presence),
            (Permission::Read, self.read),
            (Permission::Write, self.write),
        ];
        let grants = permissions
            .into_iter()
            .flat_map(|(permission, patterns)| patterns.into_iter().map(move |pattern| (permission, pattern)));
        // The newest of several, as where one is being changed for another.
        let secret = self.jwt_hs256_secret.into_iter().next_back().unwrap_or_default();
        let token = NewToken {
            subject: self.sub,
            grants: grants.collect(),
            admin: self.admin,
            lifetime: self.lifetime,
            issuer: self.issuer,
            audience: self.audience,
        };
        (token, secret)
    }
}

/// Something that is never shown.
#[derive(Clone, Default)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.into()))
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// One thing that callers without a token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    permission: Permission,
    pattern: String,
}

impl FromStr for Grant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pattern) = text.split_once('=').ok_or("a rule reads like subscribe=public.*")?;
        let permission = Permission::ALL.into_iter().find(|permission| permission.name() == name);
        let permission = permission.ok_or_else(|| {
            format!("{name:?} is no permission; publish, subscribe, presence, read and write are")
        })?;
        if pattern.is_empty() {
            return Err("a rule reads like subscribe=public.*".into());
        }
        Ok(Self { permission, pattern: pattern.into() })
    }
}

/// Where keys are fetched from.
#[derive(Clone, Debug)]
pub struct JwksUrl(Url);

impl FromStr for JwksUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url: Url = text.parse().map_err(|_| "it is no URL")?;
        let is_local = url.host_str().is_some_and(is_loopback_host);
        match url.scheme() {
            _ if has_login(&url) => Err("a name or a password has no place in it".into()),
            "https" => Ok(Self(url)),
            "http" if is_local => Ok(Self(url)),
            _ => Err("keys come over https; over http only from this machine".into()),
        }
    }
}

/// A web page's origin (RFC 6454, 6.2), in the form in which browsers send it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// As browsers send it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_origin = |url: &Url| {
            let bare = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
            bare && !has_login(url) && matches!(url.scheme(), "http" | "https") && !text.contains('*')
        };
        let url: Option<Url> = text.parse().ok();
        let url = url.filter(is_origin).ok_or("it reads like https://app.example")?;
        Ok(Self(url.origin().ascii_serialization()))
    }
}

fn has_login(url: &Url) -> bool {
    !url.username().is_empty() || url.password().is_some()
}

/// A cookie's name (RFC 6265, 4.1.1).
fn cookie(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if !text.is_empty() && text.len() <= 64 && text.chars().all(fine) {
        Ok(text.into())
    } else {
        Err("1 to 64 letters, digits, - and _".into())
    }
}

fn refresh(text: &str) -> Result<Duration, String> {
    between(Duration::from_secs(10), Duration::from_hours(24), text)
}

fn skew(text: &str) -> Result<Duration, String> {
    between(Duration::ZERO, Duration::from_mins(5), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        assert_eq!("https://App.Example/".parse::<Origin>().unwrap().as_str(), "https://app.example");
        assert_eq!("https://app.example:443".parse::<Origin>().unwrap().as_str(), "https://app.example");
        assert_eq!("http://localhost:3000".parse::<Origin>().unwrap().as_str(), "http://localhost:3000");
        for wrong in [
            "*",
            "null",
            "",
            "app.example",
            "https://",
            "https://*.app.example",
            "https://app.example/path",
            "ftp://app.example",
            "https://ann@app.example",
            "https://app.example?x",
            "https://app.example#x",
        ] {
            assert!(wrong.parse::<Origin>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_never_shown() {
        let secret: Secret = "hush".parse().unwrap();
        assert_eq!(format!("{secret:?}"), "***");
    }

    #[test]
    fn keys_come_over_https_or_from_this_machine() {
        for (url, fine) in [
            ("https://id.example/keys", true),
            ("http://127.0.0.1:9/keys", true),
            ("http://[::1]/keys", true),
            ("http://localhost/keys", true),
            ("http://id.example/keys", false),
            ("file:///keys", false),
            ("keys", false),
        ] {
            assert_eq!(url.parse::<JwksUrl>().is_ok(), fine, "{url}");
        }
    }

    #[test]
    fn a_rule_for_callers_without_a_token_has_a_permission_and_a_pattern() {
        let grant: Grant = "subscribe=public.*".parse().unwrap();
        assert_eq!(grant, Grant { permission: Permission::Subscribe, pattern: "public.*".into() });
        for wrong in ["", "subscribe", "subscribe=", "admin=*", "Publish=a"] {
            assert!(wrong.parse::<Grant>().is_err(), "{wrong}");
        }
    }
}
