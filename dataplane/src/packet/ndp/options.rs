//! The options of neighbor discovery messages (RFC 4861 §4.6, RFC 8106 §5.1).

use std::net::Ipv6Addr;

use super::super::field::{chunk, write};
use super::super::types::Mac;

pub(crate) const SOURCE_LINK: u8 = 1;
pub(crate) const TARGET_LINK: u8 = 2;
const PREFIX: u8 = 3;
const REDIRECTED: u8 = 4;
const MTU: u8 = 5;
const RDNSS: u8 = 25;

/// The unit of an option's length.
const UNIT: usize = 8;
/// The longest option, which its length field can just say.
const MAX_UNITS: usize = u8::MAX as usize;
/// Bytes of a prefix information option.
const PREFIX_LEN: usize = 32;
/// Bits of one (RFC 4861 §4.6.2).
const ON_LINK: u8 = 0x80;
const AUTONOMOUS: u8 = 0x40;

/// What a router says of a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PrefixInfo {
    /// The prefix.
    pub prefix: Ipv6Addr,
    /// Its bits, at most 128.
    pub len: u8,
    /// Its addresses are on the link.
    pub on_link: bool,
    /// Hosts may make addresses of it (RFC 4862).
    pub autonomous: bool,
    /// Seconds for which it is on the link; all ones for ever.
    pub valid: u32,
    /// Seconds for which addresses made of it are preferred; all ones for ever.
    pub preferred: u32,
}

/// One option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NdpOption<'a> {
    /// The MTU that all on the link should use.
    Mtu(u32),
    /// One that is not for us, or a known one of a form that is not: its number. Skipped when
    /// written.
    Other(u8),
    /// A prefix.
    Prefix(PrefixInfo),
    /// Name servers (RFC 8106 §5.1).
    Rdnss {
        /// Seconds for which they serve; zero: no longer.
        lifetime: u32,
        /// Their addresses, at least one. More than 127 do not fit and are left out when written.
        servers: &'a [[u8; 16]],
    },
    /// The packet that a redirect is about, as far as it fits; it is filled up with zeros.
    Redirected(&'a [u8]),
    /// The MAC of the sender.
    SourceLink(Mac),
    /// The MAC of the target.
    TargetLink(Mac),
}

impl<'a> NdpOption<'a> {
    /// `option` is one whole option, as long as it says.
    fn read(option: &'a [u8]) -> Option<Self> {
        let (&[kind, _], rest) = option.split_first_chunk::<2>()?;
        let mac = || (option.len() == UNIT).then(|| chunk(rest, 0).map(|mac| Mac(*mac))).flatten();
        Some(match kind {
            // Another length is another kind of link, which nothing about it tells.
            SOURCE_LINK => Self::SourceLink(mac()?),
            TARGET_LINK => Self::TargetLink(mac()?),
            PREFIX if option.len() == PREFIX_LEN => match Self::read_prefix(rest)? {
                prefix if prefix.len <= 128 => Self::Prefix(prefix),
                _ => Self::Other(kind),
            },
            REDIRECTED => Self::Redirected(rest.get(6..)?),
            MTU if option.len() == UNIT => Self::Mtu(u32::from_be_bytes(*chunk(rest, 2)?)),
            RDNSS => match rest.get(6..).unwrap_or_default().as_chunks::<16>() {
                (servers @ [_, ..], []) => {
                    Self::Rdnss { lifetime: u32::from_be_bytes(*chunk(rest, 2)?), servers }
                }
                _ => Self::Other(kind),
            },
            kind => Self::Other(kind),
        })
    }

    fn read_prefix(rest: &[u8]) -> Option<PrefixInfo> {
        let &[len, flags] = chunk(rest, 0)?;
        Some(PrefixInfo {
            prefix: Ipv6Addr::from_octets(*chunk(rest, 14)?),
            len,
            on_link: flags & ON_LINK != 0,
            autonomous: flags & AUTONOMOUS != 0,
            valid: u32::from_be_bytes(*chunk(rest, 2)?),
            preferred: u32::from_be_bytes(*chunk(rest, 6)?),
        })
    }

