//! The match of the steering programs: does a frame belong to the engine or to the host?
//!
//! Frames are read through `bpf_skb_load_bytes`: a merged or large frame is not linear in memory.
//! Both kinds of program see the frame from its Ethernet header on.

use std::os::fd::RawFd;

use super::asm::{Alu, Assembler, Cond, Helper, Label, Reg, Size};
use super::{PROTOCOLS, SLOTS, WORDS};
use crate::io::sys::bpf::Instruction;

/// What the program returns for each kind of frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verdicts {
    /// A port of ours, or an ICMP error about one.
    pub(super) ours: i32,
    /// An echo reply with an identifier of ours, or an ICMP error about the request.
    pub(super) echo: i32,
    /// A fragment other than the first, to one of our addresses: whose it is cannot be told.
    pub(super) later_fragment: i32,
    /// ARP.
    pub(super) arp: i32,
    /// Everything else.
    pub(super) other: i32,
}

// struct __sk_buff
const SKB_PKT_TYPE: i16 = 4;
const SKB_VLAN_PRESENT: i16 = 20;
/// Promiscuously received, to another host's MAC (`linux/if_packet.h`).
const PACKET_OTHERHOST: i32 = 3;

const ETHERTYPE_AT: i32 = 12;
const IPV4_AT: i32 = 14;
const ETHERTYPE_IPV4: i32 = 0x0800;
const ETHERTYPE_ARP: i32 = 0x0806;
const PROTO_ICMP: i32 = 1;
const PROTO_TCP: i32 = 6;
const PROTO_UDP: i32 = 17;
/// Fragment offset, in the 16 bits that it shares with the flags.
const FRAG_OFFSET: i32 = 0x1fff;
const ICMP_ECHO_REPLY: i32 = 0;
const ICMP_ECHO_REQUEST: i32 = 8;
/// Destination unreachable, source quench, redirect, time exceeded, parameter problem.
const ICMP_ERRORS: [i32; 5] = [3, 4, 5, 11, 12];

/// [`super::SteerProto::Icmp`] in [`PROTO`].
const ECHO: i32 = 2;

// Places on the stack, from R10.
const SHORT: i16 = -8; // 2 bytes: ethertype or port
const OUTER: i16 = -32; // 20 bytes: IPv4 header
const ICMP: i16 = -40; // 8 bytes
const INNER: i16 = -64; // 20 bytes: IPv4 header in an ICMP error
const KEY: i16 = -68; // 4 bytes
// Within an IPv4 header.
const IP_VERSION: i16 = 0;
const IP_FRAGMENT: i16 = 6;
const IP_PROTO: i16 = 9;
const IP_SRC: i16 = 12;
const IP_DST: i16 = 16;

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

