//! The connections of commands: small bb8 pools of shared, multiplexed connections, and the live connection, which
//! announcements come over.
//!
//! A command clones a connection out of its pool and returns the pool's slot at once: a command that held the slot
//! until its answer would let the connection carry one command a round trip instead of dozens. Reads and writes have
//! separate pools, so that no large reply delays a write; and so have hashes, whose values are large in both directions.
//!
//! While the live connection is promoted, writes go over it: the answer to a publish and its announcement then come
//! together, in one write of Redis and one wake-up of this process.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bb8::{ManageConnection, Pool, RunError};
use redis::aio::MultiplexedConnection;
use redis::aio::SendError;
use redis::{AsyncConnectionConfig, Cmd, ConnectionInfo, PushInfo, PushKind, RedisError, RedisResult, Value};
use tokio_util::sync::CancellationToken;

use super::error::{breaks_connection, fault_from};
use super::socket::{self, DriverHandle};
use crate::broker::{BrokerError, Fault, FaultKind};

/// Longest wait for a connection. A script that has to be loaded again takes three answers, and one wait and three
/// times [`ANSWER_LIMIT`] stay below [`crate::broker::CALL_LIMIT`].
const CHECKOUT_LIMIT: Duration = Duration::from_millis(1200);
/// Longest time to connect and to log in.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(1200);
const WRITE_CONNECTIONS: u32 = 1;
const READ_CONNECTIONS: u32 = 2;
const HASH_CONNECTIONS: u32 = 2;
/// Commands that one connection queues before senders have to wait.
const PIPELINE_COMMANDS: usize = 1024;

/// The pools, and the live connection while it is promoted.
pub(super) struct RedisConnections {
    writes: ConnPool,
    reads: ConnPool,
    hashes: ConnPool,
    promoted: Mutex<Option<Promoted>>,
}

/// A live connection that leads to the same master as a connection of the write pool: a probe that was appended over
/// that one was announced on the live one.
struct Promoted {
    live: RedisConn,
    probed: RedisConn,
}

impl RedisConnections {
    /// Pools that connect when they are first used: a Redis that is away at the start is no error.
    pub(super) fn new(server: &ConnectionInfo) -> Self {
        Self {
            writes: ConnPool::new(server, WRITE_CONNECTIONS),
            reads: ConnPool::new(server, READ_CONNECTIONS),
            hashes: ConnPool::new(server, HASH_CONNECTIONS),
            promoted: Mutex::default(),
        }
    }

    /// The live connection while it is promoted, else one of the write pool.
    ///
    /// If either connection breaks, the cause may be a failover, and the live connection may lead to the old master:
    /// the promotion ends. If a write over the live connection is not answered, only the promotion ends and not the
    /// connection, which may have thousands of subscriptions.
    pub(super) async fn for_write(&self) -> Result<RedisConn, BrokerError> {
        let is_usable = |promoted: &&Promoted| !promoted.live.is_broken() && !promoted.probed.is_broken();
        let live = self.promoted().as_ref().filter(is_usable).map(|promoted| promoted.live.clone());
        match live {
            Some(live) => Ok(live),
            None => self.for_probe().await,
        }
    }

    /// Never the live connection, so that the probe shows whether the two lead to one server.
    pub(super) async fn for_probe(&self) -> Result<RedisConn, BrokerError> {
        self.writes.checkout().await
    }

    pub(super) async fn for_read(&self) -> Result<RedisConn, BrokerError> {
        self.reads.checkout().await
    }

    /// For reads and writes of hashes.
    pub(super) async fn for_hashes(&self) -> Result<RedisConn, BrokerError> {
        self.hashes.checkout().await
    }

    /// Lets writes use the live connection, on which a probe that was sent over `probed` was announced.
    pub(super) async fn promote(&self, mut live: RedisConn, probed: RedisConn) {
        // A replica repeats its master's announcements, and takes no writes.
        let answer: RedisResult<String> =
            redis::cmd("INFO").arg("replication").query_async(live.connection()).await;
        if answer.is_ok_and(|info| info.lines().any(|line| line == "role:master")) {
            // A token of its own: a write that breaks this clone leaves the live connection as it is.
            let live = RedisConn { broken: live.broken.child_token(), ..live };
            *self.promoted() = Some(Promoted { live, probed });
        } else {
            self.demote();
        }
    }

    /// Lets writes use the write pool.
    pub(super) fn demote(&self) {
        *self.promoted() = None;
    }

    fn promoted(&self) -> MutexGuard<'_, Option<Promoted>> {
        self.promoted.lock().expect("no holder of the lock panics")
    }
}

