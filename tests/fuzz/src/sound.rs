//! Makes lengths and checksums of a frame right, so that a mutated one is not refused for those
//! alone.

use dataplane::io::vnet_hdr::VnetHdr;
use tests::packet::Wire;
use tests::rig::network_header;
use tests::sums::{crc32c, pseudo_header, sum};

fn put(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// Length fields say what is there, and all checksums that can be found are right; one that is left
/// to the device is the sum of the pseudo-header.
pub(crate) fn make(wire: &mut Wire) {
    if wire.bytes.len() < 14 {
        return;
    }
    let l3 = network_header(&wire.bytes);
    let partial = wire.vnet.needs_csum();
    match wire.bytes.get(l3 - 2..l3) {
        Some([0x08, 0x00]) => ipv4(&mut wire.bytes[l3..], partial),
        Some([0x86, 0xdd]) => ipv6(&mut wire.bytes[l3..], partial),
        _ => {}
    }
}

fn ipv4(packet: &mut [u8], partial: bool) {
    let Some(first) = packet.first() else { return };
    let header = usize::from(first & 15) * 4;
    if header < 20 || packet.len() < header {
        return;
    }
    // What is longer than the field can say says zero (BIG TCP).
    put(packet, 2, u16::try_from(packet.len()).unwrap_or(0));
    put(packet, 10, 0);
    put(packet, 10, !sum(&packet[..header]));
    if u16::from_be_bytes([packet[6], packet[7]]) & 0x3fff != 0 {
        return;
    }
    let (proto, addresses) = (packet[9], [packet[12..16].to_vec(), packet[16..20].to_vec()]);
    let segment = &mut packet[header..];
    if proto == 1 && matches!(segment.first(), Some(3 | 4 | 5 | 11 | 12)) {
        quoted(segment);
    }
    transport(segment, proto, &addresses, partial);
}

/// The header that an ICMP error quotes; its length is that of a packet that was longer.
fn quoted(message: &mut [u8]) {
    let Some(quote) = message.get_mut(8..) else { return };
    let header = usize::from(quote.first().copied().unwrap_or(0) & 15) * 4;
    if header >= 20 && quote.len() >= header {
        put(quote, 10, 0);
        let right = !sum(&quote[..header]);
        put(quote, 10, right);
    }
}

fn ipv6(packet: &mut [u8], partial: bool) {
    if packet.len() < 40 {
        return;
    }
    put(packet, 4, u16::try_from(packet.len() - 40).unwrap_or(0));
    let (mut proto, mut at) = (packet[6], 40);
    // Hop-by-hop, routing and destination options.
    while matches!(proto, 0 | 43 | 60) && packet.len() >= at + 8 {
        proto = packet[at];
        at += 8 + usize::from(packet[at + 1]) * 8;
    }
    let addresses = [packet[8..24].to_vec(), packet[24..40].to_vec()];
    if let Some(segment) = packet.get_mut(at..) {
        transport(segment, proto, &addresses, partial);
    }
}

fn transport(segment: &mut [u8], proto: u8, addresses: &[Vec<u8>; 2], partial: bool) {
    if let (132, Some(field)) = (proto, segment.get_mut(8..12)) {
        field.fill(0);
        let crc = if partial { 0 } else { crc32c(segment) };
        segment[8..12].copy_from_slice(&crc.to_le_bytes());
        return;
    }
    let (field, least) = match proto {
        1 | 2 | 58 => (2, 8),
        6 => (16, 20),
        17 => (6, 8),
        _ => return,
    };
    if segment.len() < least {
        return;
    }
    if proto == 17 {
        put(segment, 4, u16::try_from(segment.len()).unwrap_or(0));
    }
    let [src, dst] = addresses;
    let pseudo =
        if matches!(proto, 1 | 2) { 0 } else { pseudo_header(src, dst, proto, segment.len()) };
    if partial && !matches!(proto, 1 | 2 | 58) {
        return put(segment, field, pseudo);
    }
    put(segment, field, 0);
    let total = u32::from(sum(segment)) + u32::from(pseudo);
    let folded = (total & 0xffff) as u16 + (total >> 16) as u16;
    let right = if proto == 17 && folded == 0xffff { 0xffff } else { !folded };
    put(segment, field, right);
}

/// The virtio-net header that a kernel would give to a frame of this kind.
pub(crate) fn offload(wire: &mut Wire, gso: u16) {
    use dataplane::io::vnet_hdr::{F_NEEDS_CSUM, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4};

    if wire.bytes.len() < 14 {
        return;
    }
    let l3 = network_header(&wire.bytes);
    let (l4, proto, tcp) = match (wire.bytes.get(l3 - 2..l3), wire.bytes.get(l3)) {
        (Some([0x08, 0x00]), Some(first)) => {
            let proto = wire.bytes.get(l3 + 9).copied().unwrap_or(0);
            (l3 + usize::from(first & 15) * 4, proto, GSO_TCPV4)
        }
        (Some([0x86, 0xdd]), Some(_)) => {
            (l3 + 40, wire.bytes.get(l3 + 6).copied().unwrap_or(0), GSO_TCPV6)
        }
        _ => return,
    };
    let (field, kind, header) = match proto {
        6 => {
            let offset = wire.bytes.get(l4 + 12).copied().unwrap_or(0x50) >> 4;
            (16, tcp, usize::from(offset) * 4)
        }
        17 => (6, GSO_UDP_L4, 8),
        // No kernel leaves its segments to a device here.
        132 if gso == 0 => (8, 0, 0),
        _ => return,
    };
    wire.vnet = VnetHdr {
        flags: F_NEEDS_CSUM,
        csum_start: l4 as u16,
        csum_offset: field,
        ..VnetHdr::default()
    };
    if gso > 0 {
        wire.vnet.gso_type = kind;
        wire.vnet.gso_size = gso;
        wire.vnet.hdr_len = (l4 + header) as u16;
    }
}
