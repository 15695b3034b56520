//! Partial checksums and frames longer than the MTU: unharmed where the port takes them, completed
//! and cut where it does not, refused when they lie.

use dataplane::io::Offloads;
use dataplane::io::vnet_hdr::{F_DATA_VALID, F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP, VnetHdr};
use dataplane::packet::types::Mac;
use dataplane::packet::types::tcp_flags::{ACK, CWR, FIN, PSH, SYN};
use tests::lab::{
    A, B, C, CLIENT, GATEWAY1, Lab, ROUTER, SERVER, Step, UP, publish_tcp, small, topology,
};
use tests::packet::{Packet, Wire, icmp_error, reassemble, tcp, udp};

const MSS: u16 = 1448;

fn large(flags: u8) -> Packet {
    tcp(&A, 40_000, &SERVER, 80, flags).via(GATEWAY1.mac).long(20_000)
}

/// The large frame's connection: a handshake, so that data is valid.
fn open(lab: &mut Lab) {
    let syn = tcp(&A, 40_000, &SERVER, 80, SYN).via(GATEWAY1.mac);
    lab.rx(A.port, syn.partial())
        .tx(UP.port, out(&syn).partial())
        .moved("conn.new", 1)
        .moved("masquerade.1.packets", 1)
        .moved("masquerade.1.bytes", 40);
    let answer = tcp(&SERVER, 80, &UP, 40_000, SYN | ACK);
    lab.rx(UP.port, &answer).tx(A.port, answer.dst(A.ip).routed(GATEWAY1.mac, A.mac));
}

/// Takes everything but the checksum of segments off our hands.
fn without_offloads(lab: &mut Lab, port: dataplane::packet::types::PortId) {
    lab.set_offloads(port, Offloads::NONE);
}

fn out(packet: &Packet) -> Packet {
    packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac)
}

fn all<'a>(
    mut step: Step<'a>,
    port: dataplane::packet::types::PortId,
    segments: &[Packet],
) -> Step<'a> {
    for segment in segments {
        step = step.tx(port, segment);
    }
    step
}

#[test]
fn the_switch_passes_offloaded_frames_as_they_are() {
    let mut lab = Lab::default();
    let there = |packet: Packet| packet.via(B.mac).dst(B.ip);
    let (segment, frame) = (there(large(ACK)), there(udp(&A, 1, &SERVER, 2).long(9000)));
    lab.rx(A.port, segment.partial()).dropped("a", "oversize");
    let short = segment.clone().long(1000);
    lab.rx(A.port, short.partial()).tx(B.port, short.partial());
    lab.rx(A.port, segment.gso(MSS)).tx(B.port, segment.gso(MSS));
    lab.rx(A.port, frame.gso(1472)).tx(B.port, frame.gso(1472));
    // Tagged, too.
    let tagged = short.vlan(5);
    lab.rx(A.port, tagged.partial())
        .tx(B.port, tagged.partial())
        .tx(C.port, tagged.partial())
        .tx(GATEWAY1.port, tagged.partial())
        .moved("replicated", 2)
        .moved("fdb.learned", 1);
}

#[test]
fn nat_passes_them_with_the_right_sum_of_the_pseudo_header() {
    let mut lab = Lab::default();
    open(&mut lab);
    let data = large(ACK);
    lab.rx(A.port, data.gso(MSS)).tx(UP.port, out(&data).gso(MSS));
    let back = tcp(&SERVER, 80, &UP, 40_000, ACK).long(30_000);
    let inside = back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac);
    lab.rx(UP.port, back.gso(MSS)).tx(A.port, inside.gso(MSS));
    let datagram = udp(&A, 40_000, &SERVER, 4242).via(GATEWAY1.mac).long(10_000);
    lab.rx(A.port, datagram.gso(1200)).tx(UP.port, out(&datagram).gso(1200)).masqueraded(&datagram);
}

#[test]
fn a_published_port_passes_them_too() {
    let mut spec = topology();
    spec.dnat.push(publish_tcp(7, 8080, &B, 80));
    let mut lab = Lab::new(spec);
    let inside = |packet: &Packet| packet.clone().dst(B.ip).dport(80).routed(GATEWAY1.mac, B.mac);
    let syn = tcp(&CLIENT, 5000, &UP, 8080, SYN);
    lab.rx(UP.port, syn.partial())
        .tx(B.port, inside(&syn).partial())
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", 40);
    let answer = tcp(&B, 80, &CLIENT, 5000, SYN | ACK).via(GATEWAY1.mac);
    lab.rx(B.port, answer.partial()).tx(UP.port, out(&answer).sport(8080).partial());
    let post = tcp(&CLIENT, 5000, &UP, 8080, ACK | PSH).long(8000);
    lab.rx(UP.port, post.gso(MSS)).tx(B.port, inside(&post).gso(MSS));
    let page = tcp(&B, 80, &CLIENT, 5000, ACK | PSH).via(GATEWAY1.mac).long(50_000);
    lab.rx(B.port, page.gso(MSS)).tx(UP.port, out(&page).sport(8080).gso(MSS));
}

