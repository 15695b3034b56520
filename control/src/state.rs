//! The state store: the records of [`crate::model`] in one transactional file of the state
//! directory, so that networks, sandboxes and ports come back after a restart.
//!
//! One list of edits is one durable transaction: when [`Store::commit`] returns, the change
//! survives a power cut; until then nothing of it exists. One daemon at a time has the store open,
//! ensured by a lock on the directory that ends with the process.
//!
//! A file that is damaged, was written by a newer version or belongs to another host is refused and
//! not changed by a single byte: before redb gets it, the whole file is opened and read from a copy
//! in memory, where redb's own repair can do no harm. It is small: a few hundred bytes a sandbox.

mod check;
mod host;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

pub use host::HostId;

use crate::error::{Error, Result, ResultExt};
use crate::model::{Counters, Desired, Edit, Intent, Network, Route, Sandbox, Uplink};

/// The file's name in the state directory.
const FILE_NAME: &str = "state.redb";

/// Grows when a record changes its meaning; a file with a higher one is refused, one with a lower
/// one is converted in [`load`].
///
/// 1: IPv4 only. Every field that came with IPv6 in 2 may be missing, and means "none" then; so what
/// there is to convert is the number, which keeps an older daemon from dropping them unseen.
const SCHEMA_VERSION: u32 = 2;

const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const NETWORKS: TableDefinition<&str, &[u8]> = TableDefinition::new("networks");
const SANDBOXES: TableDefinition<&str, &[u8]> = TableDefinition::new("sandboxes");
const UPLINKS: TableDefinition<&str, &[u8]> = TableDefinition::new("uplinks");
const ROUTES: TableDefinition<&str, &[u8]> = TableDefinition::new("routes");
const INTENTS: TableDefinition<u64, &[u8]> = TableDefinition::new("intents");

/// Key of [`META`]: [`SCHEMA_VERSION`] of the writer.
const VERSION_KEY: &str = "version";
/// Key of [`META`]: [`Installation`].
const INSTALLATION_KEY: &str = "installation";
/// Key of [`META`]: [`Counters`].
const COUNTERS_KEY: &str = "counters";

/// What one state directory stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installation {
    /// Random; tells files of several daemons in one run directory apart, and seeds the MACs that
    /// we make up.
    pub id: String,
    /// Directories that were not there before us; a purge removes them.
    pub created_directories: Vec<PathBuf>,
    /// Where what the records name lies; `None`: a version of before did not say.
    #[serde(default)]
    pub host: Option<HostId>,
}

/// A number that is this installation's own for one purpose, and always the same.
#[must_use]
pub fn number_for(installation: &str, purpose: &str) -> u64 {
    /// FNV-1a, 64 bits: a published constant function, unlike the standard library's hasher.
    const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let bytes = installation.bytes().chain([0]).chain(purpose.bytes());
    bytes.fold(OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(PRIME))
}

/// The open store.
#[derive(Debug)]
pub struct Store {
    db: Database,
    installation: Installation,
    directory: PathBuf,
    /// Holds the lock.
    _directory_lock: File,
}

/// What the store's directory looks like before it is opened.
#[derive(Debug)]
pub struct Lock {
    directory: PathBuf,
    created: Vec<PathBuf>,
    file: File,
}

impl Lock {
    /// Makes the directory (0700) if it is missing and locks it.
    ///
    /// # Errors
    /// A conflict when another daemon has it; else when the directory cannot be made.
    pub fn take(directory: &Path) -> Result<Self> {
        let created = missing_ancestors(directory);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(directory)
            .failed(format!("state directory {}", directory.display()))?;
        if created.iter().any(|path| path == directory) {
            fs::set_permissions(directory, fs::Permissions::from_mode(0o700))
                .failed(format!("state directory {}", directory.display()))?;
        }
        Self::of(directory, created)
    }

    /// Locks the directory if it exists.
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub fn take_existing(directory: &Path) -> Result<Option<Self>> {
        if directory.join(FILE_NAME).exists() {
            Self::of(directory, Vec::new()).map(Some)
        } else {
            Ok(None)
        }
    }

