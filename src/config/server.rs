//! Settings of the listeners, and the replica's name.

use std::net::SocketAddr;

use clap::Args;
use clap::builder::BoolishValueParser;

use super::parse::listen_address;
use crate::names::SubscriberId;

/// Listeners, and the replica's name.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Address and port to listen on; port 0 picks a free one. Off loopback, it needs a key for tokens, or
    /// --insecure-allow-anonymous.
    #[arg(long, env = "ROOMCAST_LISTEN", default_value = "127.0.0.1:8080", value_parser = listen_address, value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Separate address for removals, revocations, the emptying of logs and the list of replicas; --listen then no
    /// longer serves them. Off loopback, it needs a key for tokens or --insecure-allow-anonymous.
    #[arg(long, env = "ROOMCAST_ADMIN_LISTEN", value_parser = listen_address, value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,

    /// Separate address that serves only /metrics, without a token. --listen serves it, too; with keys, to tokens with
    /// `admin`.
    #[arg(long, env = "ROOMCAST_METRICS_LISTEN", value_parser = listen_address, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,

    /// Serve no console and no page of the API.
    #[arg(long, env = "ROOMCAST_NO_CONSOLE", value_parser = BoolishValueParser::new())]
    pub no_console: bool,

    /// Name of this replica, which no other one has: 1 to 128 letters, digits and . _ ~ : @ + = -. Random by default.
    #[arg(long, env = "ROOMCAST_REPLICA_ID", value_name = "NAME", value_parser = replica_id)]
    pub replica_id: Option<String>,
}

fn replica_id(text: &str) -> Result<String, String> {
    SubscriberId::new(text).map(|name| name.to_string()).map_err(|why| why.to_string())
}
