//! FTP and TFTP between kernels' stacks, in both families: `curl` and a small server, out of a network and into a
//! published port.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tests::host::namespace::Namespace;
use tests::host::traffic::{PATIENCE, uninterrupted};
use tests::host::{BOTH, Family, Host, Uplink};

/// How often servers look whether they are to end.
const POLL: Duration = Duration::from_millis(20);
/// Longer than a block of TFTP and a segment of TCP.
const LENGTH: usize = 20_000;

/// What is in the only file.
fn content() -> Vec<u8> {
    (0..LENGTH).map(|at| (at % 251) as u8).collect()
}

/// A server that ends with its value.
struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(serve: impl FnOnce(Arc<AtomicBool>) + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        Self { stop, thread: Some(thread::spawn(move || serve(told))) }
    }

    /// FTP at port 21 (RFC 959, RFC 2428): each client is served to its end.
    fn ftp(ns: &Namespace, family: Family) -> Self {
        let any = family.any();
        let listener = ns.enter(|| TcpListener::bind((any, 21))).unwrap();
        listener.set_nonblocking(true).unwrap();
        let ns = ns.clone();
        Self::start(move |stop| {
            while !stop.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) => {
                        stream.set_nonblocking(false).unwrap();
                        // A client that is cut off ends its session, not the server.
                        let _ = session(&ns, &stream);
                    }
                    Err(_) => thread::sleep(POLL),
                }
            }
        })
    }

    /// TFTP at port 69 (RFC 1350): each request is answered from a port of its own.
    fn tftp(ns: &Namespace, family: Family) -> Self {
        let any = family.any();
        let socket = ns.enter(|| UdpSocket::bind((any, 69))).unwrap();
        socket.set_read_timeout(Some(POLL)).unwrap();
        let ns = ns.clone();
        Self::start(move |stop| {
            let mut buffer = [0; 2048];
            while !stop.load(Ordering::Relaxed) {
                if let Ok((_, peer)) = socket.recv_from(&mut buffer) {
                    let data = ns.enter(|| UdpSocket::bind((any, 0))).unwrap();
                    let _ = blocks(&data, peer);
                }
            }
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn blocks(data: &UdpSocket, peer: SocketAddr) -> std::io::Result<()> {
    data.set_read_timeout(Some(Duration::from_secs(1)))?;
    let content = content();
    let mut all: Vec<&[u8]> = content.chunks(512).collect();
    if content.len().is_multiple_of(512) {
        all.push(&[]);
    }
    for (number, block) in (1u16..).zip(all) {
        let packet = [&3u16.to_be_bytes()[..], &number.to_be_bytes(), block].concat();
        data.send_to(&packet, peer)?;
        let mut ack = [0; 16];
        uninterrupted(|| data.recv_from(&mut ack))?;
        assert_eq!(ack[..4], [[0, 4], number.to_be_bytes()].concat()[..]);
    }
    Ok(())
}

/// How the data connection comes about.
enum Data {
    None,
    Listen(TcpListener),
    Call(SocketAddr),
}

/// Waits for a client, not for ever.
fn accept(listener: &TcpListener) -> std::io::Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                return Ok(stream);
            }
            Err(error) if Instant::now() >= deadline => return Err(error),
            Err(_) => thread::sleep(POLL),
        }
    }
}

/// One client of FTP.
fn session(ns: &Namespace, stream: &TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.try_clone()?);
    let mut out = stream;
    let mut data = Data::None;
    out.write_all(b"220 hello\r\n")?;
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let (word, rest) = line.trim_end().split_once(' ').unwrap_or((line.trim_end(), ""));
        let answer = match word {
            "USER" => "230 come in".to_owned(),
            "PWD" => "257 \"/\"".to_owned(),
            "TYPE" => "200 ok".to_owned(),
            "SIZE" => format!("213 {LENGTH}"),
            "EPSV" | "PASV" => {
                let own = stream.local_addr()?;
                let listener = ns.enter(|| TcpListener::bind((own.ip(), 0)))?;
                let port = listener.local_addr()?.port();
                data = Data::Listen(listener);
                let [high, low] = port.to_be_bytes();
                let address = own.ip().to_string().replace('.', ",");
                match word {
                    "EPSV" => format!("229 Entering Extended Passive Mode (|||{port}|)"),
                    _ => format!("227 Entering Passive Mode ({address},{high},{low})"),
                }
            }
            "EPRT" => {
                let parts: Vec<&str> = rest.split('|').collect();
                let address: IpAddr = parts[2].parse().unwrap();
                data = Data::Call((address, parts[3].parse().unwrap()).into());
                "200 ok".to_owned()
            }
            "PORT" => {
                let octets: Vec<u8> = rest.split(',').map(|part| part.parse().unwrap()).collect();
                let address: [u8; 4] = octets[..4].try_into().unwrap();
                data = Data::Call((address, u16::from_be_bytes([octets[4], octets[5]])).into());
                "200 ok".to_owned()
            }
            "RETR" => {
                out.write_all(b"150 here it comes\r\n")?;
                let transfer = match std::mem::replace(&mut data, Data::None) {
                    Data::Listen(listener) => accept(&listener)?,
                    Data::Call(to) => ns.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?,
                    Data::None => return Ok(()),
                };
                // Who calls must be who is spoken to.
                let control = stream.peer_addr()?.ip();
                assert_eq!(transfer.peer_addr()?.ip(), control);
                (&transfer).write_all(&content())?;
                drop(transfer);
                "226 done".to_owned()
            }
            "QUIT" => "221 bye".to_owned(),
            _ => "502 no".to_owned(),
        };
        out.write_all(format!("{answer}\r\n").as_bytes())?;
    }
}

