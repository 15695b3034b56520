//! Connection tracking: one entry a connection, found by either direction's tuple.
//!
//! - [`mod@tuple`]: what identifies a direction.
//! - [`table`]: the entries and their two-way index.
//! - [`tcp`]: the TCP state machine.
//! - [`timeout`]: how long an idle connection lives.
//! - [`expiry`]: the incremental sweep.

pub mod expiry;
pub mod table;
pub mod tcp;
pub mod timeout;
pub mod tuple;
mod view;
mod words;

pub use table::{ConnId, ConnTable, Hit, Insert, NewConnection};
pub use tuple::{Direction, Tuple, Zone};
pub use view::{EarlierRun, STATES};
