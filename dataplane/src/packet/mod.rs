//! Frame formats.
pub mod headers;
pub mod types;
