//! Settings of the Redis that replicas share.

use clap::Args;

use crate::broker::redis::{HashKeyTemplate, RedisUrl};

/// The Redis that replicas share.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Redis")]
pub struct RedisArgs {
    /// Redis 7 or later, as in `redis://[user:password@]host[:port][/database]`. If left out, the embedded broker serves
    /// this process.
    #[arg(id = "redis-url", long, env = "ROOMCAST_REDIS_URL", value_name = "URL", hide_env_values = true)]
    pub url: Option<RedisUrl>,

    /// Prefix of all keys and channels in Redis: 1 to 64 visible ASCII characters without braces and wildcards.
    /// Replicas with the same Redis and prefix are one deployment.
    #[arg(
        id = "redis-prefix",
        long,
        env = "ROOMCAST_REDIS_PREFIX",
        default_value = "roomcast",
        value_name = "PREFIX",
        value_parser = prefix
    )]
    pub prefix: String,

    /// Key of a hash in Redis, as in `user:{hash}`; see docs/redis.md.
    #[arg(long, env = "ROOMCAST_HASH_KEY", default_value = "{prefix}:hash:{{hash}}", value_name = "TEMPLATE")]
    pub hash_key: HashKeyTemplate,
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
