//! `struct virtio_net_hdr` (virtio 1.2 §5.1.6, `linux/virtio_net.h`), ten bytes, little endian on
//! the machines we run on (the TAP and AF_PACKET devices use the host's order).
//!
//! It is attacker input: a container with `CAP_NET_RAW` delivers any values. Devices only carry
//! it; [`crate::packet::offload`] decides what to believe.

/// Bytes of the header as read from and written to devices (`TUNSETVNETHDRSZ 10`).
pub const VNET_HDR_LEN: usize = 10;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: the L4 checksum field holds the pseudo-header sum only.
pub const F_NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: the receiver may take the checksum as verified.
pub const F_DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_NONE`.
pub const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
pub const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_UDP`: the retired UDP fragmentation offload.
pub const GSO_UDP: u8 = 3;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
pub const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`: UDP segmentation offload (USO).
pub const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`: TCP with CWR set on the first segment only.
pub const GSO_ECN: u8 = 0x80;

/// The header, decoded. The default says: a plain frame with a complete checksum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHdr {
    /// `F_*`.
    pub flags: u8,
    /// `GSO_*`.
    pub gso_type: u8,
    /// Length of all headers, a hint.
    pub hdr_len: u16,
    /// Payload bytes of each segment.
    pub gso_size: u16,
    /// Where checksumming starts, from the Ethernet header.
    pub csum_start: u16,
    /// Where the checksum is stored, from `csum_start`.
    pub csum_offset: u16,
}

impl VnetHdr {
    /// Decodes the ten bytes.
    #[must_use]
    pub fn decode(bytes: [u8; VNET_HDR_LEN]) -> Self {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([a, b]),
            gso_size: u16::from_le_bytes([c, d]),
            csum_start: u16::from_le_bytes([e, f]),
            csum_offset: u16::from_le_bytes([g, h]),
        }
    }

    /// Encodes into ten bytes.
    #[must_use]
    pub fn encode(self) -> [u8; VNET_HDR_LEN] {
        let [a, b] = self.hdr_len.to_le_bytes();
        let [c, d] = self.gso_size.to_le_bytes();
        let [e, f] = self.csum_start.to_le_bytes();
        let [g, h] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }

    /// The same where what is behind the addresses has moved. A header length of zero says nothing.
    #[must_use]
    pub(crate) fn moved(self, place: impl Fn(u16) -> u16) -> Self {
        let hdr_len = if self.hdr_len == 0 { 0 } else { place(self.hdr_len) };
        let csum_start = if self.needs_csum() { place(self.csum_start) } else { self.csum_start };
        Self { hdr_len, csum_start, ..self }
    }

    /// Whether the L4 checksum is only the pseudo-header's sum.
    #[must_use]
    pub const fn needs_csum(self) -> bool {
        self.flags & F_NEEDS_CSUM != 0
    }

    /// Whether the frame stands for several segments.
    #[must_use]
    pub const fn is_gso(self) -> bool {
        self.gso_type & !GSO_ECN != GSO_NONE
    }
}