    fn of(directory: &Path, created: Vec<PathBuf>) -> Result<Self> {
        let context = || format!("state directory {}", directory.display());
        let file = File::open(directory).failed(context())?;
        match file.try_lock() {
            Ok(()) => Ok(Self { directory: directory.to_owned(), created, file }),
            Err(fs::TryLockError::WouldBlock) => Err(Error::conflict(format!(
                "{}: another vswitchd is running on it; stop that one or give another --state-dir",
                context()
            ))),
            Err(fs::TryLockError::Error(error)) => Err(error).failed(context()),
        }
    }
}

/// `path` and those above it that do not exist, outermost first.
#[must_use]
pub fn missing_ancestors(path: &Path) -> Vec<PathBuf> {
    let mut missing: Vec<PathBuf> = path
        .ancestors()
        .take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    missing
}

impl Store {
    /// Opens the store or makes a new one, and reads all records. It is this host's from then on.
    ///
    /// # Errors
    /// A conflict when the file is another host's, unless that is to be given up for a `new_host`;
    /// else when it is damaged, of a newer version or unreadable. It is left as it is.
    pub fn open(lock: Lock, new_host: bool) -> Result<(Self, Desired)> {
        let here = HostId::current()?;
        let path = lock.directory.join(FILE_NAME);
        let context = || format!("state file {}", path.display());
        let fresh = match fs::metadata(&path) {
            // Not a first start: something emptied it, and what it knew still exists.
            Ok(meta) if meta.len() == 0 => {
                return Err(Error::failed(format!(
                    "{}: is empty; put a copy in its place, or move it away to start afresh",
                    context()
                )));
            }
            Ok(_) => false,
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) => return Err(error).failed(context()),
        };
        if !fresh {
            let found = check::sound(&path).map_err(|error| error.context(context()))?;
            if let Some(host) = found.host.filter(|_| !new_host) {
                host.yields_to(&here).map_err(|error| {
                    error.context(format!("state directory {}", lock.directory.display()))
                })?;
            }
        }
        let db = if fresh {
            // Made under another name, so that a crash on the way leaves no half a file.
            let unfinished = path.with_extension("new");
            if let Err(error) = fs::remove_file(&unfinished)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error).failed(context());
            }
            let db = Database::create(&unfinished).failed(context())?;
            fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600)).failed(context())?;
            let installation = Installation {
                id: random_id().failed(context())?,
                created_directories: lock.created,
                host: Some(here.clone()),
            };
            initialise(&db, &installation).failed(context())?;
            fs::rename(&unfinished, &path).failed(context())?;
            db
        } else {
            Database::create(&path).failed(context())?
        };
        let txn = db.begin_read().failed(context())?;
        let (installation, desired) = load(&txn).map_err(|error| error.context(context()))?;
        drop(txn);
        let mut store =
            Self { db, installation, directory: lock.directory, _directory_lock: lock.file };
        if store.installation.host.as_ref() != Some(&here) {
            let installation = Installation { host: Some(here), ..store.installation.clone() };
            store.replace_installation(installation)?;
        }
        store.raise_version()?;
        Ok((store, desired))
    }

    /// What this state directory stands for.
    #[must_use]
    pub const fn installation(&self) -> &Installation {
        &self.installation
    }

    /// Remembers directories made for this installation.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_directories(&mut self, created: Vec<PathBuf>) -> Result<()> {
        if created.is_empty() {
            return Ok(());
        }
        let mut installation = self.installation.clone();
        installation.created_directories.extend(created);
        self.replace_installation(installation)
    }

    /// Notes that the records are of this version from now on.
    fn raise_version(&self) -> Result<()> {
        let now = encode(&SCHEMA_VERSION)?;
        let write = || -> std::result::Result<(), redb::Error> {
            let is_now = {
                let txn = self.db.begin_read()?;
                let version = txn.open_table(META)?.get(VERSION_KEY)?;
                version.is_some_and(|version| version.value() == now)
            };
            if !is_now {
                let txn = self.db.begin_write()?;
                txn.open_table(META)?.insert(VERSION_KEY, now.as_slice())?;
                txn.commit()?;
            }
            Ok(())
        };
        write().failed(format!("state file in {}", self.directory.display()))
    }

    fn replace_installation(&mut self, installation: Installation) -> Result<()> {
        let value = encode(&installation)?;
        let write = || -> std::result::Result<(), redb::Error> {
            let txn = self.db.begin_write()?;
            txn.open_table(META)?.insert(INSTALLATION_KEY, value.as_slice())?;
            txn.commit()?;
            Ok(())
        };
        write().failed(format!("state file in {}", self.directory.display()))?;
        self.installation = installation;
        Ok(())
    }

    /// Makes the edits durable, all or none.
    ///
    /// # Errors
    /// When the file cannot be written; nothing has changed then.
    pub fn commit(&self, edits: &[Edit]) -> Result<()> {
        let write = || -> std::result::Result<(), WriteError> {
            let txn = self.db.begin_write().map_err(redb::Error::from)?;
            for edit in edits {
                put(&txn, edit)?;
            }
            txn.commit().map_err(redb::Error::from)?;
            Ok(())
        };
        write().failed(format!("state file in {}", self.directory.display()))
    }

    /// Closes the store and removes its file.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(self) -> Result<Installation> {
        let path = self.directory.join(FILE_NAME);
        drop(self.db);
        fs::remove_file(&path).failed(format!("state file {}", path.display()))?;
        Ok(self.installation)
    }
}

