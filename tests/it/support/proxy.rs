//! A TCP proxy in front of a Redis. Its connections fail on command, all of them or only one kind.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::spawn;

/// Receive buffer towards the server, in bytes. It is small, so that the server soon notices a frozen link.
const RECEIVE_BUFFER: u32 = 32 * 1024;
/// Bytes that a corrupted chunk loses in its middle. A hole of this size can hide a whole short answer, after which each
/// answer is taken for that of the command before.
const LOST_BYTES: usize = 7;

/// What the proxy does with bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// Passes them on.
    Pass,
    /// Passes each chunk on after this time.
    Delay(Duration),
    /// Holds them back. The connections stay open.
    Freeze,
    /// Discards the bytes of one direction. The connections stay open, half-open in effect. TCP never delivers
    /// bytes behind a hole. So a connection that has lost a byte passes no more bytes in that direction, even if
    /// the link is set to pass.
    Drop(Way),
    /// Removes some bytes of the server from the middle of a chunk, once for each connection. TCP does not do that,
    /// but a defective middlebox may.
    Corrupt,
    /// Closes the connections, and new ones too.
    Cut,
    /// The same, with a reset (RST).
    Reset,
}

/// The direction of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    ToServer,
    ToClient,
}

/// The connections that a command is about. A connection is one for pub/sub once it has subscribed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    All,
    PubSub,
    Commands,
}

impl Links {
    fn has(self, subscribed: bool) -> bool {
        match self {
            Self::All => true,
            Self::PubSub => subscribed,
            Self::Commands => !subscribed,
        }
    }
}

/// A proxy in front of one server at a time.
pub struct Proxy {
    port: u16,
    target: watch::Sender<(Links, u16)>,
    state: watch::Sender<(Links, Link)>,
    corrupted: Arc<AtomicUsize>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = watch::channel((Links::All, Link::Pass)).0;
        let target = watch::channel((Links::All, port)).0;
        let corrupted = Arc::new(AtomicUsize::new(0));
        let proxy = Self { port: own, target: target.clone(), state: state.clone(), corrupted: corrupted.clone() };
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let connection = Connection {
                    state: state.subscribe(),
                    target: target.subscribe(),
                    is_subscribed: watch::channel(false).0,
                    corrupted: corrupted.clone(),
                };
                spawn(async move { connection.pass(client).await });
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Closes all connections. New ones go to another server, as after a failover.
    pub fn redirect(&self, port: u16) {
        self.redirect_only(Links::All, port);
    }

    /// Closes the connections of one kind. New ones of every kind go to another server.
    pub fn redirect_only(&self, links: Links, port: u16) {
        self.target.send_replace((links, port));
    }

    pub fn set(&self, link: Link) {
        self.set_only(Links::All, link);
    }

    /// Sets the connections of one kind. The others pass bytes on.
    pub fn set_only(&self, links: Links, link: Link) {
        self.state.send_replace((links, link));
    }

    /// Number of connections that have lost bytes so far.
    pub fn corrupted(&self) -> usize {
        self.corrupted.load(Ordering::SeqCst)
    }
}

struct Connection {
    state: watch::Receiver<(Links, Link)>,
    target: watch::Receiver<(Links, u16)>,
    is_subscribed: watch::Sender<bool>,
    corrupted: Arc<AtomicUsize>,
}

impl Connection {
    async fn pass(&self, mut client: TcpStream) {
        // The kind of a new connection shows only later. If its kind is cut, that is when it is closed.
        match *self.state.borrow() {
            (Links::All, Link::Cut) => return,
            (Links::All, Link::Reset) => return reset(&client),
            _ => {}
        }
        let mut target = self.target.clone();
        let (_, port) = *target.borrow_and_update();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(RECEIVE_BUFFER).unwrap();
        let Ok(mut server) = socket.connect(([127, 0, 0, 1], port).into()).await else { return };
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = server.split();
        let end = tokio::select! {
            // The end comes first, so that no more bytes pass: a command that reached the old master after its data
            // was compared with the new one would be lost.
            biased;
            () = self.until_redirected(target) => Link::Cut,
            end = self.until_cut() => end,
            () = self.copy(&mut from_client, &mut to_server, Way::ToServer) => Link::Cut,
            () = self.copy(&mut from_server, &mut to_client, Way::ToClient) => Link::Cut,
        };
        if end == Link::Reset {
            reset(&client);
            reset(&server);
        }
    }

    /// What this connection does with its bytes.
    fn link(&self, (links, link): (Links, Link)) -> Link {
        if links.has(*self.is_subscribed.borrow()) { link } else { Link::Pass }
    }

    async fn until_cut(&self) -> Link {
        let (mut state, mut kind) = (self.state.clone(), self.is_subscribed.subscribe());
        loop {
            kind.mark_unchanged();
            let now = *state.borrow_and_update();
            let link = self.link(now);
            if matches!(link, Link::Cut | Link::Reset) {
                return link;
            }
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return Link::Cut },
                _ = kind.changed() => {}
            }
        }
    }

    async fn until_redirected(&self, mut target: watch::Receiver<(Links, u16)>) {
        while target.changed().await.is_ok() {
            let (links, _) = *target.borrow_and_update();
            if links.has(*self.is_subscribed.borrow()) {
                return;
            }
        }
    }

    async fn copy(&self, from: &mut (impl AsyncReadExt + Unpin), to: &mut (impl AsyncWriteExt + Unpin), way: Way) {
        let mut state = self.state.clone();
        let (mut has_lost, mut is_corrupted) = (false, false);
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let mut bytes = &buffer[..count];
            if way == Way::ToServer && bytes.windows(9).any(|window| window == b"SUBSCRIBE") {
                self.is_subscribed.send_replace(true);
            }
            let thawed = state.wait_for(|state| self.link(*state) != Link::Freeze).await;
            let Ok(now) = thawed.map(|state| *state) else { return };
            match self.link(now) {
                Link::Pass | Link::Drop(_) | Link::Corrupt | Link::Freeze => {}
                Link::Delay(pause) => tokio::time::sleep(pause).await,
                // The connection is about to be closed.
                Link::Cut | Link::Reset => return,
            }
            has_lost |= self.link(now) == Link::Drop(way);
            if has_lost {
                continue;
            }
            if self.link(now) == Link::Corrupt && way == Way::ToClient && !is_corrupted && count > 4 * LOST_BYTES {
                is_corrupted = true;
                self.corrupted.fetch_add(1, Ordering::SeqCst);
                if to.write_all(&bytes[..count / 2]).await.is_err() {
                    return;
                }
                bytes = &bytes[count / 2 + LOST_BYTES..];
            }
            if to.write_all(bytes).await.is_err() {
                return;
            }
        }
    }
}

/// Makes the connection end with a reset when it is dropped.
fn reset(connection: &TcpStream) {
    connection.set_zero_linger().unwrap();
}