/// Gets the file with `curl`; whether it came, whole.
fn gets(from: &Namespace, flags: &str, url: &str) -> bool {
    let command = format!("curl -sS --connect-timeout 4 --max-time 8 {flags} {url}");
    let mut words = command.split(' ').filter(|word| !word.is_empty());
    let mut curl = from.command(words.next().unwrap());
    let output = curl.args(words).output().unwrap();
    let whole = output.stdout == content();
    println!("{command}: {whole} {}", String::from_utf8_lossy(&output.stderr).trim());
    assert_eq!(whole, output.status.success());
    whole
}

fn used(host: &Host) -> u64 {
    host.json(["conntrack", "stats"])["helpers"]["used"].as_u64().unwrap()
}

/// As it stands in a URL.
fn bracketed(address: IpAddr) -> String {
    if address.is_ipv6() { format!("[{address}]") } else { address.to_string() }
}

fn by(uplink: Uplink) {
    let host = Host::start_dual(uplink);
    host.network("helped", "--subnet 10.91.2.0/24 --subnet fd00:91:2::/64 -o helpers=ftp,tftp");
    let client = host.sandbox("client", "--network helped");
    let server = host.sandbox("server", "--network helped -p 2121:21");
    for family in BOTH {
        let outside = [Server::ftp(&host.outside, family), Server::tftp(&host.outside, family)];
        let inside = Server::ftp(&server.ns, family);
        let mut expected = used(&host);
        let mut helped = |from: &Namespace, flags: &str, url: &str| {
            assert!(gets(from, flags, url));
            expected += 1;
            assert_eq!(used(&host), expected, "{flags} {url}");
        };
        // Out: the server calls the client. In the words of before IPv6 too, which have none for it.
        let there = bracketed(family.outside());
        let url = format!("ftp://{there}/file");
        helped(&client.ns, "-P -", &url);
        if family == Family::V4 {
            helped(&client.ns, "-P - --disable-eprt", &url);
        }
        helped(&client.ns, "", &format!("tftp://{there}/file"));
        // In, from outside and from inside.
        let published = format!("ftp://{}:2121/file", bracketed(family.host()));
        for from in [&host.outside, &client.ns] {
            helped(from, "", &published);
            if family == Family::V4 {
                helped(from, "--disable-epsv --no-ftp-skip-pasv-ip", &published);
            }
        }
        helped(&client.ns, "-P -", &published);
        // Nobody has to be called for this.
        assert!(gets(&client.ns, "", &url));
        assert_eq!(used(&host), expected);
        drop((outside, inside));
    }
}

#[test]
#[ignore = "needs root"]
fn ftp_and_tftp_by_a_dedicated_uplink() {
    by(Uplink::Dedicated);
}

#[test]
#[ignore = "needs root"]
fn ftp_and_tftp_by_a_shared_uplink() {
    by(Uplink::Shared);
}

#[test]
#[ignore = "needs root"]
fn without_helpers_nobody_is_called() {
    let host = Host::start_dual(Uplink::Dedicated);
    let client = host.sandbox("client", "--network app");
    for family in BOTH {
        let outside = [Server::ftp(&host.outside, family), Server::tftp(&host.outside, family)];
        let there = bracketed(family.outside());
        let url = format!("ftp://{there}/file");
        assert!(gets(&client.ns, "", &url), "passive mode needs no help");
        assert!(!gets(&client.ns, "-P -", &url));
        assert!(!gets(&client.ns, "", &format!("tftp://{there}/file")));
        drop(outside);
    }
    assert_eq!(used(&host), 0);
}
