//! One sandbox attacks, another has a steady load: what of that gets through beside each attack, what
//! counts the attack, and what memory the daemon has then.
//!
//! As a test it asserts what holds on every machine: no connection of the load fails, its streams and its new
//! connections of either family stay within a tenth of what they were just before the attack, each attack has its
//! counter, memory stays within what the configured limits add up to. With
//! `VSWITCHD_TEST_ROUNDS=N` it measures too, in `N` rounds of a second each: the load alone, beside an
//! attacker who sends the same to nobody (a veth pair of his own), and beside the attack; and prints the
//! medians as a table; `VSWITCHD_TEST_ATTACK=WORD` takes those with the word in their names. See
//! `docs/testing.md`.
#![allow(
    clippy::cast_possible_truncation,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "test code: a failure here is a failed test"
)]

mod attacks;
mod floods;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use attacks::{Attack, By, Counted, View};
use dataplane::packet::types::{Mac, PortId};
use tests::host::flood::Flood;
use tests::host::load::{Load, Window};
use tests::host::traffic::ping;
use tests::host::{APP, BOTH, Family, GATEWAY, Host, Sandbox, Uplink, eventually, one, rows};
use tests::packet;

const ACCESS_VLAN: u16 = 10;
/// Of the configuration below.
const BUFFERS: u64 = 256;
const CONNTRACK: u64 = 8192;
const CONFIGURED: &str = "[limits]\nbuffers = 256\nconntrack = 8192\nfdb = 4096\nneighbors = 1024\n\
                          [timeouts]\ntcp_time_wait = 5\ntcp_closing = 5\n";
/// The device in an attacker's sandbox that leads nowhere.
const NOWHERE: &str = "nowhere0";
/// Until an attack has filled what it fills.
const SETTLE: Duration = Duration::from_millis(200);
/// How long it is looked at: as a test, and to measure.
const GLANCE: Duration = Duration::from_millis(500);
/// What others do to the machine makes a glance worse, never better: the best of so many counts, of those beside
/// the attack as of those that they are held against.
const GLANCES: usize = 3;
const LOOK: Duration = Duration::from_secs(1);
/// The share of its load before that somebody keeps whoever attacks, of each stream as of new connections.
const KEPT: f64 = 0.9;

/// Who attacks.
struct Attackers {
    sandboxes: [Sandbox; 3],
    views: [View; 3],
}

impl Attackers {
    fn by(&self, by: By) -> Vec<&Sandbox> {
        let [bad, loose, access] = &self.sandboxes;
        match by {
            By::Bad => vec![bad],
            By::Loose => vec![loose],
            By::Both => vec![bad, loose],
            By::Access => vec![access],
        }
    }

    /// Begins; `interface` is theirs.
    fn start(&self, attack: &Attack, interface: &str) -> Vec<Flood> {
        let by = self.by(attack.by);
        let count = by.len() as u64;
        let pace = attack.pace.map(|pace| pace / count as u32);
        by.iter()
            .zip(0..)
            .map(|(sandbox, which)| {
                let make = Arc::clone(&attack.make);
                let own: attacks::Make = Arc::new(move |n| make(n * count + which));
                Flood::start(&sandbox.ns, interface, pace, &own)
            })
            .collect()
    }
}

fn mac_of(host: &Host, sandbox: &Sandbox, endpoint: usize) -> Mac {
    let shown = one(&host.json(["sandbox", "inspect", &sandbox.name]));
    shown["endpoints"][endpoint]["mac"].as_str().unwrap().parse().unwrap()
}