/// Assembles the program. `None`: cannot be, it is tested.
pub(super) fn assemble(
    addresses: RawFd,
    ports: RawFd,
    verdicts: Verdicts,
) -> Option<Vec<Instruction>> {
    let mut asm = Assembler::default();
    let asm_ref = &mut asm;
    let [ours, later_fragment, arp, other] = [(); 4].map(|()| asm_ref.label());

    asm.copy(SKB, Reg::R1);
    // A tag that the kernel took out of the frame; one that is in it has another EtherType.
    asm.load(Size::U32, Reg::R2, SKB, SKB_VLAN_PRESENT);
    asm.jump_if(Reg::R2, Cond::NotEqual, 0, other);
    asm.load(Size::U32, Reg::R2, SKB, SKB_PKT_TYPE);
    asm.jump_if(Reg::R2, Cond::Equal, PACKET_OTHERHOST, other);
    asm.set(AT, 0);
    load_short(&mut asm, ETHERTYPE_AT, other);
    asm.jump_if(Reg::R1, Cond::Equal, ETHERTYPE_ARP, arp);
    asm.jump_if(Reg::R1, Cond::NotEqual, ETHERTYPE_IPV4, other);

    asm.set(AT, IPV4_AT);
    ipv4_header(&mut asm, OUTER, other);
    slot_of_address(&mut asm, addresses, other);
    asm.load(Size::U16, Reg::R1, Reg::R10, OUTER + IP_FRAGMENT);
    asm.ntohs(Reg::R1);
    asm.jump_if(Reg::R1, Cond::Set, FRAG_OFFSET, later_fragment);

    let [tcp, udp, icmp, icmp_error, check] = [(); 5].map(|()| asm.label());
    asm.load(Size::U8, PROTO, Reg::R10, OUTER + IP_PROTO);
    asm.jump_if(PROTO, Cond::Equal, PROTO_ICMP, icmp);
    let [outer_tcp, outer_udp] = [(); 2].map(|()| asm.label());
    asm.jump_if(PROTO, Cond::Equal, PROTO_TCP, outer_tcp);
    asm.jump_if(PROTO, Cond::Equal, PROTO_UDP, outer_udp);
    asm.jump(other);
    // The destination port is the second field; of a packet in an ICMP error it is the source
    // port, the first one, that is ours.
    asm.bind(outer_tcp);
    asm.alu(Alu::Add, AT, 2);
    asm.jump(tcp);
    asm.bind(outer_udp);
    asm.alu(Alu::Add, AT, 2);
    asm.jump(udp);

    asm.bind(icmp);
    load_bytes(&mut asm, 0, ICMP, 8, other);
    asm.load(Size::U8, Reg::R1, Reg::R10, ICMP);
    for kind in ICMP_ERRORS {
        asm.jump_if(Reg::R1, Cond::Equal, kind, icmp_error);
    }
    asm.jump_if(Reg::R1, Cond::NotEqual, ICMP_ECHO_REPLY, other);
    let echo = asm.label();
    asm.jump(echo);

    asm.bind(icmp_error);
    asm.alu(Alu::Add, AT, 8);
    ipv4_header(&mut asm, INNER, other);
    asm.load(Size::U32, Reg::R1, Reg::R10, INNER + IP_SRC);
    asm.load(Size::U32, Reg::R2, Reg::R10, OUTER + IP_DST);
    asm.jump_if_reg(Reg::R1, Cond::NotEqual, Reg::R2, other);
    asm.load(Size::U16, Reg::R1, Reg::R10, INNER + IP_FRAGMENT);
    asm.ntohs(Reg::R1);
    asm.jump_if(Reg::R1, Cond::Set, FRAG_OFFSET, other);
    asm.load(Size::U8, PROTO, Reg::R10, INNER + IP_PROTO);
    asm.jump_if(PROTO, Cond::Equal, PROTO_TCP, tcp);
    asm.jump_if(PROTO, Cond::Equal, PROTO_UDP, udp);
    asm.jump_if(PROTO, Cond::NotEqual, PROTO_ICMP, other);
    load_bytes(&mut asm, 0, ICMP, 8, other);
    asm.load(Size::U8, Reg::R1, Reg::R10, ICMP);
    asm.jump_if(Reg::R1, Cond::NotEqual, ICMP_ECHO_REQUEST, other);

    // The identifier of an echo message is its fifth and sixth byte.
    asm.bind(echo);
    asm.set(PROTO, ECHO);
    asm.load(Size::U16, Reg::R1, Reg::R10, ICMP + 4);
    asm.ntohs(Reg::R1);
    asm.jump(check);
    let port = asm.label();
    asm.bind(tcp);
    asm.set(PROTO, 0);
    asm.jump(port);
    asm.bind(udp);
    asm.set(PROTO, 1);
    asm.bind(port);
    load_short(&mut asm, 0, other);

    asm.bind(check);
    port_is_ours(&mut asm, ports, ours, other);
    asm.bind(other);
    asm.exit(verdicts.other);
    let ours_echo = asm.label();
    asm.bind(ours);
    asm.jump_if(PROTO, Cond::Equal, ECHO, ours_echo);
    asm.exit(verdicts.ours);
    for (label, verdict) in
        [(ours_echo, verdicts.echo), (later_fragment, verdicts.later_fragment), (arp, verdicts.arp)]
    {
        asm.bind(label);
        asm.exit(verdict);
    }
    asm.finish()
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

/// Looks the outer destination address up; sets `SLOT`.
fn slot_of_address(asm: &mut Assembler, addresses: RawFd, none: Label) {
    asm.load(Size::U32, Reg::R1, Reg::R10, OUTER + IP_DST);
    asm.store(Size::U32, Reg::R10, KEY, Reg::R1);
    asm.load_map(Reg::R1, addresses);
    asm.copy(Reg::R2, Reg::R10);
    asm.alu(Alu::Add, Reg::R2, KEY.into());
    asm.call(Helper::MapLookup);
    asm.jump_if(Reg::R0, Cond::Equal, 0, none);
    asm.load(Size::U32, SLOT, Reg::R0, 0);
    // Keeps the index below within 32 bits, whatever the map says.
    asm.alu(Alu::And, SLOT, SLOTS - 1);
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
