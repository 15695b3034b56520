//! The match of the steering programs: does a frame belong to the engine or to the host?
//!
//! Frames are read through `bpf_skb_load_bytes`: a merged or large frame is not linear in memory.
//! Both kinds of program see the frame from its Ethernet header on.

use std::os::fd::RawFd;

use super::asm::{Alu, Assembler, Cond, Helper, Label, Reg, Size};
use super::{PROTOCOLS, SLOT_COUNT, WORDS};
use crate::io::sys::bpf::Instruction;

/// What the program returns for each kind of frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verdicts {
    /// A port of ours, or an ICMP error about one.
    pub(super) ours: i32,
    /// An echo reply with an identifier of ours, or an ICMP error about the request.
    pub(super) echo: i32,
    /// A fragment other than the first, to one of our addresses, or an ICMP error about one from there:
    /// whose it is cannot be told.
    pub(super) later_fragment: i32,
    /// ARP, and neighbor discovery's questions and answers.
    pub(super) neighbor: i32,
    /// Everything else.
    pub(super) other: i32,
}

// struct __sk_buff
const SKB_PKT_TYPE: i16 = 4;
const SKB_VLAN_PRESENT: i16 = 20;
/// Promiscuously received, to another host's MAC (`linux/if_packet.h`).
const PACKET_OTHERHOST: i32 = 3;

const ETHERTYPE_AT: i32 = 12;
const IP_AT: i32 = 14;
const ETHERTYPE_IPV4: i32 = 0x0800;
const ETHERTYPE_ARP: i32 = 0x0806;
const ETHERTYPE_IPV6: i32 = 0x86dd;
const PROTO_HOP_BY_HOP: i32 = 0;
const PROTO_ICMP: i32 = 1;
const PROTO_TCP: i32 = 6;
const PROTO_UDP: i32 = 17;
const PROTO_FRAGMENT: i32 = 44;
const PROTO_ICMPV6: i32 = 58;
const PROTO_DESTINATION_OPTIONS: i32 = 60;
const PROTO_SCTP: i32 = 132;
/// Fragment offset, in the 16 bits that it shares with the flags.
const FRAG_OFFSET: i32 = 0x1fff;
/// The same of IPv6.
const FRAG_OFFSET6: i32 = 0xfff8;
const ICMP_ECHO_REPLY: i32 = 0;
const ICMP_ECHO_REQUEST: i32 = 8;
/// Destination unreachable, source quench, redirect, time exceeded, parameter problem.
const ICMP_ERRORS: [i32; 5] = [3, 4, 5, 11, 12];
const ICMPV6_ECHO_REQUEST: i32 = 128;
const ICMPV6_ECHO_REPLY: i32 = 129;
/// Destination unreachable, packet too big, time exceeded, parameter problem (RFC 4443).
const ICMPV6_ERRORS: [i32; 4] = [1, 2, 3, 4];
/// Neighbor solicitation and advertisement (RFC 4861).
const NEIGHBOR: [i32; 2] = [135, 136];

/// Extension headers that are looked behind. With more of them a packet is the host's.
const EXTENSIONS: usize = 4;

/// [`super::SteerProto::Icmp`] in [`PROTO`].
const ECHO: i32 = 2;
/// The same of [`super::SteerProto::Sctp`].
const SCTP: i32 = 3;

// Places on the stack, from R10.
const SHORT: i16 = -8; // 2 bytes: ethertype or port
const ICMP: i16 = -16; // 8 bytes
const KEY: i16 = -20; // 4 bytes
const OUTER: i16 = -64; // 40 bytes: IP header
const INNER: i16 = -104; // 40 bytes: IP header in an ICMP error
const EXTENSION: i16 = -112; // 8 bytes: the beginning of an extension header
// Within an IPv4 header.
const IP_VERSION: i16 = 0;
const IP_FRAGMENT: i16 = 6;
const IP_PROTO: i16 = 9;
const IP_SRC: i16 = 12;
const IP_DST: i16 = 16;
// Within an IPv6 header.
const IP6_LEN: i32 = 40;
const IP6_NEXT_HEADER: i16 = 6;
const IP6_SRC: i16 = 8;
const IP6_DST: i16 = 24;

