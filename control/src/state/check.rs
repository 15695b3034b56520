//! Is a state file sound? Answered on a copy in memory, so that the answer changes nothing.
//!
//! redb repairs a file that was not closed cleanly when it opens it, and a crash is no damage: the
//! repaired copy must then verify. It panics on some kinds of damage instead of returning an error,
//! and a panic ends the release build; the check therefore runs in a thread of its own, with the
//! panic turned into the error (tests) or into the process's one line and exit code (release).

use std::io;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use redb::{Database, ReadableDatabase, StorageBackend};

use super::Installation;
use crate::error::{Error, Result, ResultExt};

const MEND: &str = "restore it from a backup, or move it away to start afresh";

/// Opens and reads a copy of the file; whose it is.
///
/// # Errors
/// When that fails.
pub(super) fn sound(path: &Path) -> Result<Installation> {
    let bytes = std::fs::read(path).failed("read")?;
    let shown = path.display().to_string();
    let checked = std::thread::Builder::new()
        .name(THREAD.to_owned())
        .spawn(move || {
            exit_on_panic(shown);
            check(bytes)
        })
        .failed("start a thread")?
        .join();
    match checked {
        Ok(result) => result,
        Err(_) => Err(Error::failed(format!("damaged; {MEND}"))),
    }
}

const THREAD: &str = "state-check";

/// Makes a panic of the check, which aborts the release build, end the process as an error does.
fn exit_on_panic(path: String) {
    static INSTALLED: std::sync::Once = std::sync::Once::new();
    INSTALLED.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if std::thread::current().name() != Some(THREAD) {
                previous(info);
            } else if cfg!(panic = "abort") {
                eprintln!("vswitchd: state file {path}: damaged; {MEND}");
                std::process::exit(i32::from(crate::error::Kind::Failed.exit_code()));
            }
        }));
    });
}

fn check(bytes: Vec<u8>) -> Result<Installation> {
    let backend = Copy { bytes: RwLock::new(bytes) };
    let mut db = Database::builder()
        .create_with_backend(backend)
        .map_err(|error| Error::failed(format!("damaged ({error}); {MEND}")))?;
    match db.check_integrity() {
        Ok(true) => {}
        Ok(false) => return Err(Error::failed(format!("damaged (checksums differ); {MEND}"))),
        Err(error) => return Err(Error::failed(format!("damaged ({error}); {MEND}"))),
    }
    let txn = db.begin_read().failed("damaged")?;
    super::load(&txn).map(|(installation, _)| installation)
}

/// The file's bytes. redb's own in-memory back-end starts empty.
#[derive(Debug)]
struct Copy {
    bytes: RwLock<Vec<u8>>,
}

impl Copy {
    fn range(&self, offset: u64, len: usize) -> io::Result<std::ops::Range<usize>> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(len).ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(start..end)
    }
}

impl StorageBackend for Copy {
    fn len(&self) -> io::Result<u64> {
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        u64::try_from(bytes.len()).map_err(io::Error::other)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let range = self.range(offset, out.len())?;
        let bytes = self.bytes.read().unwrap_or_else(PoisonError::into_inner);
        out.copy_from_slice(bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.bytes.write().unwrap_or_else(PoisonError::into_inner).resize(len, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let range = self.range(offset, data.len())?;
        let mut bytes = self.bytes.write().unwrap_or_else(PoisonError::into_inner);
        bytes.get_mut(range).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        Ok(())
    }
}
