//! Where logs and traces go, and how.

use std::io::{self, IsTerminal};
use std::time::Duration;

use async_trait::async_trait;
use http_body_util::{BodyExt, Full, Limited};
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
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry, fmt};

use crate::config::{LogFormat, Settings};
use crate::trace;

/// Time for the last spans to be sent.
const LAST_SPANS: Duration = Duration::from_secs(2);
/// Time for a batch of spans to be sent.
const SEND_LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of a collector's reply.
const MAX_REPLY_BYTES: usize = 64 * 1024;

/// Sends what is left when it is dropped.
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
}

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(why)) = self.traces.take().map(|traces| traces.shutdown_with_timeout(LAST_SPANS)) {
            tracing::debug!(%why, "the last spans could not be sent");
        }
    }
}

/// Starts logging to standard error, and sending traces where they are to go. Fails on a filter that can't be read.
pub fn start(settings: &Settings) -> Result<Telemetry, String> {
    let filter: Targets = settings.log.parse().map_err(|why| format!("--log {:?}: {why}", settings.log))?;
    let logs = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let logs: Box<dyn Layer<Registry> + Send + Sync> = match settings.log_format {
        LogFormat::Text => logs.boxed(),
        LogFormat::Json => logs.json().boxed(),
    };
    let Some(endpoint) = &settings.otlp_endpoint else {
        // The filter is for everything then, which costs less than one for each.
        tracing_subscriber::registry().with(logs).with(filter).init();
        return Ok(Telemetry { traces: None });
    };
    let traces = traces(endpoint.as_str(), settings).map_err(|why| format!("--otlp-endpoint: {why}"))?;
    let spans = tracing_opentelemetry::layer().with_tracer(traces.tracer(env!("CARGO_PKG_NAME")));
    let ours = Targets::new().with_target(env!("CARGO_PKG_NAME"), LevelFilter::INFO);
    tracing_subscriber::registry().with(logs.with_filter(filter)).with(spans.with_filter(ours)).init();
    trace::begin();
    Ok(Telemetry { traces: Some(traces) })
}

fn traces(endpoint: &str, settings: &Settings) -> Result<SdkTracerProvider, String> {
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
    if let Some(replica) = &settings.replica_id {
        resource = resource.with_attribute(KeyValue::new("service.instance.id", replica.clone()));
    }
    // By the trace's id, also where somebody else has begun it: strangers don't decide how much is sent.
    let sampler = Sampler::TraceIdRatioBased(settings.trace_ratio);
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(sampler)
        .with_resource(resource.build());
    Ok(provider.build())
}

/// Posts spans to a collector. The exporter calls it from a thread of its own, and the gateway's runtime does the work.
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
            let body = Limited::new(body, MAX_REPLY_BYTES).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(head, body))
        };
        let posted = self.runtime.spawn(async move { timeout(SEND_LIMIT, post).await });
        posted.await??
    }
}