/// Registers that outlive calls.
const SKB: Reg = Reg::R6;
/// Offset of the header that comes next.
const AT: Reg = Reg::R7;
const SLOT: Reg = Reg::R8;
/// First the IP protocol, then [`super::SteerProto`].
const PROTO: Reg = Reg::R9;

/// A program that gives every frame the same verdict.
pub(super) fn assemble_verdict(verdict: i32) -> Option<Vec<Instruction>> {
    let mut asm = Assembler::default();
    asm.exit(verdict);
    asm.finish()
}

/// Where frames go from here, by what has been found.
#[derive(Clone, Copy)]
struct Ways {
    /// `AT` is at the ports of TCP, UDP or SCTP: the destination's is the second.
    outer_tcp: Label,
    outer_udp: Label,
    outer_sctp: Label,
    /// `AT` is at the ports of a packet within an ICMP error: the source's, which is the first one, is
    /// ours.
    inner_tcp: Label,
    inner_udp: Label,
    inner_sctp: Label,
    /// An echo message is on the stack.
    echo: Label,
    later_fragment: Label,
    /// ARP, or a neighbor that asks or answers.
    neighbor: Label,
    other: Label,
}

/// The maps that a program asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Maps {
    /// IPv4 address to slot.
    pub(super) addresses: RawFd,
    /// IPv6 address to slot.
    pub(super) addresses6: RawFd,
    /// The bitmaps.
    pub(super) ports: RawFd,
}

/// Assembles the program. `None`: cannot be, it is tested.
pub(super) fn assemble(maps: Maps, verdicts: Verdicts) -> Option<Vec<Instruction>> {
    let mut asm = Assembler::default();
    let asm_ref = &mut asm;
    let mut label = || asm_ref.label();
    let ways = Ways {
        outer_tcp: label(),
        outer_udp: label(),
        outer_sctp: label(),
        inner_tcp: label(),
        inner_udp: label(),
        inner_sctp: label(),
        echo: label(),
        later_fragment: label(),
        neighbor: label(),
        other: label(),
    };
    let [ipv6, check, port, ours, ours_echo] = [(); 5].map(|()| label());

    asm.copy(SKB, Reg::R1);
    // A tag that the kernel took out of the frame; one that is in it has another EtherType.
    asm.load(Size::U32, Reg::R2, SKB, SKB_VLAN_PRESENT);
    asm.jump_if(Reg::R2, Cond::NotEqual, 0, ways.other);
    asm.load(Size::U32, Reg::R2, SKB, SKB_PKT_TYPE);
    asm.jump_if(Reg::R2, Cond::Equal, PACKET_OTHERHOST, ways.other);
    asm.set(AT, 0);
    load_short(&mut asm, ETHERTYPE_AT, ways.other);
    asm.set(AT, IP_AT);
    asm.jump_if(Reg::R1, Cond::Equal, ETHERTYPE_ARP, ways.neighbor);
    asm.jump_if(Reg::R1, Cond::Equal, ETHERTYPE_IPV6, ipv6);
    asm.jump_if(Reg::R1, Cond::NotEqual, ETHERTYPE_IPV4, ways.other);
    packet4(&mut asm, maps.addresses, ways);
    asm.bind(ipv6);
    packet6(&mut asm, maps.addresses6, ways);

    // The identifier of an echo message is its fifth and sixth byte.
    asm.bind(ways.echo);
    asm.set(PROTO, ECHO);
    asm.load(Size::U16, Reg::R1, Reg::R10, ICMP + 4);
    asm.ntohs(Reg::R1);
    asm.jump(check);
    asm.bind(ways.outer_tcp);
    asm.alu(Alu::Add, AT, 2);
    asm.bind(ways.inner_tcp);
    asm.set(PROTO, 0);
    asm.jump(port);
    asm.bind(ways.outer_udp);
    asm.alu(Alu::Add, AT, 2);
    asm.bind(ways.inner_udp);
    asm.set(PROTO, 1);
    asm.jump(port);
    asm.bind(ways.outer_sctp);
    asm.alu(Alu::Add, AT, 2);
    asm.bind(ways.inner_sctp);
    asm.set(PROTO, SCTP);
    asm.bind(port);
    load_short(&mut asm, 0, ways.other);

    asm.bind(check);
    port_is_ours(&mut asm, maps.ports, ours, ways.other);
    asm.bind(ways.other);
    asm.exit(verdicts.other);
    asm.bind(ours);
    asm.jump_if(PROTO, Cond::Equal, ECHO, ours_echo);
    asm.exit(verdicts.ours);
    for (label, verdict) in [
        (ours_echo, verdicts.echo),
        (ways.later_fragment, verdicts.later_fragment),
        (ways.neighbor, verdicts.neighbor),
    ] {
        asm.bind(label);
        asm.exit(verdict);
    }
    asm.finish()
}

