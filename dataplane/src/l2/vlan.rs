//! VLANs at the edge: which one a frame is in when it comes, and its tag when it leaves.
//!
//! A tag that names no VLAN (VID 0, "priority-tagged") says nothing that is carried on: the frame is as an
//! untagged one (IEEE 802.1Q-2018 §6.9.1, §9.6). With two tags the outer one decides and the inner one is
//! payload, be they 802.1ad or 802.1Q.

use crate::config::Vlans;
use crate::frame::Frame;
use crate::packet::headers::Headers;
use crate::packet::parse;
use crate::packet::types::ethertype;
use crate::verdict::DropReason;

/// The VID that no frame may have.
const RESERVED: u16 = 0xfff;

/// Takes the tag out of a priority-tagged frame. A frame can have one such tag.
#[cold]
pub(crate) fn strip_priority(frame: &mut Frame, headers: &mut Headers) -> Result<(), DropReason> {
    if !frame.pop_tag() || parse::parse_link(frame.bytes(), headers).is_err() {
        return Err(DropReason::Runt);
    }
    if headers.tagged && headers.vlan == 0 { Err(DropReason::VlanInvalid) } else { Ok(()) }
}

/// Whether a frame may have the tag that it has.
#[inline]
pub(crate) fn check(headers: &Headers) -> Result<(), DropReason> {
    if headers.vlan == RESERVED { Err(DropReason::VlanInvalid) } else { Ok(()) }
}

/// Notes the VLAN that a frame is in by the port it came from.
#[cold]
pub(crate) fn enter(vlans: &Vlans, headers: &mut Headers) -> Result<(), DropReason> {
    let tag = headers.tagged.then_some(headers.vlan);
    headers.vlan = vlans.admit(tag).ok_or(DropReason::VlanDenied)?;
    Ok(())
}

/// Gives the frame a tag with its VLAN, or takes its outer one out. False: it has a tag behind the outer
/// one, which the port would take for that of a VLAN that its sender may not be in.
pub(crate) fn retag(frame: &mut Frame, vlan: u16, tagged: bool) -> bool {
    if !tagged {
        return !has_two_tags(frame) && frame.pop_tag();
    }
    let [a, b] = ethertype::VLAN.to_be_bytes();
    let [c, d] = vlan.to_be_bytes();
    frame.push_tag([a, b, c, d])
}

/// Whether what follows the outer tag of a tagged frame is another one.
fn has_two_tags(frame: &Frame) -> bool {
    let inner = frame.bytes().get(16..18).and_then(|kind| kind.try_into().ok());
    let inner = inner.map(u16::from_be_bytes);
    matches!(inner, Some(ethertype::VLAN | ethertype::QINQ))
}
