//! Settings of the Redis that replicas share.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use redis::IntoConnectionInfo;

/// The Redis that replicas share.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Redis")]
pub struct RedisArgs {
    /// Redis 7 or later, which keeps logs and hashes and connects replicas, as in
    /// `redis://[user:password@]host[:port][/database]`. If left out, the embedded broker serves this process alone.
    #[arg(id = "redis-url", long, env = "ROOMCAST_REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub url: Option<RedisUrl>,

    /// Prefix of all keys and channels in Redis, 1 to 64 visible ASCII characters without braces and wildcards.
    /// Replicas with the same Redis and the same prefix are one deployment.
    #[arg(
        id = "redis-prefix",
        long,
        env = "ROOMCAST_REDIS_PREFIX",
        default_value = "roomcast",
        value_name = "PREFIX",
        value_parser = prefix
    )]
    pub prefix: String,
}

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

/// Braces mark the hash tag of a key. The other excluded characters are special in Redis's patterns.
fn prefix(text: &str) -> Result<String, String> {
    let fine = !text.is_empty()
        && text.len() <= 64
        && text.chars().all(|c| c.is_ascii_graphic() && !"{}*?[]\\".contains(c));
    if fine {
        Ok(text.into())
    } else {
        Err("expected 1 to 64 visible ASCII characters, without braces, brackets, backslashes, * and ?".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
