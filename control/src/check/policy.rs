//! Rules of policies.

use crate::api::types::{IpProtocol, PolicyAdd, PolicyPeer};
use crate::error::{Error, Result};
use crate::publish::Proto;

/// Checks a rule to be added.
///
/// # Errors
/// [`crate::error::Kind::Invalid`] with `network "NAME": ` before the message.
pub fn policy(request: &PolicyAdd) -> Result<()> {
    policy_fields(request)
        .map_err(|error| error.context(format_args!("network {:?}", request.network)))
}

fn policy_fields(request: &PolicyAdd) -> Result<()> {
    if let (Some(PolicyPeer::Net(src)), Some(PolicyPeer::Net(dst))) = (&request.src, &request.dst)
        && src.addr().is_ipv4() != dst.addr().is_ipv4()
    {
        return Err(Error::invalid(format!(
            "source {src} and destination {dst} are of two IP versions; no packet has both"
        )));
    }
    let has_ports = |proto: IpProtocol| {
        [Proto::Tcp, Proto::Udp, Proto::Sctp].iter().any(|known| known.number() == proto.0)
    };
    let of_ports = request.port.is_some() || request.host_port.is_some();
    if let Some(proto) = request.proto.filter(|proto| of_ports && !has_ports(*proto)) {
        return Err(Error::invalid(format!(
            "protocol {proto} has no ports; give tcp, udp or sctp, or leave the ports out"
        )));
    }
    if request.position == Some(0) {
        return Err(Error::invalid("position 0: positions are counted from 1"));
    }
    Ok(())
}
