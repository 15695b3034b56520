//! What the translated path asks of a packet and of its tuple, so that it is written once for IPv4 and
//! IPv6. Each family has its own code made of it: nothing compares with the family at run time.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use crate::config::{LocalAddress, Timeouts};
use crate::conntrack::{ConnTable, Key, NewConnection, Tuple, Tuple6, Zone};
use crate::core::Cx;
use crate::frame::Frame;
use crate::l3::fragments::{Label, Piece};
use crate::packet::headers::{Headers, Ipv4, Ipv6, L4, Net};
use crate::packet::icmp::InnerL4;
use crate::packet::parse::IPV6_LEN;
use crate::packet::rewrite::{self, Rewrite};
use crate::packet::types::ip_proto;
use crate::packet::{icmp, icmp6, membership, ndp, rewrite6};
use crate::pipeline::{From, Lane};
use crate::shared::Tables;
use crate::verdict::DropReason;

/// The tuple of a family, with the tables that it is looked up in.
pub(crate) trait Tracked: Key {
    /// Whether its packets are sent on by shortcut: see [`crate::express`].
    const HAS_SHORTCUTS: bool;
    /// Protocol number of its ICMP. In a packet of the other family that is a protocol like any other.
    const ICMP: u8;

    /// The connections of the family.
    fn table(tables: &Tables) -> &ConnTable<Self>;

    /// Ends what has expired of the other family's, which takes of the same room.
    fn reclaim_of_other(tables: &Tables, now: u32);

    /// Ends one of the other family's to make room for a new one; false: none can go.
    fn evict_of_other(tables: &Tables, new: &NewConnection<Self>) -> bool;

    /// Notes the address that a new connection speaks from: the next one's probably too.
    fn note_outside(_cx: &mut Cx<'_>, _address: Self::Addr) {}

    /// Whether what comes from or goes to this address never leaves its link.
    fn stays_on_link(_address: Self::Addr) -> bool {
        false
    }
}

impl Tracked for Tuple {
    const HAS_SHORTCUTS: bool = true;
    const ICMP: u8 = ip_proto::ICMP;

    #[inline(always)]
    fn table(tables: &Tables) -> &ConnTable<Self> {
        &tables.connections
    }

    fn reclaim_of_other(tables: &Tables, now: u32) {
        tables.connections6.reclaim(now);
    }

    fn evict_of_other(tables: &Tables, new: &NewConnection<Self>) -> bool {
        tables.connections6.evict_for(new)
    }

    fn note_outside(cx: &mut Cx<'_>, address: Ipv4Addr) {
        *cx.outside = Some(address);
    }
}

impl Tracked for Tuple6 {
    const HAS_SHORTCUTS: bool = false;
    const ICMP: u8 = ip_proto::ICMPV6;

    #[inline(always)]
    fn table(tables: &Tables) -> &ConnTable<Self> {
        &tables.connections6
    }

    fn reclaim_of_other(tables: &Tables, now: u32) {
        tables.connections.reclaim(now);
    }

    fn evict_of_other(tables: &Tables, new: &NewConnection<Self>) -> bool {
        tables.connections.evict_for(new)
    }

    /// RFC 4291 §2.5.6.
    fn stays_on_link(address: Ipv6Addr) -> bool {
        address.is_unicast_link_local()
    }
}

/// The addresses of a family.
pub(crate) type Addr<P> = <<P as Ip>::Tuple as Key>::Addr;

/// A packet as it was parsed.
pub(crate) trait Ip: Copy {
    /// What it is tracked by.
    type Tuple: Tracked;
    /// A packet that an ICMP error quotes.
    type Quoted;

    /// Echo request.
    const ECHO_REQUEST: u8;
    /// Echo reply.
    const ECHO_REPLY: u8;

