//! The client: see `control::cli`.

fn main() {}
