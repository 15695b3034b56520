//! The daemon: order of start and stop, signals, exit codes.
//!
//! Start: everything that can be refused is looked at before anything is made, so that a second
//! daemon, a broken file or a missing device leave no trace. Then state, engine, adoption of what
//! is there, and the API last. Stop: the API first, then uplinks go back to the host; sandboxes,
//! their devices and the connection table stay for the next start.

mod claim;
mod journal;
mod notify;

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dataplane::conntrack::EarlierRun;
use dataplane::io::IoBackend;
use dataplane::{Engine, EngineOptions};
use futures::StreamExt;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use self::claim::HostClaim;
use crate::api::server;
use crate::cli::output::print;
use crate::compile::Tuning;
use crate::config::args::{DaemonArgs, DaemonCommand, DaemonFlags};
use crate::config::{Config, schema};
use crate::demo;
use crate::error::{Error, Result, ResultExt};
use crate::nat_log::NatLog;
use crate::netlink::Monitor;
use crate::netns::{MountNamespace, Netns, mount_namespace};
use crate::place::Place;
use crate::state::{Lock, Store, missing_ancestors};
use crate::switch::purge::{conntrack_files, purge_offline};
use crate::switch::{Look, Settings, Switch, Touched};
use crate::usage;

/// Threads for API and netlink. The workers are threads of their own.
const CONTROL_THREADS: usize = 2;

/// Changes of the host come in bursts; one look at the end of a burst is enough.
const HOST_SETTLES: Duration = Duration::from_millis(200);

/// How often to look for what no message tells: ports that the host began to listen on, devices
/// that went away.
const HOST_POLL: Duration = Duration::from_secs(2);

const TUN_DEVICE: &str = "/dev/net/tun";

