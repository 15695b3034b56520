//! SCTP (RFC 9260): the ports, the chunks that tell what becomes of an association, and the CRC when a
//! port changes.
//!
//! Invariants: nothing is read beyond the packet whatever the lengths in it say. Limits: addresses within
//! INIT and INIT ACK are left alone, as Linux leaves them, so that an endpoint with several addresses
//! must not name those that are translated.

use super::checksum::Delta;
use super::crc32c;
use super::field::{chunk, chunk_mut, read_u16, write};
use super::rewrite::{Rewrite, set_ports};

/// Bytes of the common header.
pub const SCTP_LEN: usize = 12;
/// Offset of the CRC in it.
pub(super) const CRC: usize = 8;

/// Bytes of a chunk's header.
const CHUNK_LEN: usize = 4;
/// Bytes of an INIT or INIT ACK without parameters (RFC 9260 §3.3.2).
const INIT_LEN: usize = 20;
/// The flag of ABORT and SHUTDOWN COMPLETE that says that the tag is the receiver's own (RFC 9260 §3.3.7).
const REFLECTED: u8 = 1;

/// Chunk types (RFC 9260 §3.2).
pub mod kind {
    /// User data.
    pub const DATA: u8 = 0;
    /// Begins an association.
    pub const INIT: u8 = 1;
    /// Answers it.
    pub const INIT_ACK: u8 = 2;
    /// Asks whether somebody is there.
    pub const HEARTBEAT: u8 = 4;
    /// Answers it.
    pub const HEARTBEAT_ACK: u8 = 5;
    /// Ends the association at once.
    pub const ABORT: u8 = 6;
    /// Begins to end it.
    pub const SHUTDOWN: u8 = 7;
    /// Answers it.
    pub const SHUTDOWN_ACK: u8 = 8;
    /// Something went wrong.
    pub const ERROR: u8 = 9;
    /// Brings back the cookie of INIT ACK.
    pub const COOKIE_ECHO: u8 = 10;
    /// Answers it.
    pub const COOKIE_ACK: u8 = 11;
    /// The association has ended.
    pub const SHUTDOWN_COMPLETE: u8 = 14;
}

/// Stands for all types that are not below it.
const OTHERS: u8 = 15;

/// What a packet says of its association.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    /// The verification tag.
    pub tag: u32,
    /// The tag that its sender wants to be spoken to with: of INIT and INIT ACK, else zero.
    pub init_tag: u32,
    /// The tag of its ABORT or SHUTDOWN COMPLETE is the one that its receiver sends with.
    pub is_reflected: bool,
    /// More of it comes in other fragments.
    pub is_fragment: bool,
    kinds: u16,
}

impl Chunks {
    /// Reads a packet from its common header to its end. `is_fragment`: the first fragment of one that
    /// is longer.
    ///
    /// `None`: the header is cut short, there is no chunk, one is shorter than its header or longer than
    /// the packet, INIT, INIT ACK or SHUTDOWN COMPLETE is not alone (RFC 9260 §6.10), COOKIE ECHO or
    /// COOKIE ACK is not first, or an initiate tag is missing or zero.
    #[must_use]
    pub fn read(packet: &[u8], is_fragment: bool) -> Option<Self> {
        let (&[_, _, _, _, t0, t1, t2, t3, ..], mut rest) =
            packet.split_first_chunk::<SCTP_LEN>()?;
        let mut chunks = Self {
            tag: u32::from_be_bytes([t0, t1, t2, t3]),
            init_tag: 0,
            is_reflected: false,
            is_fragment,
            kinds: 0,
        };
        let mut is_closed = false;
        while let Some(&[kind, flags, l0, l1]) = rest.first_chunk::<CHUNK_LEN>() {
            let len = usize::from(u16::from_be_bytes([l0, l1]));
            let is_first = chunks.kinds == 0;
            if len < CHUNK_LEN || len > rest.len() && !is_fragment || is_closed {
                return None;
            }
            match kind {
                kind::INIT | kind::INIT_ACK => {
                    let tag = chunk::<4>(rest, CHUNK_LEN).map(|tag| u32::from_be_bytes(*tag))?;
                    if !is_first || tag == 0 || len < INIT_LEN {
                        return None;
                    }
                    chunks.init_tag = tag;
                    is_closed = true;
                }
                kind::COOKIE_ECHO | kind::COOKIE_ACK if !is_first => return None,
                kind::SHUTDOWN_COMPLETE if !is_first => return None,
                kind::ABORT | kind::SHUTDOWN_COMPLETE => {
                    chunks.is_reflected = flags & REFLECTED != 0;
                    is_closed = kind == kind::SHUTDOWN_COMPLETE;
                }
                _ => {}
            }
            chunks.kinds |= bit(kind);
            // The padding of the last one may be missing.
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        }
        (chunks.kinds != 0).then_some(chunks)
    }

