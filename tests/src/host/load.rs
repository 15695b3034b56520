//! A steady load: a stream at a fixed rate and new connections at a fixed pace, from one namespace to
//! another. Both are far less than the machine can do, so that what is missing of them was lost or held up,
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

/// Rate of the stream, in Mbit/s.
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
    /// Of the stream, received, in Mbit/s.
    pub rate: f64,
    /// Connections a second that were made, greeted and closed.
    pub pace: f64,
    /// How long each of them took, the shortest first.
    pub waits: Vec<Duration>,
}

impl Window {
    /// Of the connections, half took no longer; zero: there was none.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.waits.get(self.waits.len() / 2).copied().unwrap_or_default()
    }
}

#[derive(Debug, Default)]
struct Visits {
    waits: Vec<Duration>,
    faults: Vec<String>,
}

type Task = Box<dyn FnOnce(&AtomicBool) + Send>;

/// The load; it ends with its value.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
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
    /// Begins, from `from` to the address `to` of `at`, and waits until the stream flows.
    ///
    /// # Panics
    /// When it does not.
    #[must_use]
    pub fn start(from: &Namespace, at: &Namespace, to: impl Into<IpAddr>) -> Self {
        let to = to.into();
        let stop = Arc::new(AtomicBool::new(false));
        let received = Arc::new(AtomicU64::new(0));
        let visits = Arc::new(Mutex::new(Visits::default()));
        let (sink, greeter) = (listen(at, STREAM_PORT), listen(at, VISIT_PORT));
        let sender = from.enter(|| TcpStream::connect((to, STREAM_PORT))).unwrap();
        sender.set_write_timeout(Some(PATIENCE)).unwrap();
        sender.set_nodelay(true).unwrap();
        let tasks: [Task; 4] = [
            Box::new({
                let received = Arc::clone(&received);
                move |stop| receive(&sink, &received, stop)
            }),
            Box::new(move |stop| greet(&greeter, stop)),
            Box::new({
                let visits = Arc::clone(&visits);
                move |stop| send(sender, &visits, stop)
            }),
            Box::new({
                let (ns, visits) = (from.clone(), Arc::clone(&visits));
                move |stop| ns.enter(|| visit((to, VISIT_PORT).into(), &visits, stop))
            }),
        ];
        let threads = tasks.map(|task| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || task(&stop))
        });
        let load = Self { stop, received, visits, threads: threads.into() };
        super::eventually(PATIENCE, "the stream flows", || {
            load.received.load(Ordering::Relaxed) > 0
                && !load.visits.lock().unwrap().waits.is_empty()
        });
        load
    }

    /// What gets through from now on for so long.
    ///
    /// # Panics
    /// When a connection failed, or the stream did.
    #[must_use]
    pub fn watch(&self, length: Duration) -> Window {
        self.visits.lock().unwrap().waits.clear();
        let (before, began) = (self.received.load(Ordering::Relaxed), Instant::now());
        thread::sleep(length);
        let received = self.received.load(Ordering::Relaxed) - before;
        let mut visits = self.visits.lock().unwrap();
        let time = began.elapsed().as_secs_f64();
        assert!(visits.faults.is_empty(), "{:?}", visits.faults);
        let mut waits = std::mem::take(&mut visits.waits);
        waits.sort_unstable();
        Window { rate: received as f64 * 8e-6 / time, pace: waits.len() as f64 / time, waits }
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

fn receive(listener: &TcpListener, received: &AtomicU64, stop: &AtomicBool) {
    let Some(mut stream) = accept(listener, stop) else { return };
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

/// Sends what is due at the rate.
fn send(mut stream: TcpStream, visits: &Mutex<Visits>, stop: &AtomicBool) {
    // Mbit/s are bits a microsecond.
    let bytes = |time: Duration| time.as_micros() as usize * RATE as usize / 8;
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

/// Connects anew at the pace. What takes longer than until the next one is due makes it later.
fn visit(to: SocketAddr, visits: &Mutex<Visits>, stop: &AtomicBool) {
    let every = Duration::from_secs(1) / PACE;
    let mut next = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let began = Instant::now();
        let done = greeted(to);
        let mut visits = visits.lock().unwrap();
        match done {
            Ok(()) => visits.waits.push(began.elapsed()),
            Err(error) => visits.faults.push(format!("a connection: {error}")),
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