/// An IPv4 packet at `AT`.
fn packet4(asm: &mut Assembler, addresses: RawFd, ways: Ways) {
    let Ways { other, later_fragment, .. } = ways;
    ipv4_header(asm, OUTER, other);
    slot_of_address(asm, addresses, OUTER + IP_DST, other);
    asm.load(Size::U16, Reg::R1, Reg::R10, OUTER + IP_FRAGMENT);
    asm.ntohs(Reg::R1);
    asm.jump_if(Reg::R1, Cond::Set, FRAG_OFFSET, later_fragment);

    let [icmp, icmp_error] = [(); 2].map(|()| asm.label());
    asm.load(Size::U8, PROTO, Reg::R10, OUTER + IP_PROTO);
    asm.jump_if(PROTO, Cond::Equal, PROTO_ICMP, icmp);
    asm.jump_if(PROTO, Cond::Equal, PROTO_TCP, ways.outer_tcp);
    asm.jump_if(PROTO, Cond::Equal, PROTO_UDP, ways.outer_udp);
    asm.jump_if(PROTO, Cond::Equal, PROTO_SCTP, ways.outer_sctp);
    asm.jump(other);

    asm.bind(icmp);
    load_bytes(asm, 0, ICMP, 8, other);
    asm.load(Size::U8, Reg::R1, Reg::R10, ICMP);
    for kind in ICMP_ERRORS {
        asm.jump_if(Reg::R1, Cond::Equal, kind, icmp_error);
    }
    asm.jump_if(Reg::R1, Cond::Equal, ICMP_ECHO_REPLY, ways.echo);
    asm.jump(other);

    asm.bind(icmp_error);
    asm.alu(Alu::Add, AT, 8);
    ipv4_header(asm, INNER, other);
    asm.load(Size::U32, Reg::R1, Reg::R10, INNER + IP_SRC);
    asm.load(Size::U32, Reg::R2, Reg::R10, OUTER + IP_DST);
    asm.jump_if_reg(Reg::R1, Cond::NotEqual, Reg::R2, other);
    asm.load(Size::U16, Reg::R1, Reg::R10, INNER + IP_FRAGMENT);
    asm.ntohs(Reg::R1);
    asm.jump_if(Reg::R1, Cond::Set, FRAG_OFFSET, later_fragment);
    asm.load(Size::U8, PROTO, Reg::R10, INNER + IP_PROTO);
    inner_packet(asm, (PROTO_ICMP, ICMP_ECHO_REQUEST), ways);
}