/// The host's parts as `sandbox` sees them, in the network of its only endpoint.
fn view(
    host: &Host,
    sandbox: &Sandbox,
    (gateway, gateway6): (Ipv4Addr, Ipv6Addr),
    neighbor: (Mac, Ipv4Addr),
) -> View {
    assert_eq!(ping(&sandbox.ns, gateway, 1).received, 1);
    let shown = sandbox.ns.ip(&format!("neighbor show to {gateway}"));
    let mac = shown.split("lladdr ").nth(1).and_then(|rest| rest.split(' ').next());
    let on_the_wire = |mac, ip| packet::Host { port: PortId(0), mac, ip };
    let gateway = on_the_wire(mac.expect("its MAC").parse().unwrap(), gateway);
    View {
        own: on_the_wire(mac_of(host, sandbox, 0), sandbox.ip),
        gateway,
        neighbor: on_the_wire(neighbor.0, neighbor.1),
        beyond: packet::Host { ip: GATEWAY, ..gateway },
        own6: sandbox.ip6.into(),
        gateway6: gateway6.into(),
        beyond6: Family::V6.outside(),
    }
}

/// The attackers, and who has the load: he is in all of their networks.
fn started() -> (Host, Attackers, Sandbox) {
    let mut host = Host::prepare_dual(Uplink::Dedicated);
    host.configure(CONFIGURED);
    host.launch();
    host.dedicate("");
    host.network("app", APP);
    let open = "--subnet 10.91.2.0/24 --gateway 10.91.2.1 --subnet fd00:91:2::/64";
    host.network("open", &format!("{open} -o spoof_check=false"));
    let neighbor = host.sandbox("neighbor", "--network app");
    host.ok(["network", "connect", "open", &neighbor.name]);
    let sandboxes = [
        host.sandbox("bad", "--network app"),
        host.sandbox("loose", "--network open"),
        host.sandbox("access", &format!("--network app -o vlan={ACCESS_VLAN}")),
    ];
    let views = [0, 1, 2].map(|which| {
        let in_open = usize::from(which == 1);
        let gateway = Ipv4Addr::new(10, 91, 1 + in_open as u8, 1);
        let gateway6 = Ipv6Addr::new(0xfd00, 0x91, 2 * in_open as u16, 0, 0, 0, 0, 1);
        let shown = one(&host.json(["sandbox", "inspect", &neighbor.name]));
        let ip = shown["endpoints"][in_open]["ipv4"].as_str().unwrap().parse().unwrap();
        let mac = mac_of(&host, &neighbor, in_open);
        view(&host, &sandboxes[which], (gateway, gateway6), (mac, ip))
    });
    for sandbox in &sandboxes {
        sandbox.ns.ip(&format!("link add {NOWHERE} type veth peer name nowhere1"));
        for end in [NOWHERE, "nowhere1"] {
            sandbox.ns.ip(&format!("link set {end} up"));
        }
    }
    // The machine outside answers nothing that is not of the load, and keeps no fragments.
    host.outside.ok("nft add table inet t");
    host.outside.ok("nft add chain inet t c { type filter hook prerouting priority -300 ; }");
    host.outside.ok("nft add rule inet t c exthdr frag exists drop");
    host.outside.ok("nft add rule inet t c meta l4proto udp drop");
    host.outside.ok("nft add rule inet t c tcp dport != 7910-7911 drop");
    (host, Attackers { sandboxes, views }, neighbor)
}

/// Sum of these drop reasons at a sandbox's ports.
fn dropped(host: &Host, sandbox: &Sandbox, reasons: &[&str]) -> u64 {
    rows(&host.json(["drops", "--sandbox", &sandbox.name]))
        .iter()
        .filter(|row| reasons.contains(&row["reason"].as_str().unwrap()))
        .map(|row| row["count"].as_u64().unwrap())
        .sum()
}

fn port_sum(host: &Host, field: &str, is_wanted: impl Fn(&serde_json::Value) -> bool) -> u64 {
    let ports = rows(&host.json(["stats"]));
    ports.iter().filter(|port| is_wanted(port)).map(|port| port[field].as_u64().unwrap()).sum()
}

