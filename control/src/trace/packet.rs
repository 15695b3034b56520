//! A packet in words: `tcp 10.20.1.2:40000 > 203.0.113.2:80 syn`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use crate::api::types::MacAddr;
use crate::error::{Error, Result};

/// What it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carried {
    /// An ICMP or ICMPv6 echo.
    Echo {
        /// Not the answer.
        request: bool,
        /// Identifier.
        id: u16,
    },
    /// A TCP segment.
    Tcp {
        /// As in the header.
        flags: u8,
        /// Sequence number.
        seq: u32,
        /// Acknowledgment number.
        ack: u32,
        /// Window.
        window: u16,
    },
    /// The first packet of an SCTP association: INIT.
    Sctp {
        /// The tag that its sender wants to be spoken to with.
        tag: u32,
    },
    /// A datagram.
    Udp,
}

/// A packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Source; port 0 for an echo.
    pub src: SocketAddr,
    /// Destination; port 0 for an echo.
    pub dst: SocketAddr,
    /// What it carries.
    pub carried: Carried,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes behind the transport header.
    pub len: u16,
    /// Don't fragment.
    pub df: bool,
    /// Source MAC, if said.
    pub from: Option<MacAddr>,
    /// Destination MAC, if said.
    pub to: Option<MacAddr>,
}

/// The bytes of a packet that fit into the largest frame of a TAP, with room for all headers.
const MAX_LEN: u16 = 65_400;

const FLAGS: [(&str, u8); 6] =
    [("fin", 1), ("syn", 2), ("rst", 4), ("psh", 8), ("ack", 16), ("urg", 32)];

/// What may follow source and destination.
const WORDS: &str = "fin, syn, rst, psh, ack [N], urg, seq N, win N, id N, tag N, ttl N, len N, \
                     df, from MAC and to MAC";

fn invalid(text: impl fmt::Display) -> Error {
    Error::invalid(format!("packet: {text}"))
}

fn number<T: FromStr>(word: &str, value: Option<&str>) -> Result<T> {
    let value = value.ok_or_else(|| invalid(format_args!("{word:?} needs a value")))?;
    value.parse().map_err(|_| invalid(format_args!("{word} {value:?} is no number that fits")))
}

fn mac(word: &str, value: Option<&str>) -> Result<MacAddr> {
    let value = value.ok_or_else(|| invalid(format_args!("{word:?} needs a MAC address")))?;
    value.parse().map_err(|error: Error| invalid(format_args!("{word}: {error}")))
}

fn end(text: Option<&str>, with_port: bool, which: &str) -> Result<SocketAddr> {
    let text = text.ok_or_else(|| invalid(format_args!("the {which} is missing")))?;
    let found = if with_port {
        text.parse().ok()
    } else {
        text.parse().ok().map(|address: IpAddr| SocketAddr::new(address, 0))
    };
    let form = if with_port { "ADDRESS:PORT, or [ADDRESS]:PORT of IPv6" } else { "an address" };
    found.ok_or_else(|| invalid(format_args!("{which} {text:?} is not {form}")))
}

impl FromStr for Packet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split_whitespace().peekable();
        let mut carried = match words.next() {
            Some("tcp") => Carried::Tcp { flags: 0, seq: 0, ack: 0, window: 65_535 },
            Some("udp") => Carried::Udp,
            Some("sctp") => Carried::Sctp { tag: 1 },
            Some("icmp") => match words.next() {
                Some("echo") => Carried::Echo { request: true, id: 1 },
                Some("reply") => Carried::Echo { request: false, id: 1 },
                other => {
                    let got = other.unwrap_or_default();
                    return Err(invalid(format_args!("icmp {got:?} is neither echo nor reply")));
                }
            },
            Some(other) => {
                return Err(invalid(format_args!("{other:?} is none of tcp, udp, sctp and icmp")));
            }
            None => return Err(invalid("begins with tcp, udp, sctp or icmp echo")),
        };
        let with_port = !matches!(carried, Carried::Echo { .. });
        let src = end(words.next(), with_port, "source")?;
        // A shell takes `>` away unless it is quoted, and with it the word that follows.
        words.next_if_eq(&">");
        let dst = end(words.next(), with_port, "destination").map_err(|error| {
            Error::new(
                error.kind,
                format!("{}; quote the packet, or its '>', for the shell", error.message),
            )
        })?;
        if src.is_ipv4() != dst.is_ipv4() {
            return Err(invalid("source and destination are of two families"));
        }
        let mut packet =
            Self { src, dst, carried, ttl: 64, len: 0, df: false, from: None, to: None };
        while let Some(word) = words.next() {
            if let Carried::Tcp { flags, seq, ack, window } = &mut carried {
                if let Some((_, flag)) = FLAGS.iter().find(|(name, _)| *name == word) {
                    *flags |= flag;
                    let begins_with_digit =
                        |next: &&str| next.starts_with(|c: char| c.is_ascii_digit());
                    if word == "ack"
                        && let Some(next) = words.next_if(begins_with_digit)
                    {
                        *ack = number(word, Some(next))?;
                    }
                    continue;
                }
                match word {
                    "seq" => {
                        *seq = number(word, words.next())?;
                        continue;
                    }
                    "win" => {
                        *window = number(word, words.next())?;
                        continue;
                    }
                    _ => {}
                }
            }
            match (word, &mut carried) {
                ("id", Carried::Echo { id, .. }) => *id = number(word, words.next())?,
                ("tag", Carried::Sctp { tag }) => *tag = number(word, words.next())?,
                ("ttl", _) => packet.ttl = number(word, words.next())?,
                ("len", _) => packet.len = number(word, words.next())?,
                ("df", _) => packet.df = true,
                ("from", _) => packet.from = Some(mac(word, words.next())?),
                ("to", _) => packet.to = Some(mac(word, words.next())?),
                (other, _) => {
                    return Err(invalid(format_args!(
                        "{other:?} is not known here; known are {WORDS}"
                    )));
                }
            }
        }
        if packet.len > MAX_LEN {
            return Err(invalid(format_args!("len {} is more than {MAX_LEN}", packet.len)));
        }
        if let Carried::Tcp { flags: flags @ 0, .. } = &mut carried {
            *flags = 2;
        }
        Ok(Self { carried, ..packet })
    }
}

