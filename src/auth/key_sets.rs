//! Keys that change without a restart: a JWKS file, which is read again when it changes, and a JWKS at a URL, which is
//! fetched again at intervals. The last keys stay valid until newer ones have been read.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::StatusCode;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use url::Url;

use super::keys::{Key, KeyError, SignedToken};
use super::token::Claims;
use super::{KeySources, TokenError, TokenRules};
use crate::shutdown::Tasks;

/// Interval at which the file is checked for changes.
const CHECK_EVERY: Duration = Duration::from_secs(2);
/// Longest time for fetching a key set.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// Most bytes of a key set.
const MAX_SET_BYTES: usize = 1024 * 1024;
/// Shortest pause between two fetches, however many tokens with unknown keys arrive.
const FETCH_PAUSE: Duration = Duration::from_secs(10);
/// Longest wait of a request for a key that may be new.
const RENEW_LIMIT: Duration = Duration::from_secs(3);

/// A JWKS in a file.
pub struct KeySetFile {
    path: PathBuf,
    issuer: Option<Arc<str>>,
    text: String,
    keys: Vec<Key>,
}

impl KeySetFile {
    /// Reads the file. Its keys are bound to `issuer` if there is one. The error is the reason why it can't be used.
    pub fn open(path: &Path, issuer: Option<Arc<str>>) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|why| why.to_string())?;
        let keys = Key::set(&text, issuer.as_ref()).map_err(|why| why.to_string())?;
        Ok(Self { path: path.into(), issuer, text, keys })
    }
}

impl fmt::Debug for KeySetFile {
    // The text may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySetFile").field("path", &self.path).field("keys", &self.keys).finish_non_exhaustive()
    }
}

/// A JWKS at a URL.
pub struct KeySetUrl {
    url: Url,
    issuer: Option<Arc<str>>,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    refresh: Duration,
}

impl fmt::Debug for KeySetUrl {
    // The URL may hold a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeySetUrl").field("refresh", &self.refresh).finish_non_exhaustive()
    }
}

impl KeySetUrl {
    /// A key set that is fetched at intervals of `refresh` once the gateway runs. Its keys are bound to `issuer` if there
    /// is one. Fails for an https URL on a system without certificates.
    pub fn new(url: Url, issuer: Option<Arc<str>>, refresh: Duration) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        if url.scheme() == "https" {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(
                    "this system has no root certificates to verify the server's: install ca-certificates".into()
                );
            }
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let tls = tls.with_safe_default_protocol_versions().map_err(|why| why.to_string())?;
        let tls = tls.with_root_certificates(roots).with_no_client_auth();
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
        Ok(Self { url, issuer, client: Client::builder(TokioExecutor::new()).build(connector), refresh })
    }

    /// Fetches the keys. Redirects are not followed: they could lead anywhere, for example to plain HTTP.
    async fn fetch(&self) -> Result<Vec<Key>, String> {
        let uri = self.url.as_str().parse().map_err(|_| "it is not an HTTP URL")?;
        let response = self.client.get(uri).await.map_err(|why| why.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("the server answered {}", response.status()));
        }
        let body =
            Limited::new(response.into_body(), MAX_SET_BYTES).collect().await.map_err(|why| why.to_string())?;
        let text = String::from_utf8(body.to_bytes().into()).map_err(|_| KeyError::NotKeySet.to_string())?;
        Key::set(&text, self.issuer.as_ref()).map_err(|why| why.to_string())
    }
}

/// The keys of a set as they were read last.
#[derive(Default)]
struct CurrentKeys {
    keys: RwLock<Arc<Vec<Key>>>,
    changes: AtomicU64,
}

impl CurrentKeys {
    fn keys(&self) -> Arc<Vec<Key>> {
        self.keys.read().expect("no holder of the lock panics").clone()
    }

    /// Equal keys are no change: what they have verified stays valid.
    fn replace(&self, keys: Vec<Key>) {
        let mut current = self.keys.write().expect("no holder of the lock panics");
        if **current != keys {
            *current = Arc::new(keys);
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }
}

/// All keys that verify tokens.
pub(super) struct KeySets {
    fixed: Vec<Key>,
    files: Vec<Arc<CurrentKeys>>,
    remotes: Vec<Arc<RemoteKeySet>>,
}

#[derive(Default)]
struct RemoteKeySet {
    current: CurrentKeys,
    /// Asks for a fetch before the interval is over.
    wanted: Notify,
    /// Whether a fetch may begin now.
    may_fetch: AtomicBool,
    /// Whether a fetch is under way.
    fetching: AtomicBool,
    /// The number of finished fetches, failed ones included.
    fetched: watch::Sender<u64>,
}

impl KeySets {
    pub(super) fn new(sources: KeySources, tasks: &Tasks) -> Self {
        let files = sources.files.into_iter().map(|KeySetFile { path, issuer, text, keys }| {
            let current = Arc::new(CurrentKeys::default());
            current.replace(keys);
            let watched = current.clone();
            tasks
                .supervise("key set file", async move { watch_file(&path, issuer.as_ref(), text, &watched).await });
            current
        });
        let remotes = sources.urls.into_iter().map(|set| {
            let remote = Arc::new(RemoteKeySet::default());
            let fetched = remote.clone();
            tasks.supervise("key set", async move { keep_fetched(&set, &fetched).await });
            remote
        });
        Self { fixed: sources.fixed, files: files.collect(), remotes: remotes.collect() }
    }

