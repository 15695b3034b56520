//! How much memory this process may use: what the machine has, or what its cgroup leaves of it.

use std::fs;
use std::path::{Path, PathBuf};

/// Bytes; `None` where that cannot be read.
pub(super) fn of_this_host() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let own = fs::read_to_string("/proc/self/cgroup").ok();
    let group = own.as_deref().and_then(|text| limit_of(text, Path::new("/sys/fs/cgroup")));
    [machine, group].into_iter().flatten().min()
}

/// `MemTotal`, which is in kibibytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The smallest limit of a cgroup (version 2) and those above it. Version 1 has none here: there,
/// a limit means nothing to the group of another controller.
fn limit_of(own: &str, root: &Path) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let mut folder = PathBuf::from(root).join(path);
    let mut least = None;
    while folder.starts_with(root) {
        let limit = fs::read_to_string(folder.join("memory.max")).ok();
        // `max`: none of its own.
        let limit = limit.and_then(|text| text.trim().parse::<u64>().ok());
        least = [least, limit].into_iter().flatten().min();
        if !folder.pop() {
            break;
        }
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_s_files_are_read() {
        assert_eq!(total("MemFree: 1 kB\nMemTotal:       16384 kB\n"), Some(16_384 * 1024));
        assert_eq!(total("MemTotal: many\n"), None);
        assert!(of_this_host().is_some_and(|bytes| bytes > 1 << 20));
    }

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("a/b/c");
        fs::create_dir_all(&inner).unwrap();
        let own = "1:cpu:/x\n0::/a/b/c\n";
        assert_eq!(limit_of(own, root.path()), None);
        fs::write(inner.join("memory.max"), "max\n").unwrap();
        fs::write(root.path().join("a/memory.max"), "1048576\n").unwrap();
        assert_eq!(limit_of(own, root.path()), Some(1_048_576));
        fs::write(root.path().join("a/b/memory.max"), "4096\n").unwrap();
        assert_eq!(limit_of(own, root.path()), Some(4096));
        assert_eq!(limit_of("1:memory:/a\n", root.path()), None);
    }
}
