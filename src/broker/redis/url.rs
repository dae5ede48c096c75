//! The URL of a Redis server.

use std::fmt;
use std::str::FromStr;

use redis::IntoConnectionInfo;

/// The form of a URL. A password that is not percent-encoded makes it another one.
const EXPECTED: &str = "expected redis://[user:password@]host[:port][/database]; in the user name and the password, write \
                        # as %23, / as %2F, ? as %3F, @ as %40, : as %3A, & as %26 and % as %25";

/// A Redis URL. It may have a password, which `Debug` and `Display` leave out.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisUrl {
    whole: String,
    shown: String,
}

impl RedisUrl {
    /// The whole URL, password included.
    pub fn expose(&self) -> &str {
        &self.whole
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    /// The errors quote nothing of the URL, since any part of it may belong to a password.
    fn from_str(text: &str) -> Result<Self, String> {
        let url = redis::parse_redis_url(text).ok_or(EXPECTED)?;
        let scheme = url.scheme().to_owned();
        if matches!(scheme.as_str(), "rediss" | "valkeys") {
            return Err(
                "TLS to Redis is not supported: use redis://, through a TLS tunnel if the network needs it".into(),
            );
        }
        // What the library would leave out: the rest of a password, or a setting that it does not know.
        let parameters: &[&str] = if scheme.ends_with("unix") { &["user", "pass", "db"] } else { &[] };
        if let Some(database) = url.query_pairs().find_map(|(name, value)| (name == "db").then_some(value))
            && parameters.is_empty()
        {
            let database = database.parse::<u32>().map_or("database".into(), |number| number.to_string());
            return Err(format!("write /{database} after the host and port instead of ?db="));
        }
        if url.fragment().is_some() || url.query_pairs().any(|(name, _)| !parameters.contains(&&*name)) {
            return Err(EXPECTED.into());
        }
        let server = url.into_connection_info().map_err(|_| EXPECTED)?;
        let login = server.redis_settings();
        let hidden = if login.username().or(login.password()).is_some() { "***@" } else { "" };
        Ok(Self { whole: text.to_owned(), shown: format!("{scheme}://{hidden}{}", server.addr()) })
    }
}

impl fmt::Display for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::shaped_text;

    #[test]
    fn a_password_is_never_shown() {
        for (url, expected) in [
            ("redis://:secret@host:6379/0", "redis://***@host:6379"),
            ("redis://user:secret@host", "redis://***@host:6379"),
            ("redis://secret@host", "redis://***@host:6379"),
            ("unix:///run/redis.sock?pass=secret", "unix://***@/run/redis.sock"),
            ("redis://host", "redis://host:6379"),
        ] {
            let url: RedisUrl = url.parse().unwrap();
            assert_eq!((url.to_string().as_str(), format!("{url:?}").as_str()), (expected, expected));
        }
        for wrong in ["redis://:secret@", "redis:/:secret@host", "redis://:secret@host/x", "rediss://:secret@host"]
        {
            assert!(!wrong.parse::<RedisUrl>().unwrap_err().contains("secret"));
        }
    }

    /// The shown form of a valid URL has only the server, and the error of an invalid one has no password.
    #[test]
    fn fuzz_redis_urls() {
        let samples = [
            "redis://:PASSWORD@host:6379/0",
            "redis://user:PASSWORD@host",
            "unix:///run/redis.sock?pass=PASSWORD",
            "valkey://[::1]",
        ];
        bolero::check!().for_each(|bytes: &[u8]| {
            let text = shaped_text(&samples, bytes);
            match text.parse::<RedisUrl>() {
                Ok(url) => {
                    assert_eq!(url.expose(), text);
                    let server = url.expose().into_connection_info().expect("the URL is valid").addr().to_string();
                    let shown = url.to_string();
                    assert!(shown.ends_with(&server) && shown == format!("{url:?}"));
                    let rest = shown[..shown.len() - server.len()].trim_end_matches("***@");
                    assert!(
                        ["redis://", "redis+unix://", "unix://", "valkey://", "valkey+unix://"].contains(&rest)
                    );
                }
                Err(why) => assert!(!why.contains("PASSWORD"), "{why}"),
            }
        });
    }
}
