//! One script against two worlds: what each host received through the daemon is what it receives
//! through the kernel's bridge, conntrack and masquerade, but for the differences listed here, each
//! of which is wanted.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

mod script;
mod words;
mod world;

use std::thread;

use script::SCRIPT;
use world::World;

/// Where the worlds differ, and shall.
struct Wanted {
    step: &'static str,
    /// Not in IPv4 alone.
    six: bool,
    /// What is heard in one world alone.
    kernel: &'static [&'static str],
    ours: &'static [&'static str],
    why: &'static str,
}

/// Three fragments as they were sent.
const IN_PIECES: &[&str] = &[
    "outside hears fragment 17 0+ uplink > server 504 bytes 876c",
    "outside hears fragment 17 1024 uplink > server 84 bytes a3c9",
    "outside hears fragment 17 512+ uplink > server 512 bytes 090a",
];
const WHOLE: &[&str] = &["outside hears udp uplink:p > server:53 1100 bytes 3440"];
const SILENCE: &str = "the kernel's NAT has its own address, and what is nobody's is its host's, which says \
                       that nothing is there; a dedicated uplink has no host, and tells a stranger nothing";
const PIECES: &str = "the kernel puts a datagram together and sends it on as one; fragments are followed here, \
                      and leave as they came (ADR 16)";

const WANTED: &[Wanted] = &[
    Wanted {
        step: "a stranger at the port of a mapping",
        six: true,
        kernel: &[
            "outside hears port unreachable uplink > stranger about [udp stranger:53 > uplink:p]",
        ],
        ours: &[],
        why: SILENCE,
    },
    Wanted {
        step: "the server from another port",
        six: true,
        kernel: &[
            "outside hears port unreachable uplink > server about [udp server:54 > uplink:p]",
        ],
        ours: &[],
        why: SILENCE,
    },
    Wanted {
        step: "an ack of no connection",
        six: true,
        kernel: &["outside hears tcp uplink:p > server:80 ack 0 bytes 0000"],
        ours: &[],
        why: "the kernel picks connections up in their middle (nf_conntrack_tcp_loose); here only after a start that lost the table, for a time",
    },
    Wanted {
        step: "a syn ack of no connection",
        six: true,
        kernel: &["outside hears tcp uplink:p > server:80 rst 0 bytes 0000"],
        ours: &[],
        why: SILENCE,
    },
    Wanted {
        step: "data beyond every window",
        six: true,
        kernel: &["outside hears tcp uplink:p > server:80 rst 0 bytes 0000"],
        ours: &[],
        why: "what the kernel finds invalid it does not translate, so that its own host answers with a reset that \
              ends a sound connection at the server; here it is dropped",
    },
    Wanted {
        step: "a port that is not published",
        six: true,
        kernel: &[
            "outside hears port unreachable uplink > client about [udp client:43003 > uplink:9999]",
            "outside hears tcp uplink:9999 > client:43002 rst ack 0 bytes 0000",
        ],
        ours: &[],
        why: SILENCE,
    },
    Wanted {
        step: "a port that is published no more",
        six: true,
        kernel: &[
            "outside hears port unreachable uplink > client about [udp client:43011 > uplink:8083]",
            "two hears udp client:43010 > two:83 8 bytes a1a2",
        ],
        ours: &[],
        why: "conntrack goes on by a rule that is gone until somebody deletes its entries; here they end with it",
    },
    Wanted {
        step: "an association",
        six: true,
        kernel: &[
            "outside hears protocol unreachable uplink > server about [sctp server:53 > uplink:p chunk 0]",
        ],
        ours: &[],
        why: SILENCE,
    },
    Wanted {
        step: "another's published port by the outside address",
        six: true,
        kernel: &["two hears tcp gateway:43005 > two:80 syn 0 bytes 0000"],
        ours: &["two hears tcp uplink:p > two:80 syn 0 bytes 0000"],
        why: "a hairpin has the outside address and port as its source (RFC 4787 REQ-9a)",
    },
    Wanted {
        step: "one's own published port by the outside address",
        six: true,
        kernel: &[],
        ours: &["two hears tcp uplink:p > two:80 syn 0 bytes 0000"],
        why: "every host reaches every published port, its own too (RFC 4787 REQ-9); a bridge sends nothing back",
    },
    Wanted {
        step: "another's address as the source",
        six: true,
        kernel: &["outside hears udp uplink:p > server:53 8 bytes a1a2"],
        ours: &[],
        why: "endpoints are guarded",
    },
    Wanted { step: "fragments in order", six: true, kernel: WHOLE, ours: IN_PIECES, why: PIECES },
    Wanted { step: "fragments reversed", six: true, kernel: WHOLE, ours: IN_PIECES, why: PIECES },
    Wanted { step: "fragments, one twice", six: true, kernel: WHOLE, ours: IN_PIECES, why: PIECES },
    Wanted {
        step: "fragments without the last",
        six: true,
        kernel: &[],
        ours: &[
            "outside hears fragment 17 0+ uplink > server 504 bytes 876c",
            "outside hears fragment 17 512+ uplink > server 512 bytes 090a",
        ],
        why: PIECES,
    },
    Wanted {
        step: "a wrong transport checksum",
        six: true,
        kernel: &[],
        ours: &["outside hears udp uplink:p > server:53 8 bytes a1a1, wrong checksum"],
        why: "a checksum that was wrong stays wrong, and its receiver drops it; only ICMP errors are verified here",
    },
];

/// Everything that was heard, step by step.
fn transcript(mut world: World, six: bool) -> Vec<Vec<String>> {
    world.speak(six);
    let step = |(name, act): &script::Step| {
        let kind = world.kind;
        println!("{kind}: {name}");
        act(&mut world);
        world.heard()
    };
    SCRIPT.iter().map(step).collect()
}

/// What is in the first and not in the second.
fn only(these: &[String], those: &[String]) -> Vec<String> {
    let mut rest = those.to_vec();
    let is_new = |line: &&String| match rest.iter().position(|other| other == *line) {
        Some(at) => {
            rest.remove(at);
            false
        }
        None => true,
    };
    these.iter().filter(is_new).cloned().collect()
}

fn compare(six: bool) {
    let (kernel, ours) = thread::scope(|scope| {
        let kernel = scope.spawn(|| transcript(world::kernel(), six));
        let ours = scope.spawn(|| transcript(world::ours(), six));
        (kernel.join().unwrap(), ours.join().unwrap())
    });
    let mut faults = Vec::new();
    for ((name, _), (kernel, ours)) in SCRIPT.iter().zip(kernel.iter().zip(&ours)) {
        let differ = [only(kernel, ours), only(ours, kernel)];
        let wanted = WANTED.iter().find(|wanted| wanted.step == *name && (wanted.six || !six));
        let [theirs, own] = wanted.map_or([&[][..]; 2], |wanted| [wanted.kernel, wanted.ours]);
        if differ != [theirs, own] {
            faults.push(format!("{name}\n  kernel {:#?}\n  ours {:#?}", differ[0], differ[1]));
        }
    }
    for wanted in WANTED {
        assert!(!wanted.why.is_empty() && SCRIPT.iter().any(|(name, _)| *name == wanted.step));
    }
    assert!(faults.is_empty(), "not as listed:\n{}", faults.join("\n"));
}

#[test]
#[ignore = "needs root"]
fn the_kernel_would_have_done_the_same() {
    compare(false);
}

#[test]
#[ignore = "needs root"]
fn the_kernel_would_have_done_the_same_in_ipv6() {
    compare(true);
}
