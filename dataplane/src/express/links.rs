//! What becomes of frames with a link header that has just been seen.

use crate::conntrack::Zone;
use crate::frame::Frame;
use crate::l2::guard;
use crate::packet::parse::{ETH_LEN, ipv4_source_at, ipv6_source_at};
use crate::packet::types::{PortId, ethertype};

/// Port and link header of a frame without a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LinkHead {
    /// The first eight octets: destination MAC and the first two of the source's.
    first: u64,
    /// The last eight: source MAC and EtherType.
    rest: u64,
    ingress: PortId,
}

impl LinkHead {
    /// Of no frame: a group's address is nobody's source.
    pub(crate) const NONE: Self = Self { first: u64::MAX, rest: u64::MAX, ingress: PortId(0) };

    /// `None` for frames that are never remembered: those with a tag, ARP, those cut short, and those
    /// longer than any that is not segmented later.
    #[inline]
    pub(crate) fn of(frame: &Frame) -> Option<Self> {
        let bytes = frame.bytes();
        let first = u64::from_be_bytes(*bytes.first_chunk()?);
        // The two overlap, which costs nothing.
        let rest = u64::from_be_bytes(*bytes.first_chunk::<ETH_LEN>()?.last_chunk()?);
        #[allow(clippy::cast_possible_truncation, reason = "the EtherType is the low half")]
        let kind = rest as u16;
        if matches!(kind, ethertype::ARP | ethertype::VLAN | ethertype::QINQ)
            || frame.len() > usize::from(u16::MAX)
        {
            return None;
        }
        Some(Self { first, rest, ingress: frame.ingress })
    }

    /// Destination MAC.
    #[inline]
    pub(crate) const fn dst(&self) -> u64 {
        self.first >> 16
    }

    /// Source MAC.
    #[inline]
    pub(crate) const fn src(&self) -> u64 {
        self.rest >> 16
    }

    /// EtherType.
    #[inline]
    #[allow(clippy::cast_possible_truncation, reason = "the low half is wanted")]
    pub(crate) const fn kind(&self) -> u16 {
        self.rest as u16
    }

    #[inline]
    fn place(&self) -> usize {
        let mixed = (self.first ^ self.rest.rotate_left(23)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 58) as usize % LINKS
    }
}

/// Where frames with such a header go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum To {
    /// Switched, if they fit and the sender is this one.
    Port { port: PortId, mtu: u16, sender: Sender },
    /// To the router, whose packets from there belong to this zone.
    Router { zone: Zone },
}

/// The source address of a frame, which the guard has admitted with its link header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    /// It has none that anybody looks at.
    Unnamed,
    V4(u32),
    /// The one at this place of [`Links`]: whole, it would be copied for every frame.
    V6(u8),
}

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Record {
    head: LinkHead,
    epoch: u64,
    to: To,
}

/// A record is a cache line, and what is copied of it small.
const _: () = assert!(size_of::<Record>() == 64 && size_of::<To>() == 12);

/// Headers that a worker remembers. Who speaks at a time is few; more only go the whole way.
const LINKS: usize = 64;

/// The headers, each in the one place that follows from it.
#[derive(Debug)]
pub(crate) struct Links {
    records: [Record; LINKS],
    /// Senders of IPv6, beside their records.
    senders6: [[u8; 16]; LINKS],
    /// The last header that was switched without being remembered.
    before: LinkHead,
}

impl Default for Links {
    fn default() -> Self {
        // Of no epoch.
        let none =
            Record { head: LinkHead::NONE, epoch: 0, to: To::Router { zone: Zone::OUTSIDE } };
        Self { records: [none; LINKS], senders6: [[0; 16]; LINKS], before: LinkHead::NONE }
    }
}

impl Links {
    #[inline]
    pub(crate) fn find(&self, head: &LinkHead, epoch: u64) -> Option<To> {
        let record = self.records.get(head.place())?;
        (record.head == *head && record.epoch == epoch).then_some(record.to)
    }

    /// Remembers what became of a frame that went the whole way.
    pub(crate) fn learn(&mut self, head: LinkHead, epoch: u64, to: To) {
        if let Some(place) = self.records.get_mut(head.place()) {
            *place = Record { head, epoch, to };
        }
    }

    /// Remembers that a frame was switched. One whose packet is cut short, or from no address, is not remembered.
    pub(crate) fn learn_port(
        &mut self,
        head: LinkHead,
        epoch: u64,
        frame: &Frame,
        port: PortId,
        mtu: u16,
    ) {
        let bytes = frame.bytes();
        let sender = match head.kind() {
            // From no address one may say this and not that, which only the whole way tells apart.
            ethertype::IPV4 => ipv4_source_at(bytes, ETH_LEN)
                .filter(|ip| !ip.is_unspecified())
                .map(|ip| Sender::V4(ip.to_bits())),
            ethertype::IPV6 => ipv6_source_at(bytes, ETH_LEN).and_then(|ip| {
                if ip.is_unspecified() {
                    return None;
                }
                *self.senders6.get_mut(head.place())? = ip.octets();
                u8::try_from(head.place()).ok().map(Sender::V6)
            }),
            _ => Some(Sender::Unnamed),
        };
        if let Some(sender) = sender {
            self.learn(head, epoch, To::Port { port, mtu, sender });
        }
    }

    /// Whether a header came twice in a row: one that does not is not worth remembering.
    #[inline]
    pub(crate) fn comes_again(&mut self, head: &LinkHead) -> bool {
        let again = self.before == *head;
        self.before = *head;
        again
    }
}

/// Whether a frame to be switched is of the sender that the guard has admitted, and is none that only a
/// trusted port may send.
#[inline(always)]
pub(crate) fn passes(links: &Links, frame: &Frame, kind: u16, sender: Sender) -> bool {
    match sender {
        Sender::Unnamed => guard::is_ordinary(frame.bytes(), kind),
        Sender::V4(source) => guard::is_ordinary_from(frame.bytes(), source),
        Sender::V6(place) => passes6(links, frame, place),
    }
}

#[inline(never)]
fn passes6(links: &Links, frame: &Frame, place: u8) -> bool {
    let sender = links.senders6.get(usize::from(place));
    sender.is_some_and(|sender| guard::is_ordinary_from6(frame.bytes(), sender))
}
