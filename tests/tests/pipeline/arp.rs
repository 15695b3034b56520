//! ARP both ways, and frames that wait for a neighbor.

use std::net::Ipv4Addr;
use std::time::Duration;

use dataplane::config::UplinkMode;
use dataplane::l3::neighbor::MAX_UNHEARD;
use dataplane::l3::route::Prefix;
use dataplane::packet::types::Mac;
use dataplane::verdict::DropReason;
use tests::lab::{
    A, B, C, D, GATEWAY1, GATEWAY2, Lab, NEIGHBOR, ROUTER, SERVER, Step, UP, small, topology,
    without_guard,
};
use tests::packet::{Host, Packet, arp, arp_reply, arp_request, reported, udp};

fn answer(from: &Host, to: &Host) -> Vec<u8> {
    arp_reply(from, to)
}

/// What the engine asks on the wire.
fn question(target: Ipv4Addr) -> Vec<u8> {
    arp(1, (UP.mac, Mac::BROADCAST), (UP.mac, UP.ip), (Mac::ZERO, target))
}

/// As it leaves by the uplink, straight to the neighbor.
fn outside(packet: &Packet) -> Packet {
    packet.clone().src(UP.ip).routed(UP.mac, NEIGHBOR.mac)
}

trait Asking {
    fn asks_again(self, target: Ipv4Addr) -> Self;
    fn waits_for(self, target: Ipv4Addr) -> Self;
    fn gives_up(self, told: &Packet) -> Self;
    fn tells(self, about: &Packet) -> Self;
}

impl Asking for Step<'_> {
    /// A frame waits while the engine asks for a neighbor that it has an entry for.
    fn asks_again(self, target: Ipv4Addr) -> Self {
        self.tx(UP.port, question(target)).moved("generated", 1).moved("queued", 1)
    }

    /// A frame waits while the engine asks for a neighbor that is new to it.
    fn waits_for(self, target: Ipv4Addr) -> Self {
        self.asks_again(target).moved("neighbors", 1)
    }

    /// A's last frame that waited for a silent neighbor is dropped; entry and connection go with it.
    fn gives_up(self, told: &Packet) -> Self {
        self.tells(told).moved("neighbors", -1).moved("conn.entries", -1).moved("conn.expired", 1)
    }

    /// A is told that its frame has waited in vain: as it was, but for its time to live.
    fn tells(self, about: &Packet) -> Self {
        self.tx(A.port, reported(&GATEWAY1, &A, 3, 1, &about.clone().ttl(63)))
            .moved("generated", 1)
            .dropped("a", "neighbor_unresolved")
    }
}

/// Rows: VPP `test_l2bd_arp_term (14 cases)`.
#[test]
fn the_gateway_answers_for_its_address() {
    let mut lab = Lab::default();
    lab.rx(A.port, arp_request(&A, GATEWAY1.ip)).tx(A.port, answer(&GATEWAY1, &A)).answered();
    lab.rx(D.port, arp_request(&D, GATEWAY2.ip)).tx(D.port, answer(&GATEWAY2, &D)).answered();
    // To the gateway's MAC, as a host asks that checks what it knows.
    let unicast = arp(1, (A.mac, GATEWAY1.mac), (A.mac, A.ip), (Mac::ZERO, GATEWAY1.ip));
    lab.rx(A.port, unicast).tx(A.port, answer(&GATEWAY1, &A)).answered();
    // An address conflict probe.
    let probe =
        arp(1, (A.mac, Mac::BROADCAST), (A.mac, Ipv4Addr::UNSPECIFIED), (Mac::ZERO, GATEWAY1.ip));
    let taken =
        arp(2, (GATEWAY1.mac, A.mac), (GATEWAY1.mac, GATEWAY1.ip), (A.mac, Ipv4Addr::UNSPECIFIED));
    lab.rx(A.port, probe).tx(A.port, taken).answered();
}

