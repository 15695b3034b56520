//! What is done in both worlds. Each step has ports of its own; what it sends as an answer it takes
//! from what came, as a host would.

use dataplane::packet::types::tcp_flags::{ACK, FIN, PSH, RST, SYN};
use tests::fragments::in_pieces;
use tests::packet::sctp::{ABORT, COOKIE_ACK, COOKIE_ECHO, DATA, INIT, INIT_ACK, sctp};
use tests::packet::{
    Packet, Wire, echo, echo_reply, icmp, icmp_error, icmp6, icmp6_error, raw_ip, tcp, udp,
};

use super::world::Who::{One, Outside, Two};
use super::world::{CLIENT, INSIDE, MTU, OUTSIDE, PEER, SERVER, STRANGER, UPLINK, Who, World};

/// A step of the script.
pub(crate) type Step = (&'static str, fn(&mut World));

const fn u16_at(frame: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// The port from which a frame comes, or the identifier of an echo.
fn port_of(frame: &[u8]) -> u16 {
    let wire = Wire::from(frame);
    wire.l4_u16(if matches!(frame[wire.l4()], 8 | 128) { 4 } else { 0 })
}

/// An inside host sends a datagram to the server; the port that it is seen to come from.
fn spoken(world: &mut World, who: Who, sport: u16) -> u16 {
    let (from, to) = (world.host(INSIDE[who as usize]), world.host(SERVER));
    world.send(who, udp(&from, sport, &to, 53));
    port_of(&world.hear(Outside))
}

/// The same by TCP, as far as the handshake goes.
fn connected(world: &mut World, sport: u16) -> u16 {
    let (one, server, nat) = (world.host(INSIDE[0]), world.host(SERVER), world.host(UPLINK));
    world.send(One, tcp(&one, sport, &server, 80, SYN));
    let port = port_of(&world.hear(Outside));
    world.send(Outside, tcp(&server, 80, &nat, port, SYN | ACK));
    world.hear(One);
    world.send(One, tcp(&one, sport, &server, 80, ACK));
    world.hear(Outside);
    port
}

/// The client outside begins a connection to the port that leads to the second host.
fn called(world: &mut World, sport: u16) {
    let (client, nat, two) = (world.host(CLIENT), world.host(UPLINK), world.host(INSIDE[1]));
    world.send(Outside, tcp(&client, sport, &nat, 8080, SYN));
    world.hear(Two);
    world.send(Two, tcp(&two, 80, &client, sport, SYN | ACK));
    world.hear(Outside);
    world.send(Outside, tcp(&client, sport, &nat, 8080, ACK));
    world.hear(Two);
}

/// An error from an address outside about a datagram that the NAT sent to the server from a port.
fn reported(
    world: &World,
    by: std::net::Ipv4Addr,
    four: (u8, u8),
    six: (u8, u8),
    port: u16,
) -> Packet {
    let (from, nat, server) = (world.host(by), world.host(UPLINK), world.host(SERVER));
    let about = udp(&nat, port, &server, 53).ttl(60);
    if world.speaks_ipv6() {
        icmp6_error(&from, &nat, six.0, six.1, &about.v6(), 100)
    } else {
        icmp_error(&from, &nat, four.0, four.1, &about, 100)
    }
}

/// Sends the pieces of a datagram in an order, in the IP version of the world.
fn in_fragments(world: &mut World, sport: u16, order: &[usize]) {
    let (one, server) = (world.host(INSIDE[0]), world.host(SERVER));
    let (own, router) = world.macs(One);
    let whole = udp(&one, sport, &server, 53).long(1100).may_fragment().ident(sport);
    let whole = whole.macs(own, router);
    let pieces: Vec<Vec<u8>> = if world.speaks_ipv6() {
        let whole = whole.v6().bytes();
        let carried: Vec<_> = whole[54..].chunks(512).collect();
        let last = carried.len() - 1;
        let piece = |(number, part): (usize, &&[u8])| {
            let offset = (number * 512) as u16 | u16::from(number < last);
            let mut bytes = whole[..54].to_vec();
            bytes[20] = 44;
            bytes[18..20].copy_from_slice(&(part.len() as u16 + 8).to_be_bytes());
            bytes.extend([17, 0]);
            bytes.extend(offset.to_be_bytes());
            bytes.extend(u32::from(sport).to_be_bytes());
            bytes.extend(*part);
            bytes
        };
        carried.iter().enumerate().map(piece).collect()
    } else {
        in_pieces(&whole, 512)
    };
    for number in order {
        world.send_frame(One, &pieces[*number]);
    }
}

/// All of it.
pub(crate) const SCRIPT: &[Step] = &[
    ("udp out and its answer", |world| {
        let port = spoken(world, One, 40_000);
        let (server, nat) = (world.host(SERVER), world.host(UPLINK));
        world.send(Outside, udp(&server, 53, &nat, port).payload(b"answer"));
    }),
    ("two hosts with one port", |world| {
        let ports = [spoken(world, One, 40_001), spoken(world, Two, 40_001)];
        assert_ne!(ports[0], ports[1], "{}: one port for two", world.kind);
        let (server, nat) = (world.host(SERVER), world.host(UPLINK));
        for port in ports {
            world.send(Outside, udp(&server, 53, &nat, port).payload(b"answer"));
        }
    }),
    ("a stranger at the port of a mapping", |world| {
        let port = spoken(world, One, 40_002);
        let (stranger, nat) = (world.host(STRANGER), world.host(UPLINK));
        world.send(Outside, udp(&stranger, 53, &nat, port));
    }),
    ("the server from another port", |world| {
        let port = spoken(world, One, 40_003);
        let (server, nat) = (world.host(SERVER), world.host(UPLINK));
        world.send(Outside, udp(&server, 54, &nat, port));
    }),
    ("echo and its reply", |world| {
        let (one, server, nat) = (world.host(INSIDE[0]), world.host(SERVER), world.host(UPLINK));
        world.send(One, echo(&one, &server, 77));
        let id = port_of(&world.hear(Outside));
        world.send(Outside, echo_reply(&server, &nat, id));
        world.hear(One);
        // Once more, and one that nobody asked for.
        world.send(Outside, echo_reply(&server, &nat, id));
        world.send(Outside, echo_reply(&server, &nat, 4711));
    }),
    ("two hosts with one identifier", |world| {
        let (server, nat) = (world.host(SERVER), world.host(UPLINK));
        for (who, ip) in [(One, INSIDE[0]), (Two, INSIDE[1])] {
            let from = world.host(ip);
            world.send(who, echo(&from, &server, 78));
            let id = port_of(&world.hear(Outside));
            world.send(Outside, echo_reply(&server, &nat, id));
        }
    }),
    ("tcp from syn to the last ack", |world| {
        let port = connected(world, 41_000);
        let (one, server, nat) = (world.host(INSIDE[0]), world.host(SERVER), world.host(UPLINK));
        world.send(One, tcp(&one, 41_000, &server, 80, PSH | ACK).payload(b"request"));
        world.hear(Outside);
        world.send(Outside, tcp(&server, 80, &nat, port, PSH | ACK).acks(1007).payload(b"reply"));
        world.hear(One);
        world.send(One, tcp(&one, 41_000, &server, 80, FIN | ACK).seq(1007).acks(1005));
        world.hear(Outside);
        world.send(Outside, tcp(&server, 80, &nat, port, FIN | ACK).seq(1005).acks(1008));
        world.hear(One);
        world.send(One, tcp(&one, 41_000, &server, 80, ACK).seq(1008).acks(1006));
    }),
    ("a refusal", |world| {
        let (one, server, nat) = (world.host(INSIDE[0]), world.host(SERVER), world.host(UPLINK));
        world.send(One, tcp(&one, 41_001, &server, 81, SYN));
        let port = port_of(&world.hear(Outside));
        world.send(Outside, tcp(&server, 81, &nat, port, RST | ACK).seq(0).acks(1000));
    }),
    ("an ack of no connection", |world| {
        let (one, server) = (world.host(INSIDE[0]), world.host(SERVER));
        world.send(One, tcp(&one, 41_002, &server, 80, ACK));
    }),
    ("a syn ack of no connection", |world| {
        let (server, nat) = (world.host(SERVER), world.host(UPLINK));
        world.send(Outside, tcp(&server, 80, &nat, 41_003, SYN | ACK));
    }),
    ("flags that nobody sends", |world| {
        let (one, server) = (world.host(INSIDE[0]), world.host(SERVER));
        for (number, flags) in
            [0, FIN, SYN | FIN, SYN | RST, FIN | PSH | 32].into_iter().enumerate()
        {
            world.send(One, tcp(&one, 41_010 + number as u16, &server, 80, flags));
        }
    }),
    ("a reset that was guessed", |world| {
        let port = connected(world, 41_004);
        let (one, server, nat) = (world.host(INSIDE[0]), world.host(SERVER), world.host(UPLINK));
        world.send(Outside, tcp(&server, 80, &nat, port, RST).seq(5000));
        world.send(Outside, tcp(&server, 80, &nat, port, RST).seq(900_000_000));
        world.send(One, tcp(&one, 41_004, &server, 80, PSH | ACK).payload(b"still"));
    }),
    ("a reset that is right, and data after it", |world| {
        let port = connected(world, 41_005);
        let (one, server, nat) = (world.host(INSIDE[0]), world.host(SERVER), world.host(UPLINK));
        world.send(Outside, tcp(&server, 80, &nat, port, RST).seq(1000));
        world.hear(One);
        world.send(Outside, tcp(&server, 80, &nat, port, PSH | ACK).payload(b"late"));
        world.send(One, tcp(&one, 41_005, &server, 80, PSH | ACK).payload(b"late too"));
    }),
    ("data beyond every window", |world| {
        let port = connected(world, 41_006);
        let (server, nat) = (world.host(SERVER), world.host(UPLINK));
        let data = tcp(&server, 80, &nat, port, PSH | ACK).payload(b"far");
        world.send(Outside, data.seq(800_000_000));
    }),
    ("a syn in an open connection", |world| {
        let port = connected(world, 41_007);
        let (one, server, nat) = (world.host(INSIDE[0]), world.host(SERVER), world.host(UPLINK));
        world.send(One, tcp(&one, 41_007, &server, 80, SYN).seq(77_000));
        world.send(Outside, tcp(&server, 80, &nat, port, ACK));
    }),
    ("port unreachable", |world| {
        let port = spoken(world, One, 42_000);
        let error = reported(world, SERVER, (3, 3), (1, 4), port);
        world.send(Outside, error);
    }),
    ("an error from a router on the way", |world| {
        let port = spoken(world, One, 42_001);
        let error = reported(world, STRANGER, (11, 0), (3, 0), port);
        world.send(Outside, error);
    }),
    ("too big, from the path", |world| {
        let port = spoken(world, One, 42_002);
        let (from, nat, server) = (world.host(STRANGER), world.host(UPLINK), world.host(SERVER));
        let about = udp(&nat, port, &server, 53);
        let error = if world.speaks_ipv6() {
            icmp6_error(&from, &nat, 2, 0, &about.v6(), 100).icmp_rest([0, 0, 5, 0])
        } else {
            icmp_error(&from, &nat, 3, 4, &about, 100).icmp_low(1280)
        };
        world.send(Outside, error);
    }),
    ("an error about nothing", |world| {
        let error = reported(world, SERVER, (3, 3), (1, 4), 42_999);
        world.send(Outside, error);
    }),
    ("a redirect from outside", |world| {
        let port = spoken(world, One, 42_003);
        if !world.speaks_ipv6() {
            let error = reported(world, OUTSIDE, (5, 1), (137, 0), port);
            world.send(Outside, error);
        }
    }),
    ("an error from inside about what came in", |world| {
        let (client, nat, two) = (world.host(CLIENT), world.host(UPLINK), world.host(INSIDE[1]));
        world.send(Outside, udp(&client, 42_004, &nat, 8081));
        world.hear(Two);
        let about = udp(&client, 42_004, &two, 81);
        let error = if world.speaks_ipv6() {
            icmp6_error(&two, &client, 1, 4, &about.v6(), 100)
        } else {
            icmp_error(&two, &client, 3, 3, &about, 100)
        };
        world.send(Two, error);
    }),
    ("a hop limit that ends at the gateway", |world| {
        let (one, server) = (world.host(INSIDE[0]), world.host(SERVER));
        world.send(One, udp(&one, 42_005, &server, 53).ttl(1));
        world.hear(One);
        world.send(One, udp(&one, 42_006, &server, 53).ttl(2));
    }),
    ("a hop limit that ends on the way in", |world| {
        let (client, nat) = (world.host(CLIENT), world.host(UPLINK));
        world.send(Outside, udp(&client, 42_007, &nat, 8081).ttl(1));
    }),
    ("too long for the way out, not to be cut", |world| {
        let (one, server) = (world.host(INSIDE[0]), world.host(SERVER));
        world.send(One, udp(&one, 42_008, &server, 53).long(usize::from(MTU)));
    }),
    ("too long for the way out, to be cut", |world| {
        let (one, server) = (world.host(INSIDE[0]), world.host(SERVER));
        // The same for IPv6, which is never cut.
        world.send(One, udp(&one, 42_009, &server, 53).long(1450).may_fragment());
    }),
    ("a published port, and its answer", |world| {
        called(world, 43_000);
        let (client, two) = (world.host(CLIENT), world.host(INSIDE[1]));
        world.send(Two, tcp(&two, 80, &client, 43_000, PSH | ACK).payload(b"page"));
    }),
    ("a published port that is closed", |world| {
        let (client, nat, two) = (world.host(CLIENT), world.host(UPLINK), world.host(INSIDE[1]));
        world.send(Outside, tcp(&client, 43_001, &nat, 8082, SYN));
        world.hear(Two);
        world.send(Two, tcp(&two, 82, &client, 43_001, RST | ACK).seq(0).acks(1000));
    }),
    ("a port that is not published", |world| {
        let (client, nat) = (world.host(CLIENT), world.host(UPLINK));
        world.send(Outside, tcp(&client, 43_002, &nat, 9999, SYN));
        world.send(Outside, udp(&client, 43_003, &nat, 9999));
    }),
    ("an inside address from outside", |world| {
        let (client, two) = (world.host(CLIENT), world.host(INSIDE[1]));
        world.send(Outside, tcp(&client, 43_004, &two, 80, SYN));
    }),
    ("another's published port by the outside address", |world| {
        let (one, nat, two) = (world.host(INSIDE[0]), world.host(UPLINK), world.host(INSIDE[1]));
        world.send(One, tcp(&one, 43_005, &nat, 8080, SYN));
        let seen = world.hear(Two);
        let back = port_of(&seen);
        let from_uplink = u16_at(&seen, if world.speaks_ipv6() { 36 } else { 28 });
        let peer =
            world.host(if from_uplink == 0x0202 || from_uplink == 0x0002 { UPLINK } else { PEER });
        world.send(Two, tcp(&two, 80, &peer, back, SYN | ACK));
    }),
    ("one's own published port by the outside address", |world| {
        let (two, nat) = (world.host(INSIDE[1]), world.host(UPLINK));
        world.send(Two, tcp(&two, 43_006, &nat, 8080, SYN));
    }),
    ("a port that is published no more", |world| {
        let (client, two, nat) = (world.host(CLIENT), world.host(INSIDE[1]), world.host(UPLINK));
        world.send(Outside, udp(&client, 43_010, &nat, 8083));
        world.hear(Two);
        world.send(Two, udp(&two, 83, &client, 43_010));
        world.hear(Outside);
        world.unpublish();
        world.send(Outside, udp(&client, 43_010, &nat, 8083));
        world.send(Outside, udp(&client, 43_011, &nat, 8083));
    }),
    ("echo to the gateway", |world| {
        let (one, gateway) = (world.host(INSIDE[0]), world.host(PEER));
        world.send(One, echo(&one, &gateway, 79));
    }),
    ("echo to the outside address", |world| {
        let (one, client, nat) = (world.host(INSIDE[0]), world.host(CLIENT), world.host(UPLINK));
        world.send(Outside, echo(&client, &nat, 80));
        world.hear(Outside);
        world.send(One, echo(&one, &nat, 81));
    }),
    ("a closed port of the gateway", |world| {
        let (one, gateway) = (world.host(INSIDE[0]), world.host(PEER));
        world.send(One, udp(&one, 44_000, &gateway, 9999));
        world.hear(One);
        world.send(One, tcp(&one, 44_001, &gateway, 9999, SYN));
    }),
    ("neighbors among themselves", |world| {
        let (one, two) = (world.host(INSIDE[0]), world.host(INSIDE[1]));
        let (from, _) = world.macs(One);
        let (to, _) = world.macs(Two);
        let packet = udp(&one, 44_002, &two, 9).macs(from, to);
        let packet = if world.speaks_ipv6() { packet.v6() } else { packet };
        world.send_frame(One, &packet.bytes());
    }),
    ("another's address as the source", |world| {
        let (other, server) = (world.host(INSIDE[1]), world.host(SERVER));
        world.send(One, udp(&other, 44_003, &server, 53));
    }),
    ("a protocol without ports", |world| {
        let (one, server, nat) = (world.host(INSIDE[0]), world.host(SERVER), world.host(UPLINK));
        world.send(One, raw_ip(&one, &server, 253));
        world.hear(Outside);
        world.send(Outside, raw_ip(&server, &nat, 253));
    }),
    ("an association", |world| {
        let (one, server, nat) = (world.host(INSIDE[0]), world.host(SERVER), world.host(UPLINK));
        let there = |tag| sctp(&one, 47_000, &server, 53, tag);
        world.send(One, there(0).asks_for(INIT, 11));
        let port = port_of(&world.hear(Outside));
        let back = |tag| sctp(&server, 53, &nat, port, tag);
        world.send(Outside, back(11).asks_for(INIT_ACK, 22));
        world.hear(One);
        world.send(One, there(22).chunk(COOKIE_ECHO, 0, b"cookie"));
        world.hear(Outside);
        world.send(Outside, back(11).chunk(COOKIE_ACK, 0, &[]));
        world.hear(One);
        world.send(One, there(22).chunk(DATA, 3, &[7; 16]));
        world.hear(Outside);
        // With a tag that nobody asked for it is no answer.
        world.send(Outside, back(33).chunk(DATA, 3, &[8; 16]));
        world.send(Outside, back(11).chunk(ABORT, 0, &[]));
    }),
    ("an icmp message that asks nothing", |world| {
        let (one, server) = (world.host(INSIDE[0]), world.host(SERVER));
        let message = if world.speaks_ipv6() {
            icmp6(&one, &server, 200, 0, [0; 4])
        } else {
            icmp(&one, &server, 41, 0, [0; 4])
        };
        world.send(One, message);
    }),
    ("fragments in order", |world| in_fragments(world, 45_000, &[0, 1, 2])),
    ("fragments reversed", |world| in_fragments(world, 45_001, &[2, 1, 0])),
    ("fragments, one twice", |world| in_fragments(world, 45_002, &[0, 1, 1, 2])),
    ("fragments without the first", |world| in_fragments(world, 45_003, &[1, 2])),
    ("fragments without the last", |world| in_fragments(world, 45_004, &[0, 1])),
    ("a source route", |world| {
        if !world.speaks_ipv6() {
            let (one, server) = (world.host(INSIDE[0]), world.host(SERVER));
            let route = [131, 7, 4, 192, 0, 2, 9, 0];
            world.send(One, udp(&one, 46_000, &server, 53).ip_options(&route));
        }
    }),
    ("a wrong transport checksum", |world| {
        let (one, server) = (world.host(INSIDE[0]), world.host(SERVER));
        let (own, router) = world.macs(One);
        let packet = udp(&one, 46_001, &server, 53).macs(own, router);
        let packet = if world.speaks_ipv6() { packet.v6() } else { packet };
        let mut frame = packet.bytes();
        let last = frame.len() - 1;
        frame[last] ^= 1;
        world.send_frame(One, &frame);
    }),
    ("a source that nobody has", |world| {
        let (nobody, nat) = (world.host(std::net::Ipv4Addr::new(127, 0, 0, 1)), world.host(UPLINK));
        if !world.speaks_ipv6() {
            world.send(Outside, udp(&nobody, 46_002, &nat, 8081));
        }
    }),
];