    /// Its number, and its length in units.
    fn shape(&self) -> (u8, u8) {
        let units = |bytes: usize| u8::try_from(bytes.div_ceil(UNIT)).unwrap_or(u8::MAX);
        match *self {
            Self::Mtu(_) => (MTU, 1),
            Self::Other(kind) => (kind, 0),
            Self::Prefix(_) => (PREFIX, 4),
            Self::Rdnss { servers, .. } => (RDNSS, units(UNIT + fitting(servers).len() * 16)),
            Self::Redirected(packet) => (REDIRECTED, units(UNIT + packet.len())),
            Self::SourceLink(_) => (SOURCE_LINK, 1),
            Self::TargetLink(_) => (TARGET_LINK, 1),
        }
    }

    /// Bytes of the option as it is written.
    pub(super) fn wire_len(&self) -> usize {
        usize::from(self.shape().1) * UNIT
    }

    /// Writes the option to the begin of `to`, which holds zeros.
    pub(super) fn write(&self, to: &mut [u8]) {
        let Some(option) = to.get_mut(..self.wire_len()) else { return };
        let (kind, units) = self.shape();
        write(option, 0, [kind, units]);
        match *self {
            Self::Mtu(mtu) => {
                write(option, 4, mtu.to_be_bytes());
            }
            Self::Other(_) => {}
            Self::Prefix(info) => {
                let on_link = if info.on_link { ON_LINK } else { 0 };
                let autonomous = if info.autonomous { AUTONOMOUS } else { 0 };
                write(option, 2, [info.len, on_link | autonomous]);
                write(option, 4, info.valid.to_be_bytes());
                write(option, 8, info.preferred.to_be_bytes());
                write(option, 16, info.prefix.octets());
            }
            Self::Rdnss { lifetime, servers } => {
                write(option, 4, lifetime.to_be_bytes());
                for (number, server) in fitting(servers).iter().enumerate() {
                    write(option, UNIT + number * 16, *server);
                }
            }
            Self::Redirected(packet) => {
                let room = option.get_mut(UNIT..).unwrap_or_default();
                for (to, from) in room.iter_mut().zip(packet) {
                    *to = *from;
                }
            }
            Self::SourceLink(mac) | Self::TargetLink(mac) => {
                write(option, 2, mac.0);
            }
        }
    }
}

/// The name servers for which one option has room.
fn fitting(servers: &[[u8; 16]]) -> &[[u8; 16]] {
    servers.get(..servers.len().min((MAX_UNITS - 1) / 2)).unwrap_or_default()
}

/// The options of a message, each of them sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options<'a>(&'a [u8]);

impl<'a> Options<'a> {
    /// `None`: one of them has no length (RFC 4861 §4.6), ends behind the message, or holds a link
    /// address that is no MAC.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut rest = bytes;
        while !rest.is_empty() {
            let (option, behind) = split_first(rest)?;
            NdpOption::read(option)?;
            rest = behind;
        }
        Some(Self(bytes))
    }

    /// All of them in their order.
    pub fn iter(&self) -> impl Iterator<Item = NdpOption<'a>> + use<'a> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let (option, behind) = split_first(rest)?;
            rest = behind;
            NdpOption::read(option)
        })
    }

    /// The MAC that the sender says it has; the first of several, as Linux takes it.
    #[must_use]
    pub fn source_link(&self) -> Option<Mac> {
        self.iter().find_map(|option| match option {
            NdpOption::SourceLink(mac) => Some(mac),
            _ => None,
        })
    }

    /// The MAC that the target is said to have; the first of several.
    #[must_use]
    pub fn target_link(&self) -> Option<Mac> {
        self.iter().find_map(|option| match option {
            NdpOption::TargetLink(mac) => Some(mac),
            _ => None,
        })
    }
}

/// The first option and what follows.
fn split_first(options: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::from(*options.get(1)?) * UNIT;
    if length == 0 { None } else { options.split_at_checked(length) }
}