/// Rows: Open vSwitch `netdev offload software fallback`; VPP `test_gso`.
#[test]
fn a_port_without_offloads_gets_complete_segments() {
    let mut lab = Lab::default();
    open(&mut lab);
    without_offloads(&mut lab, UP.port);
    let short = large(ACK | PSH).long(100);
    lab.rx(A.port, short.partial()).tx(UP.port, out(&short));
    let data = large(ACK | PSH | FIN | CWR);
    let segments = out(&data).segments(MSS.into());
    assert_eq!(segments.len(), 14);
    all(lab.rx(A.port, data.gso(MSS)).moved("replicated", 13), UP.port, &segments);
    without_offloads(&mut lab, A.port);
    let back = tcp(&SERVER, 80, &UP, 40_000, ACK).long(5000);
    let segments = back.clone().dst(A.ip).routed(GATEWAY1.mac, A.mac).segments(1000);
    all(lab.rx(UP.port, back.gso(1000)).moved("replicated", 4), A.port, &segments);
}

#[test]
fn frames_beyond_64_kib_are_cut_for_ports_that_do_not_take_them() {
    const LEN: usize = 180_000;
    let mut lab = Lab::default();
    open(&mut lab);
    let whole = large(ACK | PSH).ident(7);
    let there = whole.clone().via(B.mac).dst(B.ip);
    lab.rx(A.port, there.big(LEN, MSS)).tx(B.port, there.big(LEN, MSS));
    lab.rx(A.port, whole.big(LEN, MSS)).tx(UP.port, out(&whole).big(LEN, MSS));
    let plain = Offloads { big_tcp: false, ..Offloads::ALL };
    for port in [B.port, UP.port] {
        lab.set_offloads(port, plain);
    }
    // 45 segments are the most that fit.
    let pieces = |packet: &Packet| -> Vec<Wire> {
        let pieces = packet.clone().long(LEN).segments(45 * usize::from(MSS));
        let numbered = pieces.into_iter().zip(0..);
        numbered.map(|(piece, number)| piece.ident(7 + 45 * number).gso(MSS)).collect()
    };
    for (port, sent, packet) in [(B.port, &there, there.clone()), (UP.port, &whole, out(&whole))] {
        let mut step = lab.rx(A.port, sent.big(LEN, MSS)).moved("replicated", 2);
        for piece in pieces(&packet) {
            step = step.tx(port, piece);
        }
    }
    // Only segments may be that long.
    let mut lie = there.big(LEN, MSS);
    lie.vnet.gso_type = 0;
    lab.rx(A.port, lie).dropped("a", "vnet_invalid");
    let mut lie = there.big(LEN, MSS);
    lie.vnet = VnetHdr::default();
    lab.rx(A.port, lie).dropped("a", "vnet_invalid");
}

#[test]
fn a_port_that_sums_but_does_not_cut_gets_segments() {
    let mut lab = Lab::default();
    lab.set_offloads(B.port, Offloads { csum: true, ..Offloads::NONE });
    let data = large(ACK).via(B.mac).dst(B.ip).long(5000);
    let segments = data.segments(MSS.into());
    all(lab.rx(A.port, data.gso(MSS)).moved("replicated", 3), B.port, &segments);
    let short = data.long(100);
    lab.rx(A.port, short.partial()).tx(B.port, short.partial());
}

#[test]
fn datagrams_are_cut_for_a_port_that_cuts_tcp_only() {
    let mut lab = Lab::default();
    lab.set_offloads(B.port, Offloads { uso: false, ..Offloads::ALL });
    let datagram = udp(&A, 1, &B, 2).long(5000);
    let segments = datagram.segments(1400);
    all(lab.rx(A.port, datagram.gso(1400)).moved("replicated", 3), B.port, &segments);
    let segment = tcp(&A, 1, &B, 2, ACK).long(5000);
    lab.rx(A.port, segment.gso(1400)).tx(B.port, segment.gso(1400));
}

#[test]
fn a_flood_cuts_for_those_that_need_it() {
    let mut lab = Lab::default();
    without_offloads(&mut lab, B.port);
    let unknown = Mac([2, 0, 0, 0, 0, 0x77]);
    let data = tcp(&A, 1, &B, 2, ACK).via(unknown).long(4000);
    let segments = data.segments(MSS.into());
    all(lab.rx(A.port, data.gso(MSS)), B.port, &segments)
        .tx(C.port, data.gso(MSS))
        .tx(GATEWAY1.port, data.gso(MSS))
        .moved("replicated", 4);
}

