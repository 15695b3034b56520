//! Features of a device, as `ethtool -k` shows them: what the stack above leaves to it.
//!
//! By the kernel's `ethtool` family of generic netlink (Linux 5.7), which knows them by name. The
//! crate of that name only reads them.
//!
//! Constants are those of `linux/genetlink.h` and `linux/ethtool_netlink.h`.

use std::io;

use netlink_packet_core::{
    DefaultNla, Emitable, NLA_F_NESTED, NLA_HEADER_SIZE, NLM_F_ACK, NLM_F_REQUEST, NlasIterator,
};
use netlink_sys::protocols::NETLINK_GENERIC;

use super::blocking::{BlockingSocket, RawMessage};

const GENL_ID_CTRL: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_VERSION: u8 = 2;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const ETHTOOL_VERSION: u8 = 1;
const ETHTOOL_MSG_FEATURES_GET: u8 = 11;
const ETHTOOL_MSG_FEATURES_SET: u8 = 12;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;
const ETHTOOL_A_FEATURES_HEADER: u16 = 1;
const ETHTOOL_A_FEATURES_WANTED: u16 = 3;
const ETHTOOL_A_FEATURES_ACTIVE: u16 = 4;
const ETHTOOL_A_BITSET_BITS: u16 = 3;
const ETHTOOL_A_BITSET_BITS_BIT: u16 = 1;
const ETHTOOL_A_BITSET_BIT_NAME: u16 = 2;
/// `struct genlmsghdr`.
const HEADER_LEN: usize = 4;

/// Switches those of the features off that the device of this index, in the namespace of the
/// calling thread, has on. One that the kernel does not know is off.
///
/// Those that are on all the same.
///
/// # Errors
/// When the kernel has no such family, or refuses.
pub fn switch_off(index: u32, names: &[&str]) -> io::Result<Vec<String>> {
    let mut socket = BlockingSocket::open(NETLINK_GENERIC)?;
    let family = family_of(&mut socket, "ethtool")?;
    let mut ask = |command: u8, attributes: &[DefaultNla]| {
        request(&mut socket, family, (command, ETHTOOL_VERSION), attributes)
    };
    let device = [DefaultNla::new(ETHTOOL_A_HEADER_DEV_INDEX, index.to_ne_bytes().to_vec())];
    let device = nested(ETHTOOL_A_FEATURES_HEADER, &device);
    let answers = ask(ETHTOOL_MSG_FEATURES_GET, std::slice::from_ref(&device))?;
    // One name that the kernel does not know would have it refuse them all.
    let mut on = named(&answers, ETHTOOL_A_FEATURES_ACTIVE)?;
    on.retain(|name| names.contains(&name.as_str()));
    if on.is_empty() {
        return Ok(on);
    }
    // What has no value is to be off.
    let bits: Vec<_> = on
        .iter()
        .map(|name| {
            let name = [name.as_bytes(), &[0]].concat();
            let name = DefaultNla::new(ETHTOOL_A_BITSET_BIT_NAME, name);
            nested(ETHTOOL_A_BITSET_BITS_BIT, &[name])
        })
        .collect();
    let wanted = nested(ETHTOOL_A_FEATURES_WANTED, &[nested(ETHTOOL_A_BITSET_BITS, &bits)]);
    let answers = ask(ETHTOOL_MSG_FEATURES_SET, &[device, wanted])?;
    // What is not as it was wanted.
    named(&answers, ETHTOOL_A_FEATURES_WANTED)
}

/// The number that the kernel gave a family of generic netlink.
fn family_of(socket: &mut BlockingSocket, name: &str) -> io::Result<u16> {
    let name = [name.as_bytes(), &[0]].concat();
    let name = DefaultNla::new(CTRL_ATTR_FAMILY_NAME, name);
    let answers = request(socket, GENL_ID_CTRL, (CTRL_CMD_GETFAMILY, CTRL_VERSION), &[name])?;
    let value = find(&answers, CTRL_ATTR_FAMILY_ID)?;
    let number = value.and_then(|value| value.first_chunk::<2>());
    number.map(|bytes| u16::from_ne_bytes(*bytes)).ok_or_else(|| malformed("no family's number"))
}

fn request(
    socket: &mut BlockingSocket,
    family: u16,
    (command, version): (u8, u8),
    attributes: &[DefaultNla],
) -> io::Result<Vec<RawMessage>> {
    let payload = [&[command, version, 0, 0][..], &emitted(attributes)].concat();
    socket.request(family, NLM_F_REQUEST | NLM_F_ACK, &payload)
}

fn emitted(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

fn nested(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NLA_F_NESTED, emitted(attributes))
}

/// The names that the bitset of this kind lists.
fn named(answers: &[RawMessage], kind: u16) -> io::Result<Vec<String>> {
    let Some(bitset) = find(answers, kind)? else { return Ok(Vec::new()) };
    let mut names = Vec::new();
    for bits in attributes(bitset) {
        let (ETHTOOL_A_BITSET_BITS, bits) = bits? else { continue };
        for bit in attributes(bits) {
            for field in attributes(bit?.1) {
                if let (ETHTOOL_A_BITSET_BIT_NAME, name) = field? {
                    let name = String::from_utf8_lossy(name);
                    names.push(name.trim_end_matches('\0').to_owned());
                }
            }
        }
    }
    Ok(names)
}

/// The first attribute of this kind in the answers.
fn find(answers: &[RawMessage], kind: u16) -> io::Result<Option<&[u8]>> {
    for answer in answers {
        for attribute in attributes(answer.payload.get(HEADER_LEN..).unwrap_or_default()) {
            let (found, value) = attribute?;
            if found == kind {
                return Ok(Some(value));
            }
        }
    }
    Ok(None)
}

/// Kinds and values of attributes that follow each other.
fn attributes(bytes: &[u8]) -> impl Iterator<Item = io::Result<(u16, &[u8])>> {
    NlasIterator::new(bytes).map(|found| {
        let found = found.map_err(|error| malformed(&error.to_string()))?;
        let (kind, length) = (found.kind(), usize::from(found.length()));
        Ok((kind, found.into_inner().get(NLA_HEADER_SIZE..length).unwrap_or_default()))
    })
}

fn malformed(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("malformed generic netlink message: {what}"))
}
