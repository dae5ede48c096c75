//! Connections for commands: two small bb8 pools of shared, multiplexed connections.
//!
//! A connection is cloned out of its pool and its slot let go at once: held for the length of a command, it would
//! carry one command a round trip instead of dozens. Writes have one connection of their own, so that no large reply
//! delays them, and reads have two.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bb8::{ManageConnection, Pool, RunError};
use redis::aio::MultiplexedConnection;
use redis::aio::SendError;
use redis::{AsyncConnectionConfig, Client, PushInfo, PushKind, RedisError, RedisResult};

use super::fault::{breaks_connection, fault_of};
use crate::broker::{BrokerError, Fault, FaultKind};

/// Longest wait for a connection. With it and three times [`ANSWER_LIMIT`], which is what a script takes that has to be
/// loaded again, a call stays below [`crate::broker::CALL_LIMIT`].
const CHECKOUT_LIMIT: Duration = Duration::from_millis(1200);
/// Longest time to connect and to log in.
pub(super) const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(1200);
const WRITE_CONNECTIONS: u32 = 1;
const READ_CONNECTIONS: u32 = 2;
/// Commands that wait in one connection before senders have to.
const PIPELINE_COMMANDS: usize = 1024;

/// The pools.
pub(super) struct Links {
    writes: Pool<Manager>,
    reads: Pool<Manager>,
}

impl Links {
    /// Connects when first used, so a Redis that is away at start is no failure.
    pub(super) fn new(client: &Client) -> Self {
        Self { writes: pool(client, WRITE_CONNECTIONS), reads: pool(client, READ_CONNECTIONS) }
    }

    pub(super) async fn for_write(&self) -> Result<Link, BrokerError> {
        checkout(&self.writes).await
    }

    pub(super) async fn for_read(&self) -> Result<Link, BrokerError> {
        checkout(&self.reads).await
    }
}

fn pool(client: &Client, size: u32) -> Pool<Manager> {
    Pool::builder()
        .max_size(size)
        .connection_timeout(CHECKOUT_LIMIT)
        // Costs no round trip: it only looks at the link's own flag. Without it a broken link would be handed out
        // for ever.
        .test_on_check_out(true)
        .max_lifetime(None)
        .idle_timeout(None)
        .build_unchecked(Manager { client: client.clone() })
}

async fn checkout(pool: &Pool<Manager>) -> Result<Link, BrokerError> {
    let link = pool.get().await.map_err(|error| {
        BrokerError::Unavailable(match error {
            RunError::User(error) => fault_of(&error),
            RunError::TimedOut => Fault::new(FaultKind::Unreachable, "no connection to Redis"),
        })
    })?;
    Ok(link.clone())
}

/// A clone of a shared connection.
#[derive(Clone)]
pub(super) struct Link {
    connection: MultiplexedConnection,
    broken: Arc<AtomicBool>,
}

impl Link {
    pub(super) fn connection(&mut self) -> &mut MultiplexedConnection {
        &mut self.connection
    }

    /// Looks at a command's result, so that a link that is of no more use is replaced.
    pub(super) fn judge<T>(
        &self,
        result: RedisResult<T>,
        meaning: impl FnOnce(&RedisError) -> BrokerError,
    ) -> Result<T, BrokerError> {
        result.map_err(|error| {
            if breaks_connection(&error) {
                self.broken.store(true, Ordering::Relaxed);
            }
            meaning(&error)
        })
    }
}

struct Manager {
    client: Client,
}

impl ManageConnection for Manager {
    type Connection = Link;
    type Error = RedisError;

    async fn connect(&self) -> RedisResult<Link> {
        let broken = Arc::new(AtomicBool::new(false));
        let flag = broken.clone();
        let config = AsyncConnectionConfig::new()
            // A link that ends while it is idle is replaced before the next command is lost on it.
            .set_push_sender(move |push: PushInfo| -> Result<(), SendError> {
                if push.kind == PushKind::Disconnection {
                    flag.store(true, Ordering::Relaxed);
                }
                Ok(())
            })
            .set_connection_timeout(Some(CONNECT_LIMIT))
            .set_response_timeout(Some(ANSWER_LIMIT))
            .set_pipeline_buffer_size(PIPELINE_COMMANDS);
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        // Bounded as a whole: a hung server accepts connections and then says nothing.
        let connection = tokio::time::timeout(CONNECT_LIMIT, connecting).await.map_err(|_| timed_out())??;
        Ok(Link { connection, broken })
    }

    async fn is_valid(&self, link: &mut Link) -> RedisResult<()> {
        if link.broken.load(Ordering::Relaxed) { Err(timed_out()) } else { Ok(()) }
    }

    fn has_broken(&self, link: &mut Link) -> bool {
        link.broken.load(Ordering::Relaxed)
    }
}

pub(super) fn timed_out() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "timed out").into()
}
