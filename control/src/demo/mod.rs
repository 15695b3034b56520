//! `vswitchd demo`: the whole way of a frame, shown with real traffic in a minute.
//!
//! One host with the real daemon (this very executable, started again), two sandboxes on a bridge
//! network, and an outside machine behind the uplink, each a network namespace of its own. The
//! traffic is made and taken by the kernel's own stacks. No link of the caller's namespace is
//! touched, no program but our own is run, and nothing is left behind (see [`crate::lab`]).

mod daemon;
mod http;
mod nft;
mod ping;
mod report;
mod scene;
mod stream;
#[cfg(test)]
mod tests;
mod wiring;

use std::fs::OpenOptions;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::cli::output::Format;
use crate::error::Error;
use crate::lab::{Lab, LabError, Owner};
use crate::netlink::NetlinkError;
use crate::netns::NetnsError;
use report::{Report, Seen, Throughput, say};
use scene::Scene;
use wiring::KernelSwitch;

/// The oldest kernel with all that is used (contract).
const OLDEST_KERNEL: (u32, u32) = (5, 10);

/// What it calls itself and its namespaces.
const OWNER: Owner = Owner { program: "vswitchd demo", prefix: "vswitchd-demo-" };

/// Each rate is the median of so many measurements, ours and the kernel's in turns, so that a busy
/// moment of the machine hits both.
const ROUNDS: usize = 3;
/// One measurement, after the warm-up.
const MEASUREMENT: Duration = Duration::from_millis(800);

/// Why a step could not be carried out.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    /// The daemon refused a request.
    #[error("{0}")]
    Api(Error),
    /// The daemon ended or does not answer.
    #[error("{0}")]
    Daemon(String),
    /// The kernel refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: String,
        /// What the kernel said.
        source: io::Error,
    },
    #[error(transparent)]
    Lab(#[from] LabError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Netns(#[from] NetnsError),
}

/// Runs the demo and prints what it shows. Success only if every step did what it says.
///
/// Must be called from a process that runs nothing else: it takes over signals and the panic hook.
#[must_use]
pub fn run(format: Format) -> ExitCode {
    if let Some(missing) = missing() {
        eprintln!("vswitchd demo: {missing}");
        return ExitCode::FAILURE;
    }
    match std::env::current_exe() {
        Ok(program) => run_with(&program, format),
        Err(error) => {
            eprintln!("vswitchd demo: find the own executable: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_with(program: &Path, format: Format) -> ExitCode {
    let mut report = Report::new(format);
    let lab = match Lab::open(OWNER) {
        Ok(lab) => lab,
        Err(error) => {
            eprintln!("vswitchd demo: {error}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("vswitchd demo: start the async runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    if format == Format::Table {
        say(&format!(
            "building host, web, client and outside as namespaces {}",
            OWNER.name_of("*")
        ));
    }
    runtime.block_on(demonstrate(&lab, &mut report, program));
    // Netlink connections keep namespaces alive; they end with the runtime.
    drop(runtime);
    let left = lab.close();
    let seen = match left.as_slice() {
        [] => "the daemon has ended, no namespace and no file is left".to_owned(),
        left => format!("left: {}", left.join(", ")),
    };
    report.add("cleanup", "nothing is left behind", &Seen::new(left.is_empty(), seen));
    report.finish();
    if report.all_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// What the machine or the caller lacks, in one line.
fn missing() -> Option<String> {
    let kernel = kernel_release();
    if kernel_version(&kernel).is_none_or(|version| version < OLDEST_KERNEL) {
        let (major, minor) = OLDEST_KERNEL;
        return Some(format!("needs Linux {major}.{minor} or later, this is {kernel}"));
    }
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root: it makes network namespaces; run it with sudo".to_owned());
    }
    let tun = Path::new("/dev/net/tun");
    if let Err(error) = OpenOptions::new().read(true).write(true).open(tun) {
        return Some(format!(
            "needs {}: {error}; load the module (modprobe tun) or let the container have it",
            tun.display()
        ));
    }
    None
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_else(|code| code.desc().to_owned())
}

/// Major and minor of `5.10.0-21-amd64` and the like.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

async fn demonstrate(lab: &Lab, report: &mut Report, program: &Path) {
    let expected = "two sandboxes on network \"demo\", the default route's link as shared uplink";
    let scene = match Scene::build(lab, program).await {
        Ok(scene) => {
            report.add("setup", expected, &Seen::new(true, scene.describe()));
            scene
        }
        Err(error) => {
            let text = scene::with_log(&error.to_string(), lab);
            report.add("setup", expected, &Seen::new(false, text));
            return;
        }
    };
    report.add(
        "ping",
        "web answers client's pings with TTL 64: switched at L2, not routed",
        &seen(scene.ping_web()),
    );
    report.add(
        "ping_out",
        "the server outside answers client's pings with TTL 63: one router between",
        &seen(scene.ping_server()),
    );
    report.add(
        "snat",
        "client GETs from the server outside, which sees the host's address",
        &seen(scene.get_outside()),
    );
    report.add(
        "dnat",
        "outside GETs from the published port; web sees outside's real address",
        &seen(scene.get_published()),
    );
    report.add("fdb", "each sandbox's MAC behind its own port", &seen(scene.fdb().await));
    report.add(
        "conntrack",
        "both tuples of the GET out (snat) and of the GET in (dnat)",
        &seen(scene.conntrack().await),
    );
    let result = compare(lab, &scene).await;
    let outcome = result.map(|(throughput, text)| {
        report.throughput = throughput;
        Seen::new(true, text)
    });
    report.add(
        "throughput",
        "one TCP stream through vswitchd and through the kernel's own bridge and NAT",
        &seen(outcome),
    );
}

fn seen(outcome: Result<Seen, DemoError>) -> Seen {
    outcome.unwrap_or_else(|error| Seen::new(false, error.to_string()))
}

/// Measures ours and the kernel's in turns. The figures of the contract are those between two
/// sandboxes; those through NAT are told in the text.
async fn compare(lab: &Lab, scene: &Scene) -> Result<(Throughput, String), DemoError> {
    let kernel = KernelSwitch::build(lab).await?;
    let [kernel_a, kernel_b] = &kernel.machines;
    let paths = [
        (&scene.client, &scene.web, scene.web_ip),
        (kernel_a, kernel_b, kernel.peer),
        (&scene.client, &scene.outside, wiring::SERVER),
        (kernel_a, &kernel.outside, wiring::SERVER),
    ];
    let mut rates: [Vec<f64>; 4] = Default::default();
    for _ in 0..ROUNDS {
        for ((from, to, address), rates) in paths.iter().zip(&mut rates) {
            rates.push(stream::measure(from, to, *address, MEASUREMENT)?);
        }
    }
    let [bridge, kernel_bridge, nat, kernel_nat] = rates.map(stream::median);
    let throughput = Throughput::new(bridge, kernel_bridge);
    let line = |what: &str, ours: f64, kernel: f64| {
        let ratio = if kernel > 0.0 { ours / kernel } else { 0.0 };
        format!("{what} {ours:.2} Gbit/s, kernel {kernel:.2} Gbit/s: {ratio:.2} of it")
    };
    let text = [
        line("sandbox to sandbox:", bridge, kernel_bridge),
        line("sandbox to outside through NAT:", nat, kernel_nat),
        format!("medians of {ROUNDS} runs of {MEASUREMENT:?} in turns"),
    ]
    .join("\n");
    Ok((throughput, text))
}

/// Where the daemon writes its log.
fn log_path(lab: &Lab) -> PathBuf {
    lab.directory().join("vswitchd.log")
}