/// An IPv6 packet at `AT`.
fn packet6(asm: &mut Assembler, addresses: RawFd, ways: Ways) {
    let Ways { other, .. } = ways;
    ipv6_header(asm, OUTER, other);
    // Whoever it is for: neighbors ask groups. Nobody puts an extension header before it.
    let no_neighbor = asm.label();
    asm.jump_if(PROTO, Cond::NotEqual, PROTO_ICMPV6, no_neighbor);
    load_bytes(asm, 0, ICMP, 8, other);
    asm.load(Size::U8, Reg::R1, Reg::R10, ICMP);
    for kind in NEIGHBOR {
        asm.jump_if(Reg::R1, Cond::Equal, kind, ways.neighbor);
    }
    asm.bind(no_neighbor);
    slot_of_address(asm, addresses, OUTER + IP6_DST, other);
    extension_headers(asm, ways);

    let [icmp, icmp_error] = [(); 2].map(|()| asm.label());
    asm.jump_if(PROTO, Cond::Equal, PROTO_ICMPV6, icmp);
    asm.jump_if(PROTO, Cond::Equal, PROTO_TCP, ways.outer_tcp);
    asm.jump_if(PROTO, Cond::Equal, PROTO_UDP, ways.outer_udp);
    asm.jump_if(PROTO, Cond::Equal, PROTO_SCTP, ways.outer_sctp);
    asm.jump(other);

    asm.bind(icmp);
    load_bytes(asm, 0, ICMP, 8, other);
    asm.load(Size::U8, Reg::R1, Reg::R10, ICMP);
    for kind in ICMPV6_ERRORS {
        asm.jump_if(Reg::R1, Cond::Equal, kind, icmp_error);
    }
    asm.jump_if(Reg::R1, Cond::Equal, ICMPV6_ECHO_REPLY, ways.echo);
    asm.jump(other);

    asm.bind(icmp_error);
    asm.alu(Alu::Add, AT, 8);
    ipv6_header(asm, INNER, other);
    for half in [0, 8] {
        asm.load(Size::U64, Reg::R1, Reg::R10, INNER + IP6_SRC + half);
        asm.load(Size::U64, Reg::R2, Reg::R10, OUTER + IP6_DST + half);
        asm.jump_if_reg(Reg::R1, Cond::NotEqual, Reg::R2, other);
    }
    extension_headers(asm, ways);
    inner_packet(asm, (PROTO_ICMPV6, ICMPV6_ECHO_REQUEST), ways);
}

/// What is in the packet within an ICMP error; `icmp` is the number of ICMP, and that of a request.
fn inner_packet(asm: &mut Assembler, icmp: (i32, i32), ways: Ways) {
    asm.jump_if(PROTO, Cond::Equal, PROTO_TCP, ways.inner_tcp);
    asm.jump_if(PROTO, Cond::Equal, PROTO_UDP, ways.inner_udp);
    asm.jump_if(PROTO, Cond::Equal, PROTO_SCTP, ways.inner_sctp);
    asm.jump_if(PROTO, Cond::NotEqual, icmp.0, ways.other);
    load_bytes(asm, 0, ICMP, 8, ways.other);
    asm.load(Size::U8, Reg::R1, Reg::R10, ICMP);
    asm.jump_if(Reg::R1, Cond::Equal, icmp.1, ways.echo);
    asm.jump(ways.other);
}

/// Copies `len` bytes from `AT + offset` to the stack; goes to `short` when the frame has not got
/// them.
fn load_bytes(asm: &mut Assembler, offset: i32, to: i16, len: i32, short: Label) {
    asm.copy(Reg::R1, SKB);
    asm.copy(Reg::R2, AT);
    asm.alu(Alu::Add, Reg::R2, offset);
    asm.copy(Reg::R3, Reg::R10);
    asm.alu(Alu::Add, Reg::R3, to.into());
    asm.set(Reg::R4, len);
    asm.call(Helper::SkbLoadBytes);
    asm.jump_if(Reg::R0, Cond::NotEqual, 0, short);
}

/// Loads the 16-bit number at `AT + offset` into R1.
fn load_short(asm: &mut Assembler, offset: i32, short: Label) {
    load_bytes(asm, offset, SHORT, 2, short);
    asm.load(Size::U16, Reg::R1, Reg::R10, SHORT);
    asm.ntohs(Reg::R1);
}

/// Copies the IPv4 header at `AT`, without options, to the stack and moves `AT` behind it.
fn ipv4_header(asm: &mut Assembler, to: i16, malformed: Label) {
    load_bytes(asm, 0, to, 20, malformed);
    asm.load(Size::U8, Reg::R1, Reg::R10, to + IP_VERSION);
    asm.copy(Reg::R2, Reg::R1);
    asm.alu(Alu::Shr, Reg::R2, 4);
    asm.jump_if(Reg::R2, Cond::NotEqual, 4, malformed);
    asm.alu(Alu::And, Reg::R1, 0xf);
    asm.jump_if(Reg::R1, Cond::Less, 5, malformed);
    asm.alu(Alu::Shl, Reg::R1, 2); // in words of four bytes
    asm.alu_reg(Alu::Add, AT, Reg::R1);
}