    /// What was parsed of a frame, if it is of this family.
    fn of(headers: &mut Headers) -> Option<&mut Self>;
    /// The tuple that was found for the packet of a lane.
    fn tuple_in(lane: &Lane) -> Self::Tuple;
    /// The tuple of the packet, if it can have one.
    fn tuple(&self, zone: Zone) -> Option<Self::Tuple>;
    /// Whether ICMP messages of this type are what keeps a link going: Neighbor Discovery and MLD.
    fn is_of_the_link(_kind: u8) -> bool {
        false
    }
    /// Whether its destination is a group's, or everybody's.
    fn is_for_many(&self) -> bool;
    /// Whether ICMP messages of this type quote the packet that they are about.
    fn is_error(kind: u8) -> bool;
    /// Whether errors of this type name a better router.
    fn is_redirect(kind: u8) -> bool;
    /// Whether ICMP messages of this type can belong to a connection.
    fn is_tracked(kind: u8) -> bool;

    /// Source address.
    fn src(&self) -> Addr<Self>;
    /// Destination address.
    fn dst(&self) -> Addr<Self>;
    /// Protocol number.
    fn proto(&self) -> u8;
    /// Time to live, or hop limit.
    fn hops_left(&self) -> u8;
    /// The transport header.
    fn l4(&self) -> L4;
    /// Offset of the transport header.
    fn l4_offset(&self) -> u16;
    /// Length of the packet.
    fn total_len(&self) -> u32;
    /// Offset of the first byte behind the packet.
    fn end(&self) -> usize;
    /// More fragments follow.
    fn more_fragments(&self) -> bool;
    /// Whether it is one fragment of a larger datagram.
    fn is_fragment(&self) -> bool;
    /// What fragments of one datagram have in common beside their addresses: protocol, where all say
    /// it, and identification.
    fn fragment_of(&self) -> (u8, u32);
    /// Gives a fragment another identification.
    fn identify(&self, frame: &mut Frame, id: u32);
    /// An identification made of a random number.
    fn identification(random: u64) -> u32;
    /// The octets of a datagram that this fragment carries. `None`: no datagram can have it.
    fn piece(&self) -> Option<Piece>;
    /// How long fragments of an unfinished datagram are followed.
    fn fragment_timeout(timeouts: &Timeouts) -> Duration;
    /// Whether a router may cut it into fragments.
    fn may_be_cut(&self) -> bool;

    /// Takes one from the time to live.
    fn decrement(&mut self, frame: &mut Frame) -> Result<(), DropReason>;
    /// Translates it.
    fn translate(&mut self, frame: &mut Frame, change: &Rewrite<Addr<Self>>);
    /// The address that an echo to this one is answered from, where it is no source itself: that of the gateway
    /// for an anycast one (RFC 4443 §2.2).
    fn unicast_for(
        _cx: &Cx<'_>,
        _local: LocalAddress,
        _asker: Addr<Self>,
        _address: Addr<Self>,
    ) -> Option<Addr<Self>> {
        None
    }
    /// Sets its length, once it has been made longer or shorter.
    fn set_total_len(&mut self, frame: &mut Frame, len: u16);
    /// Turns an echo request into the reply to it.
    fn answer_echo(frame: &mut Frame, headers: &Headers) -> Result<(), DropReason>;
    /// The packet that this ICMP error quotes.
    fn quoted(&self, bytes: &[u8]) -> Result<Self::Quoted, DropReason>;
    /// How answers to a quoted packet come, if they can belong to a connection.
    fn answers(quoted: &Self::Quoted, zone: Zone) -> Option<Self::Tuple>;
    /// The datagram of a quoted packet that is a fragment of it, and whether the quote says ports.
    fn quoted_fragment(quoted: &Self::Quoted) -> Option<(Label, bool)>;
    /// Gives a quoted fragment another identification.
    fn identify_quoted(&self, frame: &mut Frame, quoted: &Self::Quoted, id: u32);
    /// Translates the packet that this ICMP error quotes, which went the other way.
    fn translate_quoted(
        &self,
        frame: &mut Frame,
        quoted: &mut Self::Quoted,
        change: &Rewrite<Addr<Self>>,
    );
    /// Whose address it is that a packet from there goes to, if it is one of the host or of the engine.
    fn local(cx: &Cx<'_>, from: From, address: Addr<Self>) -> Option<LocalAddress>;
}

/// The tuple of the answers to a packet of which an ICMP error quotes this much.
fn answers<K: Tracked>(
    (src, dst): (K::Addr, K::Addr),
    (proto, l4): (u8, InnerL4),
    zone: Zone,
    is_tracked: impl Fn(u8) -> bool,
) -> Option<K> {
    let (src_port, dst_port) = match l4 {
        InnerL4::Ports { src_port, dst_port } => (src_port, dst_port),
        InnerL4::Query { kind, id } if is_tracked(kind) => (id, id),
        // A timestamp query with the identifier of somebody's ping is not that ping.
        InnerL4::Query { .. } => return None,
        InnerL4::None => (0, 0),
    };
    Some(K::new(dst, src, dst_port, src_port, zone, proto))
}

impl Ip for Ipv4 {
    type Tuple = Tuple;
    type Quoted = icmp::InnerPacket;

