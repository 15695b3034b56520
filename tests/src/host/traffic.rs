//! Clients and servers on the kernel's own sockets, and `ping`.
//!
//! Every server first tells a client under which address it sees it, then echoes. One that listens at `[::]` takes
//! both families, and tells an IPv4 client its IPv4 address.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket,
};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::namespace::Namespace;

/// How long an answer may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// How often servers look whether they are to end.
const POLL: Duration = Duration::from_millis(20);

/// Does it again when a signal came first. With a time limit the kernel does not go on by itself
/// (`sock_intr_errno` in `include/net/sock.h`), and a signal comes from a child of another test that ends, or when
/// the process is stopped and goes on.
///
/// # Errors
/// As the call.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// What `ping` saw.
#[derive(Clone, Debug)]
pub struct Ping {
    /// Answers.
    pub received: u32,
    /// TTL of the last answer.
    pub ttl: Option<u8>,
    /// Everything it said.
    pub text: String,
}

/// Sends `count` echo requests.
#[must_use]
pub fn ping(from: &Namespace, to: impl Into<IpAddr>, count: u32) -> Ping {
    let to = to.into();
    let text = from.run(&format!("ping -n -c {count} -i 0.1 -W 2 {to}")).stdout;
    let received = text
        .lines()
        .find(|line| line.contains(" received"))
        .and_then(|line| line.split(", ").nth(1)?.split(' ').next()?.parse().ok())
        .unwrap_or(0);
    let ttl = text
        .lines()
        .filter_map(|line| line.split("ttl=").nth(1)?.split(' ').next()?.parse().ok())
        .next_back();
    Ping { received, ttl, text }
}

/// Sends three echo requests, which must be answered with this TTL.
///
/// # Panics
/// When they are not.
pub fn assert_ping(from: &Namespace, to: impl Into<IpAddr>, ttl: u8) {
    let to = to.into();
    let seen = ping(from, to, 3);
    assert_eq!((seen.received, seen.ttl), (3, Some(ttl)), "{} to {to}: {}", from.name(), seen.text);
}

/// A TCP server that ends with its value.
#[derive(Debug)]
pub struct TcpServer {
    stop: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    acceptor: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Listens.
    ///
    /// # Panics
    /// When the address cannot be had.
    #[must_use]
    pub fn start(ns: &Namespace, at: impl Into<SocketAddr>) -> Self {
        let at = at.into();
        let listener = ns.enter(|| TcpListener::bind(at)).unwrap_or_else(|e| panic!("{at:?}: {e}"));
        listener.set_nonblocking(true).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let streams = Arc::new(Mutex::new(Vec::new()));
        let (told, kept) = (Arc::clone(&stop), Arc::clone(&streams));
        let acceptor = thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        stream.set_nonblocking(false).unwrap();
                        kept.lock().unwrap().push(stream.try_clone().unwrap());
                        thread::spawn(move || serve(stream, peer));
                    }
                    Err(_) => thread::sleep(POLL),
                }
            }
        });
        Self { stop, streams, acceptor: Some(acceptor) }
    }
}

/// An IPv4 client of a socket for both families, as what it is (RFC 4291 section 2.5.5.2).
fn canonical(peer: SocketAddr) -> SocketAddr {
    (peer.ip().to_canonical(), peer.port()).into()
}

