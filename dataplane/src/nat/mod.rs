//! Address translation.
pub mod dnat;
