//! A steady load: streams at a fixed rate and new connections at a fixed pace, from one namespace to
//! another, in one family or in both. Both are far less than the machine can do, so that what is missing of them was lost or held up,
//! not crowded out by those who share its processors.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::family::ANY;
use super::namespace::Namespace;
use super::traffic::{PATIENCE, uninterrupted};

/// Rate of the streams together, in Mbit/s.
pub const RATE: u32 = 200;
/// New connections a second.
pub const PACE: u32 = 100;

const STREAM_PORT: u16 = 7910;
const VISIT_PORT: u16 = 7911;
/// Between two writes of the stream.
const TICK: Duration = Duration::from_millis(1);
/// What was not sent for so long is not made up for: a stall is missing in the figures.
const BACKLOG: Duration = Duration::from_millis(50);
/// How often servers look whether they are to end.
const POLL: Duration = Duration::from_millis(50);
const GREETING: &[u8] = b"hello";

/// What of the load got through in some time.
#[derive(Debug, Clone)]
pub struct Window {
    /// Of the streams together, received, in Mbit/s.
    pub rate: f64,
    /// Connections a second that were made, greeted and closed.
    pub pace: f64,
    /// Both of each address that the load goes to.
    pub each: Vec<(f64, f64)>,
    /// How long each of them took, the shortest first.
    pub waits: Vec<Duration>,
}

impl Window {
    /// Of the connections, half took no longer; zero: there was none.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.waits.get(self.waits.len() / 2).copied().unwrap_or_default()
    }

    /// What got through of what had got through at another time, of the part and the address of which the least did.
    #[must_use]
    pub fn of(&self, before: &Self) -> f64 {
        let parts = self.each.iter().zip(&before.each);
        parts.map(|(now, before)| (now.0 / before.0).min(now.1 / before.1)).fold(f64::MAX, f64::min)
    }
}

#[derive(Debug, Default)]
struct Visits {
    /// How long each took, and to which address it was.
    waits: Vec<(usize, Duration)>,
    faults: Vec<String>,
}

type Task = Box<dyn FnOnce(&AtomicBool) + Send>;

/// The load; it ends with its value.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    /// By each stream.
    received: Vec<Arc<AtomicU64>>,
    visits: Arc<Mutex<Visits>>,
    threads: Vec<JoinHandle<()>>,
}

/// Waits for clients, and looks now and then whether it is to end.
fn listen(ns: &Namespace, port: u16) -> TcpListener {
    let listener = ns.enter(|| TcpListener::bind((ANY, port))).unwrap();
    let poll = TimeVal::new(0, POLL.subsec_micros().into());
    setsockopt(&listener, sockopt::ReceiveTimeout, &poll).unwrap();
    listener
}

