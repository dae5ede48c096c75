//! Settings of access: keys, tokens, and callers without a token.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use clap::builder::BoolishValueParser;
use url::Url;

use super::parse::{duration_between, has_login, is_loopback_host};
use crate::auth::{Grants, Key, KeySetFile, KeySetUrl, KeySources, Permission, TokenRules};

/// Keys, tokens, and callers without a token. With any key the gateway is closed: a request may do only what its token,
/// or `--anonymous`, grants.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Access")]
pub struct AccessArgs {
    /// Secret that verifies tokens with HS256, at least 32 bytes. Repeatable, to replace a secret without a break.
    #[arg(
        long,
        env = "ROOMCAST_JWT_HS256_SECRET",
        value_name = "SECRET",
        value_delimiter = ' ',
        hide_env_values = true
    )]
    pub jwt_hs256_secret: Vec<Secret>,

    /// PEM file with a public key that verifies tokens: RSA for RS256, P-256 for ES256, Ed25519 for EdDSA. Repeatable.
    #[arg(
        long,
        env = "ROOMCAST_JWT_PUBLIC_KEY",
        value_name = "FILE",
        value_delimiter = ' ',
        hide_env_values = true
    )]
    pub jwt_public_key: Vec<PathBuf>,

    /// File with a JWKS, a set of keys that verify tokens. It is read again when it changes.
    #[arg(long, env = "ROOMCAST_JWKS_FILE", value_name = "FILE", hide_env_values = true)]
    pub jwks_file: Option<PathBuf>,

    /// URL of a JWKS, a set of keys that verify tokens: https, or http on this machine. The last keys stay valid while
    /// it can't be fetched.
    #[arg(long, env = "ROOMCAST_JWKS_URL", value_name = "URL", hide_env_values = true)]
    pub jwks_url: Option<JwksUrl>,

    /// Time after which --jwks-url is fetched again, 10s to 24h. A token with an unknown key causes a fetch at once,
    /// but at most every 10 s.
    #[arg(long, env = "ROOMCAST_JWKS_REFRESH", default_value = "5m", value_parser = refresh, value_name = "TIME")]
    pub jwks_refresh: Duration,

    /// Issuer that tokens must have in `iss`. Repeatable: one of them. If left out, `iss` is not checked.
    #[arg(long, env = "ROOMCAST_JWT_ISSUER", value_name = "NAME", value_delimiter = ' ')]
    pub jwt_issuer: Vec<String>,

    /// Issuer with keys of its own: its `iss`, `=`, and the URL or the file of a JWKS. Repeatable. These keys verify only
    /// its tokens, and no others do.
    #[arg(
        long,
        env = "ROOMCAST_JWKS_OF_ISSUER",
        value_name = "ISSUER=JWKS",
        value_delimiter = ' ',
        hide_env_values = true
    )]
    pub jwks_of_issuer: Vec<IssuerKeys>,

    /// Audience that tokens must have in `aud`. Repeatable: one of them. If left out, `aud` is not checked.
    #[arg(long, env = "ROOMCAST_JWT_AUDIENCE", value_name = "NAME", value_delimiter = ' ')]
    pub jwt_audience: Vec<String>,

    /// Allowed difference between clocks, 0 to 5m: a token is valid this much before `nbf` and after `exp`.
    #[arg(long, env = "ROOMCAST_JWT_SKEW", default_value = "10s", value_parser = skew, value_name = "TIME")]
    pub jwt_skew: Duration,

    /// Name of the cookie in which browsers may send a token, 1 to 64 characters.
    #[arg(
        long,
        env = "ROOMCAST_TOKEN_COOKIE",
        default_value = "__Host-roomcast",
        value_parser = cookie_name,
        value_name = "NAME"
    )]
    pub token_cookie: String,

    /// Permission of callers without a token: publish, subscribe, presence, read or write, and a pattern of names, as
    /// in `subscribe=public.*`. Repeatable. Only with keys; if left out, requests without a token are refused.
    #[arg(long, env = "ROOMCAST_ANONYMOUS", value_name = "PERMISSION=PATTERN", value_delimiter = ' ')]
    pub anonymous: Vec<AnonymousGrant>,

    /// Origin of web pages that may use the gateway from another site, as in `https://app.example` or
    /// `capacitor://localhost`. Repeatable. If left out: none.
    #[arg(
        long,
        env = "ROOMCAST_CORS_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ' ',
        hide_env_values = true
    )]
    pub cors_origin: Vec<Origin>,

    /// Serve every caller without a token, on any address and under any host name. Excludes keys. The variable is true
    /// or false.
    #[arg(long, env = "ROOMCAST_INSECURE_ALLOW_ANONYMOUS", value_parser = BoolishValueParser::new())]
    pub insecure_allow_anonymous: bool,
}

