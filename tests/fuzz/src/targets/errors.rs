//! ICMP errors about packets of living connections, and about ones that look like them.
//!
//! Connections begin in the same way for every input; then errors about them come from inside and
//! from outside, with any byte of what they quote changed.

use dataplane::packet::types::{PortId, tcp_flags};
use tests::lab::{A, B, CLIENT, GATEWAY1, GATEWAY2, NEIGHBOR, ROUTER, SERVER, UP};
use tests::packet::{Host, Packet, Wire, echo, icmp_error, icmp6_error, tcp, udp};
use tests::rig::network_header;

use crate::input::Input;
use crate::sound;
use crate::under_test::{UnderTest, topology};

/// Errors of one input.
const ERRORS: usize = 16;

/// What left of one packet of each connection, and by which port it had come.
struct Conversation {
    /// As the sender sent it.
    inside: Packet,
    /// As the receiver got it.
    outside: Wire,
}

/// Out by masquerade, and in by a published port; both IP versions.
fn conversations(test: &mut UnderTest) -> Vec<Conversation> {
    let host = |port: u16| Host { port: PortId(port), ..UP };
    let mut packets = Vec::new();
    for six in [false, true] {
        let by = |packet: Packet| if six { packet.v6() } else { packet };
        packets.extend([
            (A.port, by(tcp(&A, 2000, &SERVER, 80, tcp_flags::SYN)).via(GATEWAY1.mac)),
            (A.port, by(udp(&A, 2001, &SERVER, 53)).via(GATEWAY1.mac)),
            (A.port, by(echo(&A, &SERVER, 77)).via(GATEWAY1.mac)),
            (UP.port, by(tcp(&CLIENT, 3000, &host(0), 8080, tcp_flags::SYN)).via(UP.mac)),
            // To another's published port, by the host's own address.
            (A.port, by(tcp(&A, 2002, &UP, 8080, tcp_flags::SYN)).via(GATEWAY1.mac)),
        ]);
    }
    let begin = |(port, inside): (PortId, Packet)| {
        let sent = test.feed(&[(port, Wire::from(&inside))]);
        assert_eq!(sent.len(), 1, "{sent:?}");
        Conversation { outside: sent[0].1.clone(), inside }
    };
    packets.into_iter().map(begin).collect()
}

pub(crate) fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let mut test = UnderTest::new(topology(), true);
    let conversations = conversations(&mut test);
    let before = test.plane.connections();
    let mut all_are_errors = true;
    for _ in 0..ERRORS {
        if input.is_empty() {
            break;
        }
        let conversation = &conversations[usize::from(input.u8()) % conversations.len()];
        let (port, wire) = error(conversation, &mut input);
        all_are_errors &= kind(&wire.bytes).is_some();
        for (to, sent) in test.feed(&[(port, wire.clone())]) {
            answers_its_sender(to, &sent, &wire);
        }
    }
    // What was changed into something else may.
    if !all_are_errors {
        return;
    }
    // An error neither begins nor ends a connection.
    let identity = |all: &[dataplane::engine::Connection]| {
        let mut all: Vec<_> =
            all.iter().map(|c| format!("{:?} {:?}", c.original, c.reply)).collect();
        all.sort();
        all
    };
    assert_eq!(identity(&before), identity(&test.plane.connections()));
}

/// An error about one of them.
fn error(conversation: &Conversation, input: &mut Input<'_>) -> (PortId, Wire) {
    // What it quotes: the packet as its receiver got it, or as it was sent.
    let quoted = if input.u8() & 1 == 0 {
        conversation.outside.bytes.clone()
    } else {
        conversation.inside.bytes()
    };
    let six = quoted[12..14] == [0x86, 0xdd];
    let (port, from, to, mac) = input.choose(&[
        (UP.port, SERVER, UP, UP.mac),
        (UP.port, ROUTER, UP, UP.mac),
        (UP.port, NEIGHBOR, UP, UP.mac),
        (A.port, A, SERVER, GATEWAY1.mac),
        (B.port, B, CLIENT, GATEWAY1.mac),
        (B.port, B, UP, GATEWAY1.mac),
        (A.port, A, GATEWAY2, GATEWAY1.mac),
    ]);
    let kinds: &[u8] = if six { &[1, 2, 3, 4] } else { &[3, 4, 5, 11, 12] };
    let (kind, code, limit) = (input.choose(kinds), input.u8() % 16, usize::from(input.u8()));
    let about = &conversation.inside;
    let mut wire = Wire::from(if six {
        icmp6_error(&from, &to, kind, code, about, 40 + limit).via(mac)
    } else {
        icmp_error(&from, &to, kind, code, about, 20 + limit).via(mac)
    });
    let at = if six { 14 + 40 + 8 } else { 14 + 20 + 8 };
    let ip = &quoted[14..];
    let len = (wire.bytes.len() - at).min(ip.len());
    wire.bytes[at..at + len].copy_from_slice(&ip[..len]);
    if port != UP.port {
        wire.bytes[6..12].copy_from_slice(&from.mac.0);
    }
    let whole = input.u8();
    for _ in 0..whole % 8 {
        let (offset, value) = (usize::from(input.u8()), input.u8());
        // All but the link header.
        let byte = 14 + offset % (wire.bytes.len() - 14);
        wire.bytes[byte] ^= value;
    }
    // Longer: RFC 4884 extensions, or a quote beyond the packet's end.
    let more = if whole & 8 == 0 { 0 } else { usize::from(input.u8()) };
    wire.bytes.extend(std::iter::repeat_n(whole, more));
    if whole & 16 == 0 {
        sound::make(&mut wire);
    }
    (port, wire)
}

/// Whoever gets an error is the one who sent what it quotes, as far as the receiver can tell.
fn answers_its_sender(to: PortId, sent: &Wire, cause: &Wire) {
    // The host's own stack judges for itself.
    if to == GATEWAY1.port {
        return;
    }
    let packet = &sent.bytes[network_header(&sent.bytes)..];
    let (dst, src) = match kind(&sent.bytes) {
        // Options of the outer header would move it; none of ours has any.
        Some(Kind::Four) if packet[0] == 0x45 => (&packet[16..20], packet.get(40..44)),
        Some(Kind::Six) => (&packet[24..40], packet.get(56..72)),
        _ => return,
    };
    assert_eq!(Some(dst), src, "by {to:?} for {cause:?}\n{sent:?}");
}

/// Of which IP version an error is.
enum Kind {
    Four,
    Six,
}

/// `None`: it is no ICMP error, or nobody takes it for one.
fn kind(bytes: &[u8]) -> Option<Kind> {
    let l3 = network_header(bytes);
    let packet = &bytes[l3..];
    match (bytes.get(l3 - 2..l3)?, packet.first()? >> 4) {
        ([0x08, 0x00], 4) => {
            let at = usize::from(packet[0] & 15) * 4;
            let whole = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff == 0;
            let error = matches!(packet.get(at)?, 3 | 4 | 5 | 11 | 12);
            (*packet.get(9)? == 1 && whole && error).then_some(Kind::Four)
        }
        ([0x86, 0xdd], 6) => (*packet.get(6)? == 58 && *packet.get(40)? < 128).then_some(Kind::Six),
        _ => None,
    }
}
