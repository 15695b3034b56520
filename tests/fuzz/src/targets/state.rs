//! What lies on disk between two runs: the records of the daemon and the table of connections, with
//! any of their bytes changed. They are read, or refused, and never believed beyond what fits.

use std::fs;
use std::path::Path;
use std::sync::OnceLock;

use control::model::{Counters, Edit};
use control::state::{Lock, Store};
use dataplane::EngineOptions;
use dataplane::config::Snapshot;
use dataplane::conntrack::EarlierRun;
use dataplane::packet::types::tcp_flags;
use dataplane::plane::Plane;
use tempfile::TempDir;
use tests::lab::{A, GATEWAY1, Lab, SERVER};
use tests::packet::{Wire, echo, tcp, udp};

use crate::input::Input;
use crate::under_test::{sizes, topology};

/// Changes of one input.
const CHANGES: usize = 64;
/// The name that the store gives its file.
const RECORDS: &str = "state.redb";

/// The files of a run that ended, as they were.
struct Files {
    records: Vec<u8>,
    connections: Vec<u8>,
    connections6: Vec<u8>,
}

static FILES: OnceLock<Files> = OnceLock::new();

fn options(directory: &Path) -> EngineOptions {
    EngineOptions {
        conntrack_file: Some(directory.join("conntrack")),
        conntrack6_file: Some(directory.join("conntrack6")),
        buffers_per_worker: 16,
        ..sizes()
    }
}

fn files() -> Files {
    let directory = TempDir::new().unwrap();
    let state = directory.path().join("state");
    let (store, _) = Store::open(Lock::take(&state).unwrap(), false).unwrap();
    store.commit(&[Edit::Counters(Counters::default())]).unwrap();
    drop(store);
    let mut lab = Lab::with(&options(directory.path()), topology());
    for port in 0..6 {
        for packet in [
            tcp(&A, 2000 + port, &SERVER, 80, tcp_flags::SYN),
            udp(&A, 2000 + port, &SERVER, 53),
            echo(&A, &SERVER, port),
        ] {
            let packet = packet.via(GATEWAY1.mac);
            lab.rx(A.port, Wire::from(&packet)).only_balanced();
            lab.rx(A.port, Wire::from(&packet.v6())).only_balanced();
        }
    }
    assert!(lab.connections().len() > 10);
    drop(lab);
    let read = |name: &str| fs::read(directory.path().join(name)).unwrap();
    Files {
        records: fs::read(state.join(RECORDS)).unwrap(),
        connections: read("conntrack"),
        connections6: read("conntrack6"),
    }
}

/// The file with some words of it changed, and perhaps not all of it.
fn changed(original: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let mut bytes = original.to_vec();
    let how = input.u8();
    for _ in 0..CHANGES {
        if input.is_empty() || bytes.is_empty() {
            break;
        }
        let at = input.u32() as usize % bytes.len();
        match how & 3 {
            0 => bytes[at] = input.u8(),
            1 => bytes[at] ^= 1 << (input.u8() % 8),
            2 => {
                let word = input.array::<8>();
                let at = at & !7;
                let len = (bytes.len() - at).min(8);
                bytes[at..at + len].copy_from_slice(&word[..len]);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

pub(crate) fn run(data: &[u8]) {
    let files = FILES.get_or_init(files);
    let mut input = Input::new(data);
    let directory = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    if input.u8() & 7 == 0 {
        records(directory.path(), &changed(&files.records, &mut input));
    } else {
        fs::write(directory.path().join("conntrack"), changed(&files.connections, &mut input))
            .unwrap();
        let six = if input.is_empty() {
            files.connections6.clone()
        } else {
            changed(&files.connections6, &mut input)
        };
        fs::write(directory.path().join("conntrack6"), six).unwrap();
        connections(directory.path());
    }
}

fn records(directory: &Path, bytes: &[u8]) {
    let state = directory.join("state");
    fs::create_dir(&state).unwrap();
    fs::write(state.join(RECORDS), bytes).unwrap();
    match Store::open(Lock::take(&state).unwrap(), true) {
        Ok((store, desired)) => {
            assert!(!store.installation().id.is_empty() || desired.networks.is_empty());
        }
        // Refused, and left as it was.
        Err(error) => {
            assert!(!error.message.contains('\n'), "{:?}", error.message);
            assert_eq!(fs::read(state.join(RECORDS)).unwrap(), bytes, "{}", error.message);
        }
    }
}

fn connections(directory: &Path) {
    let plane = Plane::new(&options(directory)).unwrap();
    plane.publish(Snapshot::build(topology()).unwrap());
    plane.end_orphans();
    let found = plane.connections();
    assert!(found.len() <= sizes().conntrack_limit as usize, "{}", found.len());
    if plane.earlier_run() == EarlierRun::None {
        assert!(found.is_empty(), "{found:?}");
    }
    // All can be ended, and then nothing is left.
    plane.flush_connections(&|_| true);
    assert_eq!(plane.conntrack_stats().entries, 0);
}
