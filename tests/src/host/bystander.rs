//! Somebody whom an attack is none of his business: he goes on by a connection, and connects anew and again, while
//! it lasts; and how long he may have to wait for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::family::{ANY, Family};
use super::namespace::Namespace;
use super::traffic::{TcpClient, TcpServer};

const PORT: u16 = 7900;
/// How long he may wait for an answer, on a busy machine and beside an attack.
const PATIENCE: Duration = Duration::from_secs(5);

/// What half of all waits may take at most. Two processors with nothing else to do need a hundredth.
const HALF: Duration = Duration::from_millis(250);
/// A wait of that long is a late one: something was lost, and sent again.
const LATE: Duration = Duration::from_millis(900);
/// Of so many waits one may be late.
const LATE_OF: usize = 20;

/// How long somebody waited, each time. A busy machine makes some waits long; starving makes all so.
#[derive(Debug, Default)]
pub struct Waits(Vec<Duration>);

impl Waits {
    /// Once more.
    pub fn note(&mut self, wait: Duration) {
        self.0.push(wait);
    }

    /// Nobody starved: half of all waits are short, and few are late.
    ///
    /// # Panics
    /// When it is not so.
    pub fn assert_short(mut self, who: &str) {
        self.0.sort_unstable();
        let all = self.0.len();
        let late = self.0.iter().filter(|wait| **wait >= LATE).count();
        let (median, longest) = (self.0[all / 2], self.0[all - 1]);
        println!("{who}: {all} waits, {median:?} in the median, {late} late, {longest:?} at most");
        assert!(median <= HALF, "{who} waits {median:?} each time");
        assert!(late <= (all / LATE_OF).max(1), "{who}: {late} of {all} waits were late");
    }
}

/// What he saw.
#[derive(Debug, Default)]
struct Seen {
    waits: Waits,
    faults: Vec<String>,
}

/// A sandbox that speaks with a machine outside, in each of some families by one connection all the time and by a
/// new one each time.
#[derive(Debug)]
pub struct Bystander {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
    _server: TcpServer,
}

impl Bystander {
    /// Begins; the machine outside is the one at the other end of the uplink.
    ///
    /// # Panics
    /// When he cannot speak with it even now.
    #[must_use]
    pub fn start(ns: &Namespace, outside: &Namespace, families: &[Family]) -> Self {
        let server = TcpServer::start(outside, (ANY, PORT));
        let connect = |family: &Family| {
            let to = (family.outside(), PORT);
            (to, TcpClient::connect(ns, to))
        };
        let mut standing: Vec<_> = families.iter().map(connect).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let (told, ns) = (Arc::clone(&stop), ns.clone());
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            while !told.load(Ordering::Relaxed) {
                for (to, standing) in &mut standing {
                    let began = Instant::now();
                    if let Err(error) = standing.try_echo("standing", PATIENCE) {
                        seen.faults.push(format!("the standing connection to {to:?}: {error}"));
                        return seen;
                    }
                    let visit = TcpClient::try_connect(&ns, *to);
                    if let Err(error) = visit.and_then(|mut one| one.try_echo("new", PATIENCE)) {
                        let number = seen.waits.0.len();
                        seen.faults.push(format!("visit {number} of {to:?}: {error}"));
                    }
                    seen.waits.note(began.elapsed());
                    thread::sleep(Duration::from_millis(5));
                }
            }
            seen
        });
        Self { stop, thread: Some(thread), _server: server }
    }

    /// Ends. Nothing may have failed, nor taken long.
    ///
    /// # Panics
    /// When something did.
    pub fn went_on(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("asked once");
        let seen = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        assert!(seen.faults.is_empty() && !seen.waits.0.is_empty(), "{seen:?}");
        seen.waits.assert_short("a bystander");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(short: usize, long: usize, of: Duration) {
        let mut waits = Waits::default();
        (0..short).for_each(|_| waits.note(Duration::from_millis(5)));
        (0..long).for_each(|_| waits.note(of));
        waits.assert_short("somebody");
    }

    #[test]
    fn a_few_late_ones_are_no_starving() {
        waits(1, 0, Duration::ZERO);
        waits(3, 1, Duration::from_secs(4));
        waits(95, 5, Duration::from_secs(4));
    }

    #[test]
    #[should_panic(expected = "6 of 100 waits were late")]
    fn many_late_ones_are() {
        waits(94, 6, LATE);
    }

    #[test]
    #[should_panic(expected = "waits 500ms each time")]
    fn and_slowness_all_the_time() {
        waits(40, 60, Duration::from_millis(500));
    }
}
