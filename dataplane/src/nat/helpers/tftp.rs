//! The first datagram of TFTP (RFC 1350 §4): the server answers it from another port, to the port that it came
//! from.

/// A read request.
const READ: u16 = 1;
/// A write request.
const WRITE: u16 = 2;

/// Whether a datagram to a server asks for a file, or to take one: an operation, a name and a mode.
pub(super) fn is_request(payload: &[u8]) -> bool {
    let [high, low, rest @ ..] = payload else { return false };
    let strings = rest.iter().filter(|octet| **octet == 0).count();
    matches!(u16::from_be_bytes([*high, *low]), READ | WRITE) && strings >= 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_requests_are() {
        for (payload, is) in [
            (&b"\0\x01kernel\0octet\0"[..], true),
            (b"\0\x02kernel\0octet\0blksize\x001468\0", true),
            (b"\0\x03\0\x01data\0\0", false),
            (b"\0\x01kernel\0octet", false),
            (b"\x01\0kernel\0octet\0", false),
            (b"\0\x01", false),
            (b"\0", false),
            (b"", false),
        ] {
            assert_eq!(is_request(payload), is, "{payload:?}");
        }
    }
}