    /// How often keys have changed. A token that was verified before the last time may no longer be valid.
    pub(super) fn changes(&self) -> u64 {
        self.changing().map(CurrentKeys::changes).sum()
    }

    fn changing(&self) -> impl Iterator<Item = &CurrentKeys> {
        self.files.iter().map(AsRef::as_ref).chain(self.remotes.iter().map(|remote| &remote.current))
    }

    pub(super) fn verify(&self, signed: &SignedToken<'_>, rules: &TokenRules) -> Result<Claims, TokenError> {
        let sets: Vec<_> = self.changing().map(CurrentKeys::keys).collect();
        let remotes = &sets[self.files.len()..];
        let verified = signed.verify(self.fixed.iter().chain(sets.iter().flat_map(|keys| keys.iter())), rules);
        match verified {
            // The key may be in a set that has not been fetched yet.
            Err(TokenError::UnknownKey | TokenError::WrongSignature)
                if remotes.iter().any(|keys| keys.is_empty()) =>
            {
                Err(TokenError::KeysUnavailable)
            }
            // A key without an id was tried and did not fit. A new key at a URL may still fit.
            Err(TokenError::WrongSignature)
                if !remotes.is_empty() && !remotes.iter().any(|keys| signed.has_key_id_in(keys)) =>
            {
                Err(TokenError::UnknownKey)
            }
            verified => verified,
        }
    }

    /// Asks for fetches of the sets, or joins those that are under way, and waits for their ends. Returns whether a fetch
    /// has ended: not if there is no URL, if the last fetches were too recent, or if these take too long.
    pub(super) async fn renew(&self) -> bool {
        join_all(self.remotes.iter().map(|remote| remote.renew())).await.contains(&true)
    }
}

impl RemoteKeySet {
    async fn renew(&self) -> bool {
        let mut fetched = self.fetched.subscribe();
        if self.may_fetch.load(Ordering::SeqCst) {
            self.wanted.notify_one();
        } else if !self.fetching.load(Ordering::SeqCst) {
            return false;
        }
        timeout(RENEW_LIMIT, fetched.changed()).await.is_ok()
    }
}

/// Reads the file again when it has changed, without end. A file that can't be used changes nothing.
async fn watch_file(path: &Path, issuer: Option<&Arc<str>>, mut last: String, current: &CurrentKeys) {
    loop {
        sleep(CHECK_EVERY).await;
        let text = tokio::fs::read_to_string(path).await.unwrap_or_default();
        if text == last {
            continue;
        }
        match Key::set(&text, issuer) {
            Ok(keys) => {
                tracing::info!(keys = keys.len(), "the JWKS file has changed; its keys are in use");
                current.replace(keys);
            }
            Err(why) => tracing::error!(%why, "the JWKS file can't be used; the last keys stay valid"),
        }
        last = text;
    }
}

/// Fetches the set at intervals, and sooner when a token needs it, without end. A failed fetch is repeated after the
/// shortest pause.
async fn keep_fetched(set: &KeySetUrl, remote: &RemoteKeySet) {
    loop {
        remote.fetching.store(true, Ordering::SeqCst);
        let fetched = timeout(FETCH_LIMIT, set.fetch()).await.unwrap_or_else(|_| Err("it took too long".into()));
        let pause = match fetched {
            Ok(keys) => {
                tracing::debug!(keys = keys.len(), "the JWKS was fetched");
                remote.current.replace(keys);
                set.refresh
            }
            Err(why) => {
                tracing::warn!(%why, "the JWKS can't be fetched; the last keys stay valid");
                FETCH_PAUSE
            }
        };
        remote.fetching.store(false, Ordering::SeqCst);
        remote.fetched.send_modify(|count| *count += 1);
        sleep(FETCH_PAUSE).await;
        remote.may_fetch.store(true, Ordering::SeqCst);
        let _ = timeout(pause.saturating_sub(FETCH_PAUSE), remote.wanted.notified()).await;
        remote.may_fetch.store(false, Ordering::SeqCst);
    }
}
