//! The harness: gateways that run the same `server::run` as `main`, Redis processes, a proxy whose connections fail
//! on command, a stream reader with the rules of `EventSource`, and load whose records are checked exactly.
//!
//! Tests wait for events, never for time. Every wait has a deadline.

mod account;
mod event_source;
mod gateway;
mod load;
mod proxy;
mod publisher;
mod random;
mod redis_server;
mod replica;
mod stream;
mod watcher;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use account::{Account, EventKey, Evidence};
pub use event_source::{EventSource, SseEvent};
pub use gateway::{Gateway, World};
pub use load::{Balancer, Load, ROOMS, Record, content_from_data};
pub use proxy::{Link, Links, Proxy, Way};
pub use publisher::LAST;
pub use random::{number_from, random};
pub use redis_server::RedisServer;
pub use replica::Replica;
pub use stream::Stream;
pub use watcher::{Fields, Told, Watcher, stored_fields};

/// Longest wait for anything. Only a test that fails waits this long.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Runs each test three times: on the embedded broker, on the embedded broker with a data folder, and on Redis.
macro_rules! on_both_brokers {
    ($($(#[$doc:meta])* async fn $name:ident($world:ident) $body:block)*) => {
        $(async fn $name($world: $crate::support::World) $body)*
        mod on_the_embedded_broker {
            $($(#[$doc])* #[tokio::test] async fn $name() {
                super::$name($crate::support::World::embedded()).await;
            })*
        }
        mod on_a_data_folder {
            $($(#[$doc])* #[tokio::test] async fn $name() {
                super::$name($crate::support::World::durable()).await;
            })*
        }
        mod on_redis {
            $($(#[$doc])* #[tokio::test] async fn $name() {
                super::$name($crate::support::World::redis().await).await;
            })*
        }
    };
}

/// Waits for a future until the deadline.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("timed out: {what}"))
}

/// Calls `ask` again and again until it answers `Some`.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Starts a task that runs beside the test.
#[allow(clippy::disallowed_methods, reason = "the test's runtime owns the task, and ends with the test")]
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task)
}

/// The fields of a list of a hash without their entity tags.
pub fn values_of(list: &serde_json::Value) -> serde_json::Value {
    let mut fields = list["fields"].clone();
    for value in fields.as_object_mut().into_iter().flat_map(|fields| fields.values_mut()) {
        let tag = value.as_object_mut().and_then(|value| value.remove("etag"));
        assert!(tag.is_some_and(|tag| tag.as_str().is_some_and(|tag| tag.len() == 42)), "{list}");
    }
    fields
}

/// A port that nothing uses at the moment. It is below those that the system gives to connections: one of these could be
/// taken before the caller listens on it.
pub fn free_port() -> u16 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNTED: u32 = 22_000;
    loop {
        // Other processes of the test begin elsewhere.
        let count = std::process::id().wrapping_mul(997).wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(FIRST + count % COUNTED).unwrap();
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
