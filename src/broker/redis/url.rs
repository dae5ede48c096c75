//! The URL of a Redis server.

use std::fmt;
use std::str::FromStr;

use redis::IntoConnectionInfo;

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

    fn from_str(text: &str) -> Result<Self, String> {
        let url = redis::parse_redis_url(text).and_then(|url| {
            let scheme = url.scheme().to_owned();
            Some((scheme, url.into_connection_info().ok()?))
        });
        // The library's own message may quote the URL with its password.
        let (scheme, server) = url
            .filter(|(scheme, _)| !matches!(scheme.as_str(), "rediss" | "valkeys"))
            .ok_or("expected redis://[user:password@]host[:port][/database]")?;
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
