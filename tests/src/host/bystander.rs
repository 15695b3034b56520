//! Somebody whom an attack is none of his business: he pings, and connects anew and again, while
//! it lasts.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::GATEWAY;
use super::namespace::Namespace;
use super::traffic::{TcpClient, TcpServer};

const PORT: u16 = 7900;
/// How long he may wait for an answer, on a busy machine and beside an attack.
const PATIENCE: Duration = Duration::from_secs(5);

/// What he saw.
#[derive(Debug, Default)]
struct Seen {
    visits: u32,
    longest: Duration,
    faults: Vec<String>,
}

/// A sandbox that speaks with a machine outside, by one connection all the time and by a new one
/// each time.
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
    pub fn start(ns: &Namespace, outside: &Namespace) -> Self {
        let server = TcpServer::start(outside, (Ipv4Addr::UNSPECIFIED, PORT));
        let mut standing = TcpClient::connect(ns, (GATEWAY, PORT));
        let stop = Arc::new(AtomicBool::new(false));
        let (told, ns) = (Arc::clone(&stop), ns.clone());
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            while !told.load(Ordering::Relaxed) {
                let began = Instant::now();
                if let Err(error) = standing.try_echo("standing", PATIENCE) {
                    seen.faults.push(format!("the standing connection: {error}"));
                    return seen;
                }
                let visit = TcpClient::try_connect(&ns, (GATEWAY, PORT));
                if let Err(error) = visit.and_then(|mut one| one.try_echo("new", PATIENCE)) {
                    seen.faults.push(format!("visit {}: {error}", seen.visits));
                }
                seen.visits += 1;
                seen.longest = seen.longest.max(began.elapsed());
                thread::sleep(Duration::from_millis(5));
            }
            seen
        });
        Self { stop, thread: Some(thread), _server: server }
    }

    /// Ends. Nothing may have failed.
    ///
    /// # Panics
    /// When something did.
    pub fn went_on(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let thread = self.thread.take().expect("asked once");
        let seen = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        println!("a bystander's {} visits took {:?} at most", seen.visits, seen.longest);
        assert!(seen.faults.is_empty() && seen.visits > 0, "{seen:?}");
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
