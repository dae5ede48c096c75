//! The store of the data folder, on fjall. No other file uses that library.
//!
//! It blocks on the disk, so only the journal's thread uses it. After an error it can't be trusted; the next commit
//! opens it anew.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::broker::{Fault, FaultKind};

/// The number of the format of keys and values.
const FORMAT: &[u8] = b"1";
/// The key of that number. Keys of records begin with other letters.
const FORMAT_KEY: &[u8] = b"!format";
/// A process that has locked this file has the folder for itself.
const LOCK_FILE: &str = "lock";
/// The store inside the folder. It exists only once it is complete.
const STORE_FOLDER: &str = "store";
/// A store that is being created.
const UNFINISHED_FOLDER: &str = "store.new";
/// The store's only keyspace.
const KEYSPACE: &str = "kept";
/// The permissions of the group and of all other users.
const OTHERS: u32 = 0o077;
/// The cache of blocks that were read. Only loading reads.
const CACHE_BYTES: u64 = 4 << 20;
/// The changes that the store holds in memory before it writes them into sorted tables.
const MEMTABLE_BYTES: u64 = 16 << 20;
/// The size of the store's own journals. Beyond it the oldest is written into sorted tables.
const JOURNAL_BYTES: u64 = 128 << 20;

/// Changes by key: the new value, or none if the record is removed.
pub(super) type ChangeSet = BTreeMap<Vec<u8>, Option<Bytes>>;

/// Why a data folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has locked the folder.
    #[error("another process uses it")]
    Locked,
    /// Another version of Roomcast, or of its store, has made the folder.
    #[error("its format is {0}, and this version of Roomcast reads format 1 only")]
    OtherFormat(String),
    /// The data can't be read.
    #[error("it is damaged ({0}); restore a backup, or use another folder")]
    Damaged(String),
    /// The operating system refused an operation.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The store's background work failed.
    #[error("the store has stopped after an error of its own; the log has a line about it")]
    Stopped,
}

impl From<fjall::Error> for StoreError {
    fn from(error: fjall::Error) -> Self {
        let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
        while let Some(inner) = cause {
            if let Some(io) = inner.downcast_ref::<io::Error>() {
                // Keeps the text. The kind tells a full disk from a failing one.
                return Self::Io(io.raw_os_error().map_or_else(|| io.kind().into(), io::Error::from_raw_os_error));
            }
            cause = inner.source();
        }
        match error {
            fjall::Error::Locked => Self::Locked,
            fjall::Error::Poisoned => Self::Stopped,
            fjall::Error::InvalidVersion(version) => {
                Self::OtherFormat(format!("{version:?} of the store's library"))
            }
            other => Self::Damaged(other.to_string()),
        }
    }
}

impl StoreError {
    /// The fault that health reports.
    pub(super) fn fault(&self) -> Fault {
        let full = [ErrorKind::StorageFull, ErrorKind::QuotaExceeded, ErrorKind::FileTooLarge];
        let kind = match self {
            Self::Io(error) if full.contains(&error.kind()) => FaultKind::DiskFull,
            _ => FaultKind::DiskFailed,
        };
        Fault::new(kind, format!("the data folder: {self}"))
    }
}

/// The store of a data folder that this process has locked.
pub(super) struct Store {
    folder: PathBuf,
    /// None after an error.
    open: Option<OpenStore>,
    _lock: File,
}

struct OpenStore {
    records: Keyspace,
    database: Database,
}

impl Store {
    /// Locks a folder and opens its store. Creates both if they do not exist.
    pub(super) fn open(folder: &Path) -> Result<Self, StoreError> {
        // Only for this user, since the data may be private.
        DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK_FILE))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StoreError::Locked,
            TryLockError::Error(error) => error.into(),
        })?;
        let path = folder.join(STORE_FOLDER);
        if !path.try_exists()? {
            create_store(folder)?;
        }
        close_to_others(&path);
        if has_only_own_files(folder)? {
            close_to_others(folder);
        }
        let open = Some(OpenStore::open(&path)?);
        Ok(Self { folder: folder.into(), open, _lock: lock })
    }

    /// Hands each record to `visit`, in the order of the keys.
    pub(super) fn load<E: From<StoreError>>(
        &mut self,
        mut visit: impl FnMut(&[u8], &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let records = self.ensure_open()?.records.iter();
        for record in records {
            let (key, value) = record.into_inner().map_err(StoreError::from)?;
            if *key != *FORMAT_KEY {
                visit(&key, &value)?;
            }
        }
        Ok(())
    }

    /// Stores all of the changes or none. With `sync` they survive a power cut, without it the end of this process.
    ///
    /// After an error the same changes may be committed again: the store is opened anew.
    pub(super) fn commit(&mut self, changes: &ChangeSet, sync: bool) -> Result<(), StoreError> {
        self.with_open(|open| {
            let mode = if sync { PersistMode::SyncData } else { PersistMode::Buffer };
            let mut batch = open.database.batch().durability(Some(mode));
            for (key, value) in changes {
                match value {
                    Some(value) => batch.insert(&open.records, key.as_slice(), &**value),
                    None => batch.remove(&open.records, key.as_slice()),
                }
            }
            batch.commit()
        })
    }

    /// Flushes all committed changes to the disk, so that they survive a power cut.
    pub(super) fn sync(&mut self) -> Result<(), StoreError> {
        self.with_open(|open| open.database.persist(PersistMode::SyncData))
    }

    fn ensure_open(&mut self) -> Result<&OpenStore, StoreError> {
        if self.open.is_none() {
            self.open = Some(OpenStore::open(&self.folder.join(STORE_FOLDER))?);
        }
        self.open.as_ref().ok_or(StoreError::Stopped)
    }

    fn with_open(&mut self, work: impl FnOnce(&OpenStore) -> fjall::Result<()>) -> Result<(), StoreError> {
        work(self.ensure_open()?).map_err(|error| {
            self.open = None;
            error.into()
        })
    }
}

