//! The file of the NAT log: whole lines in order, in files of a bounded size, whatever the disk does.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::places::Limit;

/// The file, and what waits for it.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    /// Octets after which the file is set aside.
    size: u64,
    /// Octets that wait for a disk in trouble at most, and lines that were lost.
    limit: Arc<Limit>,
    file: Option<Open>,
    /// What could not be written yet. It may begin within a line.
    waiting: Vec<u8>,
    /// The trouble that was told last and is not over.
    trouble: Option<String>,
}

#[derive(Debug)]
struct Open {
    file: File,
    written: u64,
}

impl Journal {
    pub(super) const fn new(path: PathBuf, size: u64, limit: Arc<Limit>) -> Self {
        Self { path, size, limit, file: None, waiting: Vec::new(), trouble: None }
    }

    /// Octets that wait.
    pub(super) fn waiting(&self) -> u32 {
        u32::try_from(self.waiting.len()).unwrap_or(u32::MAX)
    }

    /// Opens the file anew with the next line.
    pub(super) fn reopen(&mut self) {
        self.file = None;
    }

    pub(super) const fn is_in_trouble(&self) -> bool {
        self.trouble.is_some()
    }

    /// Appends whole lines; says how many are lost because too much waits already.
    pub(super) fn write(&mut self, text: &str) -> u64 {
        let mut left = text.as_bytes();
        let most = usize::try_from(self.limit.limit()).unwrap_or(usize::MAX);
        loop {
            let room = most.saturating_sub(self.waiting.len());
            let piece = lines_within(left, room);
            self.waiting.extend_from_slice(piece);
            self.limit.note(self.waiting());
            left = left.get(piece.len()..).unwrap_or_default();
            let before = self.waiting.len();
            self.flush();
            // Nothing goes on: not even room for one line was made.
            if left.is_empty() || self.waiting.len() == before {
                break;
            }
        }
        let lost = left.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        self.limit.refuse_all(lost as u64);
        lost as u64
    }

    /// Writes what waits, as far as it can be.
    fn flush(&mut self) {
        if self.waiting.is_empty() {
            return;
        }
        match self.try_write() {
            Ok(()) => {
                if self.trouble.take().is_some() {
                    tracing::info!("nat_log {}: is written again", self.path.display());
                }
            }
            Err(error) => {
                self.file = None;
                if self.trouble.is_none() {
                    let path = self.path.display();
                    tracing::warn!("nat_log {path}: {error}; what is too much to wait is lost");
                }
                self.trouble = Some(error.to_string());
            }
        }
    }

    fn try_write(&mut self) -> io::Result<()> {
        if self.file.as_ref().is_some_and(|open| !is_at(&open.file, &self.path)) {
            self.file = None;
        }
        while !self.waiting.is_empty() {
            let open = match &mut self.file {
                Some(open) => open,
                none => none.insert(open(&self.path)?),
            };
            let room = self.size.saturating_sub(open.written);
            let piece = lines_within(&self.waiting, usize::try_from(room).unwrap_or(usize::MAX));
            if piece.is_empty() && open.written > 0 {
                fs::rename(&self.path, older(&self.path))?;
                self.file = None;
                continue;
            }
            // A line that is longer than a file may be has one of its own.
            let piece = if piece.is_empty() { self.waiting.as_slice() } else { piece };
            let count = open.file.write(piece)?;
            if count == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            open.written += count as u64;
            self.waiting.drain(..count);
        }
        Ok(())
    }
}

/// The whole lines at the beginning that have room.
fn lines_within(text: &[u8], room: usize) -> &[u8] {
    let fitting = text.get(..room).unwrap_or(text);
    let end = fitting.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
    fitting.get(..end).unwrap_or_default()
}

/// Where a full file is kept until the next one is full.
fn older(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    name.into()
}

fn open(path: &Path) -> io::Result<Open> {
    // Nobody waits for the reader of a pipe.
    let flags = nix::libc::O_NONBLOCK;
    let file =
        OpenOptions::new().append(true).create(true).mode(0o640).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("is no regular file"));
    }
    Ok(Open { file, written: metadata.len() })
}

