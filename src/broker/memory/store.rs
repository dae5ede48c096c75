//! The data folder: changes to the embedded broker's memory, kept by fjall. The only file that knows it.
//!
//! Blocks on the disk, so only the journal's thread uses it. After an error the store can't be trusted, and the next
//! commit opens it anew.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::broker::{Fault, FaultKind};

/// What the names and values in the store mean. Another number is another format.
const FORMAT: &[u8] = b"1";
/// Names the format, among the changes' keys, which begin with other letters.
const FORMAT_KEY: &[u8] = b"!format";
/// Who holds this file holds the folder.
const LOCK: &str = "lock";
/// The store inside the folder; there only when it is whole.
const STORE: &str = "store";
/// A store that is being made.
const UNFINISHED: &str = "store.new";
/// The store's one keyspace.
const KEYSPACE: &str = "kept";
/// Kept of blocks that were read, which only loading does.
const CACHE_BYTES: u64 = 4 << 20;
/// Changes in the store's memory before they are sorted into tables.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// The store's journals; beyond this the oldest is sorted into tables.
const JOURNAL_BYTES: u64 = 128 << 20;

/// By key, what is to be kept, or that the key goes.
pub(super) type Changes = BTreeMap<Vec<u8>, Option<Bytes>>;

/// Why a data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// One folder has one process.
    #[error("another process uses it")]
    Locked,
    /// Made by another version of Roomcast, or of its store.
    #[error("it has another format, {0}, and this version reads format 1")]
    OtherFormat(String),
    /// What is there can't be read.
    #[error("it is damaged ({0}); start with a back-up, or with another folder")]
    Damaged(String),
    /// The system refused.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The store's background work failed; its own log line says why.
    #[error("the store has stopped after an error")]
    Stopped,
}

impl From<fjall::Error> for StoreError {
    fn from(error: fjall::Error) -> Self {
        let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(inner) = cause {
            if let Some(io) = inner.downcast_ref::<io::Error>() {
                // The text is kept; the kind tells a full disk from a broken one.
                return Self::Io(io.raw_os_error().map_or_else(|| io.kind().into(), io::Error::from_raw_os_error));
            }
            cause = inner.source();
        }
        match error {
            fjall::Error::Locked => Self::Locked,
            fjall::Error::Poisoned => Self::Stopped,
            fjall::Error::InvalidVersion(version) => Self::OtherFormat(format!("of the store: {version:?}")),
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl StoreError {
    /// What health says.
    pub(super) fn fault(&self) -> Fault {
        let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
        let kind = match self {
            Self::Io(error) if full.contains(&error.kind()) => FaultKind::DiskFull,
            _ => FaultKind::DiskFailed,
        };
        Fault::new(kind, format!("the data folder: {self}"))
    }
}

/// A data folder that this process holds.
pub(super) struct Store {
    folder: PathBuf,
    open: Option<Open>,
    _lock: File,
}

struct Open {
    kept: Keyspace,
    database: Database,
}

impl Store {
    /// Takes a folder, and makes it if it is not there.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        // For nobody else to read, as Redis's data should be.
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::Locked,
            TryLockError::Error(error) => error.into(),
        })?;
        let path = folder.join(STORE);
        if !path.try_exists()? {
            make(folder)?;
        }
        let open = Some(Open::at(&path)?);
        Ok(Self { folder: folder.into(), open, _lock: lock })
    }

    /// Everything that is kept, in the order of the keys.
    pub(super) fn load<E: From<StoreError>>(
        &mut self,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let entries = self.opened()?.kept.iter();
        for entry in entries {
            let (key, value) = entry.into_inner().map_err(StoreError::from)?;
            if *key != *FORMAT_KEY {
                visit(&key, &value)?;
            }
        }
        Ok(())
    }

    /// Keeps all of the changes or none. With `sync` they outlive a power cut, else the end of this process.
    ///
    /// After an error, may be asked for the same again: it is opened anew.
    pub(super) fn commit(&mut self, changes: &Changes, sync: bool) -> Result<(), StoreError> {
        self.with_open(|open| {
            let mode = if sync { PersistMode::SyncData } else { PersistMode::Buffer };
            let mut batch = open.database.batch().durability(Some(mode));
            for (key, value) in changes {
                match value {
                    Some(value) => batch.insert(&open.kept, key.as_slice(), &**value),
                    None => batch.remove(&open.kept, key.as_slice()),
                }
            }
            batch.commit()
        })
    }