/// Why a transaction was given up.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error(transparent)]
    Store(#[from] redb::Error),
    #[error("{0}")]
    Encode(Error),
}

impl From<redb::TableError> for WriteError {
    fn from(error: redb::TableError) -> Self {
        Self::Store(error.into())
    }
}

impl From<redb::StorageError> for WriteError {
    fn from(error: redb::StorageError) -> Self {
        Self::Store(error.into())
    }
}

impl From<Error> for WriteError {
    fn from(error: Error) -> Self {
        Self::Encode(error)
    }
}

fn put(txn: &redb::WriteTransaction, edit: &Edit) -> std::result::Result<(), WriteError> {
    match edit {
        Edit::Counters(counters) => {
            txn.open_table(META)?.insert(COUNTERS_KEY, encode(counters)?.as_slice())?;
        }
        Edit::PutNetwork(network) => {
            let value = encode(network)?;
            txn.open_table(NETWORKS)?.insert(network.name.as_str(), value.as_slice())?;
        }
        Edit::RemoveNetwork(name) => {
            txn.open_table(NETWORKS)?.remove(name.as_str())?;
        }
        Edit::PutSandbox(sandbox) => {
            let value = encode(sandbox)?;
            txn.open_table(SANDBOXES)?.insert(sandbox.name.as_str(), value.as_slice())?;
        }
        Edit::RemoveSandbox(name) => {
            txn.open_table(SANDBOXES)?.remove(name.as_str())?;
        }
        Edit::PutUplink(uplink) => {
            let value = encode(uplink)?;
            txn.open_table(UPLINKS)?.insert(uplink.interface.as_str(), value.as_slice())?;
        }
        Edit::RemoveUplink(interface) => {
            txn.open_table(UPLINKS)?.remove(interface.as_str())?;
        }
        Edit::PutRoute(route) => {
            let key = route.destination.to_string();
            txn.open_table(ROUTES)?.insert(key.as_str(), encode(route)?.as_slice())?;
        }
        Edit::RemoveRoute(destination) => {
            txn.open_table(ROUTES)?.remove(destination.to_string().as_str())?;
        }
        Edit::PutIntent(id, intent) => {
            txn.open_table(INTENTS)?.insert(id, encode(intent)?.as_slice())?;
        }
        Edit::RemoveIntent(id) => {
            txn.open_table(INTENTS)?.remove(id)?;
        }
    }
    Ok(())
}

