//! Connection tracking: one entry a connection, found by either direction's tuple.
//!
//! - [`mod@tuple`]: what identifies a direction.
//! - [`entry`]: a connection as it is entered, and as a lookup finds it.
//! - [`table`]: the entries and their two-way index; entering and ending, and what packets change, are
//!   beside it in `change` and `note`.
//! - [`tcp`]: the TCP state machine.
//! - [`timeout`]: how long an idle connection lives.
//! - [`expiry`]: the incremental sweep.

mod change;
pub mod entry;
pub mod expiry;
mod note;
pub mod table;
pub mod tcp;
pub mod timeout;
pub mod tuple;
mod view;
mod words;

pub use entry::{ConnId, Hit, Insert, NewConnection};
pub use table::ConnTable;
pub use tuple::{Direction, Tuple, Zone};
pub use view::{EarlierRun, STATES};