impl Load {
    /// Begins, from `from` to these addresses of `at`, and waits until all streams flow: one to each address, which
    /// have the rate together, and connections to one after the other.
    ///
    /// # Panics
    /// When they do not.
    #[must_use]
    pub fn start(from: &Namespace, at: &Namespace, to: &[IpAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let visits = Arc::new(Mutex::new(Visits::default()));
        let (sink, greeter) = (listen(at, STREAM_PORT), listen(at, VISIT_PORT));
        let rate = RATE as usize / to.len();
        let (mut tasks, mut received) = (Vec::<Task>::new(), Vec::new());
        for address in to {
            let sender = from.enter(|| TcpStream::connect((*address, STREAM_PORT))).unwrap();
            sender.set_write_timeout(Some(PATIENCE)).unwrap();
            sender.set_nodelay(true).unwrap();
            // Its other end: streams begin one after the other.
            let stream = accept(&sink, &stop).expect("nobody stops it yet");
            let count = Arc::new(AtomicU64::new(0));
            received.push(Arc::clone(&count));
            tasks.push(Box::new(move |stop| receive(stream, &count, stop)));
            let visits = Arc::clone(&visits);
            tasks.push(Box::new(move |stop| send(sender, rate, &visits, stop)));
        }
        tasks.push(Box::new(move |stop| greet(&greeter, stop)));
        tasks.push({
            let (ns, visits) = (from.clone(), Arc::clone(&visits));
            let to: Vec<SocketAddr> = to.iter().map(|to| (*to, VISIT_PORT).into()).collect();
            Box::new(move |stop| ns.enter(|| visit(&to, &visits, stop)))
        });
        let spawn = |task: Task| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || task(&stop))
        };
        let threads = tasks.into_iter().map(spawn).collect();
        let load = Self { stop, received, visits, threads };
        super::eventually(PATIENCE, "the streams flow", || {
            load.received.iter().all(|count| count.load(Ordering::Relaxed) > 0)
                && load.visits.lock().unwrap().waits.len() >= to.len()
        });
        load
    }

    /// What gets through from now on for so long.
    ///
    /// # Panics
    /// When a connection failed, or the stream did.
    #[must_use]
    pub fn watch(&self, length: Duration) -> Window {
        let received = || -> Vec<u64> {
            self.received.iter().map(|count| count.load(Ordering::Relaxed)).collect()
        };
        self.visits.lock().unwrap().waits.clear();
        let (before, began) = (received(), Instant::now());
        thread::sleep(length);
        let after = received();
        let mut visits = self.visits.lock().unwrap();
        let time = began.elapsed().as_secs_f64();
        assert!(visits.faults.is_empty(), "{:?}", visits.faults);
        let visited = std::mem::take(&mut visits.waits);
        drop(visits);
        let each = after.iter().zip(&before).enumerate().map(|(at, (after, before))| {
            let made = visited.iter().filter(|(to, _)| *to == at).count();
            ((after - before) as f64 * 8e-6 / time, made as f64 / time)
        });
        let each: Vec<_> = each.collect();
        let mut waits: Vec<Duration> = visited.into_iter().map(|(_, wait)| wait).collect();
        waits.sort_unstable();
        let (rate, pace) = each.iter().fold((0.0, 0.0), |sum, it| (sum.0 + it.0, sum.1 + it.1));
        Window { rate, pace, each, waits }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Accepts, until it is to end.
fn accept(listener: &TcpListener, stop: &AtomicBool) -> Option<TcpStream> {
    while !stop.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            return Some(stream);
        }
    }
    None
}

fn receive(mut stream: TcpStream, received: &AtomicU64, stop: &AtomicBool) {
    stream.set_read_timeout(Some(POLL)).unwrap();
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(length) => drop(received.fetch_add(length as u64, Ordering::Relaxed)),
            // Nothing came for a while.
            Err(_) => {}
        }
    }
}

fn greet(listener: &TcpListener, stop: &AtomicBool) {
    while let Some(mut stream) = accept(listener, stop) {
        // The client may have given up; it says so itself.
        let _ = stream.write_all(GREETING);
    }
}

/// Sends what is due at a rate, in Mbit/s.
fn send(mut stream: TcpStream, rate: usize, visits: &Mutex<Visits>, stop: &AtomicBool) {
    // Mbit/s are bits a microsecond.
    let bytes = |time: Duration| time.as_micros() as usize * rate / 8;
    let zeros = vec![0; bytes(BACKLOG)];
    let mut last = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(TICK);
        let now = Instant::now();
        let due = bytes(now.duration_since(last).min(BACKLOG));
        last = now;
        if let Err(error) = uninterrupted(|| stream.write_all(&zeros[..due])) {
            visits.lock().unwrap().faults.push(format!("the stream: {error}"));
            return;
        }
    }
}

/// Connects anew at the pace, to one after the other. What takes longer than until the next one is due makes it
/// later.
fn visit(to: &[SocketAddr], visits: &Mutex<Visits>, stop: &AtomicBool) {
    let every = Duration::from_secs(1) / PACE;
    let mut next = Instant::now();
    for (at, to) in to.iter().enumerate().cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let began = Instant::now();
        let done = greeted(*to);
        let mut visits = visits.lock().unwrap();
        match done {
            Ok(()) => visits.waits.push((at, began.elapsed())),
            Err(error) => visits.faults.push(format!("a connection to {to}: {error}")),
        }
        next = (next + every).max(Instant::now());
    }
}

fn greeted(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut greeting = Vec::new();
    uninterrupted(|| stream.read_to_end(&mut greeting))?;
    if greeting == GREETING { Ok(()) } else { Err(io::Error::other(format!("{greeting:?}"))) }
}