impl AccessArgs {
    /// Whether there is a key for tokens. Without one the gateway is open.
    pub fn has_keys(&self) -> bool {
        !self.jwt_hs256_secret.is_empty()
            || !self.jwt_public_key.is_empty()
            || self.jwks_file.is_some()
            || self.jwks_url.is_some()
            || !self.jwks_of_issuer.is_empty()
    }

    /// Reads the keys. The error names the flag of the first key that can't be used, and the reason.
    pub fn key_sources(&self) -> Result<KeySources, String> {
        let mut fixed = Vec::new();
        for secret in &self.jwt_hs256_secret {
            fixed.push(Key::secret(secret.expose()).map_err(|why| format!("--jwt-hs256-secret: {why}"))?);
        }
        for path in &self.jwt_public_key {
            let failed = |why: &dyn fmt::Display| unusable_file("--jwt-public-key", path, why);
            let pem = std::fs::read(path).map_err(|why| failed(&why))?;
            fixed.push(Key::public(&pem).map_err(|why| failed(&why))?);
        }
        let file = self
            .jwks_file
            .as_ref()
            .map(|path| KeySetFile::open(path, None).map_err(|why| unusable_file("--jwks-file", path, &why)));
        let url = self.jwks_url.as_ref().map(|url| {
            KeySetUrl::new(url.0.clone(), None, self.jwks_refresh).map_err(|why| format!("--jwks-url: {why}"))
        });
        let mut sources = KeySources {
            fixed,
            files: file.transpose()?.into_iter().collect(),
            urls: url.transpose()?.into_iter().collect(),
        };
        for IssuerKeys { issuer, source } in &self.jwks_of_issuer {
            let failed = |why| format!("--jwks-of-issuer {issuer}: {why}");
            match source {
                JwksSource::File(path) => {
                    sources.files.push(KeySetFile::open(path, Some(issuer.clone())).map_err(failed)?);
                }
                JwksSource::Url(url) => {
                    let set = KeySetUrl::new(url.0.clone(), Some(issuer.clone()), self.jwks_refresh);
                    sources.urls.push(set.map_err(failed)?);
                }
            }
        }
        Ok(sources)
    }

    /// The checks of a token besides its signature.
    pub fn rules(&self) -> TokenRules {
        TokenRules {
            issuers: self.jwt_issuer.clone(),
            bound_issuers: self.jwks_of_issuer.iter().map(|keys| keys.issuer.clone()).collect(),
            audiences: self.jwt_audience.clone(),
            skew: self.jwt_skew,
        }
    }

    /// The permissions of callers without a token, for a gateway with keys.
    pub fn anonymous(&self) -> Grants {
        Grants::from_rules(self.anonymous.iter().map(|grant| (grant.permission, grant.pattern.clone())))
    }

    /// Whether web pages of an origin may use the gateway from another site.
    pub fn allows_origin(&self, origin: &[u8]) -> bool {
        self.cors_origin.iter().any(|allowed| allowed.as_str().as_bytes() == origin)
    }
}

/// Why a file with keys can't be used. A path that leads nowhere is not quoted: it may be the key itself.
fn unusable_file(flag: &str, path: &Path, why: &dyn fmt::Display) -> String {
    if path.exists() {
        format!("{flag} {}: {why}", path.display())
    } else {
        format!("{flag}: {why}; give the path of a file that exists, not the key itself")
    }
}

/// A secret. `Debug` does not show it.
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

/// A permission of callers without a token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnonymousGrant {
    permission: Permission,
    pattern: String,
}

impl FromStr for AnonymousGrant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, pattern) =
            text.split_once('=').ok_or("expected a permission and a pattern, such as subscribe=public.*")?;
        let permission = Permission::ALL.into_iter().find(|permission| permission.name() == name);
        let permission = permission.ok_or_else(|| {
            format!("{name:?} is not a permission: expected publish, subscribe, presence, read or write")
        })?;
        if pattern.is_empty() {
            return Err(
                "the pattern is empty: expected a permission and a pattern, such as subscribe=public.*".into()
            );
        }
        Ok(Self { permission, pattern: pattern.into() })
    }
}

/// The URL of a JWKS. Its query may have a secret, which `Debug` leaves out.
#[derive(Clone)]
pub struct JwksUrl(Url);

