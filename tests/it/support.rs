//! The harness: gateways through the same `server::run` as `main`, Redis processes, a proxy that fails on command, a
//! reader of streams that obeys `EventSource`'s rules, and load with an exact account of it.
//!
//! Tests wait for events, never for time; every wait has a deadline.

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

use std::time::{Duration, Instant};

pub use account::{Account, Evidence, Place};
pub use event_source::{EventSource, SseEvent};
pub use gateway::{Gateway, World};
pub use load::{Balancer, Load, ROOMS, Record, content};
pub use proxy::{Link, Links, Proxy, Way};
pub use publisher::LAST;
pub use random::{number_from, random};
pub use redis_server::RedisServer;
pub use replica::Replica;
pub use stream::Stream;

/// Longest wait for anything; only a failure takes it.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Runs each test once on the embedded broker, once on the embedded broker with a data folder, and once on Redis.
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

/// Waits for a future, with the deadline.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("it took too long: {what}"))
}

/// Asks again until the answer is right.
pub async fn eventually<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < end, "it never came about: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Runs a task beside the test.
#[allow(clippy::disallowed_methods, reason = "the test's runtime owns the task and ends with the test")]
pub fn spawn<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
    tokio::spawn(task)
}

/// A port that nothing listens on now.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