/// Copies the IPv6 header at `AT` to the stack and moves `AT` behind it; sets `PROTO` to what comes there.
fn ipv6_header(asm: &mut Assembler, to: i16, malformed: Label) {
    load_bytes(asm, 0, to, IP6_LEN, malformed);
    asm.load(Size::U8, Reg::R1, Reg::R10, to + IP_VERSION);
    asm.alu(Alu::Shr, Reg::R1, 4);
    asm.jump_if(Reg::R1, Cond::NotEqual, 6, malformed);
    asm.load(Size::U8, PROTO, Reg::R10, to + IP6_NEXT_HEADER);
    asm.alu(Alu::Add, AT, IP6_LEN);
}

/// Moves `AT` behind extension headers; `PROTO` is what comes there. A routing header or any that is not
/// known stays: what is behind it is not for us.
fn extension_headers(asm: &mut Assembler, ways: Ways) {
    let end = asm.label();
    for _ in 0..EXTENSIONS {
        let [options, fragment, next] = [(); 3].map(|()| asm.label());
        asm.jump_if(PROTO, Cond::Equal, PROTO_HOP_BY_HOP, options);
        asm.jump_if(PROTO, Cond::Equal, PROTO_DESTINATION_OPTIONS, options);
        asm.jump_if(PROTO, Cond::Equal, PROTO_FRAGMENT, fragment);
        asm.jump(end);

        asm.bind(options);
        load_bytes(asm, 0, EXTENSION, 8, ways.other);
        asm.load(Size::U8, PROTO, Reg::R10, EXTENSION);
        asm.load(Size::U8, Reg::R1, Reg::R10, EXTENSION + 1);
        asm.alu(Alu::Add, Reg::R1, 1);
        asm.alu(Alu::Shl, Reg::R1, 3); // in units of eight bytes, without the first
        asm.alu_reg(Alu::Add, AT, Reg::R1);
        asm.jump(next);

        asm.bind(fragment);
        load_bytes(asm, 0, EXTENSION, 8, ways.other);
        asm.load(Size::U16, Reg::R1, Reg::R10, EXTENSION + 2);
        asm.ntohs(Reg::R1);
        asm.jump_if(Reg::R1, Cond::Set, FRAG_OFFSET6, ways.later_fragment);
        asm.load(Size::U8, PROTO, Reg::R10, EXTENSION);
        asm.alu(Alu::Add, AT, 8);
        asm.bind(next);
    }
    asm.bind(end);
}

/// Looks up the address that is on the stack; sets `SLOT`.
fn slot_of_address(asm: &mut Assembler, addresses: RawFd, address: i16, none: Label) {
    asm.load_map(Reg::R1, addresses);
    asm.copy(Reg::R2, Reg::R10);
    asm.alu(Alu::Add, Reg::R2, address.into());
    asm.call(Helper::MapLookup);
    asm.jump_if(Reg::R0, Cond::Equal, 0, none);
    asm.load(Size::U32, SLOT, Reg::R0, 0);
    // Keeps the index below within 32 bits, whatever the map says.
    asm.alu(Alu::And, SLOT, SLOT_COUNT - 1);
}

/// Looks the port in R1 up in the bitmap of `SLOT` and `PROTO`.
fn port_is_ours(asm: &mut Assembler, ports: RawFd, ours: Label, other: Label) {
    asm.copy(AT, Reg::R1);
    asm.alu(Alu::Mul, SLOT, PROTOCOLS);
    asm.alu_reg(Alu::Add, SLOT, PROTO);
    asm.alu(Alu::Mul, SLOT, WORDS);
    asm.alu(Alu::Shr, Reg::R1, 6);
    asm.alu_reg(Alu::Add, SLOT, Reg::R1);
    asm.store(Size::U32, Reg::R10, KEY, SLOT);
    asm.load_map(Reg::R1, ports);
    asm.copy(Reg::R2, Reg::R10);
    asm.alu(Alu::Add, Reg::R2, KEY.into());
    asm.call(Helper::MapLookup);
    asm.jump_if(Reg::R0, Cond::Equal, 0, other);
    asm.load(Size::U64, Reg::R1, Reg::R0, 0);
    asm.alu(Alu::And, AT, 63);
    asm.alu_reg(Alu::Shr, Reg::R1, AT);
    asm.jump_if(Reg::R1, Cond::Set, 1, ours);
}
