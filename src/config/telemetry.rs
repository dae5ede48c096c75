//! Settings of logs and traces.

use clap::{Args, ValueEnum};
use url::Url;

use super::parse::has_login;

/// Logs and traces.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Logs and traces")]
pub struct TelemetryArgs {
    /// Lines to log on standard error: a level (off, error, warn, info, debug, trace), or levels by target, as in
    /// `info,audit=off`. The store of --data-dir (`fjall`) logs warnings only unless it is named.
    #[arg(long, env = "ROOMCAST_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,

    /// Form of log lines: `text` for people, `json` for collectors, one object a line.
    #[arg(
        long,
        env = "ROOMCAST_LOG_FORMAT",
        value_enum,
        default_value = "text",
        value_name = "FORM",
        hide_possible_values = true
    )]
    pub log_format: LogFormat,

    /// OpenTelemetry collector that gets traces, by OTLP over plain HTTP, as in `http://127.0.0.1:4318`. If left out,
    /// no traces are sent.
    #[arg(long, env = "ROOMCAST_OTLP_ENDPOINT", value_name = "URL", value_parser = collector, hide_env_values = true)]
    pub otlp_endpoint: Option<Url>,

    /// Share of the traces that is sent, 0 (none) to 1 (all). Trace ids decide, so all replicas send the same traces.
    #[arg(long, env = "ROOMCAST_TRACE_RATIO", default_value_t = 1.0, value_name = "SHARE", value_parser = ratio)]
    pub trace_ratio: f64,
}

/// The form of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For collectors: one object a line.
    Json,
}

fn collector(text: &str) -> Result<Url, String> {
    const EXPECTED: &str = "expected a URL without a query, such as http://127.0.0.1:4318";
    let url: Url = text.parse().map_err(|_| EXPECTED)?;
    if url.query().is_some() || url.fragment().is_some() {
        Err(EXPECTED.into())
    } else if url.scheme() == "http" && !has_login(&url) {
        Ok(url)
    } else {
        Err("it must be http, without a user name or password: use a collector beside the gateway, which may forward \
             traces over TLS"
            .into())
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio: f64 = text.parse().map_err(|_| "it must be a number")?;
    if (0.0..=1.0).contains(&ratio) { Ok(ratio) } else { Err("it must be 0 to 1".into()) }
}