/// The same as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketText {
    text: String,
    packet: Packet,
}

impl PacketText {
    /// What it says.
    #[must_use]
    pub const fn packet(&self) -> &Packet {
        &self.packet
    }
}

impl fmt::Display for PacketText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for PacketText {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(Self { text: text.to_owned(), packet: text.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Packet {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn packets_in_words() {
        let syn = parse("tcp 10.20.1.2:40000 > 203.0.113.2:80 syn");
        assert_eq!(syn.src, "10.20.1.2:40000".parse().unwrap());
        assert_eq!(syn.dst, "203.0.113.2:80".parse().unwrap());
        assert_eq!(syn.carried, Carried::Tcp { flags: 2, seq: 0, ack: 0, window: 65_535 });
        assert_eq!((syn.ttl, syn.len, syn.df, syn.from), (64, 0, false, None));
        assert_eq!(parse("tcp 10.20.1.2:40000 203.0.113.2:80"), syn, "no flag is a SYN");
        let data = parse("tcp 10.0.0.1:1 > 10.0.0.2:2 psh ack 77 seq 5 win 10 len 9 df ttl 3");
        assert_eq!(data.carried, Carried::Tcp { flags: 24, seq: 5, ack: 77, window: 10 });
        assert_eq!((data.ttl, data.len, data.df), (3, 9, true));
        let bare = parse("tcp 10.0.0.1:1 > 10.0.0.2:2 ack fin");
        assert_eq!(bare.carried, Carried::Tcp { flags: 17, seq: 0, ack: 0, window: 65_535 });
        let init = parse("sctp 10.0.0.1:5 > 10.0.0.2:36412 tag 77");
        assert_eq!(init.carried, Carried::Sctp { tag: 77 });
        let six = parse("udp [2001:db8::1]:5 > [2001:db8::2]:53 from 02:00:00:00:00:01");
        assert!(six.src.is_ipv6() && six.carried == Carried::Udp && six.from.is_some());
        let echo = parse("icmp echo 10.0.0.1 > 10.0.0.2 id 9 to ff:ff:ff:ff:ff:ff");
        assert_eq!(echo.carried, Carried::Echo { request: true, id: 9 });
        assert!(matches!(
            parse("icmp reply 10.0.0.1 > 10.0.0.2").carried,
            Carried::Echo { request: false, id: 1 }
        ));
    }

    #[test]
    fn faults_are_named() {
        for (text, fault) in [
            ("", "begins with tcp, udp, sctp or icmp echo"),
            ("gre 10.0.0.1:1 > 10.0.0.2:2", "\"gre\" is none of tcp, udp, sctp and icmp"),
            ("sctp 10.0.0.1 > 10.0.0.2:2", "source \"10.0.0.1\" is not ADDRESS:PORT"),
            ("udp 10.0.0.1:1 > 10.0.0.2:2 tag 1", "\"tag\" is not known here"),
            ("icmp 10.0.0.1 > 10.0.0.2", "neither echo nor reply"),
            ("tcp", "the source is missing"),
            ("tcp 10.0.0.1 > 10.0.0.2:2", "source \"10.0.0.1\" is not ADDRESS:PORT"),
            (
                "tcp 10.0.0.1:1 syn",
                "destination \"syn\" is not ADDRESS:PORT, or [ADDRESS]:PORT of IPv6; quote",
            ),
            ("tcp 10.0.0.1:1", "the destination is missing; quote the packet"),
            ("udp 10.0.0.1:1 > [::1]:2", "two families"),
            ("udp 10.0.0.1:1 > 10.0.0.2:2 syn", "\"syn\" is not known here"),
            ("udp 10.0.0.1:1 > 10.0.0.2:2 ttl 256", "ttl \"256\" is no number that fits"),
            ("udp 10.0.0.1:1 > 10.0.0.2:2 ttl", "\"ttl\" needs a value"),
            ("udp 10.0.0.1:1 > 10.0.0.2:2 len 65401", "len 65401 is more than 65400"),
            ("udp 10.0.0.1:1 > 10.0.0.2:2 from x", "from: "),
            ("udp 10.0.0.1:65536 > 10.0.0.2:2", "is not ADDRESS:PORT"),
        ] {
            let error = text.parse::<Packet>().unwrap_err();
            assert!(error.message.contains(fault), "{text}: {}", error.message);
            assert_eq!(error.exit_code(), 2);
        }
    }
}