    const ECHO_REQUEST: u8 = icmp::ECHO_REQUEST;
    const ECHO_REPLY: u8 = icmp::ECHO_REPLY;

    #[inline(always)]
    fn of(headers: &mut Headers) -> Option<&mut Self> {
        match &mut headers.net {
            Net::Ipv4(ip) => Some(ip),
            _ => None,
        }
    }

    #[inline(always)]
    fn tuple_in(lane: &Lane) -> Tuple {
        lane.tuple
    }

    fn tuple(&self, zone: Zone) -> Option<Tuple> {
        Tuple::of(self, zone)
    }

    fn is_for_many(&self) -> bool {
        self.dst.is_multicast() || self.dst.is_broadcast()
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        icmp::is_error(kind)
    }

    fn is_redirect(kind: u8) -> bool {
        kind == icmp::REDIRECT
    }

    fn is_tracked(kind: u8) -> bool {
        crate::conntrack::tuple::is_tracked(kind)
    }

    #[inline(always)]
    fn src(&self) -> Ipv4Addr {
        self.src
    }

    #[inline(always)]
    fn dst(&self) -> Ipv4Addr {
        self.dst
    }

    #[inline(always)]
    fn proto(&self) -> u8 {
        self.proto
    }

    #[inline(always)]
    fn hops_left(&self) -> u8 {
        self.ttl
    }

    #[inline(always)]
    fn l4(&self) -> L4 {
        self.l4
    }

    #[inline(always)]
    fn l4_offset(&self) -> u16 {
        self.l4_offset
    }

    #[inline(always)]
    fn total_len(&self) -> u32 {
        self.total_len
    }

    #[inline(always)]
    fn end(&self) -> usize {
        Self::end(self)
    }

    #[inline(always)]
    fn more_fragments(&self) -> bool {
        self.more_fragments
    }

    #[inline(always)]
    fn is_fragment(&self) -> bool {
        Self::is_fragment(self)
    }

    fn fragment_of(&self) -> (u8, u32) {
        (self.proto, u32::from(self.id))
    }

    fn identify(&self, frame: &mut Frame, id: u32) {
        rewrite::identify(frame.bytes_mut(), self.l3_offset(), id);
    }

    /// Not zero, which many take for none.
    fn identification(random: u64) -> u32 {
        u32::try_from(random % u64::from(u16::MAX)).unwrap_or(0) + 1
    }

    fn piece(&self) -> Option<Piece> {
        let header_len = usize::from(self.header_len);
        let len = usize::try_from(self.total_len).ok()?.checked_sub(header_len)?;
        Piece::new(self.frag_offset, len, self.more_fragments, header_len)
    }

    fn fragment_timeout(timeouts: &Timeouts) -> Duration {
        timeouts.fragments
    }

    #[inline(always)]
    fn may_be_cut(&self) -> bool {
        !self.dont_fragment
    }

    #[inline(always)]
    fn decrement(&mut self, frame: &mut Frame) -> Result<(), DropReason> {
        rewrite::decrement_ttl(frame, self)
    }