/// Ends with the client, or with the server's value.
fn serve(mut stream: TcpStream, peer: SocketAddr) {
    let mut buffer = [0; 4096];
    if stream.write_all(format!("{}\n", canonical(peer)).as_bytes()).is_err() {
        return;
    }
    while let Ok(length) = uninterrupted(|| stream.read(&mut buffer)) {
        if length == 0 || stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in self.streams.lock().unwrap().drain(..) {
            // The client may have closed it.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

/// A connection to a [`TcpServer`].
#[derive(Debug)]
pub struct TcpClient {
    stream: BufReader<TcpStream>,
    /// What the server sees as our address.
    pub seen_as: SocketAddr,
}

impl TcpClient {
    /// Connects, or says why not.
    ///
    /// # Errors
    /// When there is no connection within [`PATIENCE`], or no greeting.
    pub fn try_connect(ns: &Namespace, to: impl Into<SocketAddr>) -> io::Result<Self> {
        let to = to.into();
        let stream = ns.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut stream = BufReader::new(stream);
        let mut greeting = String::new();
        stream.read_line(&mut greeting)?;
        let seen_as = greeting.trim().parse().map_err(io::Error::other)?;
        Ok(Self { stream, seen_as })
    }

    /// Connects.
    ///
    /// # Panics
    /// When there is no connection.
    #[must_use]
    pub fn connect(ns: &Namespace, to: impl Into<SocketAddr>) -> Self {
        let to = to.into();
        Self::try_connect(ns, to).unwrap_or_else(|error| panic!("{} to {to}: {error}", ns.name()))
    }

    /// Our own address.
    ///
    /// # Panics
    /// When the socket is gone.
    #[must_use]
    pub fn local(&self) -> SocketAddr {
        self.stream.get_ref().local_addr().unwrap()
    }

    /// Sends without waiting for the echo.
    ///
    /// # Errors
    /// When the connection is gone.
    pub fn send(&mut self, text: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(text.as_bytes())
    }

    /// Waits for the echo of what was sent.
    ///
    /// # Errors
    /// When the connection is gone, or nothing comes in time.
    pub fn receive(&mut self, length: usize, limit: Duration) -> io::Result<String> {
        self.stream.get_ref().set_read_timeout(Some(limit))?;
        let mut echo = vec![0; length];
        self.stream.read_exact(&mut echo)?;
        Ok(String::from_utf8_lossy(&echo).into_owned())
    }

    /// Sends and gets the echo.
    ///
    /// # Errors
    /// When the connection is gone, or nothing comes in time.
    pub fn try_echo(&mut self, text: &str, limit: Duration) -> io::Result<()> {
        self.send(text)?;
        let echo = self.receive(text.len(), limit)?;
        if echo == text { Ok(()) } else { Err(io::Error::other(format!("echoed {echo:?}"))) }
    }

    /// Sends and gets the echo.
    ///
    /// # Panics
    /// When it does not come.
    pub fn echo(&mut self, text: &str) {
        let local = self.local();
        self.try_echo(text, Duration::from_secs(10))
            .unwrap_or_else(|error| panic!("connection of {local}: {error}"));
    }
}

/// A UDP server that ends with its value.
#[derive(Debug)]
pub struct UdpServer {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl UdpServer {
    /// Answers `ADDRESS PAYLOAD` to every datagram.
    ///
    /// # Panics
    /// When the address cannot be had.
    #[must_use]
    pub fn start(ns: &Namespace, at: impl Into<SocketAddr>) -> Self {
        let at = at.into();
        let socket = ns.enter(|| UdpSocket::bind(at)).unwrap_or_else(|e| panic!("{at:?}: {e}"));
        socket.set_read_timeout(Some(POLL)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut buffer = [0; 2048];
            while !told.load(Ordering::Relaxed) {
                if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                    let payload = String::from_utf8_lossy(&buffer[..length]);
                    // A client that is gone makes the kernel say so here.
                    let seen = canonical(peer);
                    let _ = socket.send_to(format!("{seen} {payload}").as_bytes(), peer);
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for UdpServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends a datagram to a [`UdpServer`]; the address the server saw, if it answered from where it
/// was asked.
#[must_use]
pub fn udp_ask(ns: &Namespace, to: impl Into<SocketAddr>) -> Option<SocketAddr> {
    let to = to.into();
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = ns.enter(|| UdpSocket::bind((any, 0))).ok()?;
    ns.enter(|| socket.connect(to)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut buffer = [0; 2048];
    // A datagram may be lost while a neighbor is asked for.
    for attempt in 0..3 {
        let question = format!("question {attempt}");
        socket.send(question.as_bytes()).ok()?;
        if let Ok(length) = uninterrupted(|| socket.recv(&mut buffer)) {
            let answer = String::from_utf8_lossy(&buffer[..length]);
            let (peer, payload) = answer.split_once(' ')?;
            return payload.starts_with("question").then(|| peer.parse().ok())?;
        }
    }
    None
}
