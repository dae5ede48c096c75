//! The sockets to Redis, and the tasks that write commands to them and read the answers.
//!
//! The library would spawn a task for each connection, which a command wakes. Tokio runs a task that another one has woken
//! next, so each command would be a write of its own: a system call here, another one in Redis, and two more for the
//! answer. Here the task lets those run first that are ready: their commands go out in one write, and are answered in one.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use futures_util::future::select_ok;
use futures_util::task::AtomicWaker;
use redis::aio::{AsyncStream, MultiplexedConnection};
use redis::{AsyncConnectionConfig, ConnectionAddr, ConnectionInfo, ErrorKind, RedisResult};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio_util::task::AbortOnDropHandle;

/// Ends the task of a connection when its last clone is dropped.
pub(super) type DriverHandle = Arc<AbortOnDropHandle<()>>;

/// Connects, logs in, and starts the task of the connection.
pub(super) async fn open(
    server: &ConnectionInfo,
    config: AsyncConnectionConfig,
) -> RedisResult<(MultiplexedConnection, DriverHandle)> {
    let socket = WatchedSocket::new(connect(server.addr()).await?);
    let readable = socket.readable.clone();
    let (connection, driver) =
        MultiplexedConnection::new_with_config(server.redis_settings(), socket, config).await?;
    #[expect(clippy::disallowed_methods, reason = "its handle is the connection's; commands notice its end")]
    let task = tokio::spawn(drive_in_turn(driver, readable));
    Ok((connection, Arc::new(AbortOnDropHandle::new(task))))
}

async fn connect(address: &ConnectionAddr) -> RedisResult<Pin<Box<dyn AsyncStream + Send + Sync>>> {
    match address {
        ConnectionAddr::Tcp(host, port) => {
            let connecting: Vec<_> = lookup_host((host.as_str(), *port)).await?.map(TcpStream::connect).collect();
            if connecting.is_empty() {
                return Err((ErrorKind::InvalidClientConfig, "the host of Redis has no address").into());
            }
            let (socket, _) = select_ok(connecting.into_iter().map(Box::pin)).await?;
            socket.set_nodelay(true)?;
            // The kernel notices a host that has vanished. Only time limits on answers notice a hung process.
            let keepalive = TcpKeepalive::new()
                .with_time(Duration::from_secs(5))
                .with_interval(Duration::from_secs(2))
                .with_retries(3);
            let options = SockRef::from(&socket);
            options.set_tcp_keepalive(&keepalive)?;
            options.set_tcp_user_timeout(Some(Duration::from_secs(5)))?;
            Ok(Box::pin(socket))
        }
        ConnectionAddr::Unix(path) => Ok(Box::pin(UnixStream::connect(path).await?)),
        _ => Err((ErrorKind::InvalidClientConfig, "TLS to Redis is not supported").into()),
    }
}

/// Polls `driver` each time it is woken: at once if the socket has something to read, and otherwise behind the tasks that
/// are ready on this thread.
async fn drive_in_turn(driver: impl Future<Output = ()>, readable: Arc<Readable>) {
    let (mut driver, mut has_waited) = (pin!(driver), false);
    poll_fn(|cx| {
        if !readable.is_set.swap(false, Ordering::Acquire) && !has_waited {
            has_waited = true;
            // To the end of the thread's queue. Other threads without work take it from there; `yield_now` would hold it
            // back until this thread looks at its sockets again.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        has_waited = false;
        driver.as_mut().poll(cx)
    })
    .await;
}

/// Whether a socket has something to read, such as its end, which no command should come before.
#[derive(Default)]
struct Readable {
    is_set: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Readable {
    fn wake(self: Arc<Self>) {
        self.is_set.store(true, Ordering::Release);
        self.task.wake();
    }
}

/// A socket that tells when it has something to read.
struct WatchedSocket<S> {
    socket: S,
    readable: Arc<Readable>,
    waker: Waker,
}

impl<S> WatchedSocket<S> {
    fn new(socket: S) -> Self {
        let readable = Arc::<Readable>::default();
        Self { socket, waker: readable.clone().into(), readable }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedSocket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, readable, waker } = &mut *self;
        readable.task.register(cx.waker());
        Pin::new(socket).poll_read(&mut Context::from_waker(waker), buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedSocket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
