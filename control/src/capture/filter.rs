//! Capture filters: the everyday part of the language of tcpdump (pcap-filter(7)).
//!
//! As there, `and` and `or` bind equally and from left to right, `not` binds tightest, and an
//! address, prefix or port alone takes the qualifiers of the primitive before it
//! (`tcp dst port 80 or 443`). Unlike there, `vlan` does not move the rest of the expression: the
//! primitives always look behind all tags.
//!
//! Expressions come from users: length and nesting are limited, errors are one line.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use dataplane::packet::types::{Mac, ethertype, ip_proto};
use ipnet::IpNet;

use super::view::{NetView, View};
use crate::error::{Error, Result};

/// Longest expression, in bytes.
const MAX_LEN: usize = 4096;

/// Deepest nesting of parentheses and negations.
const MAX_DEPTH: usize = 32;

/// A filter that has been read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    root: Expr,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Expr {
    And(Box<Expr>, Box<Expr>),
    Not(Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Test(Test),
}

/// Which side of the conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Side {
    #[default]
    Either,
    Source,
    Destination,
}

/// What must be in the frame, whatever its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Arp,
    Icmp,
    Icmp6,
    Ip,
    Ip6,
    Sctp,
    Tcp,
    Udp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    EtherBroadcast,
    EtherHost(Side, Mac),
    EtherMulticast,
    Greater(u32),
    Less(u32),
    /// A host is a prefix of full length.
    Net(Side, IpNet),
    Ports(Side, u16, u16),
    Protocol(Protocol),
    Vlan(Option<u16>),
}

impl Filter {
    /// Whether the frame is one of those asked for.
    #[must_use]
    pub fn matches(&self, view: &View) -> bool {
        self.root.matches(view)
    }
}

impl FromStr for Filter {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let fault = |fault: String| Error::invalid(format!("filter {text:?}: {fault}"));
        if text.len() > MAX_LEN {
            return Err(Error::invalid(format!("filter: longer than {MAX_LEN} bytes")));
        }
        let mut parser = Parser { words: words(text), at: 0, last: Qualifiers::default() };
        let root = parser.expression(0).map_err(fault)?;
        match parser.peek() {
            None => Ok(Self { root }),
            Some(")") => Err(fault("')' without '('".to_owned())),
            Some(word) => Err(fault(format!("{word:?} follows where 'and' or 'or' is expected"))),
        }
    }
}

impl Expr {
    fn matches(&self, view: &View) -> bool {
        match self {
            Self::And(a, b) => a.matches(view) && b.matches(view),
            Self::Not(a) => !a.matches(view),
            Self::Or(a, b) => a.matches(view) || b.matches(view),
            Self::Test(test) => test.matches(view),
        }
    }
}

impl Side {
    /// Applies `test` to the side or sides that count.
    fn any<T: Copy>(self, (src, dst): (T, T), test: impl Fn(T) -> bool) -> bool {
        match self {
            Self::Either => test(src) || test(dst),
            Self::Source => test(src),
            Self::Destination => test(dst),
        }
    }
}

impl Test {
    fn matches(&self, view: &View) -> bool {
        match self {
            Self::EtherBroadcast => view.macs.is_some_and(|(_, dst)| dst.is_broadcast()),
            Self::EtherHost(side, mac) => {
                view.macs.is_some_and(|macs| side.any(macs, |have| have == *mac))
            }
            Self::EtherMulticast => view.macs.is_some_and(|(_, dst)| dst.is_multicast()),
            Self::Greater(len) => view.len >= *len,
            Self::Less(len) => view.len <= *len,
            Self::Net(side, net) => match view.net {
                NetView::Arp { sender, target, .. } => {
                    side.any((sender, target), |address| net.contains(&address))
                }
                NetView::Ip { src, dst, .. } => {
                    side.any((src, dst), |address| net.contains(&address))
                }
                NetView::Other => false,
            },
            Self::Ports(side, first, last) => view
                .ports
                .is_some_and(|ports| side.any(ports, |port| (*first..=*last).contains(&port))),
            Self::Protocol(protocol) => protocol.matches(view),
            Self::Vlan(None) => !view.vlans.is_empty(),
            Self::Vlan(Some(id)) => view.vlans.contains(id),
        }
    }
}

impl Protocol {
    fn matches(self, view: &View) -> bool {
        let proto = match view.net {
            NetView::Ip { proto, .. } => Some(proto),
            _ => None,
        };
        match self {
            Self::Arp => view.ethertype == Some(ethertype::ARP),
            Self::Icmp => proto == Some(ip_proto::ICMP),
            Self::Icmp6 => proto == Some(ip_proto::ICMPV6),
            Self::Ip => view.ethertype == Some(ethertype::IPV4),
            Self::Ip6 => view.ethertype == Some(ethertype::IPV6),
            Self::Sctp => proto == Some(ip_proto::SCTP),
            Self::Tcp => proto == Some(ip_proto::TCP),
            Self::Udp => proto == Some(ip_proto::UDP),
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "arp" => Self::Arp,
            "icmp" => Self::Icmp,
            "icmp6" => Self::Icmp6,
            "ip" => Self::Ip,
            "ip6" => Self::Ip6,
            "sctp" => Self::Sctp,
            "tcp" => Self::Tcp,
            "udp" => Self::Udp,
            _ => return None,
        })
    }
}

