//! The segment size that SYNs offer, where links are shorter than the hosts know.

use dataplane::config::SnapshotSpec;
use dataplane::packet::types::tcp_flags::{ACK, PSH, RST, SYN};
use tests::lab::{
    A, B, CLIENT, D, GATEWAY1, GATEWAY2, Lab, ROUTER, SERVER, UP, publish_tcp, topology,
};
use tests::packet::{Packet, Wire, speak_ipv6, tcp};

/// A SYN's options as Linux sends them: MSS, SACK, timestamps, no operation, window scale.
fn offering(packet: Packet, mss: u16) -> Packet {
    let [high, low] = mss.to_be_bytes();
    let rest = [4, 2, 8, 10, 0, 0, 0, 9, 0, 0, 0, 0, 1, 3, 3, 7];
    packet.tcp_options(&[&[2, 4, high, low][..], &rest].concat())
}

fn uplink_of(mtu: u16) -> SnapshotSpec {
    let mut spec = topology();
    spec.uplinks[0].mtu = mtu;
    spec.dnat = vec![publish_tcp(7, 8080, &B, 80)];
    spec
}

fn syn() -> Packet {
    tcp(&A, 40_000, &SERVER, 80, SYN).via(GATEWAY1.mac)
}

fn outside(packet: &Packet) -> Packet {
    packet.clone().src(UP.ip).routed(UP.mac, ROUTER.mac)
}

/// Rows: VPP `test_mss_clamping`.
#[test]
fn a_syn_out_and_its_answer_offer_what_the_uplink_takes() {
    let mut lab = Lab::new(uplink_of(1280));
    let asks = offering(syn(), 1460);
    let clamped = outside(&offering(syn(), 1240));
    lab.rx(A.port, &asks).tx(UP.port, &clamped).masqueraded(&asks);
    // Again: by no shortcut.
    lab.rx(A.port, &asks).tx(UP.port, &clamped);
    let answer = |mss| offering(tcp(&SERVER, 80, &UP, 40_000, SYN | ACK), mss);
    let inside = |mss| answer(mss).dst(A.ip).routed(GATEWAY1.mac, A.mac);
    lab.rx(UP.port, answer(8960)).tx(A.port, inside(1240));
    lab.rx(UP.port, answer(8960)).tx(A.port, inside(1240));
    // What has no SYN is no offer, whatever it says.
    let segment = offering(tcp(&A, 40_000, &SERVER, 80, ACK | PSH).via(GATEWAY1.mac), 1460);
    lab.rx(A.port, &segment).tx(UP.port, outside(&segment));
}

#[test]
fn a_syn_in_and_its_answer_too() {
    let mut lab = Lab::new(uplink_of(1400));
    let asks = |mss| offering(tcp(&CLIENT, 5000, &UP, 8080, SYN), mss);
    let inside = asks(1360).dst(B.ip).dport(80).routed(GATEWAY1.mac, B.mac);
    lab.rx(UP.port, asks(1460))
        .tx(B.port, inside)
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", asks(1460).ip_len() as i64);
    let answer = |mss| offering(tcp(&B, 80, &CLIENT, 5000, SYN | ACK).via(GATEWAY1.mac), mss);
    lab.rx(B.port, answer(1460)).tx(UP.port, outside(&answer(1360)).sport(8080));
}

#[test]
fn the_shorter_of_both_links_counts() {
    // The network's own is shorter than the wire.
    let mut spec = uplink_of(1500);
    spec.networks[0].mtu = 1300;
    let mut lab = Lab::new(spec);
    let asks = offering(syn(), 1460);
    lab.rx(A.port, &asks).tx(UP.port, outside(&offering(syn(), 1260))).masqueraded(&asks);
    // Between networks by a published port.
    let mut spec = uplink_of(1500);
    spec.networks[0].mtu = 1300;
    let mut lab = Lab::new(spec);
    let asks = |mss| offering(tcp(&D, 40_000, &UP, 8080, SYN).via(GATEWAY2.mac), mss);
    let came = lab
        .rx(D.port, asks(1460))
        .moved("conn.new", 1)
        .moved("dnat.7.packets", 1)
        .moved("dnat.7.bytes", asks(1460).ip_len() as i64)
        .take_one(B.port);
    assert_eq!(came.bytes[54..58], [2, 4, 0x04, 0xec], "1260");
}

#[test]
fn it_is_neither_raised_nor_lowered_too_far() {
    let mut lab = Lab::new(uplink_of(1280));
    let modest = offering(syn(), 1000);
    lab.rx(A.port, &modest).tx(UP.port, outside(&modest)).masqueraded(&modest);
    let without = syn().sport(40_001);
    lab.rx(A.port, &without).tx(UP.port, outside(&without)).masqueraded(&without);
    // What every host takes is offered even there.
    let mut lab = Lab::new(uplink_of(400));
    let asks = offering(syn(), 1460);
    lab.rx(A.port, &asks).tx(UP.port, outside(&offering(syn(), 536))).masqueraded(&asks);
    let reset = offering(tcp(&A, 40_000, &SERVER, 80, RST).via(GATEWAY1.mac), 1460).seq(1000);
    lab.rx(A.port, &reset).tx(UP.port, outside(&reset));
}

#[test]
fn in_ipv6_the_headers_are_longer_and_so_is_the_least() {
    speak_ipv6();
    for (mtu, mss) in [(1400, 1340), (1280, 1220), (1000, 1220)] {
        let mut lab = Lab::new(uplink_of(mtu));
        let asks = offering(syn(), 1440);
        let clamped = outside(&offering(syn(), mss));
        lab.rx(A.port, &asks).tx(UP.port, &clamped).masqueraded(&asks);
        let answer = |mss| offering(tcp(&SERVER, 80, &UP, 40_000, SYN | ACK), mss);
        let inside = answer(mss).dst(A.ip).routed(GATEWAY1.mac, A.mac);
        lab.rx(UP.port, answer(8940)).tx(A.port, inside);
    }
}

#[test]
fn a_network_may_turn_it_off() {
    let mut spec = uplink_of(1280);
    spec.networks[0].mss_clamp = false;
    let mut lab = Lab::new(spec);
    let asks = offering(syn(), 1460);
    lab.rx(A.port, &asks).tx(UP.port, outside(&asks)).masqueraded(&asks);
}

#[test]
fn checksums_stay_what_they_were() {
    let mut lab = Lab::new(uplink_of(1280));
    // Left to the device.
    let asks = offering(syn(), 1460);
    lab.rx(A.port, asks.partial())
        .tx(UP.port, outside(&offering(syn(), 1240)).partial())
        .masqueraded(&asks);
    // A wrong one stays wrong by as much.
    let asks = offering(syn().sport(40_001), 1460);
    let spoilt = |packet: &Packet| {
        let mut wire = Wire::from(packet);
        let sum = u16::from_be_bytes([wire.bytes[50], wire.bytes[51]]) ^ 0x0100;
        wire.bytes[50..52].copy_from_slice(&sum.to_be_bytes());
        wire
    };
    let came =
        lab.rx(A.port, spoilt(&asks)).masqueraded(&asks).sums_may_be_wrong().take_one(UP.port);
    let right = Wire::from(&outside(&offering(syn().sport(40_001), 1240)));
    assert_eq!((&came.bytes[..50], &came.bytes[52..]), (&right.bytes[..50], &right.bytes[52..]));
    assert_ne!(came.bytes[50..52], right.bytes[50..52]);
}