/// `vswitchd`.
#[must_use]
pub fn main() -> ExitCode {
    let args = match usage::parse::<DaemonArgs>(std::env::args_os()) {
        Ok(args) => args,
        Err(code) => return code,
    };
    match run(&args) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vswitchd: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &DaemonArgs) -> Result<ExitCode> {
    if let Some(DaemonCommand::Demo { format }) = args.command {
        return Ok(demo::run(format));
    }
    if args.flags.config_schema {
        print(format!("{:#}\n", schema::document()).as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let config = args.flags.load()?;
    if args.flags.check_config {
        for warning in &config.warnings {
            eprintln!("vswitchd: {warning}");
        }
        println!("{}: sound", args.flags.config_path().display());
        return Ok(ExitCode::SUCCESS);
    }
    journal::start();
    raise_descriptor_limit();
    if !nix::unistd::geteuid().is_root() {
        return Err(Error::failed(
            "needs root: it makes network namespaces, TAP devices and packet sockets",
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(CONTROL_THREADS)
        .thread_name("control")
        .enable_all()
        .build()
        .failed("start threads")?;
    if args.flags.purge {
        let purged = runtime.block_on(purge_offline(&config.daemon, args.flags.new_host))?;
        // A killed daemon may have left its file; taking it over and letting go removes it.
        drop(HostClaim::take());
        for (what, count) in [
            ("sandboxes", purged.sandboxes.len()),
            ("networks", purged.networks.len()),
            ("uplinks", purged.uplinks.len()),
        ] {
            println!("{what}: {count} removed");
        }
        return Ok(ExitCode::SUCCESS);
    }
    check_tun()?;
    let daemon = config.daemon.clone();
    let outcome = runtime.block_on(async {
        let end = serve(&args.flags, config).await?;
        // Whoever purged and asked for nothing since wants no file to stay either.
        if matches!(end, End::Purged)
            && let Err(error) = purge_offline(&daemon, false).await
        {
            tracing::warn!("{error}");
        }
        Ok(())
    });
    // What still waits for a client or a disk must not hold the exit up.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome.map(|()| ExitCode::SUCCESS)
}

/// Published ports, connections through them and devices take a descriptor each. The soft limit is
/// as low as it is by default for programs that use `select`, which this one does not.
fn raise_descriptor_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!("raise the limit of open files: {error}");
    }
}

/// The driver must be there before anything is made.
fn check_tun() -> Result<()> {
    let opened = OpenOptions::new().read(true).write(true).open(TUN_DEVICE);
    opened.map(drop).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Error::failed(format!(
            "{TUN_DEVICE}: permission denied; allow the device to the container that vswitchd \
             runs in"
        )),
        _ => Error::failed(format!(
            "{TUN_DEVICE}: {error}; load the kernel module `tun`, or give the device to the \
             container that vswitchd runs in"
        )),
    })
}

/// What a clean stop left.
enum End {
    /// Nothing but the daemon's own files.
    Purged,
    /// What is to come back at the next start.
    Stopped,
}

async fn serve(flags: &DaemonFlags, config: Config) -> Result<End> {
    let mut warnings = config.warnings.clone();
    warnings.extend(mount_warning());
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    server::probe(&config.daemon.socket)?;
    let state_dir = &config.daemon.state_dir;
    let _host = HostClaim::take().map_err(|taken| {
        // With the same state directory, that says more.
        Lock::take_existing(state_dir).err().unwrap_or(taken)
    })?;
    let lock = Lock::take(state_dir)?;
    let (mut store, desired) = Store::open(lock, flags.new_host)?;
    make_directories(&mut store, &config)?;
    let mut signals = Signals::listen()?;
    let listener = server::bind(&config.daemon.socket)?;
    let socket = SocketFile(config.daemon.socket.clone());

    let engine = start_engine(&config, &store)?;
    if let Some(lost) = lost_connections(&engine) {
        tracing::warn!("{lost}");
    }
    let host = Place::open(Netns::current().failed("open the host's namespace")?)?;
    let monitor = Monitor::open().failed("watch the host's interfaces")?;
    let settings = Settings {
        pools: config.defaults.pools.clone(),
        pools6: config.defaults.pools6.clone(),
        mtu: config.defaults.mtu,
        link: config.defaults.link,
        tuning: Tuning {
            timeouts: config.timeouts,
            grace: config.grace,
            fdb_ageing: Some(config.fdb_ageing),
        },
        uplinks: config.uplinks.clone(),
        services: config.limits.services,
    };
    let switch = Switch::new(engine, host, settings, store, desired, warnings);
    if let Err(error) = switch.adopt(&config.networks).await {
        // Nobody would be behind the steering of an uplink that is up already.
        switch.stop().await;
        return Err(error);
    }

    let nat_log = NatLog::of(&config.daemon).map(|log| start_nat_log(log, &switch));
    let nat_log = match nat_log.transpose() {
        Ok(nat_log) => nat_log,
        Err(error) => {
            switch.stop().await;
            return Err(error);
        }
    };
    let (stop, stopping) = watch::channel(false);
    let follower = tokio::spawn(follow(Arc::clone(&switch), monitor, stopping.clone()));
    let mut api = tokio::spawn(server::serve(listener, Arc::clone(&switch), stopping));
    tracing::info!("ready at {}", config.daemon.socket.display());
    notify::ready();
    let outcome = tokio::select! {
        outcome = &mut api => outcome.failed("serve the API").and_then(|served| served),
        signal = signals.stop(flags, &config, &switch) => {
            tracing::info!("{signal} received, stopping");
            Ok(())
        }
    };
    notify::stopping();
    // An error says that nobody listens any more.
    let _ = stop.send(true);
    if !api.is_finished()
        && let Err(error) = api.await.failed("serve the API").and_then(|served| served)
    {
        tracing::warn!("{error}");
    }
    // It ends by itself, within one look at the host.
    let _ = follower.await;
    switch.stop().await;
    if let (Some(log), Some(thread)) = (switch.nat_log(), nat_log) {
        log.stop();
        // It ends within one look; one that panicked has said so.
        let _ = thread.join();
    }
    drop(socket);
    let purged = switch.world().purged;
    outcome.map(|()| if purged { End::Purged } else { End::Stopped })
}

/// Logs mappings by a thread of its own, so that a slow disk holds nothing else up.
fn start_nat_log(log: Arc<NatLog>, switch: &Arc<Switch>) -> Result<JoinHandle<()>> {
    switch.set_nat_log(Arc::clone(&log));
    let switch = Arc::clone(switch);
    let run = move || log.run(&switch);
    thread::Builder::new().name("nat-log".to_owned()).spawn(run).failed("start the NAT log")
}

/// What a person should know about the connections of an earlier run.
fn lost_connections(engine: &Engine) -> Option<String> {
    match engine.earlier_run() {
        EarlierRun::None | EarlierRun::TakenOver { refused: 0 } => None,
        EarlierRun::TakenOver { refused } => Some(format!(
            "the connection table of the earlier run had {refused} damaged entries; those \
             connections are lost"
        )),
        EarlierRun::Unsound => Some(
            "the connection table of the earlier run is damaged or of another version; its \
             connections are lost"
                .to_owned(),
        ),
    }
}

fn start_engine(config: &Config, store: &Store) -> Result<Engine> {
    let [conntrack_file, conntrack6_file] =
        conntrack_files(&config.daemon.run_dir, store.installation());
    let options = EngineOptions {
        workers: config.daemon.worker_count(),
        buffers_per_worker: config.limits.buffers,
        conntrack_limit: config.limits.conntrack,
        conntrack_per_endpoint: config.limits.conntrack_per_endpoint,
        new_connections_per_endpoint: config
            .limits
            .new_connections_per_endpoint
            .unwrap_or(u32::MAX),
        conntrack_file: Some(conntrack_file),
        conntrack6_file: Some(conntrack6_file),
        fdb_limit: config.limits.fdb,
        fdb_per_port: config.limits.fdb_per_port,
        neighbors: config.limits.neighbors,
        groups: config.limits.groups,
        waiting_frames: config.limits.waiting_frames,
        waiting_frames_per_neighbor: config.limits.waiting_frames_per_neighbor,
        helpers: config.limits.helpers,
        icmp_errors: config.limits.icmp_errors,
        fragment_limit: config.limits.fragments,
        fragments_per_datagram: config.limits.fragments_per_datagram,
        fragment_bytes: config.limits.fragment_bytes,
        traces: config.limits.traces,
        capture_frames: config.limits.capture_frames,
        conntrack_events: config.limits.conntrack_events,
        io: config.daemon.io_choice(),
        gro: config.daemon.gro,
        placement: config.daemon.placement.into(),
        announce: true,
    };
    let engine = Engine::start(&options).failed("start the engine")?;
    match engine.backend() {
        IoBackend::Uring => tracing::info!("devices are read and written by io_uring"),
        IoBackend::Epoll { refused: None } => {
            tracing::info!("devices are read and written by epoll");
        }
        IoBackend::Epoll { refused: Some(why) } => {
            tracing::warn!(
                "devices are read and written by epoll; io_uring is not to be had: {why}"
            );
        }
    }
    Ok(engine)
}

/// Makes the directories that hold the socket and the connection table, and remembers which.
fn make_directories(store: &mut Store, config: &Config) -> Result<()> {
    let socket_directory = config.daemon.socket.parent().unwrap_or(Path::new("/"));
    for directory in [config.daemon.run_dir.as_path(), socket_directory] {
        let created = missing_ancestors(directory);
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(if directory.as_os_str().is_empty() { Path::new(".") } else { directory })
            .failed(directory.display())?;
        store.remember_directories(created)?;
    }
    Ok(())
}

/// Names made in a mount namespace of our own may be invisible to everybody else.
fn mount_warning() -> Option<String> {
    (mount_namespace() == MountNamespace::Other).then(|| {
        "started in a mount namespace of its own (as under `ip netns exec`): namespaces of \
         sandboxes stay invisible outside of it; start it with `nsenter --net=/run/netns/HOST`"
            .to_owned()
    })
}

/// The signals the daemon obeys. Listened to before anybody can know that it runs: what comes
/// earlier than that ends it at once, when there is nothing to be stopped in order yet.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).failed("listen for signals");
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for one to stop; its name. SIGHUP reads the configuration again, which was `running`
    /// at the start.
    async fn stop(
        &mut self,
        flags: &DaemonFlags,
        running: &Config,
        switch: &Switch,
    ) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => reload(flags, running, switch).await,
            }
        }
    }
}