/// Splits at blanks; parentheses and operators are words of their own.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let len = if rest.starts_with("&&") || rest.starts_with("||") {
            2
        } else if rest.starts_with(['(', ')', '!']) {
            1
        } else {
            let end = |c: char| c.is_whitespace() || matches!(c, '(' | ')' | '!' | '&' | '|');
            // A lone '&' or '|' is a word of its own, to be complained about.
            rest.find(end).map_or(rest.len(), |at| at.max(1))
        };
        let (word, tail) = rest.split_at(len);
        words.push(word);
        rest = tail.trim_start();
    }
    words
}

/// What kind of thing a bare value is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    EtherHost,
    #[default]
    Host,
    Net,
    Port,
    PortRange,
}

/// What stands before a value.
#[derive(Clone, Copy, Debug, Default)]
struct Qualifiers {
    protocol: Option<Protocol>,
    ether: bool,
    side: Side,
    kind: Option<Kind>,
}

struct Parser<'a> {
    words: Vec<&'a str>,
    at: usize,
    /// Those of the primitive before.
    last: Qualifiers,
}

/// What is wrong, without the expression.
type Fault = String;

impl<'a> Parser<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.words.get(self.at).copied()
    }

    fn next(&mut self) -> Option<&'a str> {
        let word = self.peek()?;
        self.at += 1;
        Some(word)
    }

    fn expression(&mut self, depth: usize) -> std::result::Result<Expr, Fault> {
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        let mut left = self.term(depth)?;
        loop {
            let and = match self.peek() {
                Some("and" | "&&") => true,
                Some("or" | "||") => false,
                _ => return Ok(left),
            };
            self.at += 1;
            let right = self.term(depth)?;
            let (left_box, right_box) = (Box::new(left), Box::new(right));
            left = if and { Expr::And(left_box, right_box) } else { Expr::Or(left_box, right_box) };
        }
    }

    fn term(&mut self, depth: usize) -> std::result::Result<Expr, Fault> {
        if depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        match self.peek() {
            None => Err("ends where a condition is expected".to_owned()),
            Some("not" | "!") => {
                self.at += 1;
                Ok(Expr::Not(Box::new(self.term(depth + 1)?)))
            }
            Some("(") => {
                self.at += 1;
                let inner = self.expression(depth + 1)?;
                match self.next() {
                    Some(")") => Ok(inner),
                    Some(word) => Err(format!("{word:?} follows where ')' is expected")),
                    None => Err("'(' without ')'".to_owned()),
                }
            }
            Some(_) => self.primitive(),
        }
    }

    /// `[PROTOCOL] [src|dst] [KIND] VALUE`, or a condition without a value.
    fn primitive(&mut self) -> std::result::Result<Expr, Fault> {
        if let Some(test) = self.lone()? {
            return Ok(Expr::Test(test));
        }
        let mut found = Qualifiers::default();
        let start = self.at;
        if let Some(protocol) = self.peek().and_then(Protocol::from_word) {
            found.protocol = Some(protocol);
            self.at += 1;
        } else if self.peek() == Some("ether") {
            found.ether = true;
            self.at += 1;
        }
        match self.peek() {
            Some("src") => found.side = Side::Source,
            Some("dst") => found.side = Side::Destination,
            _ => {}
        }
        self.at += usize::from(found.side != Side::Either);
        found.kind = match self.peek() {
            Some("host") => Some(if found.ether { Kind::EtherHost } else { Kind::Host }),
            Some("net") => Some(Kind::Net),
            Some("port") => Some(Kind::Port),
            Some("portrange") => Some(Kind::PortRange),
            _ => None,
        };
        self.at += usize::from(found.kind.is_some());
        if found.ether && !matches!(found.kind, None | Some(Kind::EtherHost)) {
            return Err("'ether' takes host, src, dst, broadcast or multicast".to_owned());
        }
        if found.ether {
            found.kind = Some(Kind::EtherHost);
        }
        let bare = self.at == start;
        if let Some(protocol) = found.protocol
            && self.at == start + 1
            && self.peek().is_none_or(|word| !value_like(word))
        {
            return Ok(Expr::Test(Test::Protocol(protocol)));
        }
        if bare {
            found = self.last;
        }
        let value = self.next().filter(|word| !is_operator(word)).ok_or_else(|| {
            let before = self.words.get(self.at.saturating_sub(2)).copied().unwrap_or_default();
            format!("a value is missing after {before:?}")
        })?;
        if bare && !value_like(value) {
            return Err(unknown(value));
        }
        let test = value_test(found, value)?;
        self.last = found;
        let test = Expr::Test(test);
        Ok(match found.protocol {
            None => test,
            Some(protocol) => {
                Expr::And(Box::new(Expr::Test(Test::Protocol(protocol))), Box::new(test))
            }
        })
    }

    /// Conditions that take no address, prefix or port.
    fn lone(&mut self) -> std::result::Result<Option<Test>, Fault> {
        let number = |word: Option<&str>, what: &str| {
            let word = word.unwrap_or_default();
            word.parse::<u32>().map_err(|_| format!("{what} needs a number, not {word:?}"))
        };
        let (test, len) = match (self.peek(), self.words.get(self.at + 1).copied()) {
            (Some("ether"), Some("broadcast")) => (Test::EtherBroadcast, 2),
            (Some("ether"), Some("multicast")) => (Test::EtherMulticast, 2),
            (Some("broadcast"), _) => (Test::EtherBroadcast, 1),
            (Some("multicast"), _) => (Test::EtherMulticast, 1),
            (Some("less"), word) => (Test::Less(number(word, "less")?), 2),
            (Some("greater"), word) => (Test::Greater(number(word, "greater")?), 2),
            (Some("vlan"), Some(word)) if word.bytes().all(|b| b.is_ascii_digit()) => {
                let id = word.parse().ok().filter(|id| *id <= 4095);
                (Test::Vlan(Some(id.ok_or_else(|| format!("vlan {word}: not 0 to 4095"))?)), 2)
            }
            (Some("vlan"), _) => (Test::Vlan(None), 1),
            _ => return Ok(None),
        };
        self.at += len;
        Ok(Some(test))
    }
}

