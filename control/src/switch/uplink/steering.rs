//! Steering of shared uplinks: which frames are ours and which are the host's.
//!
//! Ours are, at each address of the uplink: the ports that SNAT may use and those that are published, of
//! TCP, UDP and SCTP; and as ICMP identifiers the ports that SNAT may use.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use dataplane::io::steer::{PortBitmap, PortsByProto, SteerProto, Steering};

use crate::api::types::UplinkMode;
use crate::compile::UplinkState;
use crate::error::{Result, ResultExt};
use crate::model::{Publish, Uplink};
use crate::netlink::tc::Qdisc;
use crate::place::Place;
use crate::publish::{PortRange, Proto, is_at};
use crate::switch::{Switch, Work};

/// What an attached uplink holds beside its port.
#[derive(Debug)]
pub(in crate::switch) struct Live {
    /// `None`: dedicated, nothing to share.
    steering: Option<Steering>,
}

impl Live {
    /// Loads what the mode needs. No frame is touched yet.
    pub(super) fn open(uplink: &Uplink) -> Result<Self> {
        let steering = match uplink.mode {
            UplinkMode::Dedicated => None,
            UplinkMode::Shared => Some(Steering::load().failed("load the steering programs")?),
        };
        Ok(Self { steering })
    }

    /// The filter for the packet socket.
    pub(super) fn filter(&self) -> Option<BorrowedFd<'_>> {
        self.steering.as_ref().map(Steering::filter_fd)
    }

    /// Whether there is somebody to share with.
    pub(in crate::switch) const fn is_shared(&self) -> bool {
        self.steering.is_some()
    }

    /// Keeps our frames from the host's stack, in place of an earlier run's filter. `None`: there
    /// is nothing to share.
    pub(in crate::switch) async fn steer(&self, host: &Place, link: u32) -> Result<Option<Qdisc>> {
        let Some(steering) = &self.steering else { return Ok(None) };
        let set = host.netlink.set_steering(link, steering.classifier_fd()).await;
        set.failed("set the steering filter").map(Some)
    }

    fn refresh(&mut self, state: &UplinkState, published: &[Publish]) -> Result<()> {
        let Some(steering) = &mut self.steering else { return Ok(()) };
        // One that is there with several prefixes has one slot.
        let addresses: Vec<IpAddr> = state.nets().map(|net| net.addr()).collect();
        let ports = |address| bitmaps(address, &state.nat_ports, published);
        steering.follow(&addresses, ports).failed("set the steering filter")
    }
}

impl Switch {
    /// Makes steering match the ports that the snapshot uses.
    pub(in crate::switch) fn refresh_steering(&self, work: &mut Work) -> Result<()> {
        let world = self.world();
        let published: Vec<Publish> = world.desired.halves().map(|(_, half)| half).collect();
        for (interface, live) in &mut work.uplinks {
            if let Some(state) = world.attached.uplinks.get(interface) {
                live.refresh(state, &published)
                    .map_err(|error| error.context(format!("uplink {interface:?}")))?;
            }
        }
        Ok(())
    }
}

/// Takes steering off an interface, whoever set it: this run or an earlier one.
pub(in crate::switch) async fn remove(host: &Place, uplink: &Uplink) -> Result<()> {
    let link = match host.netlink.link_by_name(&uplink.interface).await {
        Ok(link) => link,
        Err(error) if error.is_not_found() => return Ok(()),
        Err(error) => return Err(error).failed("look up the interface"),
    };
    let made = if uplink.made_qdisc { Qdisc::Made } else { Qdisc::Found };
    host.netlink.remove_steering(link.index, made).await.failed("remove the steering filter")
}

/// Ports and ICMP identifiers that are ours at `address`.
fn bitmaps(address: IpAddr, free: &[PortRange], published: &[Publish]) -> PortsByProto {
    let mut nat = PortBitmap::new();
    for range in free {
        nat.insert_range(range.first(), range.last());
    }
    let with = |proto: Proto| {
        let mut bitmap = nat.clone();
        for publish in published {
            if publish.proto == proto && is_at(publish.host_ip, address) {
                bitmap.insert_range(publish.host_ports.first(), publish.host_ports.last());
            }
        }
        bitmap
    };
    [
        (SteerProto::Tcp, with(Proto::Tcp)),
        (SteerProto::Udp, with(Proto::Udp)),
        (SteerProto::Sctp, with(Proto::Sctp)),
        (SteerProto::Icmp, nat.clone()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_count_at_their_address_and_protocol() {
        let range = |first, last| PortRange::new(first, last).unwrap();
        let publish = |proto, host_ip, host_ports| Publish {
            id: 1,
            proto,
            host_ip,
            host_ports,
            ports: host_ports,
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (here, there) = (ip("192.0.2.2"), ip("192.0.2.3"));
        let published = [
            publish(Proto::Tcp, Some(ip("0.0.0.0")), range(8080, 8081)),
            publish(Proto::Udp, Some(here), range(53, 53)),
            publish(Proto::Udp, Some(ip("::")), range(54, 54)),
            publish(Proto::Tcp, Some(there), range(99, 99)),
            publish(Proto::Tcp, Some(ip("2001:db8::2")), range(98, 98)),
            publish(Proto::Sctp, Some(here), range(36_412, 36_412)),
        ];
        let bitmaps = |address| {
            bitmaps(address, &[range(61_000, 65_535)], &published).map(|(_, bitmap)| bitmap)
        };
        let [tcp, udp, sctp, icmp] = bitmaps(here);
        assert_eq!((tcp.count(), udp.count(), icmp.count()), (4536 + 2, 4536 + 1, 4536));
        assert_eq!((sctp.count(), sctp.contains(36_412)), (4536 + 1, true));
        assert!(!tcp.contains(36_412) && !udp.contains(36_412));
        assert!(tcp.contains(8081) && udp.contains(53) && icmp.contains(61_000));
        assert!(!tcp.contains(99) && !tcp.contains(53) && !udp.contains(8080));
        let [tcp, udp, sctp, icmp] = bitmaps(ip("2001:db8::2"));
        assert_eq!((tcp.count(), udp.count(), icmp.count()), (4536 + 1, 4536 + 1, 4536));
        assert_eq!(sctp.count(), 4536);
        assert!(tcp.contains(98) && udp.contains(54) && !tcp.contains(8080));
    }
}