    /// Whether there is a chunk of this type.
    #[must_use]
    pub const fn has(&self, kind: u8) -> bool {
        self.kinds & bit(kind) != 0
    }

    /// Whether there are chunks of this type and no others.
    #[must_use]
    pub const fn has_only(&self, kind: u8) -> bool {
        self.kinds == bit(kind)
    }

    /// Whether there is user data, or what may be.
    #[must_use]
    pub const fn has_data(&self) -> bool {
        self.has(kind::DATA) || self.has(OTHERS)
    }
}

const fn bit(kind: u8) -> u16 {
    1 << if kind < OTHERS { kind } else { OTHERS }
}

/// Gives a packet, or the beginning of one that is `len` bytes long, other ports and corrects its CRC as
/// far as it is there. What that does to a checksum over it is returned.
pub(super) fn translate<A: Copy>(
    packet: &mut [u8],
    len: usize,
    rewrite: &Rewrite<A>,
    src_port: &mut u16,
    dst_port: &mut u16,
) -> Delta {
    let halves = |packet: &[u8]| [CRC, CRC + 2].map(|at| read_u16(packet, at).unwrap_or(0));
    let Some(&old) = chunk::<4>(packet, 0) else { return Delta::NONE };
    let before = halves(packet);
    set_ports(packet, rewrite, src_port, dst_port);
    let Some(&new) = chunk::<4>(packet, 0) else { return Delta::NONE };
    if let Some(field) = chunk_mut::<4>(packet, CRC) {
        let crc = u32::from_le_bytes(*field);
        *field = crc32c::update(crc, old, new, len.saturating_sub(old.len())).to_le_bytes();
    }
    let [o0, o1, o2, o3] = old;
    let [n0, n1, n2, n3] = new;
    let ports = Delta::of_u16(u16::from_be_bytes([o0, o1]), u16::from_be_bytes([n0, n1]))
        .and(Delta::of_u16(u16::from_be_bytes([o2, o3]), u16::from_be_bytes([n2, n3])));
    let after = halves(packet);
    before.into_iter().zip(after).fold(ports, |all, (old, new)| all.and(Delta::of_u16(old, new)))
}