/// How far the counter of an attack is, and how many frames of its senders have come.
fn counters(host: &Host, attackers: &Attackers, attack: &Attack) -> (u64, u64) {
    let by = attackers.by(attack.by);
    let came =
        by.iter().map(|sender| port_sum(host, "rx_frames", |port| port["sandbox"] == *sender.name));
    let counted = match attack.counted {
        Counted::Drops(reasons, _) => by.iter().map(|s| dropped(host, s, reasons)).sum(),
        Counted::Evicted => host.json(["conntrack", "stats"])["evicted"].as_u64().unwrap(),
        Counted::Refused(_) => {
            by.iter().map(|s| port_sum(host, "refused", |port| port["sandbox"] == *s.name)).sum()
        }
    };
    (counted, came.sum())
}

/// Frames that the host's own stack was given.
fn to_the_host(host: &Host) -> u64 {
    port_sum(host, "tx_frames", |port| port["sandbox"].is_null() && port["network"] == "app")
}

/// What the limits of the configuration add up to, beyond what the daemon had before anything came: all
/// buffers used to their ends, 4 MiB of waiting fragments a worker, both tables of connections with their
/// indexes and accounts, and as much again as small tables and the allocator may keep.
fn bound_kib(host: &Host) -> u64 {
    let workers = rows(&host.json(["status"])["workers"]).len() as u64;
    let buffer = if tests::link() == Some("veth") { 181 } else { 64 };
    workers * (BUFFERS * buffer + (4 << 10)) + CONNTRACK * 2 * 300 / 1024 + (16 << 10)
}

fn show(what: &str, window: &Window) {
    for ((rate, pace), family) in window.each.iter().zip(BOTH) {
        println!("{what}: {rate:.0} Mbit/s and {pace:.0} connections a second of {family}");
    }
}

/// The best part of what was before, of a few glances, of which the first that is enough is the last.
fn best(what: &str, enough: f64, before: &Window, mut glance: impl FnMut() -> Window) -> f64 {
    let mut best: f64 = 0.0;
    for _ in 0..GLANCES {
        let window = glance();
        show(what, &window);
        best = best.max(window.of(before));
        if best >= enough {
            break;
        }
    }
    best
}

