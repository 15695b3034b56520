//! `bpf(2)`: maps and programs (`linux/bpf.h`).

#![allow(unsafe_code, reason = "bpf(2) has no safe wrapper")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

// enum bpf_cmd
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
#[cfg(test)]
const BPF_PROG_TEST_RUN: libc::c_long = 10;

/// Longest name of a map or program: `BPF_OBJ_NAME_LEN` with its closing zero.
const NAME_LEN: usize = 16;

/// `enum bpf_map_type`.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(in crate::io) enum MapKind {
    /// `BPF_MAP_TYPE_HASH`.
    Hash = 1,
    /// `BPF_MAP_TYPE_ARRAY`: all elements exist from the start, zero.
    Array = 2,
}

/// `enum bpf_prog_type`.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(in crate::io) enum ProgramKind {
    /// `BPF_PROG_TYPE_SOCKET_FILTER`.
    SocketFilter = 1,
    /// `BPF_PROG_TYPE_SCHED_CLS`.
    Classifier = 3,
}

/// `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(in crate::io) struct Instruction {
    pub(in crate::io) code: u8,
    pub(in crate::io) registers: u8,
    pub(in crate::io) offset: i16,
    pub(in crate::io) immediate: i32,
}

/// A map with keys and values of fixed length; gone when it and every program that uses it are.
#[derive(Debug)]
pub(in crate::io) struct Map {
    fd: OwnedFd,
    key_len: usize,
    value_len: usize,
}

// The members of `union bpf_attr`, each as far as it is used; the kernel takes what is missing at
// the end as zero.

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; NAME_LEN],
}

#[repr(C)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgramLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; NAME_LEN],
}

#[cfg(test)]
#[repr(C)]
struct TestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

impl Map {
    /// Makes a map.
    pub(in crate::io) fn new(
        kind: MapKind,
        key_len: u32,
        value_len: u32,
        max_entries: u32,
        name: &str,
    ) -> io::Result<Self> {
        let mut attributes = MapCreate {
            map_type: kind as u32,
            key_size: key_len,
            value_size: value_len,
            max_entries,
            map_flags: 0,
            inner_map_fd: 0,
            numa_node: 0,
            map_name: object_name(name),
        };
        let length = |len| usize::try_from(len).map_err(|_| io::ErrorKind::InvalidInput);
        let (key_len, value_len) = (length(key_len)?, length(value_len)?);
        // SAFETY: MAP_CREATE takes no address.
        let made = unsafe { bpf(BPF_MAP_CREATE, &mut attributes) };
        let fd = match made {
            // Before Linux 5.11 maps count as locked memory, whose limit is 64 KiB by default.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY)?;
                // SAFETY: as above.
                unsafe { bpf(BPF_MAP_CREATE, &mut attributes) }?
            }
            made => made?,
        };
        Ok(Self { fd: owned(fd)?, key_len, value_len })
    }

    /// Sets the value of a key.
    pub(in crate::io) fn update(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        if value.len() != self.value_len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.element(BPF_MAP_UPDATE_ELEM, key, address(value.as_ptr()))
    }

    /// Removes a key.
    pub(in crate::io) fn delete(&self, key: &[u8]) -> io::Result<()> {
        self.element(BPF_MAP_DELETE_ELEM, key, 0)
    }

    /// `value`: the address of `value_len` bytes, or zero for commands without one.
    fn element(&self, command: libc::c_long, key: &[u8], value: u64) -> io::Result<()> {
        if key.len() != self.key_len {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut attributes = Element {
            map_fd: number(self.fd.as_raw_fd()),
            padding: 0,
            key: address(key.as_ptr()),
            value,
            flags: 0,
        };
        // SAFETY: the kernel reads `key_len` bytes of the key and `value_len` of the value, the
        // lengths that were checked here and in `update`.
        unsafe { bpf(command, &mut attributes) }.map(|_| ())
    }

    /// The number to name it by in a program.
    pub(in crate::io) fn raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Loads a program. What the verifier objects to is part of the error.
pub(in crate::io) fn load_program(
    kind: ProgramKind,
    name: &str,
    program: &[Instruction],
) -> io::Result<OwnedFd> {
    let license = c"Dual MIT/GPL";
    let insn_cnt = u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut attributes = ProgramLoad {
        prog_type: kind as u32,
        insn_cnt,
        insns: address(program.as_ptr()),
        license: address(license.as_ptr()),
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: object_name(name),
    };
    // SAFETY: `insns` points to `insn_cnt` instructions, `license` to a closed string.
    let refused = match unsafe { bpf(BPF_PROG_LOAD, &mut attributes) } {
        Ok(fd) => return owned(fd),
        Err(error) => error,
    };
    if matches!(refused.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) {
        return Err(refused);
    }
    let mut log = vec![0u8; 64 << 10];
    attributes.log_level = 1;
    attributes.log_size = u32::try_from(log.len()).unwrap_or(0);
    attributes.log_buf = address(log.as_mut_ptr());
    // SAFETY: as above; `log_buf` points to `log_size` bytes, which the kernel writes.
    match unsafe { bpf(BPF_PROG_LOAD, &mut attributes) } {
        Ok(fd) => owned(fd),
        Err(error) => {
            let text = String::from_utf8_lossy(log.split(|b| *b == 0).next().unwrap_or_default());
            let mut lines = text.lines().filter(|line| !line.starts_with("processed"));
            let reason = lines.next_back().unwrap_or_default();
            Err(io::Error::new(error.kind(), format!("BPF program {name}: {error}: {reason}")))
        }
    }
}

/// Runs a program on a frame; returns its return value.
#[cfg(test)]
pub(in crate::io) fn test_run(
    program: std::os::fd::BorrowedFd<'_>,
    frame: &[u8],
) -> io::Result<u32> {
    let mut attributes = TestRun {
        prog_fd: number(program.as_raw_fd()),
        retval: 0,
        data_size_in: u32::try_from(frame.len()).unwrap_or(0),
        data_size_out: 0,
        data_in: address(frame.as_ptr()),
        data_out: 0,
        repeat: 1,
        duration: 0,
    };
    // SAFETY: `data_in` points to `data_size_in` bytes; nothing is asked back.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attributes) }?;
    Ok(attributes.retval)
}

/// # Safety
/// Every address in `attributes` must be good for what `command` reads and writes there.
unsafe fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    let attributes: *mut T = attributes;
    // JUSTIFICATION: neither libc nor nix wraps bpf(2).
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes at `attributes`; the caller
    // vouches for the addresses in it.
    let rc = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if rc < 0 { Err(io::Error::last_os_error()) } else { Ok(rc) }
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: called with what MAP_CREATE and PROG_LOAD have just returned: a new descriptor
    // (close-on-exec) that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The kernel takes addresses as 64-bit numbers.
fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

fn number(fd: RawFd) -> u32 {
    u32::try_from(fd).unwrap_or(u32::MAX)
}

fn object_name(name: &str) -> [u8; NAME_LEN] {
    let mut bytes = [0; NAME_LEN];
    for (to, from) in bytes.iter_mut().zip(name.bytes().take(NAME_LEN - 1)) {
        *to = from;
    }
    bytes
}
