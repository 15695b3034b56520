//! Why something could not be built or measured.

use std::io;

use control::lab::LabError;
use control::netlink::NetlinkError;
use control::netns::NetnsError;

/// One line for a person.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VersusError {
    /// The kernel refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// What was asked for leaves nothing to do.
    #[error("nothing to measure: {0}")]
    Nothing(String),
    /// A program did not do what it was asked for.
    #[error("{0}")]
    Program(String),
    /// Traffic did not flow as it must for a figure.
    #[error("{0}")]
    Traffic(String),
}

/// Adds what was tried to what the kernel said.
pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> VersusError {
    let action = action.into();
    move |source| VersusError::Io { action, source }
}
