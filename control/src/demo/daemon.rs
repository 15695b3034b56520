//! The daemon under demonstration: a child process in the demo's host namespace, with files of its
//! own, spoken to by the same client as `vswitchctl`.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{DemoError, log_path};
use crate::api::client::Client;
use crate::api::types::{
    Connection, Driver, FdbEntry, FdbQuery, Network, NetworkCreate, Sandbox, SandboxCreate, Status,
    Uplink,
};
use crate::error::Error;
use crate::lab::Lab;
use crate::name::Name;
use crate::netns::Netns;

/// A loaded machine may take its time to start it.
const START_TIMEOUT: Duration = Duration::from_secs(15);
const START_POLL: Duration = Duration::from_millis(50);

/// A running daemon. The [`Lab`] ends it.
#[derive(Debug)]
pub(super) struct Daemon {
    client: Client,
}

impl Daemon {
    /// Starts `program` inside `host` and waits until it answers.
    pub(super) async fn start(lab: &Lab, host: &Netns, program: &Path) -> Result<Self, DemoError> {
        let directory = lab.directory();
        let io = |action: &str| {
            let action = action.to_owned();
            move |source| DemoError::Io { action, source }
        };
        let log = File::create(log_path(lab)).map_err(io("create the daemon's log"))?;
        let socket = directory.join("vswitchd.sock");
        let mut command = Command::new(program);
        // No configuration file: defaults, whatever this machine has in /etc.
        command
            .arg("--config")
            .arg(directory.join("vswitchd.toml"))
            .arg("--socket")
            .arg(&socket)
            .arg("--state-dir")
            .arg(directory.join("state"))
            .arg("--run-dir")
            .arg(directory.join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // A Ctrl-C is for the demo alone, which then ends the daemon in order.
            .process_group(0);
        // A child belongs to the namespace of the thread that starts it.
        let pid = host.run(|| lab.start(&mut command))?.map_err(io("start the daemon"))?;
        let daemon = Self { client: Client::new(socket) };
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match daemon.client.get::<Status>("/v1/status").await {
                Ok(_) => return Ok(daemon),
                Err(error) if Instant::now() >= deadline => {
                    let text = format!("the daemon does not answer: {error}");
                    return Err(DemoError::Daemon(text));
                }
                Err(_) => {}
            }
            if let Some(status) = lab.ended(pid) {
                return Err(DemoError::Daemon(format!("the daemon ended: {status}")));
            }
            tokio::time::sleep(START_POLL).await;
        }
    }

    pub(super) async fn uplinks(&self) -> Result<Vec<Uplink>, DemoError> {
        self.client.get("/v1/uplinks").await.map_err(DemoError::Api)
    }

    /// A bridge network with defaults.
    pub(super) async fn create_network(&self, name: &str) -> Result<(), DemoError> {
        let request = NetworkCreate {
            name: Name::parse("network", name).map_err(DemoError::Api)?,
            driver: Driver::default(),
            subnets: Vec::new(),
            internal: false,
            ipv6: false,
            options: BTreeMap::new(),
            labels: BTreeMap::new(),
        };
        let _: Network =
            self.client.post("/v1/networks", &request).await.map_err(DemoError::Api)?;
        Ok(())
    }

    /// Makes the namespace at `path` a sandbox on a network, with published ports.
    pub(super) async fn adopt(
        &self,
        name: &str,
        network: &str,
        path: &str,
        publish: &[&str],
    ) -> Result<Sandbox, DemoError> {
        let request = || -> Result<SandboxCreate, Error> {
            Ok(SandboxCreate {
                name: Name::parse("sandbox", name)?,
                networks: vec![network.parse()?],
                ip: None,
                ip6: None,
                mac: None,
                aliases: Vec::new(),
                options: BTreeMap::new(),
                publish: publish.iter().map(|text| text.parse()).collect::<Result<_, _>>()?,
                netns: Some(path.parse()?),
            })
        };
        let request = request().map_err(DemoError::Api)?;
        self.client.post("/v1/sandboxes", &request).await.map_err(DemoError::Api)
    }

    pub(super) async fn fdb(&self, network: &str) -> Result<Vec<FdbEntry>, DemoError> {
        let network = Name::parse("network", network).map_err(DemoError::Api)?;
        let query = FdbQuery { network: Some(network) };
        self.client.query("/v1/fdb", &query).await.map_err(DemoError::Api)
    }

    pub(super) async fn connections(&self) -> Result<Vec<Connection>, DemoError> {
        self.client.get("/v1/conntrack").await.map_err(DemoError::Api)
    }
}
