//! Settings of the listeners, and the replica's name.

use std::net::SocketAddr;

use clap::Args;

use super::parse::listen_address;
use crate::names::SubscriberId;

/// Listeners, and the replica's name.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Server")]
pub struct ServerArgs {
    /// Address and port to listen on; port 0 picks a free one. An address that other machines can reach needs a key for
    /// tokens, or --insecure-allow-anonymous.
    #[arg(long, env = "ROOMCAST_LISTEN", default_value = "127.0.0.1:8080", value_parser = listen_address, value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Separate address for removals, revocations, the emptying of logs and the list of replicas; --listen then no
    /// longer serves them. If
    /// other machines can reach it, it needs a key for tokens or --insecure-allow-anonymous.
    #[arg(long, env = "ROOMCAST_ADMIN_LISTEN", value_parser = listen_address, value_name = "ADDRESS")]
    pub admin_listen: Option<SocketAddr>,

    /// Separate address that serves only /metrics, and asks for no token. --listen serves /metrics, too; with keys, it
    /// asks for a token with `admin`.
    #[arg(long, env = "ROOMCAST_METRICS_LISTEN", value_parser = listen_address, value_name = "ADDRESS")]
    pub metrics_listen: Option<SocketAddr>,

    /// Name of this replica in lists and traces: 1 to 128 letters, digits and . _ ~ : @ + = -. Every replica needs
    /// another one. Random if left out.
    #[arg(long, env = "ROOMCAST_REPLICA_ID", value_name = "NAME", value_parser = replica_id)]
    pub replica_id: Option<String>,
}

fn replica_id(text: &str) -> Result<String, String> {
    SubscriberId::new(text).map(|name| name.to_string()).map_err(|why| why.to_string())
}
