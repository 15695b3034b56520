//! Walking the extension headers of an IPv6 packet (RFC 8200 §4), which is the only way to know what
//! the packet carries.
//!
//! Invariants: the walk ends after [`MAX_EXTENSION_HEADERS`] headers, whatever they say; the offset
//! it ends at lies within the packet. Options are not looked into.

use super::field::{chunk, read_u16};
use super::headers::Chain;
use super::parse::IPV6_LEN;
use super::types::ip6_extensions;

/// Bytes of a fragment header.
pub(crate) const FRAGMENT_LEN: usize = 8;
/// Extension headers walked at most. RFC 8200 §4.1 has each at most once, destination options twice:
/// seven.
const MAX_EXTENSION_HEADERS: usize = 8;

// IANA "IPv6 Extension Header Types". The Encapsulating Security Payload is one too, but nothing
// behind it can be read, so that the walk ends there.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// The routing type that lets a packet go to and fro between two places (RFC 5095 §2).
const ROUTING_TYPE_0: u8 = 0;

/// Where a walk ended, and what it met.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExtensionWalk {
    /// What the last header walked says comes next.
    pub(crate) proto: u8,
    /// Of the first byte not walked, from the IPv6 header.
    pub(crate) offset: usize,
    /// Of the fragment header, from the IPv6 header; zero without one.
    pub(crate) fragment_at: usize,
    /// In bytes.
    pub(crate) frag_offset: u16,
    pub(crate) more_fragments: bool,
    pub(crate) frag_id: u32,
    /// What was walked, see [`ip6_extensions`].
    pub(crate) extensions: u8,
    pub(crate) chain: Chain,
}

/// Steps over the extension headers of `packet`, which ends where the IPv6 packet does and begins
/// with the fixed header, whose next header is `first`.
#[inline]
pub(crate) fn walk_extensions(packet: &[u8], first: u8) -> ExtensionWalk {
    let mut walk = ExtensionWalk {
        proto: first,
        offset: IPV6_LEN,
        fragment_at: 0,
        frag_offset: 0,
        more_fragments: false,
        frag_id: 0,
        extensions: 0,
        chain: Chain::Whole,
    };
    if is_extension(first) {
        walk_on(packet, &mut walk);
    }
    walk
}

#[inline(never)]
fn walk_on(packet: &[u8], walk: &mut ExtensionWalk) {
    for walked in 0..MAX_EXTENSION_HEADERS {
        if !is_extension(walk.proto) {
            return;
        }
        if (walk.proto == HOP_BY_HOP && walked != 0)
            || (walk.proto == FRAGMENT && walk.fragment_at != 0)
        {
            walk.chain = Chain::Misplaced;
            return;
        }
        // The whole extension header has to be there, or what is behind it is anyone's guess.
        let Some((&next, header)) = extension(packet, walk.offset, walk.proto)
            .and_then(|header| Some((header.first()?, header)))
        else {
            walk.chain = Chain::Cut;
            return;
        };
        match walk.proto {
            ROUTING if header.get(2) == Some(&ROUTING_TYPE_0) => walk.chain = Chain::Routing0,
            FRAGMENT => {
                // RFC 8200 §4.5: 13 bits of offset in units of eight bytes, two reserved, M.
                let word = read_u16(header, 2).unwrap_or(0);
                walk.frag_offset = word & 0xfff8;
                walk.more_fragments = word & 1 != 0;
                walk.frag_id = chunk(header, 4).map_or(0, |id| u32::from_be_bytes(*id));
                walk.fragment_at = walk.offset;
            }
            _ => {}
        }
        walk.extensions |= bit_of(walk.proto);
        walk.proto = next;
        walk.offset += header.len();
        // What follows in the datagram came with its first fragment.
        if walk.frag_offset != 0 {
            return;
        }
    }
    if is_extension(walk.proto) {
        walk.chain = Chain::TooLong;
    }
}

/// Whether a header of this number says how long it is and what comes next.
#[inline]
const fn is_extension(proto: u8) -> bool {
    matches!(
        proto,
        HOP_BY_HOP
            | ROUTING
            | FRAGMENT
            | AUTHENTICATION
            | DESTINATION_OPTIONS
            | MOBILITY
            | HIP
            | SHIM6
    )
}

const fn bit_of(proto: u8) -> u8 {
    match proto {
        HOP_BY_HOP => ip6_extensions::HOP_BY_HOP,
        DESTINATION_OPTIONS => ip6_extensions::DESTINATION_OPTIONS,
        ROUTING => ip6_extensions::ROUTING,
        FRAGMENT => ip6_extensions::FRAGMENT,
        AUTHENTICATION => ip6_extensions::AUTHENTICATION,
        _ => ip6_extensions::OTHER,
    }
}

/// The extension header at `at`, if all of it is there.
fn extension(packet: &[u8], at: usize, proto: u8) -> Option<&[u8]> {
    let rest = packet.get(at..)?;
    let units = usize::from(*rest.get(1)?);
    let length = match proto {
        FRAGMENT => FRAGMENT_LEN,
        // RFC 4302 §2.2: in units of four bytes, minus two.
        AUTHENTICATION => (units + 2) * 4,
        _ => (units + 1) * 8,
    };
    rest.get(..length)
}

#[cfg(test)]
mod tests;
