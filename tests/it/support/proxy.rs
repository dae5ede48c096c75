//! A TCP proxy in front of a Redis that cuts and freezes links on command, all of them or only those of one kind.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::spawn;

/// What becomes of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// They pass.
    Pass,
    /// They wait, and the connections stay.
    Freeze,
    /// Connections are closed, and new ones too.
    Cut,
}

/// Which connections a command is for. One is for pub/sub once it has subscribed to something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Links {
    All,
    PubSub,
    Commands,
}

/// In front of a server.
pub struct Proxy {
    port: u16,
    target: Arc<watch::Sender<u16>>,
    state: Arc<watch::Sender<(Links, Link)>>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = Arc::new(watch::channel((Links::All, Link::Pass)).0);
        let target = Arc::new(watch::channel(port).0);
        let (states, targets) = (state.clone(), target.clone());
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (state, mut target) = (states.subscribe(), targets.subscribe());
                spawn(async move {
                    let port = *target.borrow_and_update();
                    tokio::select! {
                        () = pass(client, port, state) => {}
                        _ = target.changed() => {}
                    }
                });
            }
        });
        Self { port: own, target, state }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Closes all connections; new ones lead to another server, as after a failover.
    pub fn redirect(&self, port: u16) {
        self.target.send_replace(port);
    }

    pub fn set(&self, link: Link) {
        self.set_only(Links::All, link);
    }

    /// Has some links fail; the others pass.
    pub fn set_only(&self, links: Links, link: Link) {
        self.state.send_replace((links, link));
    }
}

/// What is to become of the bytes of a connection of this kind.
fn link((links, link): (Links, Link), subscribed: bool) -> Link {
    let meant = match links {
        Links::All => true,
        Links::PubSub => subscribed,
        Links::Commands => !subscribed,
    };
    if meant { link } else { Link::Pass }
}

async fn pass(mut client: TcpStream, port: u16, state: watch::Receiver<(Links, Link)>) {
    // What kind a new connection is shows only later: it is cut then.
    if *state.borrow() == (Links::All, Link::Cut) {
        return;
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (kind, _) = watch::channel(false);
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    tokio::select! {
        () = copy(&mut from_client, &mut to_server, state.clone(), &kind, true) => {}
        () = copy(&mut from_server, &mut to_client, state.clone(), &kind, false) => {}
        () = until_cut(state, kind.subscribe()) => {}
    }
}

async fn until_cut(mut state: watch::Receiver<(Links, Link)>, mut kind: watch::Receiver<bool>) {
    while link(*state.borrow_and_update(), *kind.borrow_and_update()) != Link::Cut {
        tokio::select! {
            changed = state.changed() => if changed.is_err() { return },
            changed = kind.changed() => if changed.is_err() { return },
        }
    }
}

async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut state: watch::Receiver<(Links, Link)>,
    kind: &watch::Sender<bool>,
    is_client: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        let bytes = &buffer[..count];
        if is_client && bytes.windows(9).any(|word| word == b"SUBSCRIBE") {
            kind.send_replace(true);
        }
        let subscribed = *kind.borrow();
        let thawed = state.wait_for(|state| link(*state, subscribed) != Link::Freeze).await;
        // One that was cut meanwhile is about to be dropped: nothing more gets through.
        let through = thawed.is_ok_and(|state| link(*state, subscribed) == Link::Pass);
        if !through || to.write_all(bytes).await.is_err() {
            return;
        }
    }
}
