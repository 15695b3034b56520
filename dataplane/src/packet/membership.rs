//! What hosts and routers say about multicast groups: IGMP (RFC 1112, 2236, 3376), MLD (RFC 2710, 3810), and
//! that somebody speaks PIM (RFC 7761); and the queries of a querier.
//!
//! Sources of source-specific reports are not kept: who wants a group from some source is a member.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::{Sum, ipv4_header_is_valid, pseudo_ipv6};
use super::field::{chunk, read_u16, write_u16};
use super::headers::{Chain, Headers, Ipv4, Ipv6, L4, Net};
use super::ndp;
use super::parse::{ETH_LEN, IPV4_LEN, IPV6_LEN};
use super::types::{Mac, ethertype, ip_proto, ip6_extensions};
use crate::frame::Frame;

const PIM: u8 = 103;

const IGMP_QUERY: u8 = 0x11;
const IGMP_REPORT1: u8 = 0x12;
const IGMP_REPORT2: u8 = 0x16;
const IGMP_LEAVE: u8 = 0x17;
const IGMP_REPORT3: u8 = 0x22;
const MLD_QUERY: u8 = 130;
const MLD_REPORT: u8 = 131;
const MLD_DONE: u8 = 132;
const MLD_REPORT2: u8 = 143;

/// RFC 3376 §8.1 and §8.2, RFC 3810 §9.1 and §9.2: robustness variable, query interval in seconds.
pub(crate) const ROBUSTNESS: u8 = 2;
pub(crate) const QUERY_INTERVAL: u8 = 125;
/// RFC 3376 §8.3: query response interval, in seconds.
pub(crate) const RESPONSE: u8 = 10;
/// RFC 3376 §8.8: last member query interval, in seconds; it is asked for [`ROBUSTNESS`] of them.
pub(crate) const LAST_MEMBER: u8 = 1;
/// As long as queries may fail to come, in seconds, if they do not say so themselves.
const RENEWAL: u32 = ROBUSTNESS as u32 * QUERY_INTERVAL as u32;

/// `224.0.0.1` and `ff02::1`.
const ALL_HOSTS: Ipv4Addr = Ipv4Addr::new(224, 0, 0, 1);

/// What a packet for many says of multicast groups.
#[derive(Debug)]
pub(crate) enum Message<'a> {
    /// A router asks who is in a group, or in any.
    Query(Query),
    /// A host says what groups it is in, or leaves.
    Report(Records<'a>),
    /// Somebody speaks PIM.
    Router,
    /// IGMP of another kind: whoever knows it gets it (RFC 4541 §2.1.1).
    Unknown,
    /// IGMP or MLD that nobody may send, or that says nothing certain: in a fragment, with a wrong checksum, cut
    /// short, MLD from afar.
    Malformed,
    /// Nothing.
    None,
}

/// What a router asks, and what follows for those who do not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Query {
    /// `None`: all groups.
    pub(crate) group: Option<IpAddr>,
    /// It has an address, so that it can be a router's. Switches ask without one.
    pub(crate) is_router: bool,
    /// Every member of the group answers. Not who is in it for other sources than those asked for
    /// (RFC 3376 §6.6.1), and nobody counts where the sender tells routers not to (§4.1.5).
    pub(crate) counts: bool,
    /// Seconds to answer in.
    pub(crate) response: u32,
    /// Seconds until it has been asked again often enough.
    pub(crate) renewal: u32,
}

impl Query {
    /// What our own querier asks of all.
    pub(crate) const OWN: Self = Self {
        group: None,
        is_router: true,
        counts: true,
        response: RESPONSE as u32,
        renewal: RENEWAL,
    };
}

/// What a host says of a group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Join,
    Leave,
}

/// The groups of a report, each with what is said of it.
#[derive(Debug)]
pub(crate) enum Records<'a> {
    One(Option<(IpAddr, Change)>),
    Many { rest: &'a [u8], left: u16, is_ipv6: bool },
}

/// Whether what is behind these headers is a packet for a group, and which.
pub(crate) fn group_of(headers: &Headers) -> Option<IpAddr> {
    let dst = match headers.net {
        Net::Ipv4(ip) => IpAddr::V4(ip.dst),
        Net::Ipv6(ip) => IpAddr::V6(ip.dst),
        _ => return None,
    };
    dst.is_multicast().then_some(dst)
}

