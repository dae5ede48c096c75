//! Which connection a command takes: one of two small bb8 pools of shared, multiplexed connections, or the live conn.
//!
//! A connection is cloned out of its pool and its slot let go at once: held for the length of a command, it would
//! carry one command a round trip instead of dozens. Writes and reads are apart, so that no large reply delays a write.
//!
//! While all is well, writes go over the live conn, which is the one that announcements come over: a publish's answer and
//! its announcement then come together, in one write of Redis and one wake-up here.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use bb8::{ManageConnection, Pool, RunError};
use redis::aio::MultiplexedConnection;
use redis::aio::SendError;
use redis::{AsyncConnectionConfig, Client, PushInfo, PushKind, RedisError, RedisResult};
use tokio_util::sync::CancellationToken;

use super::error::{breaks_connection, fault_from};
use crate::broker::{BrokerError, Fault, FaultKind};

/// Longest wait for a connection. With it and three times [`ANSWER_LIMIT`], which is what a script takes that has to be
/// loaded again, a call stays below [`crate::broker::CALL_LIMIT`].
const CHECKOUT_LIMIT: Duration = Duration::from_millis(1200);
/// Longest time to connect and to log in.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);
/// Longest wait for an answer.
const ANSWER_LIMIT: Duration = Duration::from_millis(1200);
const WRITE_CONNECTIONS: u32 = 1;
const READ_CONNECTIONS: u32 = 2;
/// Commands that wait in one connection before senders have to.
const PIPELINE_COMMANDS: usize = 1024;

/// The pools, and the live conn.
pub(super) struct RedisConnections {
    writes: Pool<Manager>,
    reads: Pool<Manager>,
    promoted: Mutex<Option<Promoted>>,
}

/// A live conn over which a probe came back from the master, and the conn that the probe went over.
struct Promoted {
    live: RedisConn,
    by: RedisConn,
}

impl RedisConnections {
    /// Connects when first used, so a Redis that is away at start is no failure.
    pub(super) fn new(client: &Client) -> Self {
        Self {
            writes: pool(client, WRITE_CONNECTIONS),
            reads: pool(client, READ_CONNECTIONS),
            promoted: Mutex::default(),
        }
    }

    /// The live conn while it is promoted: what breaks either of the two may be a failover, after which the live one could lead to the old
    /// master. A write that is not answered over it ends the proof, and not the conn, which may have thousands of channels.
    pub(super) async fn for_write(&self) -> Result<RedisConn, BrokerError> {
        let is_whole = |promoted: &&Promoted| !promoted.live.is_broken() && !promoted.by.is_broken();
        let live = self.promoted().as_ref().filter(is_whole).map(|promoted| promoted.live.clone());
        match live {
            Some(live) => Ok(live),
            None => self.for_probe().await,
        }
    }

    /// Never the live conn, so that the probe sees whether the two lead to one server.
    pub(super) async fn for_probe(&self) -> Result<RedisConn, BrokerError> {
        checkout(&self.writes).await
    }

    pub(super) async fn for_read(&self) -> Result<RedisConn, BrokerError> {
        checkout(&self.reads).await
    }

    /// Has writes take the live conn: a probe that went over the other one has come back over it.
    pub(super) async fn promote(&self, mut live: RedisConn, by: RedisConn) {
        // A replica of the master repeats its announcements, and takes no writes.
        let answer: RedisResult<String> =
            redis::cmd("INFO").arg("replication").query_async(live.connection()).await;
        if answer.is_ok_and(|info| info.lines().any(|line| line == "role:master")) {
            let live = RedisConn { broken: live.broken.child_token(), ..live };
            *self.promoted() = Some(Promoted { live, by });
        } else {
            self.demote();
        }
    }

    /// Has writes take a conn of their own.
    pub(super) fn demote(&self) {
        *self.promoted() = None;
    }

    fn promoted(&self) -> MutexGuard<'_, Option<Promoted>> {
        self.promoted.lock().expect("no holder of the lock panics")
    }
}

fn pool(client: &Client, size: u32) -> Pool<Manager> {
    Pool::builder()
        .max_size(size)
        .connection_timeout(CHECKOUT_LIMIT)
        // Costs no round trip: it only looks at the conn's own flag. Without it a broken conn would be handed out
        // for ever.
        .test_on_check_out(true)
        .max_lifetime(None)
        .idle_timeout(None)
        .build_unchecked(Manager { client: client.clone() })
}

async fn checkout(pool: &Pool<Manager>) -> Result<RedisConn, BrokerError> {
    let conn = pool.get().await.map_err(|error| {
        BrokerError::Unavailable(match error {
            RunError::User(error) => fault_from(&error),
            RunError::TimedOut => Fault::new(FaultKind::Unreachable, "no connection to Redis"),
        })
    })?;
    Ok(conn.clone())
}

/// A clone of a shared connection.
#[derive(Clone)]
pub(super) struct RedisConn {
    connection: MultiplexedConnection,
    broken: CancellationToken,
}

impl RedisConn {
    /// A new connection. What is pushed over it is heard until it is broken; that must not block.
    pub(super) async fn connect(
        client: &Client,
        handle: impl Fn(&PushInfo) + Send + Sync + 'static,
    ) -> RedisResult<Self> {
        let broken = CancellationToken::new();
        let ends = broken.clone();
        let config = AsyncConnectionConfig::new()
            .set_push_sender(move |push: PushInfo| -> Result<(), SendError> {
                if push.kind == PushKind::Disconnection {
                    // A conn that ends while it is idle is replaced before the next command is lost on it.
                    ends.cancel();
                } else if !ends.is_cancelled() {
                    handle(&push);
                }
                Ok(())
            })
            .set_connection_timeout(Some(CONNECT_LIMIT))
            .set_response_timeout(Some(ANSWER_LIMIT))
            .set_pipeline_buffer_size(PIPELINE_COMMANDS);
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        // Bounded as a whole: a hung server accepts connections and then says nothing.
        let connection = tokio::time::timeout(CONNECT_LIMIT, connecting).await.map_err(|_| timed_out())??;
        Ok(Self { connection, broken })
    }

    pub(super) fn connection(&mut self) -> &mut MultiplexedConnection {
        &mut self.connection
    }

    /// Has it be of no more use.
    pub(super) fn give_up(&self) {
        self.broken.cancel();
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_cancelled()
    }

    /// Resolves when it is of no more use.
    pub(super) async fn broken(&self) {
        self.broken.cancelled().await;
    }

    /// Looks at a command's result, so that a conn that is of no more use is replaced.
    pub(super) fn check<T>(
        &self,
        result: RedisResult<T>,
        meaning: impl FnOnce(&RedisError) -> BrokerError,
    ) -> Result<T, BrokerError> {
        result.map_err(|error| {
            if breaks_connection(&error) {
                self.give_up();
            }
            meaning(&error)
        })
    }
}

struct Manager {
    client: Client,
}

impl ManageConnection for Manager {
    type Connection = RedisConn;
    type Error = RedisError;

    async fn connect(&self) -> RedisResult<RedisConn> {
        RedisConn::connect(&self.client, |_| {}).await
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
