//! HTTP/1.1 as small as it gets: one GET, one answer, connection closed.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::netns::{Netns, NetnsError};

/// Nothing here takes longer unless it hangs.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest request or answer taken.
const LIMIT: u64 = 16 * 1024;

/// A server in a namespace. Dropping it ends it.
#[derive(Debug)]
pub(super) struct Server {
    listener: TcpListener,
    clients: Receiver<SocketAddr>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `address` inside `netns` and answers every GET with `greeting` and the client's
    /// address as the server sees it.
    pub(super) fn start(
        netns: &Netns,
        address: SocketAddr,
        greeting: &'static str,
    ) -> Result<io::Result<Self>, NetnsError> {
        netns.run(|| {
            let listener = TcpListener::bind(address)?;
            let accepting = listener.try_clone()?;
            let (report, clients) = channel();
            let thread = thread::Builder::new().name("demo-http".to_owned()).spawn(move || {
                while let Ok((stream, client)) = accepting.accept() {
                    // A client that misbehaves is its own loss.
                    if answer(&stream, client, greeting).is_ok() && report.send(client).is_err() {
                        return;
                    }
                }
            })?;
            Ok(Self { listener, clients, thread: Some(thread) })
        })
    }

    /// The next client served, as the server saw it.
    pub(super) fn next_client(&self) -> Result<SocketAddr, RecvTimeoutError> {
        self.clients.recv_timeout(TIMEOUT)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends a waiting accept on Linux. An error means that it has ended already.
        let _ =
            nix::sys::socket::shutdown(self.listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(stream: &TcpStream, client: SocketAddr, greeting: &str) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let mut lines = BufReader::new(stream.take(LIMIT)).lines();
    let request = lines.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let (status, body) = if request.starts_with("GET / HTTP/1.") {
        ("200 OK", format!("{greeting}, you are {}\n", client.ip()))
    } else {
        ("404 Not Found", "not found\n".to_owned())
    };
    let mut writer = stream;
    write!(
        writer,
        "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    stream.shutdown(Shutdown::Write)
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Reply {
    /// Status code.
    pub status: u16,
    /// Body, without the newline at its end.
    pub body: String,
    /// The client's own address as its stack sees it.
    pub local: IpAddr,
}

/// GETs `/` from the namespace of the calling thread.
pub(super) fn get(server: SocketAddr) -> io::Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let local = stream.local_addr()?.ip();
    let mut text = String::new();
    stream.take(LIMIT).read_to_string(&mut text)?;
    let (status, body) = parse(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP"))?;
    Ok(Reply { status, body, local })
}

fn parse(text: &str) -> Option<(u16, String)> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.split(' ').next()?.parse().ok()?;
    Some((status, body.trim_end().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_parsed() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n";
        assert_eq!(parse(text), Some((200, "hi".to_owned())));
        for text in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n", "HTTP/1.1 abc\r\n\r\n"] {
            assert_eq!(parse(text), None);
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn a_get_is_answered_inside_a_namespace() {
        let netns = Netns::anonymous().unwrap();
        let address = "127.0.0.1:80".parse().unwrap();
        let server = Server::start(&netns, address, "hello").unwrap().unwrap();
        let reply = netns.run(|| get(address)).unwrap().unwrap();
        assert_eq!((reply.status, reply.body.as_str()), (200, "hello, you are 127.0.0.1"));
        assert_eq!(server.next_client().unwrap().ip(), reply.local);
        drop(server);
        let refused = netns.run(|| get(address)).unwrap().unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
}
