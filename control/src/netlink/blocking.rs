//! Netlink for threads: one request, then its answers.
//!
//! The kernel works a request off within `sendto`, so there is nothing to wait for. Used where no
//! async runtime is around (a thread that just made a namespace) and for families that `rtnetlink`
//! does not speak (socket diagnostics, nf_tables).

use std::io;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr};

/// `linux/netlink.h`: length of `struct nlmsghdr`.
const HEADER_LEN: usize = 16;
/// `linux/netlink.h`: `NLMSG_ERROR`, `NLMSG_DONE`.
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `linux/netlink.h`: `NLMSG_ALIGNTO`.
const ALIGN: usize = 4;

/// A message as it came: type and payload without the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawMessage {
    /// `nlmsg_type`.
    pub kind: u16,
    /// What follows the header.
    pub payload: Vec<u8>,
}

/// A netlink socket in the namespace of the thread that opened it.
#[derive(Debug)]
pub struct BlockingSocket {
    socket: Socket,
    sequence: u32,
}

impl BlockingSocket {
    /// Opens a socket of the given protocol (`netlink_sys::protocols`).
    ///
    /// # Errors
    /// When the kernel lacks the protocol.
    pub fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Sends one request and collects its answers. `flags` must ask for an acknowledgement or a
    /// dump, so that the end is known.
    ///
    /// # Errors
    /// With the code the kernel answered.
    pub fn request(
        &mut self,
        kind: u16,
        flags: u16,
        payload: &[u8],
    ) -> io::Result<Vec<RawMessage>> {
        let sequence = self.next_sequence();
        let message = encode(kind, flags, sequence, payload)?;
        self.send(&message)?;
        self.answers(sequence, flags & NLM_F_DUMP == NLM_F_DUMP)
    }

    /// The sequence number for the next message of a batch made with [`encode`].
    pub fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    /// Sends bytes that are one or more whole messages.
    ///
    /// # Errors
    /// When the kernel does not take them.
    pub fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Reads the answers to the message numbered `sequence`, until its acknowledgement or the end
    /// of its dump.
    ///
    /// # Errors
    /// With the code the kernel answered, also to an earlier message of the same batch.
    pub fn answers(&self, sequence: u32, dump: bool) -> io::Result<Vec<RawMessage>> {
        let mut answers = Vec::new();
        loop {
            let (bytes, sender) = self.socket.recv_from_full()?;
            // Any process may write to a netlink socket; only port 0 is the kernel.
            if sender.port_number() != 0 {
                continue;
            }
            for message in Messages(&bytes) {
                let (kind, number, payload) = message?;
                match kind {
                    NLMSG_ERROR => {
                        let code = leading_i32(payload)?;
                        if code != 0 {
                            return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
                        }
                        if number == sequence {
                            return Ok(answers);
                        }
                    }
                    NLMSG_DONE if number == sequence && dump => {
                        // Since Linux 4.14 a failed dump says so here.
                        return match leading_i32(payload) {
                            Ok(code) if code < 0 => {
                                Err(io::Error::from_raw_os_error(code.wrapping_neg()))
                            }
                            _ => Ok(answers),
                        };
                    }
                    _ if number == sequence => {
                        answers.push(RawMessage { kind, payload: payload.to_vec() });
                    }
                    _ => {}
                }
            }
        }
    }
}

/// One netlink message, padded.
///
/// # Errors
/// When the payload does not fit the length field.
pub fn encode(kind: u16, flags: u16, sequence: u32, payload: &[u8]) -> io::Result<Vec<u8>> {
    let length = u32::try_from(HEADER_LEN + payload.len())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut message = Vec::with_capacity(HEADER_LEN + payload.len() + ALIGN);
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&flags.to_ne_bytes());
    message.extend_from_slice(&sequence.to_ne_bytes());
    message.extend_from_slice(&0u32.to_ne_bytes());
    message.extend_from_slice(payload);
    message.resize(message.len().next_multiple_of(ALIGN), 0);
    Ok(message)
}

/// Sends one rtnetlink request that wants an acknowledgement.
///
/// # Errors
/// With the code the kernel answered.
pub fn route_request(
    socket: &mut BlockingSocket,
    message: RouteNetlinkMessage,
    flags: u16,
) -> io::Result<Vec<RawMessage>> {
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), NetlinkPayload::from(message));
    message.finalize();
    let NetlinkPayload::InnerMessage(inner) = &message.payload else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let mut payload = vec![0; inner.buffer_len()];
    inner.serialize(&mut payload);
    socket.request(message.header.message_type, flags | NLM_F_ACK, &payload)
}

struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<(u16, u32, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let parsed = split_message(self.0);
        match parsed {
            Some((message, rest)) => {
                self.0 = rest;
                Some(Ok(message))
            }
            None => {
                self.0 = &[];
                Some(Err(io::Error::new(io::ErrorKind::InvalidData, "malformed netlink message")))
            }
        }
    }
}

type Split<'a> = ((u16, u32, &'a [u8]), &'a [u8]);

fn split_message(bytes: &[u8]) -> Option<Split<'_>> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (kind, rest) = rest.split_first_chunk::<2>()?;
    let (_flags, rest) = rest.split_first_chunk::<2>()?;
    let (sequence, _) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_ne_bytes(*length)).ok()?;
    let payload = bytes.get(HEADER_LEN..length)?;
    let rest = bytes.get(length.next_multiple_of(ALIGN)..).unwrap_or(&[]);
    Some(((u16::from_ne_bytes(*kind), u32::from_ne_bytes(*sequence), payload), rest))
}

fn leading_i32(payload: &[u8]) -> io::Result<i32> {
    payload
        .first_chunk::<4>()
        .map(|bytes| i32::from_ne_bytes(*bytes))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "short netlink error message"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_encoded_message_splits_into_what_went_in() {
        let mut bytes = encode(18, 5, 7, &[1, 2, 3]).unwrap();
        bytes.extend(encode(19, 5, 8, &[4]).unwrap());
        let messages: Vec<_> = Messages(&bytes).collect::<io::Result<_>>().unwrap();
        assert_eq!(messages, [(18, 7, &[1u8, 2, 3][..]), (19, 8, &[4u8][..])]);
    }

    #[test]
    fn a_length_beyond_the_datagram_or_short_of_the_header_is_an_error() {
        let mut bytes = encode(18, 5, 7, &[1, 2, 3]).unwrap();
        for length in [0u32, 15, 400] {
            bytes.splice(0..4, length.to_ne_bytes());
            assert!(Messages(&bytes).next().unwrap().is_err(), "length {length}");
        }
    }

    #[test]
    fn the_kernel_refuses_by_code() {
        let mut socket = BlockingSocket::open(netlink_sys::protocols::NETLINK_ROUTE).unwrap();
        // RTM_GETLINK for an index that cannot exist.
        let mut payload = vec![0u8; 16];
        payload.splice(4..8, i32::MAX.to_ne_bytes());
        let error = socket.request(18, 1 | NLM_F_ACK, &payload).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::ENODEV as i32));
    }
}
