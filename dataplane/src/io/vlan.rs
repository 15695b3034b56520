//! VLAN tags that the kernel took out of a frame before a packet socket had it, and tells beside it
//! (`PACKET_AUXDATA`, or the header of a ring's slot).

use crate::frame::Frame;
use crate::packet::types::ethertype;

/// Room for the control data of one frame: `struct cmsghdr` and `struct tpacket_auxdata` take 40
/// bytes. With this many, what io_uring puts before a frame is a cache line long.
pub(super) const CONTROL_LEN: usize = 48;

const LEVEL: usize = std::mem::offset_of!(libc::cmsghdr, cmsg_level);
const TYPE: usize = std::mem::offset_of!(libc::cmsghdr, cmsg_type);
/// Where the data of the first message begins (`CMSG_DATA`): its header needs no padding.
const DATA: usize = size_of::<libc::cmsghdr>();
const STATUS: usize = DATA + std::mem::offset_of!(libc::tpacket_auxdata, tp_status);
const TCI: usize = DATA + std::mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tci);
const TPID: usize = DATA + std::mem::offset_of!(libc::tpacket_auxdata, tp_vlan_tpid);
/// Bytes of the message, without what pads it.
pub(super) const TOLD_LEN: usize = DATA + size_of::<libc::tpacket_auxdata>();
const _: () = assert!(TOLD_LEN <= CONTROL_LEN);
const _: () = assert!(DATA.is_multiple_of(size_of::<usize>()));

/// The tag as it was on the wire, by what the kernel tells. `None`: the frame had none.
#[inline]
pub(super) fn tag(status: u32, tci: u16, tpid: u16) -> Option<[u8; 4]> {
    if status & libc::TP_STATUS_VLAN_VALID == 0 {
        return None;
    }
    let known = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
    let [a, b] = if known { tpid } else { ethertype::VLAN }.to_be_bytes();
    let [c, d] = tci.to_be_bytes();
    Some([a, b, c, d])
}

/// The tag that the control data of a frame tells of. The only message that a packet socket of ours
/// gives is the first.
#[inline]
pub(super) fn tag_in(control: &[u8; CONTROL_LEN]) -> Option<[u8; 4]> {
    let int = |at: usize| control.get(at..)?.first_chunk().copied().map(i32::from_ne_bytes);
    let short = |at: usize| control.get(at..)?.first_chunk().copied().map(u16::from_ne_bytes);
    let status = int(STATUS)?.cast_unsigned();
    if status & libc::TP_STATUS_VLAN_VALID == 0
        || int(LEVEL) != Some(libc::SOL_PACKET)
        || int(TYPE) != Some(libc::PACKET_AUXDATA)
    {
        return None;
    }
    tag(status, short(TCI)?, short(TPID)?)
}

/// Puts the tag back in its place.
#[cold]
pub(super) fn put_back(frame: &mut Frame, tag: [u8; 4]) {
    frame.push_tag(tag);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::vnet_hdr::{F_NEEDS_CSUM, VnetHdr};

    fn control(status: u32, tci: u16, tpid: u16) -> [u8; CONTROL_LEN] {
        let mut control = [0; CONTROL_LEN];
        let mut put = |at: usize, bytes: &[u8]| {
            control[at..at + bytes.len()].copy_from_slice(bytes);
        };
        put(LEVEL, &libc::SOL_PACKET.to_ne_bytes());
        put(TYPE, &libc::PACKET_AUXDATA.to_ne_bytes());
        put(STATUS, &status.to_ne_bytes());
        put(TCI, &tci.to_ne_bytes());
        put(TPID, &tpid.to_ne_bytes());
        control
    }

    #[test]
    fn a_tag_is_found_where_the_kernel_tells_of_one() {
        const VALID: u32 = libc::TP_STATUS_VLAN_VALID;
        const BOTH: u32 = VALID | libc::TP_STATUS_VLAN_TPID_VALID;
        assert_eq!(tag_in(&control(0, 5, 0x8100)), None);
        assert_eq!(tag_in(&control(VALID, 0x2005, 0)), Some([0x81, 0, 0x20, 5]));
        assert_eq!(tag_in(&control(BOTH, 0, 0x88a8)), Some([0x88, 0xa8, 0, 0]));
        let mut other = control(BOTH, 5, 0x8100);
        other[TYPE] ^= 1;
        assert_eq!(tag_in(&other), None);
        assert_eq!(tag_in(&[0; CONTROL_LEN]), None);
    }

    #[test]
    fn a_frame_gets_its_tag_back_and_its_offsets_moved() {
        let mut frame = Frame::new();
        frame.copy_from(b"dst-mmsrc-mm\x08\x00payload");
        frame.vnet =
            VnetHdr { flags: F_NEEDS_CSUM, csum_start: 34, hdr_len: 54, ..VnetHdr::default() };
        put_back(&mut frame, [0x81, 0, 0x20, 5]);
        assert_eq!(frame.bytes(), b"dst-mmsrc-mm\x81\x00\x20\x05\x08\x00payload");
        assert_eq!((frame.vnet.csum_start, frame.vnet.hdr_len), (38, 58));
        // Shorter than the addresses: cannot come from a kernel.
        frame.copy_from(b"abc");
        put_back(&mut frame, [0x81, 0, 0x20, 5]);
        assert_eq!(frame.bytes(), b"abc");
    }
}