/// Groups that stay on a link and that everybody may be in without saying so: 224.0.0.0/24 (RFC 4541 §2.1.2),
/// and the link-local scope of IPv6 and below, solicited-node addresses among them.
pub(crate) const fn is_for_all(group: IpAddr) -> bool {
    match group {
        IpAddr::V4(group) => matches!(group.octets(), [224, 0, 0, _]),
        IpAddr::V6(group) => group.octets()[1] & 0x0f <= 2,
    }
}

/// Reads a packet whose headers have been parsed.
pub(crate) fn read<'a>(bytes: &'a [u8], headers: &Headers) -> Message<'a> {
    match &headers.net {
        Net::Ipv4(ip) if ip.proto == PIM => Message::Router,
        Net::Ipv4(ip) if ip.proto == ip_proto::IGMP => {
            read_igmp(bytes, ip).unwrap_or(Message::Malformed)
        }
        Net::Ipv6(ip) if ip.proto == PIM => Message::Router,
        Net::Ipv6(ip) if is_mld(ip) => read_mld(bytes, ip).unwrap_or(Message::Malformed),
        _ => Message::None,
    }
}

/// Only what every host takes for the same: a report that hosts believe and a switch does not would have them
/// hold back their own (RFC 2236 §3).
fn read_igmp<'a>(bytes: &'a [u8], ip: &Ipv4) -> Option<Message<'a>> {
    if ip.is_fragment() || !ip.dst.is_multicast() {
        return None;
    }
    let start = usize::from(ip.l4_offset);
    let header = bytes.get(ip.l3_offset()..start)?;
    let message = bytes.get(start..ip.end())?;
    if !ipv4_header_is_valid(header) || !Sum::ZERO.add_bytes(message).is_valid() {
        return None;
    }
    let group = Ipv4Addr::from_octets(*chunk(message, 4)?);
    let one = |change| Message::Report(Records::One(Some((group.into(), change))));
    Some(match *message.first()? {
        IGMP_QUERY => {
            let asked = (!group.is_unspecified()).then_some(group.into());
            Message::Query(igmp_query(message, asked, !ip.src.is_unspecified())?)
        }
        IGMP_REPORT1 | IGMP_REPORT2 => one(Change::Join),
        IGMP_LEAVE => one(Change::Leave),
        IGMP_REPORT3 => Message::Report(Records::Many {
            rest: message.get(8..)?,
            left: read_u16(message, 6)?,
            is_ipv6: false,
        }),
        _ => Message::Unknown,
    })
}

/// The version follows from the length (RFC 3376 §7.1).
fn igmp_query(message: &[u8], group: Option<IpAddr>, is_router: bool) -> Option<Query> {
    let code = *message.get(1)?;
    let query = |tenths: u32| Query {
        group,
        is_router,
        counts: true,
        response: tenths.div_ceil(10),
        renewal: RENEWAL,
    };
    match (message.len(), code) {
        // Version 1, which knows neither one group nor a time.
        (8, 0) => Some(Query { group: None, ..query(u32::from(RESPONSE) * 10) }),
        (8, _) => Some(query(code.into())),
        (12.., _) => newest(query(float(code)), message.get(8..)?, 4),
        _ => None,
    }
}

/// What the newest version of either protocol says more, behind the group: RFC 3376 §4.1, RFC 3810 §5.1.
fn newest(query: Query, rest: &[u8], address: usize) -> Option<Query> {
    const SUPPRESS: u8 = 8;
    const ROBUSTNESS_MASK: u8 = 7;
    let [flags, interval, n0, n1, sources @ ..] = rest else { return None };
    let count = u16::from_be_bytes([*n0, *n1]);
    if sources.len() < usize::from(count) * address {
        return None;
    }
    let robustness = match flags & ROBUSTNESS_MASK {
        0 => ROBUSTNESS,
        robustness => robustness,
    };
    let interval = if *interval == 0 { QUERY_INTERVAL.into() } else { float(*interval) };
    Some(Query {
        counts: count == 0 && flags & SUPPRESS == 0,
        renewal: u32::from(robustness) * interval,
        ..query
    })
}

