//! The daemon: see `control::daemon`.

use std::process::ExitCode;

fn main() -> ExitCode {
    control::daemon::main()
}