/// Brings the networks in line with the file. Everything else of it takes effect at a restart.
async fn reload(flags: &DaemonFlags, running: &Config, switch: &Switch) {
    notify::reloading();
    if let Some(log) = switch.nat_log() {
        log.reopen();
    }
    match declare(flags, running, switch).await {
        Ok(()) => tracing::info!("configuration read again"),
        Err(error) => tracing::error!("configuration not taken: {error}"),
    }
    notify::ready();
}

async fn declare(flags: &DaemonFlags, running: &Config, switch: &Switch) -> Result<()> {
    let path = flags.config_path();
    if !path.exists() {
        // Perhaps it is being replaced just now: no reason to take all networks down.
        return Err(Error::invalid(format!("{}: no such file", path.display())));
    }
    let config = flags.load()?;
    for section in config.sections_unlike(running) {
        tracing::warn!("{}: [{section}] has changed, restart to use it", path.display());
    }
    switch.declare(&config.networks).await
}

/// Keeps uplinks and sandboxes in line with what others do to the host.
async fn follow(switch: Arc<Switch>, mut monitor: Monitor, mut stopping: watch::Receiver<bool>) {
    let mut watching = true;
    loop {
        let mut touched = Touched::default();
        let look = tokio::select! {
            () = told(&mut stopping) => return,
            event = monitor.next(), if watching => {
                watching = event.is_some();
                event.iter().for_each(|event| touched.note(event));
                tokio::time::sleep(HOST_SETTLES).await;
                // What came meanwhile is seen by the one look below.
                while let Some(Some(event)) = futures::FutureExt::now_or_never(monitor.next()) {
                    touched.note(&event);
                }
                Look::All
            }
            () = tokio::time::sleep(HOST_POLL) => Look::Ports,
        };
        switch.follow_namespaces();
        switch.tell_alarms();
        switch.follow_gone(look).await;
        switch.follow_filters(&touched).await;
        if let Err(error) = switch.follow_host(look).await {
            tracing::warn!("{error}");
        }
    }
}

async fn told(stopping: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, which is a stop too.
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// Removes the socket when the daemon ends.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.0) {
            tracing::debug!("{}: {error}", self.0.display());
        }
    }
}