/// RFC 3376 §4.1.1 and §4.1.7: more than 127 is a floating-point number.
const fn float(code: u8) -> u32 {
    let code = code as u32;
    if code < 128 { code } else { (code & 0x0f | 0x10) << ((code >> 4 & 7) + 3) }
}

/// RFC 3810 §5.1.3, in milliseconds.
const fn float16(code: u16) -> u32 {
    let code = code as u32;
    if code < 32_768 { code } else { (code & 0x0fff | 0x1000) << ((code >> 12 & 7) + 3) }
}

/// Whether ICMPv6 messages of this type are MLD.
pub(crate) const fn is_mld_type(kind: u8) -> bool {
    matches!(kind, MLD_QUERY | MLD_REPORT | MLD_DONE | MLD_REPORT2)
}

/// Whether it is MLD, or the first fragment of it, however many extension headers are in front.
const fn is_mld(ip: &Ipv6) -> bool {
    matches!(ip.l4, L4::Icmp { kind, .. } if is_mld_type(kind)) && ip.proto == ip_proto::ICMPV6
}

fn read_mld<'a>(bytes: &'a [u8], ip: &Ipv6) -> Option<Message<'a>> {
    // RFC 2710 §3, RFC 3810 §5: hop limit 1 and a router alert, which is a hop-by-hop option; from a
    // link-local address, or from none where there is none yet (RFC 3590).
    let alert = ip.extensions & ip6_extensions::HOP_BY_HOP != 0;
    let near = ip.src.is_unicast_link_local();
    if !matches!(ip.chain, Chain::Whole)
        || ip.has_fragment_header()
        || ip.hop_limit != 1
        || !alert
        || !ip.dst.is_multicast()
        || !(near || ip.src.is_unspecified())
    {
        return None;
    }
    let message = super::icmp6::sound_message(bytes, ip)?;
    let group = || chunk::<16>(message, 8).map(|group| Ipv6Addr::from_octets(*group));
    let one = |group: Ipv6Addr, change| Message::Report(Records::One(Some((group.into(), change))));
    Some(match *message.first()? {
        MLD_QUERY if near => Message::Query(mld_query(message, group()?)?),
        MLD_REPORT => one(group()?, Change::Join),
        MLD_DONE => one(group()?, Change::Leave),
        MLD_REPORT2 => Message::Report(Records::Many {
            rest: message.get(8..)?,
            left: read_u16(message, 6)?,
            is_ipv6: true,
        }),
        _ => return None,
    })
}

/// The version follows from the length (RFC 3810 §8.1).
fn mld_query(message: &[u8], group: Ipv6Addr) -> Option<Query> {
    let code = read_u16(message, 4)?;
    let query = |millis: u32| Query {
        group: (!group.is_unspecified()).then_some(group.into()),
        is_router: true,
        counts: true,
        response: millis.div_ceil(1000),
        renewal: RENEWAL,
    };
    match message.len() {
        24 => Some(query(code.into())),
        28.. => newest(query(float16(code)), message.get(24..)?, 16),
        _ => None,
    }
}

impl Records<'_> {
    /// How many there can be.
    pub(crate) fn at_most(&self) -> usize {
        match self {
            Self::One(_) => 1,
            Self::Many { rest, left, is_ipv6 } => {
                let shortest = if *is_ipv6 { 20 } else { 8 };
                usize::from(*left).min(rest.len() / shortest)
            }
        }
    }
}

impl Iterator for Records<'_> {
    type Item = (IpAddr, Change);

    fn next(&mut self) -> Option<Self::Item> {
        let (rest, left, is_ipv6) = match self {
            Self::One(one) => return one.take(),
            Self::Many { rest, left, is_ipv6 } => (rest, left, *is_ipv6),
        };
        while *left > 0 {
            *left -= 1;
            let address = if is_ipv6 { 16 } else { 4 };
            let [kind, aux, ..] = **rest else { return None };
            let sources = read_u16(rest, 2)?;
            let group = if is_ipv6 {
                IpAddr::from(*chunk::<16>(rest, 4)?)
            } else {
                IpAddr::from(*chunk::<4>(rest, 4)?)
            };
            let length = 4 + address + usize::from(sources) * address + usize::from(aux) * 4;
            *rest = rest.get(length..)?;
            if let Some(change) = change(kind, sources) {
                return Some((group, change));
            }
        }
        None
    }
}

