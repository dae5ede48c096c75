//! A TCP proxy that cuts and freezes links on command.

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

/// In front of a server.
pub struct Proxy {
    port: u16,
    link: Arc<watch::Sender<Link>>,
}

impl Proxy {
    pub async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let link = Arc::new(watch::channel(Link::Pass).0);
        let sender = link.clone();
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                spawn(pass(client, port, sender.subscribe()));
            }
        });
        Self { port: own, link }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn set(&self, link: Link) {
        self.link.send_replace(link);
    }
}

async fn pass(mut client: TcpStream, port: u16, link: watch::Receiver<Link>) {
    if *link.borrow() == Link::Cut {
        return;
    }
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", port)).await else { return };
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let mut cut = link.clone();
    tokio::select! {
        () = copy(&mut from_client, &mut to_server, link.clone()) => {}
        () = copy(&mut from_server, &mut to_client, link) => {}
        _ = cut.wait_for(|link| *link == Link::Cut) => {}
    }
}

async fn copy(
    from: &mut (impl AsyncReadExt + Unpin),
    to: &mut (impl AsyncWriteExt + Unpin),
    mut link: watch::Receiver<Link>,
) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if link.wait_for(|link| *link != Link::Freeze).await.is_err()
            || to.write_all(&buffer[..count]).await.is_err()
        {
            return;
        }
    }
}