#[test]
fn segments_too_long_for_the_way_out() {
    let mut lab = Lab::default();
    open(&mut lab);
    lab.reconfigure(|spec| spec.uplinks[0].mtu = 1400);
    let data = large(ACK);
    let told = icmp_error(&GATEWAY1, &A, 3, 4, &data, 548).icmp_low(1400).tos(0xc0).ident(0);
    // The quoted frame's checksum is the partial one that the sender wrote.
    let sent = lab
        .rx(A.port, data.gso(MSS))
        .moved("generated", 1)
        .dropped("a", "mtu_exceeded")
        .take_one(A.port);
    assert_eq!(sent.bytes.len(), told.bytes().len());
    assert_eq!(sent.bytes[..36], told.bytes()[..36]);
    assert_eq!(sent.bytes[38..42], told.bytes()[38..42]);
    let fits = data.long(6800);
    lab.rx(A.port, fits.gso(1360)).tx(UP.port, out(&fits).gso(1360));
    // Without "don't fragment" the segments are fragmented, each for itself.
    let free = large(ACK).may_fragment().long(3000);
    let segments = out(&free).segments(1500);
    let sent = lab.rx(A.port, free.gso(1500)).moved("replicated", 3).take(UP.port);
    assert_eq!(sent.len(), 4);
    assert!(sent.iter().all(|wire| wire.bytes.len() <= 1414), "{sent:#?}");
    assert_eq!(reassemble(&sent[..2]), segments[0].clone().into());
    assert_eq!(reassemble(&sent[2..]), segments[1].clone().into());
}

#[test]
fn a_partial_sum_is_completed_before_a_datagram_is_fragmented() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.uplinks[0].mtu = 1000);
    let datagram = udp(&A, 40_000, &SERVER, 53).via(GATEWAY1.mac).may_fragment().long(1400);
    let sent = lab
        .rx(A.port, datagram.partial())
        .moved("replicated", 1)
        .masqueraded(&datagram)
        .take(UP.port);
    assert_eq!(reassemble(&sent), out(&datagram).into());
}

#[test]
fn headers_that_contradict_the_frame_are_refused() {
    let mut lab = Lab::default();
    let segment = tcp(&A, 1, &B, 2, ACK).long(5000);
    let honest = segment.gso(MSS);
    let vnet = honest.vnet;
    let lies = [
        VnetHdr { csum_start: vnet.csum_start + 2, ..vnet },
        VnetHdr { csum_start: 0, ..vnet },
        VnetHdr { csum_start: 60_000, ..vnet },
        VnetHdr { csum_offset: 6, ..vnet },
        VnetHdr { csum_offset: 60_000, ..vnet },
        VnetHdr { gso_size: 0, ..vnet },
        VnetHdr { gso_size: 1, ..vnet },
        VnetHdr { gso_size: 0xffff, ..vnet },
        VnetHdr { gso_type: GSO_TCPV6, ..vnet },
        VnetHdr { gso_type: GSO_UDP, ..vnet },
        VnetHdr { gso_type: 99, ..vnet },
        VnetHdr { flags: 0, ..vnet },
    ];
    for lie in lies {
        let wire = Wire { bytes: honest.bytes.clone(), vnet: lie };
        lab.rx(A.port, wire).dropped("a", "vnet_invalid");
    }
    // A SYN is never cut, and what is no TCP or UDP has no such sum.
    lab.rx(A.port, tcp(&A, 1, &B, 2, SYN).long(5000).gso(MSS)).dropped("a", "vnet_invalid");
    let arp = tests::packet::arp_request(&A, B.ip);
    let vnet =
        VnetHdr { flags: F_NEEDS_CSUM, csum_start: 14, csum_offset: 2, ..VnetHdr::default() };
    lab.rx(A.port, Wire { bytes: arp, vnet }).dropped("a", "vnet_invalid");
}

#[test]
fn hints_and_claims_are_not_passed_on() {
    let mut lab = Lab::default();
    let segment = tcp(&A, 1, &B, 2, ACK).long(5000);
    let mut hint = segment.gso(MSS);
    hint.vnet.hdr_len = 9000;
    lab.rx(A.port, hint).tx(B.port, segment.gso(MSS));
    let plain = tcp(&A, 1, &B, 2, ACK);
    let mut claim = Wire::from(&plain);
    claim.vnet.flags = F_DATA_VALID;
    lab.rx(A.port, claim).tx(B.port, &plain);
    // One segment is no train of segments.
    let one = tcp(&A, 1, &B, 2, ACK).long(1000);
    let mut train = one.partial();
    train.vnet.gso_type = GSO_TCPV4;
    train.vnet.gso_size = MSS;
    lab.rx(A.port, train).tx(B.port, one.partial());
}

#[test]
fn without_buffers_for_the_pieces_the_frame_is_dropped_whole() {
    let mut options = small();
    options.buffers_per_worker = 4;
    let mut lab = Lab::with(&options, topology());
    without_offloads(&mut lab, B.port);
    let data = tcp(&A, 1, &B, 2, ACK).long(20_000);
    lab.rx(A.port, data.gso(MSS)).dropped("a", "no_buffer");
    let shorter = data.long(4000);
    let segments = shorter.segments(MSS.into());
    all(lab.rx(A.port, shorter.gso(MSS)).moved("replicated", 2), B.port, &segments);
}
