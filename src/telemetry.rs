//! Starts logs, which go to standard error, and traces, which go to a collector.

use std::io::{self, IsTerminal};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Collected, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tokio::runtime::Handle;
use tokio::time::timeout;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::config::{LogFormat, TelemetryArgs};
use crate::trace;

/// Longest time for sending the last spans, when the process ends.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);
/// Longest time for sending a batch of spans.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of a collector's response.
const MAX_RESPONSE_BYTES: usize = 64 * 1024;

/// The store of the data folder. Its lines below the level `warn` are about its files.
const STORE_TARGETS: [&str; 2] = ["fjall", "lsm_tree"];

/// Sends the spans that are left when it is dropped.
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(why)) = self.traces.take().map(|traces| traces.shutdown_with_timeout(SHUTDOWN_LIMIT)) {
            tracing::debug!(%why, "the last spans could not be sent");
        }
    }
}

/// Starts logs, and traces if there is a collector. Must be called in a runtime. The error names the flag that can't be
/// used, and the reason.
///
/// The replica's name goes with its traces.
pub fn start(settings: &TelemetryArgs, replica_id: Option<&str>) -> Result<Telemetry, String> {
    let filter = log_filter(&settings.log).map_err(|why| format!("--log: {why}"))?;
    let logs = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let logs: Box<dyn Layer<Registry> + Send + Sync> = match settings.log_format {
        LogFormat::Text => logs.boxed(),
        LogFormat::Json => logs.json().boxed(),
    };
    let Some(endpoint) = &settings.otlp_endpoint else {
        // One filter for the whole registry costs less than a filter for each layer.
        tracing_subscriber::registry().with(logs).with(filter).init();
        return Ok(Telemetry { traces: None });
    };
    let traces = traces(endpoint.as_str(), settings.trace_ratio, replica_id)
        .map_err(|why| format!("--otlp-endpoint: {why}"))?;
    let spans = tracing_opentelemetry::layer().with_tracer(traces.tracer(env!("CARGO_PKG_NAME")));
    let ours = Targets::new().with_target(env!("CARGO_PKG_NAME"), LevelFilter::INFO);
    tracing_subscriber::registry().with(logs.with_filter(filter)).with(spans.with_filter(ours)).init();
    trace::enable();
    Ok(Telemetry { traces: Some(traces) })
}

/// Reads levels by target. Empty parts mean nothing; parts that [`Targets`] would take for something else are refused.
fn log_filter(text: &str) -> Result<Targets, String> {
    let parts: Vec<_> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let is_unclear = |part: &&&str| {
        part.starts_with('=') || part.ends_with('=') || part.contains(|c: char| c == '[' || c.is_whitespace())
    };
    if let Some(part) = parts.iter().find(is_unclear) {
        return Err(format!("{part:?} is neither a level nor a target with its level, as in audit=off"));
    }
    let filter: Targets = parts.join(",").parse().map_err(|why: ParseError| why.to_string())?;
    let quiet = filter.default_level().unwrap_or(LevelFilter::OFF).min(LevelFilter::WARN);
    let is_named = |target: &str| parts.iter().any(|part| part.starts_with(target));
    let unnamed = STORE_TARGETS.into_iter().filter(|target| !is_named(target));
    Ok(filter.with_targets(unnamed.map(|target| (target, quiet))))
}

fn traces(endpoint: &str, ratio: f64, replica_id: Option<&str>) -> Result<SdkTracerProvider, String> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Collector::new())
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", endpoint.trim_end_matches('/')))
        .with_timeout(SEND_LIMIT)
        .build()
        .map_err(|why| why.to_string())?;
    let mut resource = Resource::builder()
        .with_service_name(env!("CARGO_PKG_NAME"))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if let Some(replica) = replica_id {
        resource = resource.with_attribute(KeyValue::new("service.instance.id", replica.to_owned()));
    }
    // The trace id decides, also for traces that callers have begun: a caller must not decide how much is sent.
    let sampler = Sampler::TraceIdRatioBased(ratio);
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler)
        .with_resource(resource.build());
    Ok(provider.build())
}

/// Posts spans to the collector. The exporter calls it on a thread of its own; the request runs on the gateway's runtime.
#[derive(Debug)]
struct Collector {
    client: Client<HttpConnector, Full<Bytes>>,
    runtime: Handle,
}

impl Collector {
    fn new() -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), runtime: Handle::current() }
    }
}

#[async_trait]
impl HttpClient for Collector {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let post = async move {
            let (head, body) = client.request(request.map(Full::new)).await?.into_parts();
            // The status tells whether the spans were taken. A body that is too long says no more than it does.
            let body = Limited::new(body, MAX_RESPONSE_BYTES).collect().await.map(Collected::to_bytes);
            Ok::<_, HttpError>(Response::from_parts(head, body.unwrap_or_default()))
        };
        let posting = self.runtime.spawn(async move { timeout(SEND_LIMIT, post).await });
        posting.await??
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::log_filter;

    #[test]
    fn a_log_filter_is_levels_by_target_and_anything_else_is_refused() {
        for text in ["info", "info,", "info,,audit=off", "info, audit=off", " ,info"] {
            let filter = log_filter(text).unwrap();
            assert!(filter.would_enable("roomcast::http", &Level::INFO), "{text}");
            assert_eq!(filter.would_enable("audit", &Level::INFO), !text.contains("audit"), "{text}");
        }
        for text in
            ["=info", "info,audit=", "[request]=debug", "info,roomcast[request]=debug", "info audit=off", "a=loud"]
        {
            assert!(log_filter(text).is_err(), "{text}");
        }
    }
}
