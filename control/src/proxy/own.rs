//! Which addresses are the host's own.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;

/// An address that is not known may be new: then the kernel is asked, but not more often than this,
/// whatever strangers send.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The host's own addresses, as everybody who holds a copy sees them now.
#[derive(Debug, Clone, Default)]
pub struct OwnAddresses(Arc<RwLock<Known>>);

#[derive(Debug, Default)]
struct Known {
    addresses: Vec<IpAddr>,
    asked: Option<Instant>,
}

impl OwnAddresses {
    /// The host has these now.
    pub fn set(&self, addresses: Vec<IpAddr>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).addresses = addresses;
    }

    /// Whether it is one of them, in the namespace of the calling thread if it is a new one. The
    /// kernel lets none of them in from outside as a source (martian).
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_loopback()
            || self.0.read().unwrap_or_else(PoisonError::into_inner).addresses.contains(&address)
            || self.0.write().unwrap_or_else(PoisonError::into_inner).ask(address)
    }
}

impl Known {
    fn ask(&mut self, address: IpAddr) -> bool {
        if self.asked.is_none_or(|asked| asked.elapsed() >= ASK_AGAIN) {
            self.asked = Some(Instant::now());
            if let Ok(interfaces) = getifaddrs() {
                self.addresses = interfaces
                    .filter_map(|interface| interface.address)
                    .filter_map(|address| {
                        let v4 = address.as_sockaddr_in().map(|own| IpAddr::V4(own.ip()));
                        v4.or_else(|| address.as_sockaddr_in6().map(|own| IpAddr::V6(own.ip())))
                    })
                    .collect();
            }
        }
        self.addresses.contains(&address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_copy_sees_the_addresses_of_now() {
        let own = OwnAddresses::default();
        let copy = own.clone();
        // TEST-NET-3 (RFC 5737).
        let addresses = [IpAddr::from([203, 0, 113, 77]), "2001:db8::77".parse().unwrap()];
        for address in addresses {
            assert!(!copy.contains(address));
            own.set(vec![address]);
            assert!(copy.contains(address));
            own.set(Vec::new());
            assert!(!copy.contains(address));
        }
        assert!(copy.contains([127, 0, 0, 5].into()));
        assert!(copy.contains("::1".parse().unwrap()));
    }

    #[test]
    fn what_is_new_is_asked_for_at_times() {
        let mut known = Known::default();
        let local = IpAddr::from([127, 0, 0, 1]);
        assert!(known.ask(local));
        known.addresses.clear();
        assert!(!known.ask(local), "asked a moment ago");
        known.asked = Instant::now().checked_sub(ASK_AGAIN);
        assert!(known.ask(local));
    }
}