/// RFC 3376 §4.2.12.
const fn change(kind: u8, sources: u16) -> Option<Change> {
    const IS_INCLUDE: u8 = 1;
    const IS_EXCLUDE: u8 = 2;
    const TO_INCLUDE: u8 = 3;
    const TO_EXCLUDE: u8 = 4;
    const ALLOW: u8 = 5;
    match (kind, sources) {
        (IS_EXCLUDE | TO_EXCLUDE, _) | (IS_INCLUDE | TO_INCLUDE | ALLOW, 1..) => Some(Change::Join),
        (TO_INCLUDE, 0) => Some(Change::Leave),
        _ => None,
    }
}

/// Writes the question who is in `group`, or in any, as the newest version of each protocol asks: hosts that
/// know an older one alone take it for theirs (RFC 3376 §7, RFC 3810 §8).
pub(crate) fn write_query4(frame: &mut Frame, mac: Mac, from: Ipv4Addr, group: Option<Ipv4Addr>) {
    let to = group.unwrap_or(ALL_HOSTS);
    let [_, b, c, d] = to.octets();
    let tenths = if group.is_some() { LAST_MEMBER } else { RESPONSE } * 10;
    let mut igmp = [IGMP_QUERY, tenths, 0, 0, 0, 0, 0, 0, ROBUSTNESS, QUERY_INTERVAL, 0, 0];
    super::field::write(&mut igmp, 4, group.unwrap_or(Ipv4Addr::UNSPECIFIED).octets());
    let sum = Sum::ZERO.add_bytes(&igmp).checksum();
    write_u16(&mut igmp, 2, sum);
    // Internetwork control, TTL 1, router alert (RFC 3376 §4).
    let mut ip = [
        0x46,
        0xc0,
        0,
        36,
        0,
        0,
        0x40,
        0,
        1,
        ip_proto::IGMP,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        0,
        148,
        4,
        0,
        0,
    ];
    super::field::write(&mut ip, 12, from.octets());
    super::field::write(&mut ip, 16, to.octets());
    let sum = Sum::ZERO.add_bytes(&ip).checksum();
    write_u16(&mut ip, 10, sum);
    begin(frame, Mac([1, 0, 0x5e, b & 0x7f, c, d]), mac, ethertype::IPV4);
    frame.append(&ip);
    frame.append(&igmp);
    debug_assert_eq!(frame.len(), ETH_LEN + IPV4_LEN + 4 + igmp.len());
}

/// The same for MLD.
pub(crate) fn write_query6(frame: &mut Frame, mac: Mac, from: Ipv6Addr, group: Option<Ipv6Addr>) {
    let to = group.unwrap_or(ndp::ALL_NODES);
    let seconds = if group.is_some() { LAST_MEMBER } else { RESPONSE };
    let [d0, d1] = (u16::from(seconds) * 1000).to_be_bytes();
    let mut mld = [0; 28];
    super::field::write(&mut mld, 0, [MLD_QUERY, 0, 0, 0, d0, d1]);
    super::field::write(&mut mld, 8, group.unwrap_or(Ipv6Addr::UNSPECIFIED).octets());
    super::field::write(&mut mld, 24, [ROBUSTNESS, QUERY_INTERVAL]);
    let sum = pseudo_ipv6(from, to, ip_proto::ICMPV6, 28).add_bytes(&mld).checksum();
    write_u16(&mut mld, 2, sum);
    let mut ip = [0; IPV6_LEN];
    super::field::write(&mut ip, 0, [0x60, 0, 0, 0, 0, 36, 0, 1]);
    super::field::write(&mut ip, 8, from.octets());
    super::field::write(&mut ip, 24, to.octets());
    begin(frame, ndp::multicast_mac(to), mac, ethertype::IPV6);
    frame.append(&ip);
    // Hop-by-hop options: router alert for MLD (RFC 2711), padding.
    frame.append(&[ip_proto::ICMPV6, 0, 5, 2, 0, 0, 1, 0]);
    frame.append(&mld);
}

fn begin(frame: &mut Frame, to: Mac, from: Mac, kind: u16) {
    frame.copy_from(&to.0);
    frame.append(&from.0);
    frame.append(&kind.to_be_bytes());
}

#[cfg(test)]
mod tests;
