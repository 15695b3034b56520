//! Placeholder until the real one lands in the next commits.
use super::headers::Headers;
use crate::frame::Frame;
use crate::pool::Pool;
use crate::verdict::DropReason;
pub fn complete_checksum(_f: &mut Frame, _h: &Headers) {}
pub fn segment(
    _f: &Frame,
    _h: &Headers,
    _p: &mut Pool,
    _o: &mut Vec<Frame>,
) -> Result<usize, DropReason> {
    Ok(0)
}
pub fn fragment(
    _f: &Frame,
    _h: &Headers,
    _mtu: u16,
    _p: &mut Pool,
    _o: &mut Vec<Frame>,
) -> Result<usize, DropReason> {
    Ok(0)
}