fn is_operator(word: &&str) -> bool {
    matches!(*word, "(" | ")" | "!" | "&&" | "||" | "and" | "or" | "not")
}

/// Whether a word looks like an address, prefix, MAC or port, and not like a misspelt keyword.
fn value_like(word: &str) -> bool {
    word.starts_with(|c: char| c.is_ascii_digit()) || word.contains(':')
}

fn unknown(word: &str) -> Fault {
    format!(
        "{word:?} is not known; known are host, net, port, portrange, src, dst, ether, vlan, ip, \
         ip6, arp, icmp, icmp6, tcp, udp, sctp, broadcast, multicast, less, greater, and, or, not"
    )
}

fn value_test(qualifiers: Qualifiers, value: &str) -> std::result::Result<Test, Fault> {
    let side = qualifiers.side;
    let kind = qualifiers.kind.unwrap_or_else(|| {
        // As tcpdump: a prefix alone is a net, anything else a host.
        if value.contains('/') { Kind::Net } else { Kind::Host }
    });
    match kind {
        Kind::EtherHost => match value.parse() {
            Ok(mac) => Ok(Test::EtherHost(side, mac)),
            Err(_) => Err(format!("{value:?} is not a MAC address")),
        },
        Kind::Host => match value.parse::<IpAddr>() {
            Ok(address) => Ok(Test::Net(side, address.into())),
            Err(_) => Err(format!("{value:?} is not an IP address")),
        },
        Kind::Net => {
            let net = value.parse::<IpNet>().or_else(|_| value.parse::<IpAddr>().map(IpNet::from));
            let net = net.map_err(|_| format!("{value:?} is not a prefix like 10.20.0.0/16"))?;
            Ok(Test::Net(side, net.trunc()))
        }
        Kind::Port => port(value).map(|port| Test::Ports(side, port, port)),
        Kind::PortRange => {
            let (first, last) = value
                .split_once('-')
                .ok_or_else(|| format!("{value:?} is not a range of ports like 8000-8010"))?;
            let (first, last) = (port(first)?, port(last)?);
            Ok(Test::Ports(side, first.min(last), first.max(last)))
        }
    }
}

fn port(text: &str) -> std::result::Result<u16, Fault> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|_| digits)
        .ok_or_else(|| format!("{text:?} is not a port number from 0 to 65535"))
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.root, f)
    }
}

impl fmt::Display for Expr {
    /// Every operation in parentheses, so that no precedence is needed to read it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::And(a, b) => write!(f, "({a} and {b})"),
            Self::Not(a) => write!(f, "not {a}"),
            Self::Or(a, b) => write!(f, "({a} or {b})"),
            Self::Test(test) => fmt::Display::fmt(test, f),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Either => "",
            Self::Source => "src ",
            Self::Destination => "dst ",
        })
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EtherBroadcast => f.write_str("ether broadcast"),
            Self::EtherHost(side, mac) => write!(f, "ether {side}host {mac}"),
            Self::EtherMulticast => f.write_str("ether multicast"),
            Self::Greater(len) => write!(f, "greater {len}"),
            Self::Less(len) => write!(f, "less {len}"),
            Self::Net(side, net) => write!(f, "{side}net {net}"),
            Self::Ports(side, first, last) => write!(f, "{side}portrange {first}-{last}"),
            Self::Protocol(protocol) => f.write_str(match protocol {
                Protocol::Arp => "arp",
                Protocol::Icmp => "icmp",
                Protocol::Icmp6 => "icmp6",
                Protocol::Ip => "ip",
                Protocol::Ip6 => "ip6",
                Protocol::Sctp => "sctp",
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
            }),
            Self::Vlan(None) => f.write_str("vlan"),
            Self::Vlan(Some(id)) => write!(f, "vlan {id}"),
        }
    }
}

#[cfg(test)]
mod tests;
