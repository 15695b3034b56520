//! `vswitchctl`: reads the command line, asks the daemon, prints.
//!
//! Every verb is a module's `Args` with a `run`; what syntax alone decides is refused here, before
//! anything is sent. stdout carries results only; an error is one line on stderr and an exit code.

mod capture;
mod network;
pub mod output;
pub mod pages;
mod policy;
mod process;
mod sandbox;
mod state;
mod tables;
mod trace;
mod uplink;
pub mod values;

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::api::client::Client;
use crate::api::types::{LimitUse, Purged, Status, WorkerStatus};
use crate::config::DEFAULT_SOCKET;
use crate::error::{Error, Result};
use crate::name::Name;
use crate::usage;
use output::{Column, Format, Reply, complain, or_dash, print};

/// Talks to vswitchd.
#[derive(Debug, Parser)]
#[command(name = "vswitchctl", version, arg_required_else_help = false)]
pub struct Cli {
    /// The daemon's socket
    #[arg(
        long,
        value_name = "PATH",
        env = "VSWITCHD_SOCKET",
        default_value = DEFAULT_SOCKET,
        global = true,
        hide_env_values = true
    )]
    pub socket: PathBuf,
    /// How to print results
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Table, global = true)]
    pub format: Format,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Networks
    #[command(subcommand, arg_required_else_help = false)]
    Network(network::Command),
    /// Sandboxes: named network namespaces
    #[command(subcommand, arg_required_else_help = false)]
    Sandbox(sandbox::Command),
    /// Create a sandbox, run a command in it, and remove it when the command ends
    Run(process::Run),
    /// Run a command in a sandbox
    Exec(process::Exec),
    /// Published ports
    #[command(subcommand, arg_required_else_help = false)]
    Port(sandbox::PortCommand),
    /// Ways out of the host
    #[command(subcommand, arg_required_else_help = false)]
    Uplink(uplink::Command),
    /// Static routes
    #[command(subcommand, arg_required_else_help = false)]
    Route(uplink::RouteCommand),
    /// Policies of networks: who may begin a connection with whom
    #[command(subcommand, arg_required_else_help = false)]
    Policy(policy::Command),
    /// Neighbors found by ARP
    #[command(subcommand, arg_required_else_help = false)]
    Neigh(uplink::NeighborCommand),
    /// The daemon itself
    Status,
    /// Where MAC addresses are
    #[command(subcommand, arg_required_else_help = false)]
    Fdb(tables::FdbCommand),
    /// Who is in which multicast group
    #[command(subcommand, arg_required_else_help = false)]
    Mdb(tables::MdbCommand),
    /// Tracked connections
    #[command(subcommand, arg_required_else_help = false)]
    Conntrack(tables::ConntrackCommand),
    /// Address translation
    #[command(subcommand, arg_required_else_help = false)]
    Nat(tables::NatCommand),
    /// Dropped frames by reason
    Drops(tables::Drops),
    /// Totals of each port
    Stats(tables::Stats),
    /// Copy frames as they pass, as pcapng or one line each
    Capture(capture::Capture),
    /// Show what would become of a packet, stage by stage, without sending it
    Trace(trace::Trace),
    /// Everything that was asked for, as one document
    #[command(subcommand, arg_required_else_help = false)]
    State(state::Command),
    /// Remove every sandbox, network, device and rule the daemon made
    Purge(Purge),
    /// Print the completions of a shell, for both programs
    Completions(pages::Completions),
    /// Write manual pages, completions and the configuration's JSON Schema to a folder
    #[command(hide = true)]
    Pages(pages::Pages),
}

/// `purge`.
#[derive(Debug, Args)]
pub struct Purge {
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// How a verb ended.
#[derive(Debug)]
enum Outcome {
    /// Well.
    Done(Reply),
    /// With an exit code and nothing to print.
    Exit(u8),
    /// Some of it well; the errors of the rest.
    Partly(Reply, Vec<Error>),
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        Self::Done(reply)
    }
}

/// The whole program.
#[must_use]
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli: Cli = match usage::parse(args) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    ExitCode::from(run(cli).unwrap_or_else(|error| {
        complain(&error);
        error.exit_code()
    }))
}

/// Does what the command line says; returns the exit code.
fn run(cli: Cli) -> Result<u8> {
    let format = cli.format;
    let client = Client::new(cli.socket);
    let outcome = match cli.command {
        // These enter namespaces, which belong to threads: they have a runtime only while they
        // talk to the daemon.
        Command::Exec(args) => return args.run(&client),
        Command::Run(args) => return args.run(&client),
        // These need no daemon.
        Command::Completions(args) => return args.run(),
        Command::Pages(args) => return args.run(),
        command => block_on(async {
            match command {
                Command::Network(args) => args.run(&client).await,
                Command::Sandbox(args) => args.run(&client).await,
                Command::Port(args) => args.run(&client).await,
                Command::Uplink(args) => args.run(&client).await,
                Command::Route(args) => args.run(&client).await,
                Command::Policy(args) => args.run(&client).await,
                Command::Neigh(args) => args.run(&client).await,
                Command::Fdb(args) => args.run(&client).await,
                Command::Mdb(args) => args.run(&client).await,
                Command::Conntrack(args) => args.run(&client, format).await,
                Command::Nat(args) => args.run(&client).await,
                Command::Drops(args) => args.run(&client).await,
                Command::Stats(args) => args.run(&client).await,
                Command::Capture(args) => args.run(&client, format).await.map(Outcome::Exit),
                Command::Trace(args) => args.run(&client, format).await.map(Outcome::Exit),
                Command::Purge(args) => args.run(&client).await,
                Command::State(args) => args.run(&client).await,
                Command::Status => status(&client).await,
                Command::Exec(_)
                | Command::Run(_)
                | Command::Completions(_)
                | Command::Pages(_) => Ok(Outcome::Exit(0)),
            }
        })??,
    };
    match outcome {
        Outcome::Exit(code) => Ok(code),
        Outcome::Done(reply) => {
            print(reply.render(format).as_bytes())?;
            Ok(0)
        }
        Outcome::Partly(reply, errors) => {
            print(reply.render(format).as_bytes())?;
            errors.iter().for_each(complain);
            Ok(errors.first().map_or(0, Error::exit_code))
        }
    }
}

