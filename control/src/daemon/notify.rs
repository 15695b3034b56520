//! Tells a service manager how far the daemon is, by sd_notify(3). Without `NOTIFY_SOCKET` in the
//! environment nobody is told.

use sd_notify::NotifyState;

/// The API is served.
pub(super) fn ready() {
    tell(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// The configuration is read again, until [`ready`].
pub(super) fn reloading() {
    // systemd.service(5), Type=notify-reload: tells the answer to this signal from that to one before.
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now, NotifyState::Status("reloading")]),
        Err(error) => tracing::warn!("tell the service manager: {error}"),
    }
}

/// The end has begun.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!("tell the service manager: {error}");
    }
}
