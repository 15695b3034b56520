//! ICMP echo over the kernel's own stack, as `ping` does it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// RFC 792: echo and echo reply.
const ECHO: u8 = 8;
const ECHO_REPLY: u8 = 0;
/// RFC 791: offset of the TTL in the header a raw socket delivers.
const TTL_OFFSET: usize = 8;

/// One answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// TTL the answer arrived with.
    pub ttl: u8,
    /// From sending to receiving.
    pub rtt: Duration,
}

/// A socket that sends echo requests from the namespace of the thread that opened it.
pub(super) struct Pinger {
    socket: OwnedFd,
    id: u16,
    sequence: u16,
}

impl Pinger {
    /// Opens a raw socket: a datagram one is open only to the groups of `ping_group_range`, which
    /// are none in a new namespace.
    pub(super) fn open(id: u16) -> io::Result<Self> {
        let socket =
            socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Icmp)?;
        // Wakes up often enough to look at the clock.
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000))?;
        Ok(Self { socket, id, sequence: 0 })
    }

    /// Sends one request and waits for its answer; `None`: none within `timeout`.
    pub(super) fn ping(&mut self, to: Ipv4Addr, timeout: Duration) -> io::Result<Option<Answer>> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = echo(self.id, self.sequence);
        let sent = Instant::now();
        let fd = self.socket.as_raw_fd();
        sendto(
            fd,
            &request,
            &SockaddrIn::from(std::net::SocketAddrV4::new(to, 0)),
            MsgFlags::empty(),
        )?;
        let mut buffer = [0; 256];
        while sent.elapsed() < timeout {
            let length = match recv(fd, &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(Errno::EAGAIN | Errno::EINTR) => continue,
                Err(code) => return Err(code.into()),
            };
            let packet = buffer.get(..length).unwrap_or_default();
            if let Some(ttl) = answer_ttl(packet, to, self.id, self.sequence) {
                return Ok(Some(Answer { ttl, rtt: sent.elapsed() }));
            }
        }
        Ok(None)
    }
}

/// An echo request with 8 bytes of data.
fn echo(id: u16, sequence: u16) -> [u8; 16] {
    let [id_high, id_low] = id.to_be_bytes();
    let [sequence_high, sequence_low] = sequence.to_be_bytes();
    let mut message = [
        ECHO,
        0,
        0,
        0,
        id_high,
        id_low,
        sequence_high,
        sequence_low,
        b'v',
        b's',
        b'w',
        b'i',
        b't',
        b'c',
        b'h',
        b'd',
    ];
    let [high, low] = checksum(&message).to_be_bytes();
    message[2] = high;
    message[3] = low;
    message
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high] => u32::from(*high) << 8,
            _ => 0,
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // The loop above leaves 16 bits.
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// The TTL of the IP packet if it is the answer to that very request.
fn answer_ttl(packet: &[u8], from: Ipv4Addr, id: u16, sequence: u16) -> Option<u8> {
    let header_len = usize::from(packet.first()? & 0x0f) * 4;
    let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
    let message: [u8; 8] = packet.get(header_len..header_len + 8)?.try_into().ok()?;
    let [kind, code, _, _, id_high, id_low, sequence_high, sequence_low] = message;
    let matches = kind == ECHO_REPLY
        && code == 0
        && Ipv4Addr::from(source) == from
        && u16::from_be_bytes([id_high, id_low]) == id
        && u16::from_be_bytes([sequence_high, sequence_low]) == sequence;
    if matches { packet.get(TTL_OFFSET).copied() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::Netns;

    #[test]
    fn a_request_sums_up_to_zero() {
        assert_eq!(checksum(&echo(7, 9)), 0);
        // RFC 1071 §3, the worked example.
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn only_the_very_answer_counts() {
        let from = Ipv4Addr::new(10, 0, 0, 2);
        let mut packet = vec![0x45, 0, 0, 36, 0, 0, 0, 0, 63, 1, 0, 0, 10, 0, 0, 2, 10, 0, 0, 3];
        packet.extend(echo(7, 9));
        packet[20] = ECHO_REPLY;
        assert_eq!(answer_ttl(&packet, from, 7, 9), Some(63));
        assert_eq!(answer_ttl(&packet, from, 7, 8), None);
        assert_eq!(answer_ttl(&packet, from, 8, 9), None);
        assert_eq!(answer_ttl(&packet, Ipv4Addr::new(10, 0, 0, 9), 7, 9), None);
        packet[20] = ECHO;
        assert_eq!(answer_ttl(&packet, from, 7, 9), None);
        for length in 0..28 {
            assert_eq!(answer_ttl(&packet[..length], from, 7, 9), None);
        }
    }

    #[test]
    #[ignore = "needs root"]
    fn loopback_answers_and_a_black_hole_does_not() {
        let netns = Netns::anonymous().unwrap();
        let mut pinger = netns.run(|| Pinger::open(77)).unwrap().unwrap();
        for _ in 0..3 {
            let answer = pinger.ping(Ipv4Addr::LOCALHOST, Duration::from_secs(2)).unwrap().unwrap();
            assert_eq!(answer.ttl, 64);
        }
        let unreachable = pinger.ping(Ipv4Addr::new(192, 0, 2, 1), Duration::from_secs(1));
        assert_eq!(unreachable.unwrap_err().raw_os_error(), Some(Errno::ENETUNREACH as i32));
    }
}
