//! Memory for tables: a fixed number of 64-bit words, all zero at first, shared by all workers and
//! only ever accessed atomically.
//!
//! An anonymous region costs memory from the first write to a page on. A region in a file outlives
//! the process: the next run finds the words as they were. The file's space is reserved before it is
//! used, when it is opened or, of one that grows, by [`Region::reserve`]: a write to a hole of a full
//! file system would kill the process with `SIGBUS`.
//!
//! The file holds addresses of all connections, and whoever writes to it steers them: it must
//! belong to us, be closed to everybody else, and be in use by one process at a time.

use std::fs::{File, OpenOptions};
use std::io;
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::AtomicU32;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};

use super::sys::map::Mapping;
use crate::sync::atomic::AtomicU64;

/// Words shared by all threads. Unmapped on drop; a file stays.
#[derive(Debug)]
pub struct Region {
    map: Mapping,
    kept: bool,
    // Keeps the lock, and with it any second daemon out.
    file: Option<Flock<File>>,
}

impl Region {
    /// `words` zero words in memory of this process.
    ///
    /// # Errors
    /// When `words` is zero or the address space does not hold that many.
    pub fn anonymous(words: usize) -> io::Result<Self> {
        Ok(Self { map: Mapping::anonymous(byte_len(words)?)?, kept: false, file: None })
    }

    /// `words` words in the file `path`, mode 0600, made if need be. Words that the file had keep
    /// their values (see [`Region::was_kept`]), new ones are zero. A longer file is cut.
    ///
    /// # Errors
    /// When `words` is zero, the path leads to anything but a regular file of ours that nobody
    /// else can open, another process uses it, or there is no space left.
    pub fn file(path: &Path, words: usize) -> io::Result<Self> {
        let len = byte_len(words)?;
        let file = open(path)?;
        // Only now: the file of a running process must not change its length.
        let bytes = u64::try_from(len.get()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let kept = file.metadata()?.len() == bytes;
        file.set_len(bytes)?;
        reserve(&file, len)?;
        // A random entry of a large table is in no page that the processor has at hand (TLB).
        Ok(Self { map: Mapping::shared_huge(file.as_fd(), len)?, kept, file: Some(file) })
    }

    /// Address space for `words` words in the file `path`, as [`Region::file`], of which none exists
    /// yet: what the file had is cut off. No word may be touched before [`Region::reserve`] has made
    /// it.
    ///
    /// # Errors
    /// As [`Region::file`], but for the space.
    pub fn growing(path: &Path, words: usize) -> io::Result<Self> {
        let len = byte_len(words)?;
        let file = open(path)?;
        file.set_len(0)?;
        // No huge pages: who makes the next ones is a worker, and must not copy them too.
        Ok(Self { map: Mapping::shared(file.as_fd(), len)?, kept: false, file: Some(file) })
    }

    /// Makes the first `words` words of a file that grows: zero where they were not made before. Those
    /// of other regions are there.
    ///
    /// # Errors
    /// When the region has not so many, or there is no space left.
    pub fn reserve(&self, words: usize) -> io::Result<()> {
        let len = byte_len(words)?;
        if words > self.words().len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let Some(file) = &self.file else { return Ok(()) };
        let bytes = u64::try_from(len.get()).map_err(|_| io::ErrorKind::InvalidInput)?;
        if file.metadata()?.len() >= bytes {
            return Ok(());
        }
        reserve(file, len)?;
        // Where nothing can be reserved the file is as short as it was.
        if file.metadata()?.len() < bytes {
            file.set_len(bytes)?;
        }
        Ok(())
    }

    /// The words.
    #[must_use]
    pub fn words(&self) -> &[AtomicU64] {
        self.map.words()
    }

    /// The same memory in halves of words. A word is used whole or in halves, never both ways.
    #[must_use]
    pub fn halves(&self) -> &[AtomicU32] {
        self.map.halves()
    }

    /// Whether the words come, in this very number, from an earlier run. What they say must be
    /// checked like any input: that run may have died in the middle of a change.
    #[must_use]
    pub const fn was_kept(&self) -> bool {
        self.kept
    }
}

impl Deref for Region {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        self.words()
    }
}

/// Opens a file of ours and locks it.
fn open(path: &Path) -> io::Result<Flock<File>> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        // O_NONBLOCK: opening a FIFO that somebody put there must not hang.
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(refusal("is not a regular file"));
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() || meta.mode() & 0o077 != 0 {
        return Err(refusal("belongs to or is open to another user; remove it"));
    }
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => {
            io::Error::new(io::ErrorKind::ResourceBusy, "is in use by another process")
        }
        errno => errno.into(),
    })
}