    #[inline(always)]
    fn translate(&mut self, frame: &mut Frame, change: &Rewrite) {
        rewrite::apply(frame, self, change);
    }

    fn set_total_len(&mut self, frame: &mut Frame, len: u16) {
        rewrite::set_total_len(frame, self, len);
    }

    fn answer_echo(frame: &mut Frame, headers: &Headers) -> Result<(), DropReason> {
        icmp::echo_reply(frame, headers)
    }

    fn quoted(&self, bytes: &[u8]) -> Result<icmp::InnerPacket, DropReason> {
        icmp::parse_inner(bytes, self)
    }

    fn answers(quoted: &icmp::InnerPacket, zone: Zone) -> Option<Tuple> {
        let carries = (quoted.proto, quoted.l4);
        answers((quoted.src, quoted.dst), carries, zone, Self::is_tracked)
    }

    fn quoted_fragment(quoted: &icmp::InnerPacket) -> Option<(Label, bool)> {
        let (src, dst) = (quoted.src.into(), quoted.dst.into());
        let label = Label { src, dst, proto: quoted.proto, id: quoted.id.into() };
        let is_fragment = quoted.more_fragments || quoted.frag_offset != 0;
        is_fragment.then_some((label, quoted.l4 != InnerL4::None))
    }

    /// The sum of the quoted header, its checksum included, stays what it is, and with that the checksum of
    /// the error.
    fn identify_quoted(&self, frame: &mut Frame, quoted: &icmp::InnerPacket, id: u32) {
        rewrite::identify(frame.bytes_mut(), quoted.offset.into(), id);
    }

    fn translate_quoted(
        &self,
        frame: &mut Frame,
        quoted: &mut icmp::InnerPacket,
        change: &Rewrite,
    ) {
        rewrite::apply_inner(frame, self, quoted, change);
    }

    #[inline(always)]
    fn local(cx: &Cx<'_>, _from: From, address: Ipv4Addr) -> Option<LocalAddress> {
        cx.config.local(address)
    }
}

impl Ip for Ipv6 {
    type Tuple = Tuple6;
    type Quoted = icmp6::InnerPacket;

    const ECHO_REQUEST: u8 = icmp6::ECHO_REQUEST;
    const ECHO_REPLY: u8 = icmp6::ECHO_REPLY;

    fn of(headers: &mut Headers) -> Option<&mut Self> {
        match &mut headers.net {
            Net::Ipv6(ip) => Some(ip),
            _ => None,
        }
    }

    fn tuple_in(lane: &Lane) -> Tuple6 {
        lane.tuple6
    }

    fn tuple(&self, zone: Zone) -> Option<Tuple6> {
        Tuple6::of(self, zone)
    }

    fn is_of_the_link(kind: u8) -> bool {
        matches!(kind, ndp::ROUTER_SOLICITATION..=ndp::REDIRECT) || membership::is_mld_type(kind)
    }

    fn is_for_many(&self) -> bool {
        self.dst.is_multicast()
    }

    fn is_error(kind: u8) -> bool {
        icmp6::is_error(kind)
    }

    /// In IPv6 they are of Neighbor Discovery and never leave their link.
    fn is_redirect(_kind: u8) -> bool {
        false
    }

    fn is_tracked(kind: u8) -> bool {
        icmp6::is_query(kind)
    }

    fn src(&self) -> Ipv6Addr {
        self.src
    }

    fn dst(&self) -> Ipv6Addr {
        self.dst
    }

    fn proto(&self) -> u8 {
        self.proto
    }

    fn hops_left(&self) -> u8 {
        self.hop_limit
    }

    fn l4(&self) -> L4 {
        self.l4
    }

    fn l4_offset(&self) -> u16 {
        self.l4_offset
    }

    fn total_len(&self) -> u32 {
        self.total_len
    }

    fn end(&self) -> usize {
        Self::end(self)
    }

    fn more_fragments(&self) -> bool {
        self.more_fragments
    }

    fn is_fragment(&self) -> bool {
        Self::is_fragment(self)
    }