/// One look at the load: by itself, beside who sends to nobody, beside the attack.
struct Round {
    alone: Window,
    control: Window,
    beside: Window,
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

/// One figure of a window.
type Figure = fn(&Window) -> f64;
/// One window of a round.
type Which = fn(&Round) -> &Window;

/// A row of the table.
fn row(attack: &Attack, a_second: f64, rounds: &[Round]) -> String {
    let over = |what: Figure, base: Which| {
        median(rounds.iter().map(|round| what(&round.beside) / what(base(round))).collect())
    };
    let micros = |of: Which| {
        median(rounds.iter().map(|round| of(round).median().as_secs_f64() * 1e6).collect())
    };
    let (rate, pace): (Figure, Figure) = (|w| w.rate, |w| w.pace);
    let (alone, control): (Which, Which) = (|r| &r.alone, |r| &r.control);
    let counter = match attack.counted {
        Counted::Drops(reasons, _) => {
            reasons.iter().map(|reason| format!("`{reason}`")).collect::<Vec<_>>().join(", ")
        }
        Counted::Evicted => "`evicted` of `conntrack stats`".to_owned(),
        Counted::Refused(_) => "`refused` of `stats`".to_owned(),
    };
    format!(
        "| {} | {:.0} | {counter} | {:.2} / {:.2} | {:.2} / {:.2} | {:.0} / {:.0} / {:.0} |",
        attack.name,
        a_second / 1000.0,
        over(rate, alone),
        over(rate, control),
        over(pace, alone),
        over(pace, control),
        micros(|r| &r.alone),
        micros(|r| &r.control),
        micros(|r| &r.beside),
    )
}

#[test]
#[ignore = "needs root"]
fn neighbors_go_on_beside_every_attack() {
    let measured: usize =
        std::env::var("VSWITCHD_TEST_ROUNDS").map_or(0, |rounds| rounds.parse().unwrap());
    let (host, attackers, neighbor) = started();
    let [bad, loose, access] = attackers.views;
    let before = host.memory_kib();
    let bound = before + bound_kib(&host);
    let load = Load::start(&neighbor.ns, &host.outside, &BOTH.map(Family::outside));
    let mut table = String::new();
    let mut attacks = attacks::all(&bad, &loose, &access);
    if let Ok(wanted) = std::env::var("VSWITCHD_TEST_ATTACK") {
        attacks.retain(|attack| attack.name.contains(&wanted));
        assert!(!attacks.is_empty(), "no attack is named {wanted:?}");
    }
    for attack in attacks {
        let (counted, came) = counters(&host, &attackers, &attack);
        let passed_on = to_the_host(&host);
        let quiet = (measured == 0).then(|| load.watch(GLANCE));
        let (mut rounds, mut sent, mut time) = (Vec::new(), 0, Duration::ZERO);
        let mut beside = |length| {
            let (floods, began) = (attackers.start(&attack, "eth0"), Instant::now());
            std::thread::sleep(SETTLE);
            let window = load.watch(length);
            sent += floods.iter().map(Flood::sent).sum::<u64>();
            time += began.elapsed();
            window
        };
        if let Some(quiet) = &quiet {
            show("before", quiet);
            let kept = best(attack.name, KEPT, quiet, || beside(GLANCE));
            if kept < KEPT {
                // The attacker takes his share of the processors whoever he sends to.
                let control = best("the same to nobody", 1.0, quiet, || {
                    let _floods = attackers.start(&attack, NOWHERE);
                    std::thread::sleep(SETTLE);
                    load.watch(GLANCE)
                });
                let is_kept = kept >= KEPT * control.min(1.0);
                assert!(is_kept, "{}: {kept:.2} of what was before, of {control:.2}", attack.name);
            }
        }
        for _ in 0..measured {
            let alone = load.watch(LOOK);
            let floods = attackers.start(&attack, NOWHERE);
            std::thread::sleep(SETTLE);
            let control = load.watch(LOOK);
            drop(floods);
            rounds.push(Round { alone, control, beside: beside(LOOK) });
        }
        let a_second = sent as f64 / time.as_secs_f64();
        // What is still in the devices' queues is read at leisure.
        eventually(Duration::from_secs(5), "all of it has come", || {
            let at = counters(&host, &attackers, &attack);
            std::thread::sleep(Duration::from_millis(50));
            counters(&host, &attackers, &attack) == at
        });
        let after = counters(&host, &attackers, &attack);
        let (counted, came) = (after.0 - counted, after.1 - came);
        let least = match attack.counted {
            Counted::Drops(_, share) | Counted::Refused(share) => came * share / 100,
            Counted::Evicted => 0,
        };
        println!("{}: {sent} sent, {came} came, {counted} counted", attack.name);
        assert!(came > 1000, "{}: {came} of {sent} came", attack.name);
        assert!(counted > 0 && counted >= least, "{}: {counted} of {came}", attack.name);
        if let Counted::Refused(_) = attack.counted {
            let passed_on = to_the_host(&host) - passed_on;
            assert!(passed_on >= came * 9 / 10, "{}: {passed_on} of {came}", attack.name);
        }
        let memory = host.memory_kib();
        assert!(memory < bound, "{}: {before} KiB became {memory}", attack.name);
        for sender in attackers.by(attack.by) {
            for family in BOTH {
                host.ok(["conntrack", "flush", "--src", &family.of(sender).to_string()]);
            }
        }
        if measured > 0 {
            writeln!(table, "{}", row(&attack, a_second, &rounds)).unwrap();
        }
    }
    let grown = host.memory_kib().saturating_sub(before);
    println!("{grown} KiB more than before, of {} at most", bound - before);
    let refused = rows(&host.json(["drops", "--sandbox", &neighbor.name]));
    println!("dropped of the neighbor's frames: {refused:?}");
    if measured > 0 {
        println!(
            "| attack | thousands a second | counted as | stream, of alone / of control | \
             connections, likewise | median connect, µs: alone / control / beside |\n\
             |---|---|---|---|---|---|\n{table}"
        );
    }
}