impl OpenStore {
    fn open(path: &Path) -> Result<Self, StoreError> {
        let open = Self::open_unchecked(path)?;
        match open.records.get(FORMAT_KEY)? {
            Some(format) if *format == *FORMAT => Ok(open),
            Some(format) => Err(StoreError::OtherFormat(String::from_utf8_lossy(&format).into_owned())),
            None => Err(StoreError::Damaged("it has no format number".into())),
        }
    }

    /// Opens a store without a check of its format.
    fn open_unchecked(path: &Path) -> Result<Self, StoreError> {
        let builder = Database::builder(path).cache_size(CACHE_BYTES).worker_threads(1);
        let database = builder.max_journaling_size(JOURNAL_BYTES).open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        Ok(Self { records: database.keyspace(KEYSPACE, options)?, database })
    }
}

/// Creates a store under another name and renames it when it is complete: the library can't open a store whose creation
/// was interrupted.
fn create_store(folder: &Path) -> Result<(), StoreError> {
    let unfinished = folder.join(UNFINISHED_FOLDER);
    if unfinished.try_exists()? {
        fs::remove_dir_all(&unfinished)?;
    }
    let open = OpenStore::open_unchecked(&unfinished)?;
    open.records.insert(FORMAT_KEY, FORMAT)?;
    open.database.persist(PersistMode::SyncAll)?;
    drop(open);
    fs::rename(&unfinished, folder.join(STORE_FOLDER))?;
    File::open(folder)?.sync_all()?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty());
    Ok(File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?)
}

/// Whether a data folder has no files but the gateway's, so that it can be meant for nobody else.
fn has_only_own_files(folder: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        if ![LOCK_FILE, STORE_FOLDER, UNFINISHED_FOLDER].iter().any(|own| name == *own) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Takes the permissions of other users away from a folder that existed before, for example as a restored backup.
fn close_to_others(folder: &Path) {
    let closed = fs::metadata(folder).and_then(|metadata| {
        let mode = metadata.permissions().mode();
        if mode & OTHERS == 0 {
            Ok(())
        } else {
            fs::set_permissions(folder, Permissions::from_mode(mode & !OTHERS))
        }
    });
    if let Err(error) = closed {
        tracing::warn!(folder = %folder.display(), %error, "other users of this machine may be able to read the data");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(key: &str, value: Option<&str>) -> ChangeSet {
        BTreeMap::from([(key.into(), value.map(|value| Bytes::from(value.to_owned())))])
    }

    fn records(store: &mut Store) -> Vec<(String, String)> {
        let mut records = Vec::new();
        let text = |bytes: &[u8]| String::from_utf8(bytes.into()).unwrap();
        let all = store.load::<StoreError>(|key, value| {
            records.push((text(key), text(value)));
            Ok(())
        });
        all.unwrap();
        records
    }

    #[test]
    fn committed_changes_survive_a_restart_and_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.commit(&change("a", Some("1")), true).unwrap();
        store.commit(&change("b", Some("2")), false).unwrap();
        store.commit(&change("a", None), false).unwrap();
        store.sync().unwrap();
        assert_eq!(records(&mut store), [("b".into(), "2".into())]);
        // As after an error.
        store.open = None;
        store.commit(&change("c", Some("3")), true).unwrap();
        drop(store);
        let mut store = Store::open(folder.path()).unwrap();
        assert_eq!(records(&mut store), [("b".into(), "2".into()), ("c".into(), "3".into())]);
    }

    #[test]
    fn a_folder_is_locked_by_one_process() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Locked)));
        drop(store);
        Store::open(folder.path()).unwrap();
    }

    #[test]
    fn another_format_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.commit(&change("!format", Some("2")), true).unwrap();
        drop(store);
        assert!(matches!(Store::open(folder.path()), Err(StoreError::OtherFormat(format)) if format == "2"));
        // The library's own number.
        let marker = folder.path().join(STORE_FOLDER).join("version");
        fs::write(&marker, b"FJL\x02").unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::OtherFormat(_))));
    }

    #[test]
    fn a_store_of_an_interrupted_creation_is_created_anew() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join(UNFINISHED_FOLDER)).unwrap();
        fs::write(folder.path().join(UNFINISHED_FOLDER).join("0.jnl"), "").unwrap();
        let mut store = Store::open(folder.path()).unwrap();
        store.commit(&change("a", Some("1")), true).unwrap();
    }

    #[test]
    fn a_store_that_has_lost_its_files_is_damaged_and_not_created_anew() {
        let folder = tempfile::tempdir().unwrap();
        drop(Store::open(folder.path()).unwrap());
        fs::remove_dir_all(folder.path().join(STORE_FOLDER)).unwrap();
        fs::create_dir(folder.path().join(STORE_FOLDER)).unwrap();
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged(_))));
        // Nor at the next start, after the library has left files there.
        assert!(matches!(Store::open(folder.path()), Err(StoreError::Damaged(_))));
    }
}
