//! Limits of each caller: requests a second, open streams, and open connections.

use std::net::IpAddr;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;

use crate::rate_limit::{RateFailure, RateLimitSettings};

/// At this rate, a bucket gains one request in a microsecond, the smallest unit of time in which buckets count.
const MAX_RATE: i64 = 1_000_000;

/// Limits of each caller. A gateway without keys on loopback has none of them.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Rate limits")]
pub struct RateLimitArgs {
    /// Requests a second of one token subject, over all replicas, at most 1000000; twice as many may come at once. Each
    /// event of a batch counts. Further requests get 429. 0: no limit.
    #[arg(long, env = "ROOMCAST_RATE_PER_SUBJECT", default_value_t = 500, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(..=MAX_RATE))]
    pub rate_per_subject: u32,

    /// Requests a second from one address (of IPv6, one /64), counted in the same way. 0: no limit.
    #[arg(long, env = "ROOMCAST_RATE_PER_ADDRESS", default_value_t = 2000, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(..=MAX_RATE))]
    pub rate_per_address: u32,

    /// Requests a second of all callers together, counted in the same way. With keys, callers without a valid token
    /// may use half of it. 0: no limit. On loopback without keys, no caller has limits.
    #[arg(long, env = "ROOMCAST_RATE_TOTAL", default_value_t = 20_000, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(..=MAX_RATE))]
    pub rate_total: u32,

    /// Requests that can't be counted together because Redis is unavailable: `open` counts them on each replica alone,
    /// `closed` refuses them with 503.
    #[arg(
        long,
        env = "ROOMCAST_RATE_FAILURE",
        value_enum,
        default_value = "open",
        value_name = "HOW",
        hide_possible_values = true
    )]
    pub rate_failure: RateFailure,

    /// Open streams of one token subject on this replica. Further streams get `stream.end`. 0: no limit.
    #[arg(long, env = "ROOMCAST_MAX_STREAMS_PER_SUBJECT", default_value_t = 100, value_name = "COUNT")]
    pub max_streams_per_subject: u32,

    /// Open streams from one address (of IPv6, one /64) on this replica. Further streams get `stream.end`. 0: no limit.
    #[arg(long, env = "ROOMCAST_MAX_STREAMS_PER_ADDRESS", default_value_t = 2000, value_name = "COUNT")]
    pub max_streams_per_address: u32,

    /// Open connections from one address (of IPv6, one /64), at most half of --max-connections. Those of a
    /// --trusted-proxy do not count. 0: no limit.
    #[arg(long, env = "ROOMCAST_MAX_CONNECTIONS_PER_ADDRESS", default_value_t = 4000, value_name = "COUNT")]
    pub max_connections_per_address: u32,

    /// Address or network of a proxy. Its `X-Forwarded-For` header gives the address of the caller. Repeatable. If left
    /// out, all callers behind a proxy count as one address.
    #[arg(long, env = "ROOMCAST_TRUSTED_PROXY", value_name = "NETWORK", value_delimiter = ' ', value_parser = network)]
    pub trusted_proxy: Vec<IpNet>,
}

impl RateLimitArgs {
    /// The settings of the rate limiter.
    pub fn limits(&self) -> RateLimitSettings {
        RateLimitSettings {
            rate_per_subject: self.rate_per_subject,
            rate_per_address: self.rate_per_address,
            rate_total: self.rate_total,
            on_failure: self.rate_failure,
            streams_per_subject: self.max_streams_per_subject,
            streams_per_address: self.max_streams_per_address,
        }
    }
}

/// A network, or a single address.
fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse().map(|address: IpAddr| IpNet::from(address));
    IpNet::from_str(text)
        .or_else(|_| address())
        .map_err(|_| "expected a network or an address, such as 10.0.0.0/8, 192.0.2.7 or fd00::/8".into())
}