#[test]
fn containers_answer_for_themselves() {
    let mut lab = Lab::default();
    let who = arp_request(&A, B.ip);
    lab.rx(A.port, who.clone())
        .flooded(&[B.port, C.port, GATEWAY1.port], who)
        .moved("replicated", 2);
    lab.rx(B.port, arp_reply(&B, &A)).tx(A.port, arp_reply(&B, &A));
    // Not the gateway of this network: nobody's business but the network's.
    let other = arp_request(&A, GATEWAY2.ip);
    lab.rx(A.port, other.clone())
        .flooded(&[B.port, C.port, GATEWAY1.port], other)
        .moved("replicated", 2);
}

#[test]
fn the_host_s_own_questions_are_answered_by_containers() {
    let mut lab = Lab::default();
    let who = arp_request(&GATEWAY1, A.ip);
    lab.rx(GATEWAY1.port, who.clone())
        .flooded(&[A.port, B.port, C.port], who)
        .moved("replicated", 2);
    lab.rx(A.port, arp_reply(&A, &GATEWAY1)).tx(GATEWAY1.port, arp_reply(&A, &GATEWAY1));
    let mut long = arp_reply(&A, &GATEWAY1);
    long.resize(1515, 0);
    lab.rx(A.port, long).dropped("a", "oversize");
    // The host looks for somebody else with its own address: the engine is the same machine.
    let own = arp_request(&GATEWAY1, GATEWAY1.ip);
    lab.rx(GATEWAY1.port, own.clone())
        .flooded(&[A.port, B.port, C.port], own)
        .moved("replicated", 2);
}

