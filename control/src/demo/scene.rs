//! The stage of the demo and what is shown on it, step by step.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::daemon::Daemon;
use super::http::{self, Server};
use super::ping::Pinger;
use super::report::Seen;
use super::wiring::{HOST, SERVER, UPLINK, wire_outside};
use super::{DemoError, log_path};
use crate::api::types::{Connection, IpProtocol, NatKind, Sandbox, Tuple};
use crate::lab::Lab;
use crate::netns::{self, Netns};

/// Where the web server listens, inside and outside.
const HTTP_PORT: u16 = 80;
/// Where `web` is published on the host.
const PUBLISHED_PORT: u16 = 8080;
/// Pings of a step, and how long each may take: the first one waits for ARP.
const PINGS: u16 = 5;
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Between pings, so that each finds the switch at rest: back to back they would show only how fast
/// a worker is that is still polling.
const PING_INTERVAL: Duration = Duration::from_millis(50);
/// Lines of the daemon's log shown when it fails.
const LOG_LINES: usize = 8;

/// One host with the daemon, two sandboxes, one machine outside.
#[derive(Debug)]
pub(super) struct Scene {
    daemon: Daemon,
    /// The sandbox that serves.
    pub web: Netns,
    /// Its address.
    pub web_ip: Ipv4Addr,
    /// The sandbox that asks.
    pub client: Netns,
    client_ip: Ipv4Addr,
    /// The machine behind the uplink.
    pub outside: Netns,
    // The daemon's namespace.
    _host: Netns,
}

impl Scene {
    pub(super) async fn build(lab: &Lab, program: &Path) -> Result<Self, DemoError> {
        let host = lab.machine("host")?;
        let outside = lab.machine("outside")?;
        wire_outside(&host, &outside).await?;
        let daemon = Daemon::start(lab, &host, program).await?;
        let uplinks = daemon.uplinks().await?;
        if !uplinks.iter().any(|uplink| uplink.interface == UPLINK) {
            return Err(DemoError::Daemon(format!(
                "the daemon did not take {UPLINK}, the default route's link, as its uplink"
            )));
        }
        daemon.create_network("demo").await?;
        let web = lab.machine("web")?;
        let publish = format!("{PUBLISHED_PORT}:{HTTP_PORT}");
        let web_box = daemon.adopt("web", "demo", &path_of(lab, "web")?, &[&publish]).await?;
        let client = lab.machine("client")?;
        let client_box = daemon.adopt("client", "demo", &path_of(lab, "client")?, &[]).await?;
        Ok(Self {
            daemon,
            web,
            web_ip: ipv4_of(&web_box)?,
            client,
            client_ip: ipv4_of(&client_box)?,
            outside,
            _host: host,
        })
    }

    pub(super) fn describe(&self) -> String {
        format!(
            "web {}, client {}, uplink {UPLINK} {HOST}, server outside {SERVER}",
            self.web_ip, self.client_ip
        )
    }

    /// Client pings web.
    pub(super) fn ping_web(&self) -> Result<Seen, DemoError> {
        self.ping(self.web_ip, 64)
    }

    /// Client pings the server outside.
    pub(super) fn ping_server(&self) -> Result<Seen, DemoError> {
        self.ping(SERVER, 63)
    }

    fn ping(&self, to: Ipv4Addr, ttl: u8) -> Result<Seen, DemoError> {
        let io = |source| DemoError::Io { action: format!("ping {to}"), source };
        // The id only tells our answers from others'; any 16 bits do.
        let [.., high, low] = std::process::id().to_be_bytes();
        let id = u16::from_be_bytes([high, low]);
        let mut pinger = self.client.run(|| Pinger::open(id))?.map_err(io)?;
        let mut answers = Vec::new();
        for _ in 0..PINGS {
            answers.extend(pinger.ping(to, PING_TIMEOUT).map_err(io)?);
            thread::sleep(PING_INTERVAL);
        }
        let mut ttls: Vec<u8> = answers.iter().map(|answer| answer.ttl).collect();
        ttls.sort_unstable();
        ttls.dedup();
        let mut times: Vec<Duration> = answers.iter().map(|answer| answer.rtt).collect();
        times.sort_unstable();
        let text = match times.get(times.len() / 2) {
            Some(median) => format!(
                "{} of {PINGS} answers from {to}, TTL {}, median {median:.0?}",
                answers.len(),
                ttls.iter().map(u8::to_string).collect::<Vec<_>>().join(" and ")
            ),
            None => format!("no answer from {to} to {PINGS} pings"),
        };
        Ok(Seen::new(answers.len() == usize::from(PINGS) && ttls == [ttl], text))
    }

    /// Client GETs from the server outside.
    pub(super) fn get_outside(&self) -> Result<Seen, DemoError> {
        let address = SocketAddr::from((SERVER, HTTP_PORT));
        let (reply, source) = exchange(&self.outside, address, &self.client, address)?;
        let ok = reply.status == 200
            && reply.local == IpAddr::V4(self.client_ip)
            && source.ip() == IpAddr::V4(HOST);
        Ok(Seen::new(
            ok,
            format!(
                "status {}, sent from {}, the server saw {source}: \"{}\"",
                reply.status, reply.local, reply.body
            ),
        ))
    }