fn initialise(db: &Database, installation: &Installation) -> std::result::Result<(), WriteError> {
    let txn = db.begin_write().map_err(redb::Error::from)?;
    {
        let mut meta = txn.open_table(META)?;
        meta.insert(VERSION_KEY, encode(&SCHEMA_VERSION)?.as_slice())?;
        meta.insert(INSTALLATION_KEY, encode(installation)?.as_slice())?;
        meta.insert(COUNTERS_KEY, encode(&Counters::default())?.as_slice())?;
        // Makes the tables: reading one that does not exist is an error.
        txn.open_table(NETWORKS)?;
        txn.open_table(SANDBOXES)?;
        txn.open_table(UPLINKS)?;
        txn.open_table(ROUTES)?;
        txn.open_table(INTENTS)?;
    }
    txn.commit().map_err(redb::Error::from)?;
    Ok(())
}

fn encode<T: Serialize>(record: &T) -> Result<Vec<u8>> {
    serde_json::to_vec(record).failed("encode a record")
}

fn decode<T: DeserializeOwned>(what: &str, value: &[u8]) -> Result<T> {
    serde_json::from_slice(value).map_err(|error| Error::failed(format!("{what}: {error}")))
}

/// Reads everything.
fn load(txn: &ReadTransaction) -> Result<(Installation, Desired)> {
    let meta = txn.open_table(META).failed("not a state file of vswitchd")?;
    let read = |key: &str| -> Result<Vec<u8>> {
        let value = meta.get(key).failed("damaged")?;
        let value = value.ok_or_else(|| Error::failed(format!("damaged: no {key}")))?;
        Ok(value.value().to_vec())
    };
    let version: u32 = decode(VERSION_KEY, &read(VERSION_KEY)?)?;
    if version > SCHEMA_VERSION {
        return Err(Error::failed(format!(
            "has version {version}, this vswitchd knows {SCHEMA_VERSION}: use the newer vswitchd, \
             or move the file away to start afresh"
        )));
    }
    let installation = decode(INSTALLATION_KEY, &read(INSTALLATION_KEY)?)?;
    let mut desired =
        Desired { counters: decode(COUNTERS_KEY, &read(COUNTERS_KEY)?)?, ..Desired::default() };
    for network in records::<Network>(txn, NETWORKS)? {
        desired.apply(Edit::PutNetwork(network));
    }
    for sandbox in records::<Sandbox>(txn, SANDBOXES)? {
        desired.apply(Edit::PutSandbox(sandbox));
    }
    for uplink in records::<Uplink>(txn, UPLINKS)? {
        desired.apply(Edit::PutUplink(uplink));
    }
    for route in records::<Route>(txn, ROUTES)? {
        desired.apply(Edit::PutRoute(route));
    }
    let intents = txn.open_table(INTENTS).failed("damaged")?;
    for row in intents.iter().failed("damaged")? {
        let (id, value) = row.failed("damaged")?;
        let intent: Intent = decode("intents", value.value())?;
        desired.apply(Edit::PutIntent(id.value(), intent));
    }
    Ok((installation, desired))
}

fn records<T: DeserializeOwned>(
    txn: &ReadTransaction,
    table: TableDefinition<&'static str, &'static [u8]>,
) -> Result<Vec<T>> {
    let table_name = redb::TableHandle::name(&table).to_owned();
    let rows = txn.open_table(table).failed("damaged")?;
    let mut records = Vec::new();
    for row in rows.iter().failed("damaged")? {
        let (key, value) = row.failed("damaged")?;
        records.push(decode(&format!("{table_name} {:?}", key.value()), value.value())?);
    }
    Ok(records)
}

/// 64 random bits in hexadecimal.
fn random_id() -> io::Result<String> {
    let mut bytes = [0u8; 8];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    Ok(format!("{:016x}", u64::from_be_bytes(bytes)))
}