#[test]
fn a_dedicated_uplink_answers_for_its_addresses_and_a_shared_one_never() {
    let mut lab = Lab::default();
    lab.rx(UP.port, arp_request(&NEIGHBOR, UP.ip))
        .tx(UP.port, answer(&UP, &NEIGHBOR))
        .answered()
        .moved("neighbors", 1);
    // It need not be asked for its own address any more.
    let to_neighbor = udp(&A, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    lab.rx(A.port, &to_neighbor).tx(UP.port, outside(&to_neighbor)).masqueraded(&to_neighbor);
    lab.rx(UP.port, arp_request(&NEIGHBOR, [203, 0, 113, 77].into())).moved("consumed", 1);
    lab.rx(UP.port, arp_request(&NEIGHBOR, GATEWAY1.ip)).moved("consumed", 1);
    let mut malformed = arp_request(&NEIGHBOR, UP.ip);
    malformed[15] = 9;
    lab.rx(UP.port, malformed).moved("consumed", 1);
    lab.reconfigure(|spec| spec.uplinks[0].mode = UplinkMode::Shared);
    lab.rx(UP.port, arp_request(&NEIGHBOR, UP.ip)).moved("consumed", 1);
}

#[test]
fn frames_wait_for_the_neighbor_and_leave_in_order() {
    let mut lab = Lab::default();
    let first = udp(&A, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    let second = first.clone().payload(b"second");
    lab.rx(A.port, &first).waits_for(NEIGHBOR.ip).masqueraded(&first);
    lab.rx(A.port, &second).moved("queued", 1);
    lab.rx(UP.port, arp_reply(&NEIGHBOR, &UP)).moved("consumed", 1);
    lab.after(Duration::ZERO)
        .tx(UP.port, outside(&first))
        .tx(UP.port, outside(&second))
        .moved("queued", -2);
    lab.rx(A.port, &first).tx(UP.port, outside(&first));
}

#[test]
fn a_frame_that_comes_with_the_answer_does_not_overtake_those_that_waited() {
    let mut lab = Lab::default();
    let first = udp(&A, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    let second = first.clone().payload(b"second");
    lab.rx(A.port, &first).waits_for(NEIGHBOR.ip).masqueraded(&first);
    let together =
        vec![(UP.port, arp_reply(&NEIGHBOR, &UP).into()), (A.port, second.clone().into())];
    let mut sent = lab.batch(together).moved("consumed", 1).moved("queued", 1).take(UP.port);
    sent.extend(lab.after(Duration::ZERO).moved("queued", -2).take(UP.port));
    assert_eq!(sent, [outside(&first).into(), outside(&second).into()]);
}

#[test]
fn after_three_questions_the_frame_is_given_up() {
    let mut lab = Lab::default();
    let frame = udp(&A, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    lab.rx(A.port, &frame).waits_for(NEIGHBOR.ip).masqueraded(&frame);
    lab.after(Duration::from_millis(900));
    lab.after(Duration::from_millis(250)).tx(UP.port, question(NEIGHBOR.ip)).moved("generated", 1);
    lab.after(Duration::from_secs(1)).tx(UP.port, question(NEIGHBOR.ip)).moved("generated", 1);
    lab.after(Duration::from_secs(1)).moved("queued", -1).gives_up(&frame);
    // The next frame begins anew.
    lab.rx(A.port, &frame).waits_for(NEIGHBOR.ip).masqueraded(&frame);
}

#[test]
fn a_connection_goes_with_the_last_of_its_packets_that_waited() {
    let mut lab = Lab::default();
    let first = udp(&A, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    lab.rx(A.port, &first).waits_for(NEIGHBOR.ip).masqueraded(&first);
    let second = first.clone().payload(b"more");
    lab.rx(A.port, &second).moved("queued", 1);
    assert_eq!(lab.connection().packets, [2, 0]);
    for wait in [1000, 1000] {
        lab.after(Duration::from_millis(wait))
            .tx(UP.port, question(NEIGHBOR.ip))
            .moved("generated", 1);
    }
    lab.after(Duration::from_secs(1)).moved("queued", -2).tells(&first).gives_up(&second);
    assert!(lab.connections().is_empty());
}

#[test]
fn a_flow_of_which_packets_have_left_stays_when_its_neighbor_goes() {
    let mut lab = Lab::default();
    let frame = udp(&A, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    lab.rx(A.port, &frame).waits_for(NEIGHBOR.ip).masqueraded(&frame);
    lab.rx(UP.port, arp_reply(&NEIGHBOR, &UP)).moved("consumed", 1);
    lab.after(Duration::ZERO).tx(UP.port, outside(&frame)).moved("queued", -1);
    // It is asked while it is believed to be there, and then it is not.
    lab.after(Duration::from_secs(31));
    lab.rx(A.port, &frame)
        .tx(UP.port, question(NEIGHBOR.ip))
        .tx(UP.port, outside(&frame))
        .moved("generated", 1);
    for _ in 0..2 {
        lab.after(Duration::from_secs(1));
        lab.rx(A.port, &frame)
            .tx(UP.port, question(NEIGHBOR.ip))
            .tx(UP.port, outside(&frame))
            .moved("generated", 1);
    }
    lab.after(Duration::from_secs(1));
    lab.rx(A.port, &frame)
        .moved("generated", 1)
        .dropped("a", "neighbor_unresolved")
        .take_one(A.port);
    lab.rx(A.port, &frame).asks_again(NEIGHBOR.ip);
    assert_eq!(lab.connection().packets, [5, 0]);
    for _ in 0..2 {
        lab.after(Duration::from_secs(1)).tx(UP.port, question(NEIGHBOR.ip)).moved("generated", 1);
    }
    lab.after(Duration::from_secs(1)).moved("queued", -1).tells(&frame);
    assert_eq!(lab.connection().packets, [4, 0], "those that left");
}

#[test]
fn flows_that_find_no_room_to_wait_leave_nothing() {
    let mut lab = Lab::default();
    let flow = |n: u16| udp(&A, 4000 + n, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    let batch = (0..64).map(|n| (A.port, flow(n).into())).collect();
    let bytes = 64 * flow(0).ip_len() as i64;
    lab.batch(batch)
        .tx(UP.port, question(NEIGHBOR.ip))
        .moved("generated", 1)
        .moved("neighbors", 1)
        .moved("queued", 32)
        .moved("a.drop.neighbor_queue_full", 32)
        .moved("drop.neighbor_queue_full", 32)
        .moved("conn.inserted", 64)
        .moved("conn.expired", 32)
        .moved("conn.entries", 32)
        .moved("masquerade.1.packets", 64)
        .moved("masquerade.1.bytes", bytes);
    assert_eq!(lab.connections().len(), 32);
}

#[test]
fn a_container_that_asks_for_everybody_leaves_other_links_their_places() {
    let mut spec = topology();
    spec.networks[0].subnets[0].prefix = Prefix::new(GATEWAY1.ip, 16);
    let mut lab = Lab::new(spec);
    let addresses: Vec<u16> = (0x0100..0x0100 + 3200).collect();
    for some in addresses.chunks(32) {
        let frames = some.iter().map(|n| {
            let [high, low] = n.to_be_bytes();
            let nobody = Host { ip: [10, 1, high, low].into(), ..B };
            (A.port, udp(&A, 4000, &nobody, 2000).via(GATEWAY1.mac).into())
        });
        lab.batch(frames.collect()).only_balanced();
    }
    let refused = lab.plane.worker_stats()[0].drops_for(DropReason::NeighborTableFull);
    assert_eq!(refused, 3200 - u64::from(MAX_UNHEARD));
    assert_eq!(lab.plane.neighbors().len(), 1 + MAX_UNHEARD as usize, "and the router");
    let frame = udp(&A, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    // Another link's is asked for; that this container has used up the places to wait is its loss.
    lab.rx(A.port, &frame)
        .tx(UP.port, question(NEIGHBOR.ip))
        .moved("generated", 1)
        .moved("neighbors", 1)
        .dropped("a", "neighbor_queue_full");
    // Nobody answered.
    for _ in 0..10 {
        lab.after(Duration::from_secs(1)).only_balanced();
    }
    assert_eq!(lab.plane.neighbors().len(), 1, "the router");
    assert!(lab.connections().is_empty());
}

#[test]
fn a_container_that_asks_for_everybody_leaves_others_of_the_link_their_places() {
    let mut spec = topology();
    spec.uplinks[0].addresses[0].1 = Prefix::new(UP.ip, 16);
    let mut lab = Lab::unresolved(&small(), spec);
    let addresses: Vec<u16> = (0x0100..0x0100 + 640).collect();
    for some in addresses.chunks(32) {
        let frames = some.iter().map(|n| {
            let [high, low] = n.to_be_bytes();
            let nobody = Host { ip: [203, 0, high, low].into(), ..NEIGHBOR };
            (A.port, udp(&A, 4000, &nobody, 2000).via(GATEWAY1.mac).into())
        });
        lab.batch(frames.collect()).only_balanced();
    }
    assert_eq!(lab.plane.neighbors().len(), MAX_UNHEARD as usize);
    // The oldest question of A goes for another's, and the last of its frames that wait.
    let frame = udp(&B, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    lab.rx(B.port, &frame)
        .tx(UP.port, question(NEIGHBOR.ip))
        .moved("generated", 1)
        .masqueraded(&frame)
        .dropped("a", "neighbor_queue_full")
        .moved("conn.entries", -1)
        .moved("conn.expired", 1);
    // The router has a place beside all those.
    let frame = udp(&C, 4000, &SERVER, 2000).via(GATEWAY1.mac);
    lab.rx(C.port, &frame)
        .tx(UP.port, question(ROUTER.ip))
        .moved("generated", 1)
        .moved("neighbors", 1)
        .masqueraded(&frame)
        .dropped("a", "neighbor_queue_full")
        .moved("conn.entries", -1)
        .moved("conn.expired", 1);
    assert_eq!(lab.plane.neighbors().len(), 1 + MAX_UNHEARD as usize);
    let more = Host { ip: [203, 0, 200, 1].into(), ..NEIGHBOR };
    let frame = udp(&A, 4000, &more, 2000).via(GATEWAY1.mac);
    lab.rx(A.port, &frame).dropped("a", "neighbor_table_full");
}

#[test]
fn one_that_floods_a_silent_neighbor_keeps_nobody_from_it() {
    let mut lab = Lab::unresolved(&small(), topology());
    lab.keep_datagrams_apart(UP.port);
    let frame = |from: &Host| udp(from, 4000, &SERVER, 2000).via(GATEWAY1.mac);
    let batch = (0..40).map(|_| (A.port, frame(&A).into())).collect();
    lab.batch(batch).only_balanced();
    lab.rx(B.port, frame(&B)).masqueraded(&frame(&B)).dropped("a", "neighbor_queue_full");
    lab.rx(UP.port, arp_reply(&ROUTER, &UP)).moved("consumed", 1);
    let sent = lab.after(Duration::ZERO).moved("queued", -32).take(UP.port);
    let ports: Vec<_> =
        sent.iter().map(|wire| u16::from_be_bytes([wire.bytes[34], wire.bytes[35]])).collect();
    // A's own port, and another one, as that is taken.
    assert!(ports[..31] == [4000; 31] && ports[31..] != [4000] && ports.len() == 32, "{ports:?}");
}

#[test]
fn only_so_many_frames_wait_for_one_neighbor() {
    let mut lab = Lab::unresolved(&small(), topology());
    let frame = udp(&A, 4000, &SERVER, 2000).via(GATEWAY1.mac);
    let router = tests::lab::ROUTER;
    lab.rx(A.port, &frame).waits_for(router.ip).masqueraded(&frame);
    let batch = (0..40).map(|_| (A.port, frame.clone().into())).collect();
    lab.batch(batch)
        .moved("queued", 31)
        .moved("a.drop.neighbor_queue_full", 9)
        .moved("drop.neighbor_queue_full", 9);
    lab.rx(A.port, &frame).dropped("a", "neighbor_queue_full");
    // Another neighbor has room of its own.
    let other = udp(&A, 4000, &NEIGHBOR, 2000).via(GATEWAY1.mac);
    lab.rx(A.port, &other).waits_for(NEIGHBOR.ip).masqueraded(&other);
}

#[test]
fn an_unknown_address_of_a_network_is_asked_for_and_reached_where_it_answers() {
    let mut spec = topology();
    without_guard(&mut spec);
    let mut lab = Lab::new(spec);
    // A machine behind C's port that control knows nothing of.
    let guest = Host { port: C.port, mac: Mac([2, 0, 0, 0, 0, 0x66]), ip: [10, 1, 0, 99].into() };
    let frame = udp(&A, 4000, &guest, 2000).via(GATEWAY1.mac);
    let who = arp_request(&GATEWAY1, guest.ip);
    lab.rx(A.port, &frame)
        .flooded(&[A.port, B.port, C.port], who)
        .moved("generated", 3)
        .moved("queued", 1)
        .moved("neighbors", 1)
        .moved("conn.new", 1);
    let reply = arp_reply(&guest, &GATEWAY1);
    lab.rx(C.port, reply.clone()).tx(GATEWAY1.port, reply).moved("fdb.learned", 1);
    lab.after(Duration::ZERO).tx(C.port, frame.routed(GATEWAY1.mac, guest.mac)).moved("queued", -1);
}

#[test]
fn a_known_neighbor_is_confirmed_while_it_is_used() {
    let mut lab = Lab::default();
    let router = tests::lab::ROUTER;
    let frame = udp(&A, 4000, &SERVER, 2000).via(GATEWAY1.mac);
    let out = frame.clone().src(UP.ip).routed(UP.mac, router.mac);
    lab.now = lab.now + Duration::from_secs(31);
    lab.rx(A.port, &frame)
        .tx(UP.port, question(router.ip))
        .tx(UP.port, &out)
        .moved("generated", 1)
        .masqueraded(&frame);
    lab.rx(UP.port, arp_reply(&router, &UP)).moved("consumed", 1);
    lab.rx(A.port, &frame).tx(UP.port, &out);
    // A router that moved is believed.
    let moved = Host { mac: Mac([2, 0, 0, 0, 0, 0x12]), ..router };
    let announcement =
        arp(1, (moved.mac, Mac::BROADCAST), (moved.mac, moved.ip), (Mac::ZERO, moved.ip));
    lab.rx(UP.port, announcement).moved("consumed", 1);
    lab.rx(A.port, &frame).tx(UP.port, out.macs(UP.mac, moved.mac));
}

#[test]
fn nobody_fills_the_neighbor_table_from_the_wire() {
    let mut lab = Lab::default();
    for n in 0..200u8 {
        let stranger = Host { ip: [203, 0, 113, n].into(), ..NEIGHBOR };
        if stranger.ip != tests::lab::ROUTER.ip {
            lab.rx(UP.port, arp_request(&stranger, [203, 0, 113, 250].into())).moved("consumed", 1);
        }
        // From outside the prefix, to us.
        let liar = Host { ip: [198, 18, 0, n].into(), ..NEIGHBOR };
        lab.rx(UP.port, arp_request(&liar, UP.ip)).tx(UP.port, answer(&UP, &liar)).answered();
    }
}
