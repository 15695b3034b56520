//! `vswitchctl`.

pub mod output;
