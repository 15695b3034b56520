//! Steering of a shared uplink: our BPF program on the ingress of a link.
//!
//! The filter has one fixed place (priority and handle), so that setting it again replaces it
//! atomically: a restarted daemon takes over without a frame going astray. Only a filter that bears
//! our name is ever replaced or removed; the qdisc it hangs on goes only if we made it and nothing
//! else uses it.

use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{
    TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption,
};

use super::{Handle, NetlinkError};

/// What `tc filter show` calls our program.
pub const STEER_NAME: &str = "vswitchd-steer";

/// Lower runs first: after filters an administrator numbered by hand, before those `tc` numbers
/// itself (49152 downwards). Unusual, so that it is ours.
const PRIORITY: u16 = 0x5653;
/// The filter's handle within the priority.
const HANDLE: u32 = 1;
/// `linux/if_ether.h`: `ETH_P_ALL`.
const ETH_P_ALL: u16 = 0x0003;

/// Whether steering made the qdisc it hangs on; keep it to give it to
/// [`Handle::remove_steering`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Qdisc {
    /// It was there before, or an earlier run of ours made it.
    Found,
    /// Made by this call.
    Made,
}

impl Handle {
    /// Hangs `program` (a loaded BPF program of type `SCHED_CLS`, direct action) on the ingress of
    /// `link`, in place of an earlier one of ours.
    ///
    /// # Errors
    /// When the link is gone, the kernel has no BPF classifier, or our place is taken by another
    /// program's filter.
    pub async fn set_steering(
        &self,
        link: u32,
        program: BorrowedFd<'_>,
    ) -> Result<Qdisc, NetlinkError> {
        let fd = u32::try_from(program.as_raw_fd()).unwrap_or(u32::MAX);
        let options = vec![
            TcFilterBpfOption::ProgFd(fd),
            TcFilterBpfOption::ProgName(STEER_NAME.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        self.set_filter(link, options).await
    }

    pub(super) async fn set_filter(
        &self,
        link: u32,
        options: Vec<TcFilterBpfOption>,
    ) -> Result<Qdisc, NetlinkError> {
        let qdisc = self.ensure_clsact(link).await?;
        if self.filters(link, TcHandle::MIN_INGRESS).await?.iter().any(is_stranger_in_our_place) {
            return Err(NetlinkError::Foreign(format!(
                "interface {link} has a filter of another program at priority {PRIORITY}"
            )));
        }
        let mut message = filter_message(link, TcHandle::MIN_INGRESS)?;
        message.header.handle = TcHandle::from(HANDLE);
        message.header.info = filter_info();
        message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
        let options = options.into_iter().map(TcOption::Bpf).collect();
        message.attributes.push(TcAttribute::Options(options));
        let request = RouteNetlinkMessage::NewTrafficFilter(message);
        // Without NLM_F_EXCL a filter of the same priority and handle is replaced in one step.
        let action = format!("set the steering filter of interface {link}");
        match self.acked(action, request, NLM_F_CREATE).await {
            Ok(()) => Ok(qdisc),
            Err(error) => {
                if qdisc == Qdisc::Made {
                    // Best effort: the error that led here is the one to report.
                    let _ = self.delete_clsact(link).await;
                }
                Err(error)
            }
        }
    }

    /// Whether our filter is on the link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn has_steering(&self, link: u32) -> Result<bool, NetlinkError> {
        Ok(self.filters(link, TcHandle::MIN_INGRESS).await?.iter().any(is_ours))
    }

    /// Takes our filter off, and the qdisc too if it was `made` by us and is empty now. A link
    /// without our filter is left as it is.
    ///
    /// # Errors
    /// When the kernel refuses; a link that is gone is none.
    pub async fn remove_steering(&self, link: u32, made: Qdisc) -> Result<(), NetlinkError> {
        if self.has_steering(link).await? {
            let mut message = filter_message(link, TcHandle::MIN_INGRESS)?;
            message.header.handle = TcHandle::from(HANDLE);
            message.header.info = filter_info();
            message.attributes.push(TcAttribute::Kind(TcFilterBpf::KIND.to_owned()));
            let request = RouteNetlinkMessage::DelTrafficFilter(message);
            let action = format!("remove the steering filter of interface {link}");
            self.acked(action, request, 0).await.or_else(gone_is_fine)?;
        }
        if made == Qdisc::Made
            && self.has_clsact(link).await.or_else(|error| gone_is_fine(error).map(|()| false))?
            && self.filters(link, TcHandle::MIN_INGRESS).await?.is_empty()
            && self.filters(link, TcHandle::MIN_EGRESS).await?.is_empty()
        {
            self.delete_clsact(link).await.or_else(gone_is_fine)?;
        }
        Ok(())
    }

    /// Whether the link has a qdisc at its ingress, whoever made it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn has_clsact(&self, link: u32) -> Result<bool, NetlinkError> {
        let request = RouteNetlinkMessage::GetQueueDiscipline(link_message(link)?);
        let answers = self.dump(format!("list qdiscs of interface {link}"), request).await?;
        Ok(answers.iter().any(|answer| match answer {
            RouteNetlinkMessage::NewQueueDiscipline(message) => {
                u32::try_from(message.header.index) == Ok(link)
                    && message.header.parent == TcHandle::CLSACT
            }
            _ => false,
        }))
    }