    /// Only the first fragment says what the datagram carries (RFC 8200 §4.5).
    fn fragment_of(&self) -> (u8, u32) {
        (0, self.frag_id)
    }

    fn identify(&self, frame: &mut Frame, id: u32) {
        let at = self.l3_offset() + usize::from(self.fragment_at);
        rewrite6::identify(frame.bytes_mut(), at, id);
    }

    fn identification(random: u64) -> u32 {
        u32::try_from(random % u64::from(u32::MAX)).unwrap_or(0) + 1
    }

    fn piece(&self) -> Option<Piece> {
        let len = Self::end(self).checked_sub(self.fragment_start())?;
        // Of the whole the fixed header does not count, nor has it a fragment header.
        let headers = usize::from(self.fragment_at).saturating_sub(IPV6_LEN);
        Piece::new(self.frag_offset, len, self.more_fragments, headers)
    }

    fn fragment_timeout(timeouts: &Timeouts) -> Duration {
        timeouts.fragments_v6
    }

    /// RFC 8200 §5.
    fn may_be_cut(&self) -> bool {
        false
    }

    fn decrement(&mut self, frame: &mut Frame) -> Result<(), DropReason> {
        rewrite6::decrement_hop_limit(frame, self)
    }

    fn translate(&mut self, frame: &mut Frame, change: &Rewrite<Ipv6Addr>) {
        rewrite6::apply(frame, self, change);
    }

    fn unicast_for(
        cx: &Cx<'_>,
        local: LocalAddress,
        asker: Ipv6Addr,
        address: Ipv6Addr,
    ) -> Option<Ipv6Addr> {
        let LocalAddress::Gateway(id) = local else { return None };
        let network = cx.config.network(id)?;
        network.is_anycast(address).then(|| network.gateway_for(asker)).flatten()
    }

    fn set_total_len(&mut self, frame: &mut Frame, len: u16) {
        rewrite6::set_total_len(frame, self, len);
    }

    fn answer_echo(frame: &mut Frame, headers: &Headers) -> Result<(), DropReason> {
        icmp6::echo_reply(frame, headers)
    }

    fn quoted(&self, bytes: &[u8]) -> Result<icmp6::InnerPacket, DropReason> {
        icmp6::parse_inner(bytes, self)
    }

    fn answers(quoted: &icmp6::InnerPacket, zone: Zone) -> Option<Tuple6> {
        let carries = (quoted.proto, quoted.l4);
        answers((quoted.src, quoted.dst), carries, zone, Self::is_tracked)
    }

    fn quoted_fragment(quoted: &icmp6::InnerPacket) -> Option<(Label, bool)> {
        let (src, dst) = (quoted.src.into(), quoted.dst.into());
        let label = Label { src, dst, proto: 0, id: quoted.frag_id };
        let is_fragment = quoted.more_fragments || quoted.frag_offset != 0;
        is_fragment.then_some((label, quoted.l4 != InnerL4::None))
    }

    fn identify_quoted(&self, frame: &mut Frame, quoted: &icmp6::InnerPacket, id: u32) {
        rewrite6::identify_inner(frame, self, quoted, id);
    }

    fn translate_quoted(
        &self,
        frame: &mut Frame,
        quoted: &mut icmp6::InnerPacket,
        change: &Rewrite<Ipv6Addr>,
    ) {
        rewrite6::apply_inner(frame, self, quoted, change);
    }

    /// Beside what is configured, the link-local address that follows from the MAC of the router port or
    /// of the wire.
    fn local(cx: &Cx<'_>, from: From, address: Ipv6Addr) -> Option<LocalAddress> {
        cx.config.local(address).or_else(|| match from {
            _ if !address.is_unicast_link_local() => None,
            From::Endpoint(id) | From::Host(id) => {
                let own = cx.config.network(id)?.link_local == Some(address);
                own.then_some(LocalAddress::Gateway(id))
            }
            From::Uplink(id) => {
                let own = ndp::link_local(cx.config.uplink(id)?.mac) == address;
                own.then_some(LocalAddress::Uplink(id))
            }
            From::Nowhere => None,
        })
    }
}
