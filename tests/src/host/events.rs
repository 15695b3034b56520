//! What a daemon tells by `/v1/events`.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::Host;
use super::traffic::uninterrupted;

/// How long an event may take.
const TOLD: Duration = Duration::from_secs(10);

impl Host {
    /// The first line of `/v1/events` with `word` in it, from before `cause` on.
    ///
    /// # Panics
    /// When there is none in time.
    pub fn awaited_event(&self, word: &str, cause: impl FnOnce()) -> String {
        let mut events = UnixStream::connect(self.socket()).unwrap();
        events.set_read_timeout(Some(TOLD)).unwrap();
        events.write_all(b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut head = [0; 12];
        events.read_exact(&mut head).unwrap();
        cause();
        let (mut said, mut piece) = (String::new(), [0; 4096]);
        while !said.lines().any(|line| line.contains(word)) || !said.ends_with('\n') {
            let len = uninterrupted(|| events.read(&mut piece))
                .unwrap_or_else(|error| panic!("{error} after {said}"));
            assert!(len > 0, "the stream ended after {said}");
            said.push_str(&String::from_utf8_lossy(&piece[..len]));
        }
        said.lines().find(|line| line.contains(word)).unwrap().to_owned()
    }
}
