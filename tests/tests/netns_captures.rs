//! Captures of everything that was ever on a wire, sent from inside a sandbox to a running daemon:
//! those in `tests/captures` and, if it is set, those below `VSWITCHD_PCAPS`. The daemon lives and
//! balances, its memory stays within bounds, and neighbors go on.
//!
//! Of each file some frames are sent, evenly chosen; `VSWITCHD_PCAPS_ALL=1` sends all.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use dataplane::io::pcap::PcapReader;
use dataplane::packet::types::Mac;
use tests::host::bystander::Bystander;
use tests::host::raw::RawSender;
use tests::host::traffic::ping;
use tests::host::{BOTH, Host, Sandbox, Uplink, eventually, one, rows};
use tests::packet::Wire;

/// Frames of a file, unless all are sent.
const EACH: usize = 24;
/// Frames between two pauses, and how long one is: 10,000 frames a second at most.
const BURST: usize = 50;
const PAUSE: Duration = Duration::from_millis(5);
/// What the daemon's memory may grow by: buffers that were not used before.
const GROWTH_KIB: u64 = 96 << 10;

fn below(directory: &Path, into: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(directory);
    for entry in entries.unwrap_or_else(|e| panic!("{}: {e}", directory.display())).flatten() {
        let path = entry.path();
        if path.is_dir() {
            below(&path, into);
        } else if path
            .extension()
            .is_some_and(|end| end == "pcap" || end == "pcapng" || end == "cap")
        {
            into.push(path);
        }
    }
}

/// The files, and how many of them are not our own.
fn captures() -> (Vec<PathBuf>, usize) {
    let mut paths = Vec::new();
    below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("captures"), &mut paths);
    let own = paths.len();
    match std::env::var_os("VSWITCHD_PCAPS") {
        Some(foreign) => below(foreign.as_ref(), &mut paths),
        None => {
            println!("!!! SKIPPED: foreign captures: set VSWITCHD_PCAPS to a folder of captures");
        }
    }
    let foreign = paths.len() - own;
    (paths, foreign)
}

/// Frames of a file, evenly chosen.
fn frames(path: &Path) -> Vec<Vec<u8>> {
    let bytes = std::fs::read(path).unwrap();
    let mut frames = Vec::new();
    // Some are damaged on purpose: what is before that counts.
    if let Ok(mut reader) = PcapReader::new(bytes.as_slice()) {
        while let Ok(Some(frame)) = reader.next_frame() {
            frames.push(frame.bytes.to_vec());
        }
    }
    let all = std::env::var_os("VSWITCHD_PCAPS_ALL").is_some();
    let step = if all { 1 } else { frames.len().div_ceil(EACH).max(1) };
    frames.into_iter().step_by(step).collect()
}

fn mac(host: &Host, sandbox: &Sandbox) -> Mac {
    let shown = one(&host.json(["sandbox", "inspect", &sandbox.name]));
    shown["endpoints"][0]["mac"].as_str().unwrap().parse().unwrap()
}

/// Whether every worker's sums balance, which they do between batches.
fn balances(host: &Host) -> bool {
    rows(&host.json(["status"])["workers"]).iter().all(|worker| {
        let of = |name: &str| worker[name].as_u64().unwrap();
        of("rx_frames") + of("replicated") + of("generated")
            == of("tx_frames") + of("merged") + of("consumed") + of("queued") + of("drops")
    })
}

/// What became of all frames, to be printed.
fn verdicts(host: &Host) -> String {
    let workers = rows(&host.json(["status"])["workers"]);
    let sum = |name: &str| workers.iter().map(|it| it[name].as_u64().unwrap()).sum::<u64>();
    let ends =
        ["rx_frames", "replicated", "generated", "tx_frames", "merged", "consumed", "queued"];
    let ends = ends.map(|name| format!("{name} {}", sum(name))).join(", ");
    let mut drops = BTreeMap::<String, u64>::new();
    for row in rows(&host.json(["drops"])) {
        *drops.entry(row["reason"].as_str().unwrap().to_owned()).or_default() +=
            row["count"].as_u64().unwrap();
    }
    drops.retain(|_, count| *count > 0);
    format!("{ends}, drops {}: {drops:?}", sum("drops"))
}

#[test]
#[ignore = "needs root"]
fn whatever_was_captured_is_sent_from_inside() {
    let host = Host::start_dual(Uplink::Dedicated);
    // One guards its endpoints, the other lets them say anything.
    host.network(
        "open",
        "--subnet 10.91.2.0/24 --gateway 10.91.2.1 --subnet fd00:91:2::/64 -o spoof_check=false",
    );
    let [guarded, neighbor] = ["guarded", "near"].map(|name| host.sandbox(name, "--network app"));
    let [free, other] = ["free", "other"].map(|name| host.sandbox(name, "--network open"));
    let reaches = || BOTH.map(|family| ping(&free.ns, family.of(&other), 2).received);
    assert_eq!(reaches(), [2, 2]);
    let gateway = {
        assert_eq!(ping(&free.ns, [10, 91, 2, 1], 1).received, 1);
        let shown = free.ns.ip("neighbor show to 10.91.2.1");
        let mac = shown.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next());
        mac.expect("its MAC").parse::<Mac>().unwrap()
    };
    let own = mac(&host, &guarded);
    let bystander = Bystander::start(&neighbor.ns, &host.outside, &BOTH);
    let mut senders = [&guarded, &free].map(|sandbox| RawSender::open(&sandbox.ns, "eth0"));
    let before = host.memory_kib();
    let (paths, foreign) = captures();
    let (mut sent, mut refused) = (0, 0);
    for path in &paths {
        for frame in frames(path).into_iter().filter(|frame| frame.len() >= 14) {
            // As it is; to the gateway, so that it is routed; and from the sandbox's own MAC.
            let mut routed = frame.clone();
            routed[..6].copy_from_slice(&gateway.0);
            let mut mine = frame.clone();
            mine[6..12].copy_from_slice(&own.0);
            for (sender, bytes) in [(1, frame), (1, routed), (0, mine)] {
                // The kernel refuses what is longer than the interface's MTU.
                let taken = senders[sender].try_send(&Wire::from(bytes));
                *(if taken { &mut sent } else { &mut refused }) += 1;
                if sent % BURST == 0 {
                    thread::sleep(PAUSE);
                }
            }
        }
    }
    println!("{} captures, {foreign} foreign: {sent} frames, {refused} too long", paths.len());
    assert!(sent > 300, "{sent}");
    let received = || -> u64 {
        let of = |sandbox: &Sandbox| rows(&host.json(["stats", "--sandbox", &sandbox.name]));
        [of(&guarded), of(&free)]
            .iter()
            .flatten()
            .map(|row| row["rx_frames"].as_u64().unwrap())
            .sum()
    };
    eventually(Duration::from_secs(10), "most of them came", || {
        received() as usize > sent * 9 / 10
    });
    bystander.went_on();
    assert_eq!(reaches(), [2, 2]);
    eventually(Duration::from_secs(10), "the sums balance", || balances(&host));
    println!("{}", verdicts(&host));
    let after = host.memory_kib();
    println!("{before} KiB became {after}");
    assert!(after < before + GROWTH_KIB, "{before} KiB became {after}");
}
