//! Settings of how much a caller may take.

use std::net::IpAddr;
use std::str::FromStr;

use clap::Args;
use ipnet::IpNet;

use crate::rate_limit::{RateFailure, RateLimitSettings};

/// How much a caller may take. A gateway without keys on this machine's own address has none of these limits.
#[derive(Args, Clone, Debug)]
pub struct CallerLimits {
    /// Requests a second of one subject, over all replicas; each event of a batch counts as one, and twice as many may come at once.
    /// 0 for no limit.
    #[arg(long, env = "ROOMCAST_RATE_PER_SUBJECT", default_value_t = 500, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(..=MAX_RATE))]
    pub rate_per_subject: u32,

    /// Requests a second from one address (of IPv6, from one /64), whoever makes them. 0 for no limit.
    #[arg(long, env = "ROOMCAST_RATE_PER_ADDRESS", default_value_t = 2000, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(..=MAX_RATE))]
    pub rate_per_address: u32,

    /// Requests a second in all. 0 for no limit.
    #[arg(long, env = "ROOMCAST_RATE_TOTAL", default_value_t = 20_000, value_name = "COUNT",
        value_parser = clap::value_parser!(u32).range(..=MAX_RATE))]
    pub rate_total: u32,

    /// What becomes of requests while Redis can't say whether they are within these limits.
    #[arg(long, env = "ROOMCAST_RATE_FAILURE", value_enum, default_value = "open", value_name = "HOW")]
    pub rate_failure: RateFailure,

    /// Streams of one subject on a replica. 0 for no limit.
    #[arg(long, env = "ROOMCAST_MAX_STREAMS_PER_SUBJECT", default_value_t = 100, value_name = "COUNT")]
    pub max_streams_per_subject: u32,

    /// Streams from one address (of IPv6, from one /64) on a replica. 0 for no limit.
    #[arg(long, env = "ROOMCAST_MAX_STREAMS_PER_ADDRESS", default_value_t = 2000, value_name = "COUNT")]
    pub max_streams_per_address: u32,

    /// Address or network of a proxy whose `X-Forwarded-For` tells where requests come from. May be repeated; in the variable, networks
    /// have a space between them.
    #[arg(long, env = "ROOMCAST_TRUSTED_PROXY", value_name = "NETWORK", value_delimiter = ' ', value_parser = network)]
    pub trusted_proxy: Vec<IpNet>,
}

/// A second has so many microseconds, and a token takes one at least.
const MAX_RATE: i64 = 1_000_000;

impl CallerLimits {
    /// What the limiter needs to know.
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

/// A network, or an address alone.
fn network(text: &str) -> Result<IpNet, String> {
    let address = || text.parse().map(|address: IpAddr| IpNet::from(address));
    IpNet::from_str(text)
        .or_else(|_| address())
        .map_err(|_| "it reads like 10.0.0.0/8, 192.0.2.7 or fd00::/8".into())
}