    async fn ensure_clsact(&self, link: u32) -> Result<Qdisc, NetlinkError> {
        let request = RouteNetlinkMessage::NewQueueDiscipline(clsact_message(link)?);
        let action = format!("add a clsact qdisc to interface {link}");
        match self.acked(action, request, NLM_F_CREATE | NLM_F_EXCL).await {
            Ok(()) => Ok(Qdisc::Made),
            // A plain ingress qdisc sits in the same place and serves as well.
            Err(error) if error.is_exists() => Ok(Qdisc::Found),
            Err(error) => Err(error),
        }
    }

    async fn delete_clsact(&self, link: u32) -> Result<(), NetlinkError> {
        let request = RouteNetlinkMessage::DelQueueDiscipline(clsact_message(link)?);
        self.acked(format!("remove the clsact qdisc of interface {link}"), request, 0).await
    }

    /// The filters at one of the two hooks; none on a link without such a qdisc.
    async fn filters(&self, link: u32, hook: u16) -> Result<Vec<TcMessage>, NetlinkError> {
        let request = RouteNetlinkMessage::GetTrafficFilter(filter_message(link, hook)?);
        let answers = match self.dump(format!("list filters of interface {link}"), request).await {
            // EINVAL: no qdisc there.
            Err(NetlinkError::Refused { code: nix::errno::Errno::EINVAL, .. }) => Vec::new(),
            other => other.or_else(|error| gone_is_fine(error).map(|()| Vec::new()))?,
        };
        Ok(answers
            .into_iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewTrafficFilter(message) => Some(message),
                _ => None,
            })
            // A dump names each priority once without a handle, beside its filters.
            .filter(|message| u32::from(message.header.handle) != 0)
            .collect())
    }
}

fn gone_is_fine(error: NetlinkError) -> Result<(), NetlinkError> {
    if error.is_not_found() { Ok(()) } else { Err(error) }
}

/// Priority in the upper half, protocol in network order in the lower (`TC_H_MAKE`).
fn filter_info() -> u32 {
    u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be())
}

fn link_message(link: u32) -> Result<TcMessage, NetlinkError> {
    let index = i32::try_from(link).map_err(|_| NetlinkError::NoLink(link.to_string()))?;
    Ok(TcMessage::with_index(index))
}

fn filter_message(link: u32, hook: u16) -> Result<TcMessage, NetlinkError> {
    let mut message = link_message(link)?;
    message.header.parent = TcHandle { major: TcHandle::CLSACT.major, minor: hook };
    Ok(message)
}

fn clsact_message(link: u32) -> Result<TcMessage, NetlinkError> {
    let mut message = link_message(link)?;
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
    Ok(message)
}

fn is_in_our_place(filter: &TcMessage) -> bool {
    filter.header.info >> 16 == u32::from(PRIORITY)
        && filter.header.handle == TcHandle::from(HANDLE)
}

fn is_ours(filter: &TcMessage) -> bool {
    is_in_our_place(filter)
        && filter.attributes.iter().any(|attribute| match attribute {
            TcAttribute::Options(options) => options.iter().any(|option| {
                matches!(option,
                    TcOption::Bpf(TcFilterBpfOption::ProgName(name)) if name == STEER_NAME)
            }),
            _ => false,
        })
}

fn is_stranger_in_our_place(filter: &TcMessage) -> bool {
    is_in_our_place(filter) && !is_ours(filter)
}