    /// Outside GETs from the port published on the host.
    pub(super) fn get_published(&self) -> Result<Seen, DemoError> {
        let inside = SocketAddr::from((self.web_ip, HTTP_PORT));
        let published = SocketAddr::from((HOST, PUBLISHED_PORT));
        let (reply, source) = exchange(&self.web, inside, &self.outside, published)?;
        let ok = reply.status == 200 && source.ip() == reply.local;
        Ok(Seen::new(
            ok,
            format!(
                "status {} from {published}, sent from {}, web saw {source}: \"{}\"",
                reply.status, reply.local, reply.body
            ),
        ))
    }

    /// Both sandboxes' MACs are known behind their ports.
    pub(super) async fn fdb(&self) -> Result<Seen, DemoError> {
        let entries = self.daemon.fdb("demo").await?;
        let mut ok = true;
        for (name, netns) in [("web", &self.web), ("client", &self.client)] {
            let handle = crate::netlink::Handle::open_in(netns)?;
            let mac = handle.link_by_name("eth0").await?.mac;
            ok &= entries.iter().any(|entry| {
                Some(entry.mac.0) == mac
                    && entry.sandbox.as_ref().is_some_and(|sandbox| sandbox.as_str() == name)
            });
        }
        let lines: Vec<String> = entries
            .iter()
            .map(|entry| {
                let kind = format!("{:?}", entry.kind).to_lowercase();
                format!("{} at {} ({kind}, {} s)", entry.mac, entry.port, entry.age_s)
            })
            .collect();
        Ok(Seen::new(ok, text_of(&lines, "the FDB is empty")))
    }

    /// The two GETs are tracked with both tuples.
    pub(super) async fn conntrack(&self) -> Result<Seen, DemoError> {
        let entries = self.daemon.connections().await?;
        let out = entries.iter().find(|entry| self.is_get_out(entry));
        let published = entries.iter().find(|entry| self.is_get_in(entry));
        let ok = out.is_some() && published.is_some();
        let shown: Vec<&Connection> = match (out, published) {
            (Some(out), Some(published)) => vec![out, published],
            // What is there instead tells more.
            _ => entries.iter().take(LOG_LINES).collect(),
        };
        let lines: Vec<String> = shown.into_iter().map(line_of).collect();
        Ok(Seen::new(ok, text_of(&lines, "no connection is tracked")))
    }

    fn is_get_out(&self, entry: &Connection) -> bool {
        entry.nat == NatKind::Snat
            && entry.proto == IpProtocol::TCP
            && entry.orig.src == IpAddr::V4(self.client_ip)
            && (entry.orig.dst, entry.orig.dport) == (IpAddr::V4(SERVER), HTTP_PORT)
            && (entry.reply.src, entry.reply.sport) == (IpAddr::V4(SERVER), HTTP_PORT)
            && entry.reply.dst == IpAddr::V4(HOST)
    }

    fn is_get_in(&self, entry: &Connection) -> bool {
        entry.nat == NatKind::Dnat
            && entry.proto == IpProtocol::TCP
            && (entry.orig.dst, entry.orig.dport) == (IpAddr::V4(HOST), PUBLISHED_PORT)
            && (entry.reply.src, entry.reply.sport) == (IpAddr::V4(self.web_ip), HTTP_PORT)
            && (entry.reply.dst, entry.reply.dport) == (entry.orig.src, entry.orig.sport)
    }
}

/// Serves at `listen` in one namespace and GETs `url` from another: the answer, and the client as
/// the server saw it.
fn exchange(
    server: &Netns,
    listen: SocketAddr,
    client: &Netns,
    url: SocketAddr,
) -> Result<(http::Reply, SocketAddr), DemoError> {
    let serving = Server::start(server, listen, "hello")?
        .map_err(|source| DemoError::Io { action: format!("serve HTTP at {listen}"), source })?;
    let reply = client
        .run(|| http::get(url))?
        .map_err(|source| DemoError::Io { action: format!("GET http://{url}/"), source })?;
    let seen = serving.next_client().map_err(|error| DemoError::Io {
        action: format!("serve HTTP at {listen}"),
        source: std::io::Error::other(error),
    })?;
    Ok((reply, seen))
}

/// The message with the end of the daemon's log, if it has written one.
pub(super) fn with_log(message: &str, lab: &Lab) -> String {
    let log = fs::read_to_string(log_path(lab)).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let tail = lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default();
    let mut text = message.to_owned();
    for line in tail {
        text.push_str("\nvswitchd: ");
        text.push_str(line);
    }
    text
}

fn path_of(lab: &Lab, role: &str) -> Result<String, DemoError> {
    Ok(netns::path_of(&lab.name_of(role))?.display().to_string())
}

fn ipv4_of(sandbox: &Sandbox) -> Result<Ipv4Addr, DemoError> {
    sandbox
        .endpoints
        .iter()
        .find_map(|endpoint| endpoint.ipv4)
        .ok_or_else(|| DemoError::Daemon(format!("sandbox {} has no IPv4 address", sandbox.name)))
}

fn line_of(entry: &Connection) -> String {
    let tuple = |t: &Tuple| format!("{}:{} -> {}:{}", t.src, t.sport, t.dst, t.dport);
    let nat = format!("{:?}", entry.nat).to_lowercase();
    format!(
        "{} {} {nat}: {}, reply {}",
        entry.proto,
        entry.state,
        tuple(&entry.orig),
        tuple(&entry.reply)
    )
}

fn text_of(lines: &[String], empty: &str) -> String {
    if lines.is_empty() { empty.to_owned() } else { lines.join("\n") }
}
