//! A publish and its delivery on each replica are one trace. The test is the collector, and speaks OTLP.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message;
use tokio::net::TcpListener;

use crate::cli::refuses;
use crate::support::{RedisServer, Replica, Stream, eventually, spawn};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

/// A span as the collector receives it.
#[derive(Clone, Debug)]
struct Span {
    replica: String,
    name: String,
    trace: String,
    id: String,
    parent: String,
    attributes: BTreeMap<String, String>,
}

type Spans = Arc<Mutex<Vec<Span>>>;

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

async fn receive(State(spans): State<Spans>, body: Bytes) {
    let text = |value: Option<opentelemetry_proto::tonic::common::v1::AnyValue>| match value
        .and_then(|value| value.value)
    {
        Some(Value::StringValue(text)) => text,
        other => format!("{other:?}"),
    };
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    for resource_spans in request.resource_spans {
        let resource: BTreeMap<_, _> = resource_spans
            .resource
            .unwrap()
            .attributes
            .into_iter()
            .map(|pair| (pair.key, text(pair.value)))
            .collect();
        assert_eq!(resource["service.name"], "roomcast");
        let replica = resource["service.instance.id"].clone();
        let received = resource_spans.scope_spans.into_iter().flat_map(|scope| scope.spans).map(|span| Span {
            replica: replica.clone(),
            name: span.name,
            trace: hex(&span.trace_id),
            id: hex(&span.span_id),
            parent: hex(&span.parent_span_id),
            attributes: span.attributes.into_iter().map(|pair| (pair.key, text(pair.value))).collect(),
        });
        spans.lock().unwrap().extend(received);
    }
}

async fn collector() -> (String, Spans) {
    let spans = Spans::default();
    let router = Router::new().route("/v1/traces", post(receive)).with_state(spans.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    spawn(async move { axum::serve(listener, router).await.unwrap() });
    (url, spans)
}

#[tokio::test]
async fn a_publish_and_its_delivery_on_each_replica_are_one_trace() {
    let redis = RedisServer::start().await;
    let (url, spans) = collector().await;
    let start = |name: &str| Replica::start(&redis.url(), &["--replica-id", name, "--otlp-endpoint", &url]);
    let (one, other) = (start("one"), start("other"));
    one.until(200).await;
    other.until(200).await;
    let mut streams = Vec::new();
    for replica in [&one, &other] {
        streams.push(Stream::open(&format!("{}/v1/rooms/lobby/stream", replica.url()), None).await);
    }
    let client = reqwest::Client::new();
    let publish = |traceparent: Option<String>| {
        let request = client.post(format!("{}/v1/rooms/lobby/events?access_token=secret", one.url())).body("hello");
        match traceparent {
            Some(traceparent) => request.header("traceparent", traceparent).send(),
            None => request.send(),
        }
    };
    assert_eq!(publish(Some(format!("00-{TRACE}-{SPAN}-01"))).await.unwrap().status(), 201);
    // A trace that is not sampled, a malformed one, and none.
    assert_eq!(publish(Some(format!("00-{}-{SPAN}-00", TRACE.replace('0', "1")))).await.unwrap().status(), 201);
    assert_eq!(publish(Some("00-malformed".into())).await.unwrap().status(), 201);
    assert_eq!(publish(None).await.unwrap().status(), 201);
    for stream in &mut streams {
        assert_eq!(stream.datas(4).await, ["hello"; 4]);
    }
    let found = eventually("the trace has come", async || {
        let mut spans = spans.lock().unwrap().clone();
        spans.retain(|span| span.trace == TRACE);
        (spans.iter().filter(|span| span.name == "deliver").count() == 2).then_some(spans)
    })
    .await;
    let request = found.iter().find(|span| span.name == "POST /v1/rooms/{room}/events").unwrap();
    assert_eq!((request.replica.as_str(), request.parent.as_str()), ("one", SPAN));
    let append = found.iter().find(|span| span.name == "append").unwrap();
    assert_eq!((append.replica.as_str(), &append.parent), ("one", &request.id));
    let mut replicas: Vec<_> = found.iter().filter(|span| span.name == "deliver").collect();
    replicas.sort_by_key(|span| span.replica.clone());
    for (span, name) in replicas.iter().zip(["one", "other"]) {
        assert_eq!((span.replica.as_str(), &span.parent), (name, &request.id));
        assert_eq!(span.attributes["room"], "lobby");
    }
    assert!(!format!("{found:?}").contains("secret"), "{found:#?}");
}

#[test]
fn a_collector_has_a_plain_http_url_and_a_ratio_is_0_to_1() {
    for wrong in ["collector:4318", "https://collector:4318", "http://ann:secret@collector", "x"] {
        refuses(&["--otlp-endpoint", wrong], &["--otlp-endpoint"]);
    }
    for wrong in ["2", "-0.1", "half"] {
        refuses(&[&format!("--trace-ratio={wrong}")], &["--trace-ratio"]);
    }
}