/// Fills in the CRC of a whole packet. False: it has not got a whole header.
pub(super) fn complete(packet: &mut [u8]) -> bool {
    let (Some(before), Some(after)) = (packet.get(..CRC), packet.get(SCTP_LEN..)) else {
        return false;
    };
    let crc = crc32c::crc32c([before, &[0; 4], after]);
    write(packet, CRC, crc.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(tag: u32, chunks: &[&[u8]]) -> Vec<u8> {
        let header = [&[0, 1, 0, 2][..], &tag.to_be_bytes(), &[0; 4]].concat();
        [&header[..], &chunks.concat()].concat()
    }

    fn chunk_of(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
        let len = u16::try_from(CHUNK_LEN + value.len()).unwrap().to_be_bytes();
        let mut chunk = [&[kind, flags][..], &len, value].concat();
        chunk.resize(chunk.len().next_multiple_of(4), 0);
        chunk
    }

    fn init(tag: u32) -> Vec<u8> {
        chunk_of(kind::INIT, 0, &[&tag.to_be_bytes()[..], &[0; 12]].concat())
    }

    #[test]
    fn chunks_are_found() {
        let read = |packet: &[u8]| Chunks::read(packet, false).unwrap();
        let first = read(&packet(0, &[&init(7)]));
        assert_eq!((first.tag, first.init_tag), (0, 7));
        assert!(first.has_only(kind::INIT) && !first.has_data());
        let data = chunk_of(kind::DATA, 3, b"twelve bytes and odd!");
        let many = read(&packet(9, &[&chunk_of(3, 0, &[0; 12]), &data, &chunk_of(7, 0, &[0; 4])]));
        assert!(many.has(kind::SHUTDOWN) && many.has_data() && !many.has_only(kind::SHUTDOWN));
        assert!(read(&packet(9, &[&chunk_of(64, 0, &[0; 16])])).has_data(), "I-DATA (RFC 8260)");
        let abort = read(&packet(9, &[&chunk_of(kind::ABORT, REFLECTED, b"")]));
        assert!(abort.has_only(kind::ABORT) && abort.is_reflected);
        // The last chunk without its padding, and a rest that is no chunk.
        let mut unpadded = packet(9, &[&data]);
        unpadded.truncate(unpadded.len() - 3);
        assert!(read(&unpadded).has_only(kind::DATA));
        assert!(read(&[&packet(9, &[&data])[..], &[1, 2]].concat()).has_only(kind::DATA));
    }

    #[test]
    fn what_contradicts_itself_is_none() {
        let data = chunk_of(kind::DATA, 3, &[0; 16]);
        let with_len = |len: u16| {
            let mut chunk = data.clone();
            chunk[2..4].copy_from_slice(&len.to_be_bytes());
            packet(1, &[&chunk])
        };
        let mut short_init = packet(0, &[&init(7)]);
        short_init[15] = 19;
        let alone = |kind| chunk_of(kind, 0, &[&[0, 0, 0, 5][..], &[0; 12]].concat());
        let cases = [
            ("no header", packet(1, &[])[..11].to_vec()),
            ("no chunk", packet(1, &[])),
            ("less than a chunk", [&packet(1, &[])[..], &[0; 3]].concat()),
            ("a length of zero", with_len(0)),
            ("less than its header", with_len(3)),
            ("more than there is", with_len(21)),
            ("all that can be said", with_len(u16::MAX)),
            ("a short INIT", short_init),
            ("an INIT without a tag", packet(0, &[&init(0)])),
            ("something behind an INIT", packet(0, &[&init(7), &data])),
            ("an INIT behind something", packet(0, &[&data, &init(7)])),
            ("something behind an INIT ACK", packet(1, &[&alone(kind::INIT_ACK), &data])),
            ("a late COOKIE ECHO", packet(1, &[&data, &chunk_of(kind::COOKIE_ECHO, 0, b"cook")])),
            ("a late COOKIE ACK", packet(1, &[&data, &chunk_of(kind::COOKIE_ACK, 0, b"")])),
            (
                "a late SHUTDOWN COMPLETE",
                packet(1, &[&data, &chunk_of(kind::SHUTDOWN_COMPLETE, 0, b"")]),
            ),
        ];
        for (name, packet) in cases {
            assert_eq!(Chunks::read(&packet, false), None, "{name}");
        }
    }

    #[test]
    fn a_first_fragment_ends_within_a_chunk() {
        let whole = packet(1, &[&chunk_of(kind::COOKIE_ECHO, 0, &[1; 100])]);
        assert!(Chunks::read(&whole[..48], true).unwrap().has(kind::COOKIE_ECHO));
        assert_eq!(Chunks::read(&whole[..48], false), None);
    }

    #[test]
    fn ports_change_with_the_crc() {
        let mut bytes = packet(5, &[&chunk_of(kind::DATA, 3, b"some data of no even length")]);
        assert!(complete(&mut bytes));
        let crc = |bytes: &[u8]| crc32c::crc32c([&bytes[..CRC], &[0; 4], &bytes[SCTP_LEN..]]);
        assert_eq!(bytes[CRC..SCTP_LEN], crc(&bytes).to_le_bytes());
        let (mut src, mut dst) = (1, 2);
        let len = bytes.len();
        let rewrite = Rewrite { src: Some(((), 40_000)), dst: Some(((), 80)) };
        let before = super::super::checksum::Sum::ZERO.add_bytes(&bytes).checksum();
        let delta = translate(&mut bytes, len, &rewrite, &mut src, &mut dst);
        assert_eq!((src, dst, &bytes[..4]), (40_000, 80, &[0x9c, 0x40, 0, 80][..]));
        assert_eq!(bytes[CRC..SCTP_LEN], crc(&bytes).to_le_bytes());
        let after = super::super::checksum::Sum::ZERO.add_bytes(&bytes).checksum();
        assert_eq!(delta.apply(before), after, "what a checksum over it becomes");
        // A quote that ends before the CRC.
        let delta = translate(&mut bytes[..8], len, &Rewrite::snat((), 1), &mut src, &mut dst);
        assert_eq!(bytes[..4], [0, 1, 0, 80]);
        assert_eq!(delta.apply(0x1234), Delta::of_u16(40_000, 1).apply(0x1234));
        assert!(!complete(&mut [0; 11]));
    }
}