/// A pool of shared connections.
struct ConnPool {
    pool: Pool<Manager>,
    /// Why the last connection could not be made, if it could not: the pool only tells that none came in time.
    failure: Arc<Mutex<Option<Fault>>>,
}

impl ConnPool {
    fn new(server: &ConnectionInfo, size: u32) -> Self {
        let failure = Arc::<Mutex<_>>::default();
        let pool = Pool::builder()
            .max_size(size)
            .connection_timeout(CHECKOUT_LIMIT)
            // The test reads a flag and costs no round trip. Without it the pool would hand out a broken connection for
            // ever.
            .test_on_check_out(true)
            .max_lifetime(None)
            .idle_timeout(None)
            .build_unchecked(Manager { server: server.clone(), failure: failure.clone() });
        Self { pool, failure }
    }

    async fn checkout(&self) -> Result<RedisConn, BrokerError> {
        let conn = self.pool.get().await.map_err(|error| {
            BrokerError::Unavailable(match error {
                RunError::User(error) => fault_from(&error),
                RunError::TimedOut => {
                    let failure = self.failure.lock().expect("no holder of the lock panics").clone();
                    failure.unwrap_or_else(|| Fault::new(FaultKind::Unreachable, "no connection to Redis"))
                }
            })
        })?;
        Ok(conn.clone())
    }
}

/// A clone of a shared connection.
#[derive(Clone)]
pub(super) struct RedisConn {
    connection: MultiplexedConnection,
    broken: CancellationToken,
    _driver: DriverHandle,
}

impl RedisConn {
    /// A new connection. `handle` gets all that Redis pushes over it until the connection is broken; it must not block.
    pub(super) async fn connect(
        server: &ConnectionInfo,
        handle: impl Fn(&PushInfo) + Send + Sync + 'static,
    ) -> RedisResult<Self> {
        let broken = CancellationToken::new();
        let disconnected = broken.clone();
        let config = AsyncConnectionConfig::new()
            .set_push_sender(move |push: PushInfo| -> Result<(), SendError> {
                if push.kind == PushKind::Disconnection {
                    // An idle connection that ends is replaced before a command is lost on it.
                    disconnected.cancel();
                } else if !disconnected.is_cancelled() {
                    handle(&push);
                }
                Ok(())
            })
            .set_response_timeout(Some(ANSWER_LIMIT))
            .set_pipeline_buffer_size(PIPELINE_COMMANDS);
        let opening = socket::open(server, config);
        // The limit covers the handshake, too: a hung server accepts connections and then does not answer.
        let (connection, driver) =
            tokio::time::timeout(CONNECT_LIMIT, opening).await.map_err(|_| timed_out())??;
        Ok(Self { connection, broken, _driver: driver })
    }

    pub(super) fn connection(&mut self) -> &mut MultiplexedConnection {
        &mut self.connection
    }

    /// Sends a command, and returns its answer.
    pub(super) async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.connection.send_packed_command(command).await?.extract_error()
    }

    /// Marks the connection as broken: it is used for no more commands.
    pub(super) fn mark_broken(&self) {
        self.broken.cancel();
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_cancelled()
    }

    /// Resolves when the connection is broken.
    pub(super) async fn until_broken(&self) {
        self.broken.cancelled().await;
    }

    /// Checks the result of a command, and marks the connection as broken if the error says so. `to_broker_error`
    /// depends on whether the command may have changed anything.
    pub(super) fn check<T>(
        &self,
        result: RedisResult<T>,
        to_broker_error: impl FnOnce(&RedisError) -> BrokerError,
    ) -> Result<T, BrokerError> {
        result.map_err(|error| {
            if breaks_connection(&error) {
                self.mark_broken();
            }
            to_broker_error(&error)
        })
    }
}

struct Manager {
    server: ConnectionInfo,
    failure: Arc<Mutex<Option<Fault>>>,
}

impl ManageConnection for Manager {
    type Connection = RedisConn;
    type Error = RedisError;

    async fn connect(&self) -> RedisResult<RedisConn> {
        let connected = RedisConn::connect(&self.server, |_| {}).await;
        let failure = connected.as_ref().err().map(fault_from);
        *self.failure.lock().expect("no holder of the lock panics") = failure;
        connected
    }

    async fn is_valid(&self, conn: &mut RedisConn) -> RedisResult<()> {
        if conn.is_broken() { Err(timed_out()) } else { Ok(()) }
    }

    fn has_broken(&self, conn: &mut RedisConn) -> bool {
        conn.is_broken()
    }
}

fn timed_out() -> RedisError {
    std::io::Error::new(std::io::ErrorKind::TimedOut, "timed out").into()
}