    /// Has all that was committed outlive a power cut.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        self.with_open(|open| open.database.persist(PersistMode::SyncData))
    }

    fn opened(&mut self) -> Result<&Open, StoreError> {
        if self.open.is_none() {
            self.open = Some(Open::at(&self.folder.join(STORE))?);
        }
        self.open.as_ref().ok_or(StoreError::Stopped)
    }

    fn with_open(&mut self, work: impl FnOnce(&Open) -> fjall::Result<()>) -> Result<(), StoreError> {
        work(self.opened()?).map_err(|error| {
            self.open = None;
            error.into()
        })
    }
}

impl Open {
    fn at(path: &Path) -> Result<Self, StoreError> {
        let open = Self::without_check(path)?;
        match open.kept.get(FORMAT_KEY)? {
            Some(format) if *format == *FORMAT => Ok(open),
            Some(format) => Err(StoreError::OtherFormat(String::from_utf8_lossy(&format).into_owned())),
            None => Err(StoreError::Damaged("it names no format".into())),
        }
    }

    fn without_check(path: &Path) -> Result<Self, StoreError> {
        let builder = Database::builder(path).cache_size(CACHE_BYTES).worker_threads(1);
        let database = builder.max_journaling_size(JOURNAL_BYTES).open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        Ok(Self { kept: database.keyspace(KEYSPACE, options)?, database })
    }
}

/// Makes a store beside its place and moves it there: the library can't go on with one that it was killed in making.
fn make(folder: &Path) -> Result<(), StoreError> {
    let unfinished = folder.join(UNFINISHED);
    if unfinished.try_exists()? {
        fs::remove_dir_all(&unfinished)?;
    }
    let open = Open::without_check(&unfinished)?;
    open.kept.insert(FORMAT_KEY, FORMAT)?;
    open.database.persist(PersistMode::SyncAll)?;
    drop(open);
    fs::rename(&unfinished, folder.join(STORE))?;
    File::open(folder)?.sync_all()?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, value: Option<&str>) -> Changes {
        BTreeMap::from([(key.into(), value.map(|value| Bytes::from(value.to_owned())))])
    }

    fn kept(store: &mut Store) -> Vec<(String, String)> {
        let mut kept = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.into()).unwrap();
        let all = store.load::<StoreError>(|key, value| {
            kept.push((text(key), text(value)));
            Ok(())
        });
        all.unwrap();
        kept
    }

    #[test]
    fn what_was_committed_is_there_after_a_restart_and_after_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.commit(&change("a", Some("1")), true).unwrap();
        store.commit(&change("b", Some("2")), false).unwrap();
        store.commit(&change("a", None), false).unwrap();
        store.sync().unwrap();
        assert_eq!(kept(&mut store), [("b".into(), "2".into())]);
        // As after an error.
        store.open = None;
        store.commit(&change("c", Some("3")), true).unwrap();
        drop(store);
        let mut store = Store::open(folder.path()).unwrap();
        assert_eq!(kept(&mut store), [("b".into(), "2".into()), ("c".into(), "3".into())]);
    }

    #[test]
    fn a_folder_is_held_by_one_alone() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Locked)));
        drop(store);
        Store::open(folder.path()).unwrap();
    }

    #[test]
    fn another_format_is_refused_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.commit(&change("!format", Some("2")), true).unwrap();
        drop(store);
        assert!(matches!(Store::open(folder.path()), Err(StoreError::OtherFormat(format)) if format == "2"));
        // The library's own.
        let marker = folder.path().join(STORE).join("version");
        fs::write(&marker, b"FJL\x02").unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::OtherFormat(_))));
    }

    #[test]
    fn a_store_whose_making_was_cut_short_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(UNFINISHED)).unwrap();
        fs::write(folder.path().join(UNFINISHED).join("0.jnl"), "").unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.commit(&change("a", Some("1")), true).unwrap();
    }

    #[test]
    fn a_store_that_has_lost_its_own_files_is_not_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        fs::remove_dir_all(folder.path().join(STORE)).unwrap();
        fs::create_dir(folder.path().join(STORE)).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged(_))));
        // Nor at the next start, when the library has left files there.
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged(_))));
    }
}
