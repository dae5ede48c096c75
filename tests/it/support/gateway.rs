//! Gateways in the test's own process.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use reqwest::{Method, RequestBuilder, StatusCode};
use roomcast::config::Settings;
use roomcast::server::{self, ServeError};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{RedisServer, Stream, eventually, spawn, within};

/// The broker that the gateways of a test use.
pub struct World {
    pub redis: Option<RedisServer>,
    /// The folder with a data folder for each gateway.
    pub data: Option<tempfile::TempDir>,
    pub gateways: AtomicUsize,
}

impl World {
    pub fn embedded() -> Self {
        Self { redis: None, data: None, gateways: AtomicUsize::new(0) }
    }

    /// The embedded broker, with a data folder for each gateway.
    pub fn durable() -> Self {
        Self { data: Some(tempfile::tempdir().unwrap()), ..Self::embedded() }
    }

    pub async fn redis() -> Self {
        Self { redis: Some(RedisServer::start().await), ..Self::embedded() }
    }

    pub async fn gateway(&self) -> Gateway {
        self.gateway_with(|_| {}).await
    }

    pub async fn gateway_with(&self, change: impl FnOnce(&mut Settings)) -> Gateway {
        let url = self.redis.as_ref().map(RedisServer::url);
        let gateway = Gateway::start(|settings| {
            settings.redis.url = url.map(|url| url.parse().unwrap());
            let number = self.gateways.fetch_add(1, Ordering::Relaxed).to_string();
            settings.embedded.data_dir = self.data.as_ref().map(|data| data.path().join(number));
            change(settings);
        });
        let gateway = gateway.await;
        gateway.until_well().await;
        gateway
    }
}

/// A running gateway. It stops when it is dropped.
pub struct Gateway {
    pub url: String,
    client: reqwest::Client,
    stop: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Gateway {
    /// Starts a gateway with short times, unless `change` sets others. It does not wait for the broker.
    pub async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::defaults();
        settings.server.listen = "127.0.0.1:0".parse().unwrap();
        settings.shutdown.drain_delay = Duration::ZERO;
        settings.shutdown.drain_window = Duration::from_millis(200);
        settings.streams.room_idle_ttl = Duration::from_millis(200);
        change(&mut settings);
        let listener = TcpListener::bind(settings.server.listen).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = CancellationToken::new();
        let task = spawn(server::run(settings, listener, || {}, stop.clone().cancelled_owned()));
        Self { url, client: reqwest::Client::new(), stop, task }
    }

    pub async fn until_well(&self) {
        eventually("the gateway is healthy", async || {
            (self.send(self.request(Method::GET, "/healthz")).await.0 == StatusCode::OK).then_some(())
        })
        .await;
    }

    /// Starts the shutdown. Does not wait for it.
    pub fn leave(&self) {
        self.stop.cancel();
    }

    /// Shuts down, and waits for the end.
    pub async fn stop(mut self) -> Result<(), ServeError> {
        self.leave();
        within("the gateway stops", &mut self.task).await.expect("the gateway does not panic")
    }

    pub fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    pub async fn send(&self, request: RequestBuilder) -> (StatusCode, Value) {
        let response = self.answer(request).await;
        let status = response.status();
        let body = within("a body", response.bytes()).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
    }

    pub async fn answer(&self, request: RequestBuilder) -> reqwest::Response {
        within("an answer", request.send()).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(self.request(Method::GET, path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Publishes a text. Returns its id.
    pub async fn publish(&self, room: &str, text: &str) -> String {
        let (status, body) =
            self.send(self.request(Method::POST, &format!("/v1/rooms/{room}/events")).body(text.to_owned())).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    /// Publishes JSON with an event name. Returns its id.
    pub async fn publish_json(&self, room: &str, event: &str, data: Value) -> String {
        let (status, body) =
            self.post(&format!("/v1/rooms/{room}/events"), &json!({"event": event, "data": data})).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    /// Opens a stream, and reads its first event, `stream.open`.
    pub async fn stream(&self, path: &str) -> Stream {
        self.resume(path, None).await
    }

    pub async fn resume(&self, path: &str, last_event_id: Option<&str>) -> Stream {
        Stream::open(&format!("{}{path}", self.url), last_event_id).await
    }

    pub async fn room(&self, room: &str) -> Stream {
        self.stream(&format!("/v1/rooms/{room}/stream")).await
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
