//! The machine the figures are of.

use std::fmt;
use std::fs;
use std::thread;

use serde::Serialize;

/// What figures must be told with.
#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    cpu: String,
    cpus: usize,
}

impl Machine {
    pub(crate) fn this() -> Self {
        let kernel = nix::sys::utsname::uname().map_or_else(
            |code| code.desc().to_owned(),
            |names| names.release().to_string_lossy().into_owned(),
        );
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        Self::new(&kernel, &fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), cpus)
    }

    pub(crate) fn new(kernel: &str, cpuinfo: &str, cpus: usize) -> Self {
        let name = cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == "model name").then(|| value.trim().to_owned())
        });
        let cpu = name.unwrap_or_else(|| "processor without a name".to_owned());
        Self { kernel: kernel.to_owned(), cpu, cpus }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}, Linux {}", self.cpus, self.cpu, self.kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_described_in_one_line() {
        let machine = Machine::new("6.1.0", "processor\t: 0\nmodel name\t: CPU 1: fast\n", 4);
        assert_eq!(machine.to_string(), "4 × CPU 1: fast, Linux 6.1.0");
        let nameless = Machine::new("6.1.0", "", 1);
        assert_eq!(nameless.to_string(), "1 × processor without a name, Linux 6.1.0");
        assert!(!Machine::this().to_string().is_empty());
    }
}
