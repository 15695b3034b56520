//! Connection tracking: one entry a connection, found by either direction's tuple.
//!
//! - [`mod@tuple`], `tuple6`: what identifies a direction, in IPv4 and in IPv6; `key`: what the table
//!   asks of either.
//! - [`entry`]: a connection as it is entered, and as a lookup finds it.
//! - [`table`]: the entries and their two-way index, for one family; entering and ending, what packets
//!   change, and what an earlier run left are beside it in `change`, `note` and `adopt`; a copy to try things out on is
//!   made in `copy`.
//! - `taken`: which outside ports are probably taken, for the search of free ones.
//! - `room`: the limit that the tables of both families share; `accounts`: whose the connections are;
//!   `evict`: who has to go when there is no room; `mappings`: outside ports that are one inside port's alone.
//! - `watch`: who is told of connections as they begin, change and end.
//! - [`tcp`]: the TCP state machine.
//! - [`window`]: its sequence numbers.
//! - [`sctp`]: the states and tags of SCTP.
//! - [`timeout`]: how long an idle connection lives.
//! - [`expiry`]: the incremental sweep.
//! - `free`: entries that are free, by the inside address that they were for.

mod accounts;
mod adopt;
mod change;
mod cold;
mod copy;
pub mod entry;
mod evict;
pub mod expiry;
mod free;
#[cfg(test)]
#[cfg(feature = "shuttle")]
mod interleavings;
mod key;
mod mappings;
mod note;
mod room;
#[cfg(test)]
mod samples;
pub mod sctp;
#[cfg(test)]
mod stress_tests;
pub mod table;
mod taken;
pub mod tcp;
pub mod timeout;
pub mod tuple;
mod tuple6;
mod view;
mod watch;
pub mod window;
mod words;

pub(crate) use accounts::Owners;
pub use accounts::{Accounts, Overdrawn};
pub use adopt::EarlierRun;
pub(crate) use change::TRIES;
pub use entry::{ConnId, Hit, Insert, NewConnection};
pub use key::Key;
pub(crate) use mappings::Inside;
pub use room::Room;
pub use table::ConnTable;
pub use tuple::{Direction, Tuple, Zone};
pub use tuple6::Tuple6;
pub(crate) use view::state_name;
pub use view::{Entry, STATES};
pub(crate) use watch::QUEUE as DEFAULT_EVENT_QUEUE;
pub use watch::{Change, ConnectionEvent, EndReason, WATCHERS, Watch};