/// Whether the path leads to this file still: not when it was renamed or removed.
fn is_at(file: &File, path: &Path) -> bool {
    let same = |a: &fs::Metadata, b: &fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => same(&open, &there),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::Refusal;

    const MIB: u64 = 1 << 20;

    fn limit() -> Arc<Limit> {
        Limit::new("nat_log_bytes", 4 << 20, Refusal::Missed)
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn a_rotated_file_is_made_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nat.log");
        let mut journal = Journal::new(path.clone(), MIB, limit());
        assert_eq!(journal.write("one\n"), 0);
        fs::rename(&path, folder.path().join("old")).unwrap();
        assert_eq!(journal.write("two\n"), 0);
        assert_eq!(read(&folder.path().join("old")), "one\n");
        assert_eq!(read(&path), "two\n");
        fs::remove_file(&path).unwrap();
        assert_eq!(journal.write("three\n"), 0);
        assert_eq!(read(&path), "three\n");
    }

    #[test]
    fn trouble_is_over_when_it_is_and_what_waited_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/nat.log");
        let mut journal = Journal::new(path.clone(), MIB, limit());
        assert_eq!(journal.write("one\n"), 0, "it waits");
        assert!(journal.is_in_trouble(), "its folder is not there");
        fs::create_dir(folder.path().join("sub")).unwrap();
        assert_eq!(journal.write("two\n"), 0);
        assert!(!journal.is_in_trouble());
        assert_eq!(read(&path), "one\ntwo\n");
    }

    #[test]
    fn what_is_too_much_to_wait_is_lost_and_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/nat.log");
        let limit = limit();
        let mut journal = Journal::new(path.clone(), u64::MAX, Arc::clone(&limit));
        let line = format!("{}\n", "x".repeat((1 << 20) - 1));
        let lost: Vec<u64> = (0..6).map(|_| journal.write(&line)).collect();
        assert_eq!(lost, [0, 0, 0, 0, 1, 1]);
        let shown = limit.view_of(journal.waiting());
        assert_eq!((shown.current, shown.peak, shown.refused), (4 << 20, 4 << 20, Some(2)));
        fs::create_dir(folder.path().join("sub")).unwrap();
        assert_eq!(journal.write(""), 0);
        assert_eq!(fs::metadata(&path).unwrap().len(), 4 << 20);
        assert_eq!(journal.waiting(), 0);
    }

    #[test]
    fn more_than_may_wait_is_written_in_pieces_where_it_can_be() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sub/nat.log");
        let limit = Limit::new("nat_log_bytes", 10, Refusal::Missed);
        let mut journal = Journal::new(path.clone(), MIB, Arc::clone(&limit));
        // In trouble only what has room waits.
        assert_eq!(journal.write("one\ntwo\nthree\nfour\n"), 2);
        fs::create_dir(folder.path().join("sub")).unwrap();
        assert_eq!(journal.write("five\nsix\nseven\neight\n"), 0);
        assert_eq!(read(&path), "one\ntwo\nfive\nsix\nseven\neight\n");
        // A line that has no room by itself is lost, and the others of its text with it.
        assert_eq!(journal.write("nine\nlonger than ten\nten\n"), 2);
        assert_eq!(read(&path).lines().last(), Some("nine"));
        let shown = limit.view_of(journal.waiting());
        assert_eq!((shown.current, shown.peak, shown.refused), (0, 9, Some(4)));
    }

    #[test]
    fn what_is_no_regular_file_is_trouble() {
        let mut journal = Journal::new("/dev/null".into(), MIB, limit());
        assert_eq!(journal.write("one\n"), 0);
        assert!(journal.is_in_trouble());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipe");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut journal = Journal::new(path, MIB, limit());
        assert_eq!(journal.write("one\n"), 0);
        assert!(journal.is_in_trouble());
    }

    #[test]
    fn a_file_that_is_full_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nat.log");
        let mut journal = Journal::new(path.clone(), 10, limit());
        for line in ["one\n", "two\n", "three\n", "a line of its own\n", "four\n"] {
            assert_eq!(journal.write(line), 0);
        }
        assert_eq!(read(&path), "four\n");
        assert_eq!(read(&older(&path)), "a line of its own\n");
        // What is there at the start counts.
        let mut journal = Journal::new(path.clone(), 10, limit());
        assert_eq!(journal.write("five\nsix\n"), 0);
        assert_eq!((read(&older(&path)), read(&path)), ("four\nfive\n".into(), "six\n".into()));
    }
}
