//! Settings of an orderly shutdown.

use std::time::Duration;

use clap::Args;

use super::parse::pause;

/// The shutdown after a signal.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Shutdown")]
pub struct ShutdownArgs {
    /// Time after a signal to stop for which the replica still serves, while /readyz tells the balancer that it is not
    /// ready, 0 to 1h. Left out on loopback if no stream is open and nobody has asked for /readyz.
    #[arg(long, env = "ROOMCAST_DRAIN_DELAY", default_value = "5s", value_parser = pause, value_name = "TIME")]
    pub drain_delay: Duration,

    /// Time after that over which the replica ends its streams one after the other, 0 to 1h. Requests in flight then
    /// get 5 s more.
    #[arg(long, env = "ROOMCAST_DRAIN_WINDOW", default_value = "10s", value_parser = pause, value_name = "TIME")]
    pub drain_window: Duration,
}