fn byte_len(words: usize) -> io::Result<NonZeroUsize> {
    words
        .checked_mul(size_of::<AtomicU64>())
        .filter(|len| i64::try_from(*len).is_ok())
        .and_then(NonZeroUsize::new)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

fn reserve(file: &File, len: NonZeroUsize) -> io::Result<()> {
    let len = i64::try_from(len.get()).map_err(|_| io::ErrorKind::InvalidInput)?;
    match fallocate(file, FallocateFlags::empty(), 0, len) {
        // A file system that cannot reserve: nothing better to be had.
        Ok(()) | Err(Errno::EOPNOTSUPP) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn refusal(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, why)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn anonymous_words_are_zero_and_shared() {
        let region = Region::anonymous(1 << 20).unwrap();
        assert_eq!(region.len(), 1 << 20);
        assert!(region.iter().step_by(997).all(|word| word.load(Relaxed) == 0));
        std::thread::scope(|scope| {
            scope.spawn(|| region[5].store(7, Relaxed));
        });
        assert_eq!(region[5].load(Relaxed), 7);
        assert!(!region.was_kept());
    }

    #[test]
    fn a_table_sized_for_its_limit_costs_nothing_at_first() {
        // 64 GiB: more than the machine has.
        let region = Region::anonymous(8 << 30).unwrap();
        region[(8 << 30) - 1].store(1, Relaxed);
    }

    #[test]
    fn impossible_sizes_are_refused() {
        assert!(Region::anonymous(0).is_err());
        assert!(Region::anonymous(usize::MAX).is_err());
        assert!(Region::anonymous(usize::MAX / 8).is_err());
    }

    #[test]
    fn a_file_keeps_its_words_for_the_next_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        {
            let region = Region::file(&path, 1000).unwrap();
            assert!(!region.was_kept());
            region[999].store(42, Relaxed);
        }
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
        {
            let region = Region::file(&path, 1000).unwrap();
            assert!(region.was_kept());
            assert_eq!(region[999].load(Relaxed), 42);
        }
        let region = Region::file(&path, 2000).unwrap();
        assert!(!region.was_kept());
        assert_eq!(region.len(), 2000);
        assert_eq!(region[999].load(Relaxed), 42);
        assert_eq!(region[1999].load(Relaxed), 0);
    }

    #[test]
    fn a_long_file_keeps_its_words_in_huge_pages_too() {
        // In memory where there is such a file system: elsewhere it has no huge pages, and the same words.
        let shm = Path::new("/dev/shm");
        let dir = if shm.is_dir() { tempfile::tempdir_in(shm) } else { tempfile::tempdir() };
        let path = dir.as_ref().unwrap().path().join("table");
        // Five huge pages and a rest.
        let words = (5 << 18) + 1000;
        for round in 0..3 {
            let region = Region::file(&path, words).unwrap();
            assert_eq!((region.was_kept(), region.len()), (round > 0, words));
            for at in (0..words).step_by(509).chain([words - 1]) {
                assert_eq!(
                    region[at].swap(at as u64 + round + 1, Relaxed),
                    match round {
                        0 => 0,
                        _ => at as u64 + round,
                    }
                );
            }
        }
    }

    #[test]
    fn a_file_in_use_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        let first = Region::file(&path, 1000).unwrap();
        let error = Region::file(&path, 10).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 8000);
        drop(first);
        Region::file(&path, 10).unwrap();
    }

    #[test]
    fn what_is_not_our_private_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::write(&target, "precious").unwrap();
        let link = dir.path().join("link");
        symlink(&target, &link).unwrap();
        assert!(Region::file(&link, 10).is_err());
        std::fs::set_permissions(&target, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(Region::file(&target, 10).is_err());
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(Region::file(&fifo, 10).is_err());
        assert!(Region::file(dir.path(), 10).is_err());
    }

    #[test]
    fn a_file_that_grows_costs_what_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table");
        let blocks = || std::fs::metadata(&path).unwrap().blocks();
        // 1 GiB of address space.
        let region = Region::growing(&path, 1 << 27).unwrap();
        assert_eq!((region.len(), blocks()), (1 << 27, 0));
        region.reserve(1000).unwrap();
        region[999].store(42, Relaxed);
        let first = blocks();
        region.reserve(100_000).unwrap();
        assert_eq!(region[99_999].load(Relaxed), 0);
        assert!((16..=64).contains(&first) && (1500..2000).contains(&blocks()), "{first}");
        region.reserve(10).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 800_000, "never shorter");
        assert!(region.reserve((1 << 27) + 1).is_err());
        drop(region);
        let region = Region::file(&path, 100_000).unwrap();
        assert!(region.was_kept());
        assert_eq!(region[999].load(Relaxed), 42);
        drop(region);
        let region = Region::growing(&path, 10).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "a new one each time");
        region.reserve(10).unwrap();
        assert_eq!(region[9].load(Relaxed), 0);
        Region::anonymous(10).unwrap().reserve(10).unwrap();
    }
}
