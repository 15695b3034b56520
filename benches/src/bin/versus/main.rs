//! vswitchd beside its peers, in one run: `cargo run --release -p benches --bin versus`.
//!
//! Every contender is built between network namespaces of its own; what is measured is measured on
//! each in turn, round by round, so that a slow minute of the machine hits all of them. Nothing
//! outside of these namespaces is changed, and nothing is left behind: at the end, on Ctrl-C and
//! after failures (`control::lab`).
//!
//! Read `contender` for what is compared, `measure` for how.

mod contender;
mod error;
mod machine;
mod measure;
mod options;
mod programs;
mod results;
mod svg;
mod table;
mod wiring;

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use control::lab::{Lab, Owner};

use contender::{BASE, Built, Contender};
use error::{VersusError, io};
use machine::Machine;
use measure::{Measure, Run};
use options::Options;
use programs::Ours;
use results::Results;

/// What we call ourselves and our namespaces.
const OWNER: Owner = Owner { program: "versus", prefix: "vswitchd-versus-" };
/// Of the memory measure, and when there is little time.
const CONNECTIONS: u32 = 100_000;
const FEW_CONNECTIONS: u32 = 20_000;

fn main() -> ExitCode {
    let options = Options::parse();
    match compare(&options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("versus: {error}");
            if matches!(error, VersusError::Nothing(_)) {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// Whether everything could be measured.
fn compare(options: &Options) -> Result<bool, VersusError> {
    check_machine(options)?;
    let ours = programs::ours(options.workers)?;
    let lab = Lab::open(OWNER)?;
    let mut bench = Bench { lab: &lab, ours, options, left_out: Vec::new(), failures: Vec::new() };
    let results = bench.measure();
    let Bench { left_out, mut failures, .. } = bench;
    if results.is_err() {
        control::lab::stay_if_interrupted();
    }
    let left = lab.close();
    if !left.is_empty() {
        failures.push(format!("left behind: {}", left.join(", ")));
    }
    let results = results?;
    if results.rows().is_empty() && failures.is_empty() {
        return Err(VersusError::Nothing(why_nothing(&left_out)));
    }
    if options.quick {
        failures.extend(results.impossible());
    }
    let machine = Machine::this();
    println!("{machine}; medians of {} runs of {:?}", options.pairs(), options.duration());
    println!("\n{}", table::tables(&results));
    for (name, note) in &left_out {
        println!("\n{name} left out: {note}");
    }
    if let Some(file) = &options.json {
        let (pairs, duration) = (options.pairs(), options.duration());
        let value = table::json(&results, &machine, &left_out, pairs, duration);
        write(file, &format!("{value:#}\n"))?;
    }
    if let Some(file) = &options.svg {
        write(file, &svg::plot(&results))?;
    }
    for failure in &failures {
        eprintln!("versus: {failure}");
    }
    Ok(failures.is_empty())
}

/// Why there is no figure although nothing failed.
fn why_nothing(left_out: &[(&'static str, String)]) -> String {
    let notes = left_out.iter().map(|(name, note)| format!("{name} left out: {note}"));
    let memory = "memory is that of a process, and the kernel's contenders have none".to_owned();
    let reasons: Vec<String> = notes.collect();
    if reasons.is_empty() { memory } else { reasons.join("; ") }
}

/// What the machine or the caller lacks, in one line, before anything is made.
fn check_machine(options: &Options) -> Result<(), VersusError> {
    if !nix::unistd::geteuid().is_root() {
        let text = "needs root: it makes network namespaces; run it with sudo";
        return Err(VersusError::Program(text.to_owned()));
    }
    let tun = "/dev/net/tun";
    let opened = OpenOptions::new().read(true).write(true).open(tun);
    opened.map_err(io(format!("needs {tun}; load the module (modprobe tun)")))?;
    let key = "/proc/sys/net/ipv4/tcp_available_congestion_control";
    let known = fs::read_to_string(key).map_err(io(format!("read {key}")))?;
    let missing = options.cc.iter().find(|cc| !known.split_whitespace().any(|name| name == *cc));
    if let Some(cc) = missing {
        let known = known.trim();
        let text = format!("this kernel has no {cc} (modprobe tcp_{cc}), only {known}");
        return Err(VersusError::Program(text));
    }
    // Before the minutes that it takes to have something to write.
    options.json.iter().chain(&options.svg).try_for_each(|file| check_writable(file))
}

/// Whether a file can be written, which is left as it was.
fn check_writable(file: &Path) -> Result<(), VersusError> {
    let existed = file.exists();
    let opened = OpenOptions::new().append(true).create(true).open(file);
    opened.map_err(io(format!("write {}", file.display())))?;
    if !existed {
        // Should it not go, it is written later.
        let _ = fs::remove_file(file);
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<(), VersusError> {
    fs::write(file, text).map_err(io(format!("write {}", file.display())))
}

/// A comparison under way.
struct Bench<'a> {
    lab: &'a Lab,
    ours: Ours,
    options: &'a Options,
    left_out: Vec<(&'static str, String)>,
    failures: Vec<String>,
}

impl Bench<'_> {
    fn measure(&mut self) -> Result<Results, VersusError> {
        let (runs, each) = (self.options.runs(), self.options.duration());
        if runs > 0 {
            let minutes = self.options.least().as_secs_f64() / 60.0;
            eprintln!("versus: {runs} runs of {each:?}, at least {minutes:.1} minutes");
        }
        let contenders = self.build()?;
        let columns = contenders.iter().map(|contender| contender.kind.name()).collect();
        let mut results = Results::new(columns, BASE.name());
        let options = self.options;
        for measure in options.measures() {
            if let Measure::Memory(_) = measure {
                self.measure_memory(measure, &contenders, &mut results)?;
                continue;
            }
            for cc in options.congestion_controls(measure) {
                eprintln!(
                    "versus: {}{}",
                    measure.title(),
                    cc.map_or(String::new(), |cc| format!(", {cc}"))
                );
                for round in 0..options.pairs() {
                    for (column, contender) in contenders.iter().enumerate() {
                        if !contender.kind.carries(measure) {
                            continue;
                        }
                        let at = At { measure, cc, column, round };
                        self.run(at, contender, &mut results);
                    }
                }
            }
        }
        Ok(results)
    }

    /// Builds what can be built here.
    fn build(&mut self) -> Result<Vec<Contender>, VersusError> {
        let mut contenders = Vec::new();
        for kind in self.options.kinds() {
            eprintln!("versus: building {}: {}", kind.name(), kind.title());
            match kind.build(self.lab, &self.ours, kind.name())? {
                Built::Ready(contender) => contenders.push(contender),
                Built::LeftOut(note) => self.left_out.push((kind.name(), note)),
            }
        }
        Ok(contenders)
    }

    /// Once, on fresh daemons: those that have been measured keep tables that have grown.
    fn measure_memory(
        &mut self,
        measure: Measure,
        contenders: &[Contender],
        results: &mut Results,
    ) -> Result<(), VersusError> {
        for (column, contender) in contenders.iter().enumerate() {
            let kind = contender.kind;
            if contender.process.is_none() {
                continue;
            }
            eprintln!("versus: {} of {}", measure.title(), kind.name());
            let label = format!("{}-{}", kind.name(), measure.name());
            if let Built::Ready(fresh) = kind.build(self.lab, &self.ours, &label)? {
                let at = At { measure, cc: None, column, round: 0 };
                self.run(at, &fresh, results);
                fresh.process.into_iter().for_each(|pid| self.lab.end(pid));
            }
        }
        Ok(())
    }

    fn run(&mut self, at: At<'_>, contender: &Contender, results: &mut Results) {
        let connections = if self.options.quick { FEW_CONNECTIONS } else { CONNECTIONS };
        let run = Run { duration: self.options.duration(), cc: at.cc, connections };
        match at.measure.run(contender, run) {
            Ok(samples) => results.add(at.measure, at.cc, at.column, at.round, &samples),
            Err(error) => {
                let name = contender.kind.name();
                self.failures.push(format!("{name}, {}: {error}", at.measure.title()));
            }
        }
    }
}

/// Where in the table, and in which round.
#[derive(Clone, Copy)]
struct At<'a> {
    measure: Measure,
    cc: Option<&'a str>,
    column: usize,
    round: usize,
}