impl fmt::Debug for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.origin().ascii_serialization())
    }
}

impl FromStr for JwksUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url: Url = text.parse().map_err(|_| "it is not a URL")?;
        let is_local = url.host_str().is_some_and(is_loopback_host);
        match url.scheme() {
            _ if has_login(&url) => Err("it must not have a user name or password".into()),
            _ if url.fragment().is_some() => Err("it must not have a part after #: write # as %23".into()),
            "https" => Ok(Self(url)),
            "http" if is_local => Ok(Self(url)),
            _ => Err("it must be https; http is allowed only on this machine".into()),
        }
    }
}

/// The keys of an issuer.
#[derive(Clone, Debug)]
pub struct IssuerKeys {
    issuer: Arc<str>,
    source: JwksSource,
}

#[derive(Clone, Debug)]
enum JwksSource {
    File(PathBuf),
    Url(JwksUrl),
}

impl FromStr for IssuerKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (issuer, source) =
            text.split_once('=').filter(|(issuer, source)| !issuer.is_empty() && !source.is_empty()).ok_or(
                "expected an issuer and a URL or a file, such as https://id.example=https://id.example/jwks.json",
            )?;
        let source =
            if source.contains("://") { JwksSource::Url(source.parse()?) } else { JwksSource::File(source.into()) };
        Ok(Self { issuer: issuer.into(), source })
    }
}

/// The origin of a web page (RFC 6454, 6.2), in the form that browsers send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(String);

impl Origin {
    /// The form that browsers send.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Origin {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if matches!(text, "null" | "*") || text.starts_with("file:") {
            return Err(
                "null, * and file: stand for pages of anybody; list each origin, such as https://app.example",
            );
        }
        let is_origin = |url: &Url| {
            let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
            bare && url.has_host() && !has_login(url) && !matches!(url.scheme(), "ftp" | "ws" | "wss")
        };
        let url: Option<Url> = text.parse().ok().filter(|_| !text.contains('*'));
        let url =
            url.filter(is_origin).ok_or("expected an origin such as https://app.example or app://localhost")?;
        // The origin of another scheme is opaque (HTML, 7.1.1). Browsers send the scheme and the host of those that
        // applications register.
        let own = || url.as_str().trim_end_matches('/').to_ascii_lowercase();
        Ok(Self(if url.origin().is_tuple() { url.origin().ascii_serialization() } else { own() }))
    }
}

/// A cookie's name (RFC 6265, 4.1.1).
fn cookie_name(text: &str) -> Result<String, String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    if !text.is_empty() && text.len() <= 64 && text.chars().all(fine) {
        Ok(text.into())
    } else {
        Err("expected 1 to 64 letters, digits and characters such as - and _".into())
    }
}

fn refresh(text: &str) -> Result<Duration, String> {
    duration_between(Duration::from_secs(10), Duration::from_hours(24), text)
}

fn skew(text: &str) -> Result<Duration, String> {
    duration_between(Duration::ZERO, Duration::from_mins(5), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        assert_eq!("https://App.Example/".parse::<Origin>().unwrap().as_str(), "https://app.example");
        assert_eq!("https://app.example:443".parse::<Origin>().unwrap().as_str(), "https://app.example");
        assert_eq!("http://localhost:3000".parse::<Origin>().unwrap().as_str(), "http://localhost:3000");
        for origin in [
            "capacitor://localhost",
            "ionic://localhost",
            "app://.",
            "chrome-extension://abcdefgh",
            "x-y.z+1://a:1",
        ] {
            assert_eq!(origin.parse::<Origin>().unwrap().as_str(), origin);
        }
        assert_eq!("Tauri://LocalHost/".parse::<Origin>().unwrap().as_str(), "tauri://localhost");
        for wrong in [
            "*",
            "null",
            "",
            "app.example",
            "https://",
            "https://*.app.example",
            "https://app.example/path",
            "ftp://app.example",
            "wss://app.example",
            "file://",
            "file:///page.html",
            "capacitor://",
            "capacitor:localhost",
            "capacitor://localhost/index.html",
            "data:text/html,x",
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
        let grant: AnonymousGrant = "subscribe=public.*".parse().unwrap();
        assert_eq!(grant, AnonymousGrant { permission: Permission::Subscribe, pattern: "public.*".into() });
        for wrong in ["", "subscribe", "subscribe=", "admin=*", "Publish=a"] {
            assert!(wrong.parse::<AnonymousGrant>().is_err(), "{wrong}");
        }
    }
}