/// Runs a future to its end on this thread.
fn block_on<F: Future>(future: F) -> Result<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Error::failed(format!("start: {error}")))?;
    Ok(runtime.block_on(future))
}

/// Shows each thing in full, by its path.
async fn inspect<T: Serialize + DeserializeOwned>(
    client: &Client,
    names: &[Name],
    path: impl Fn(&Name) -> String,
) -> Result<Outcome> {
    let mut things: Vec<T> = Vec::new();
    for name in names {
        things.push(client.get(&path(name)).await?);
    }
    Ok(Reply::things(&things)?.into())
}

/// Removes each thing, by its path, all of them whatever happens to the others.
async fn remove(client: &Client, names: Vec<Name>, path: impl Fn(&Name) -> String) -> Outcome {
    let mut done = Vec::new();
    let mut errors = Vec::new();
    for name in names {
        match client.delete(&path(&name)).await {
            Ok(()) => done.push(name),
            Err(error) => errors.push(error),
        }
    }
    let reply = Reply::names(&done);
    if errors.is_empty() { Outcome::Done(reply) } else { Outcome::Partly(reply, errors) }
}

async fn status(client: &Client) -> Result<Outcome> {
    const WORKERS: &[Column<WorkerStatus>] = &[
        ("WORKER", |worker| worker.id.to_string()),
        ("RX FRAMES", |worker| worker.rx_frames.to_string()),
        ("TX FRAMES", |worker| worker.tx_frames.to_string()),
        ("DROPS", |worker| worker.drops.to_string()),
        ("REPLICATED", |worker| worker.replicated.to_string()),
        ("MERGED", |worker| worker.merged.to_string()),
        ("GENERATED", |worker| worker.generated.to_string()),
        ("CONSUMED", |worker| worker.consumed.to_string()),
        ("QUEUED", |worker| worker.queued.to_string()),
    ];
    const LIMITS: &[Column<LimitUse>] = &[
        ("LIMIT", |limit| limit.name.clone()),
        ("CURRENT", |limit| limit.current.to_string()),
        ("PEAK", |limit| limit.peak.to_string()),
        ("AT MOST", |limit| limit.limit.to_string()),
        ("BEYOND IT", |limit| {
            let refusal = limit.refusal.map(|refusal| refusal.name().to_owned());
            or_dash(limit.drop_reason.clone().or(refusal).as_ref())
        }),
    ];
    let status: Status = client.get("/v1/status").await?;
    let text = format!(
        "vswitchd {}, process {}, up {} s{}\n{} networks, {} endpoints, {} of {} connections, {} of {} MACs{}{}",
        status.version,
        status.pid,
        status.uptime_s,
        // An older daemon does not say.
        if status.io.is_empty() { String::new() } else { format!(", devices by {}", status.io) },
        status.networks,
        status.endpoints,
        status.conntrack.entries,
        status.conntrack.limit,
        status.fdb.entries,
        status.fdb.limit,
        match status.conntrack.grace_s {
            0 => String::new(),
            left => format!(
                "\nbegan without a table of connections: those of sandboxes are picked up for {left} s more"
            ),
        },
        status.warnings.iter().fold(String::new(), |text, line| text + "\nwarning: " + line),
    );
    let reply = Reply::done(&status, text)?.with_table(&status.workers, WORKERS);
    // An older daemon has none.
    let reply = match status.limits.as_slice() {
        [] => reply,
        limits => reply.with_table(limits, LIMITS),
    };
    Ok(reply.into())
}

impl Purge {
    async fn run(self, client: &Client) -> Result<Outcome> {
        if !self.yes && !confirmed()? {
            return Err(Error::failed("nothing was removed"));
        }
        let purged: Purged = client.post_empty("/v1/purge").await?;
        let text = format!(
            "removed {} sandboxes, {} networks, {} uplinks, {} devices",
            purged.sandboxes.len(),
            purged.networks.len(),
            purged.uplinks.len(),
            purged.devices.len()
        );
        Ok(Reply::done(&purged, text)?.into())
    }
}

/// Asks on the terminal. The question goes to stderr: stdout is for results.
fn confirmed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(Error::invalid("purge removes everything; without a terminal, give --yes"));
    }
    let mut stderr = std::io::stderr();
    let question =
        "This removes every sandbox, network, device and rule vswitchd made. Go on? [y/N] ";
    let asked = write!(stderr, "{question}").and_then(|()| stderr.flush());
    asked.map_err(|error| Error::failed(format!("ask: {error}")))?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .map_err(|error| Error::failed(format!("read the answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes" | "Yes"))
}

#[cfg(test)]
mod tests;
