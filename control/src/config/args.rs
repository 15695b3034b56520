//! The command line of `vswitchd`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::{Config, DEFAULT_CONFIG, validate};
use crate::cli::output::Format;
use crate::error::{Error, Result};

/// A userspace virtual switch and NAT for the containers of this host.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "vswitchd", version, args_conflicts_with_subcommands = true)]
pub struct DaemonArgs {
    /// Everything but the subcommand.
    #[command(flatten)]
    pub flags: DaemonFlags,
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<DaemonCommand>,
}

/// Flags; those that the file has too win over it.
#[derive(Clone, Debug, Default, Args)]
pub struct DaemonFlags {
    /// Configuration file; if it does not exist, defaults apply [default: /etc/vswitchd/vswitchd.toml]
    #[arg(long, value_name = "PATH")]
    pub config: Option<PathBuf>,
    /// The API's socket [default: /run/vswitchd/vswitchd.sock]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Where the state is kept [default: /var/lib/vswitchd]
    #[arg(long, value_name = "PATH")]
    pub state_dir: Option<PathBuf>,
    /// Where what is only true while the daemon runs is kept [default: /run/vswitchd]
    #[arg(long, value_name = "PATH")]
    pub run_dir: Option<PathBuf>,
    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = workers)]
    pub workers: Option<usize>,
    /// Which worker receives from which port [default: load]
    #[arg(long, value_enum, value_name = "RULE")]
    pub placement: Option<super::Placement>,
    /// How to read and write TAPs and uplinks [default: by io_uring if the kernel allows it]
    #[arg(long, value_enum, value_name = "WAY")]
    pub io: Option<super::Io>,
    /// Merge TCP segments, and trains of UDP datagrams, that wait for the same device [default: true]
    #[arg(long, value_name = "BOOL")]
    pub gro: Option<bool>,
    /// Serve Docker's plugin API from this directory, e.g. /run/docker/plugins [default: off]
    #[arg(long, value_name = "DIR")]
    pub docker_plugin_dir: Option<PathBuf>,
    /// Serve Prometheus metrics at this address, e.g. 127.0.0.1:9650 [default: off]
    #[arg(long, value_name = "ADDR")]
    pub metrics: Option<SocketAddr>,
    /// Check the configuration and exit
    #[arg(long, conflicts_with = "purge")]
    pub check_config: bool,
    /// Print the JSON Schema of the configuration file and exit
    #[arg(long, conflicts_with_all = ["purge", "check_config"])]
    pub config_schema: bool,
    /// With no daemon running, remove all that it ever made on this host, and exit
    #[arg(long)]
    pub purge: bool,
    /// Use a state directory of another network namespace here, giving up what was made there
    #[arg(long)]
    pub new_host: bool,
}

/// What `vswitchd` does beside serving.
#[derive(Clone, Debug, Subcommand)]
pub enum DaemonCommand {
    /// Show the whole way of a frame in namespaces of its own, leaving nothing behind
    Demo {
        /// How to print the result
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
}

fn workers(text: &str) -> std::result::Result<usize, String> {
    text.parse()
        .ok()
        .filter(|workers| (1..=validate::MAX_WORKERS).contains(workers))
        .ok_or_else(|| format!("not a number from 1 to {}", validate::MAX_WORKERS))
}

impl DaemonFlags {
    /// The file's name, given or default.
    #[must_use]
    pub fn config_path(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into())
    }

    /// Reads the file and lets the flags override it. Also what a reload reads.
    ///
    /// # Errors
    /// When the file or the result is wrong, or `--check-config` names a file that does not exist.
    pub fn load(&self) -> Result<Config> {
        let path = self.config_path();
        let missing = self.config.is_some() && !path.exists();
        if missing && self.check_config {
            return Err(Error::invalid(format!("{}: no such file", path.display())));
        }
        let mut config = Config::load(&path)?;
        if missing {
            config.warnings.push(format!("{}: no such file, defaults apply", path.display()));
        }
        self.apply(&mut config)?;
        Ok(config)
    }

    /// Lets the flags override a configuration.
    ///
    /// # Errors
    /// When a path cannot be used.
    pub fn apply(&self, config: &mut Config) -> Result<()> {
        let daemon = &mut config.daemon;
        let set = |to: &mut PathBuf, from: &Option<PathBuf>| {
            if let Some(from) = from {
                to.clone_from(from);
            }
        };
        set(&mut daemon.socket, &self.socket);
        set(&mut daemon.state_dir, &self.state_dir);
        set(&mut daemon.run_dir, &self.run_dir);
        validate::socket_path(&daemon.socket).map_err(|error| error.context("--socket"))?;
        daemon.workers = self.workers.or(daemon.workers);
        daemon.placement = self.placement.unwrap_or(daemon.placement);
        daemon.io = self.io.or(daemon.io);
        daemon.gro = self.gro.unwrap_or(daemon.gro);
        if self.docker_plugin_dir.is_some() {
            daemon.docker_plugin_dir.clone_from(&self.docker_plugin_dir);
        }
        daemon.metrics = self.metrics.or(daemon.metrics);
        if daemon.docker_plugin_dir.is_some() {
            config.warnings.push("docker_plugin_dir: not built yet, has no effect".to_owned());
        }
        if daemon.metrics.is_some() {
            config.warnings.push("metrics: not built yet, has no effect".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        DaemonArgs::command().debug_assert();
    }

    #[test]
    fn flags_win_over_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "[daemon]\nworkers = 2\nrun_dir = \"/a\"\nstate_dir = \"/b\"\n")
            .unwrap();
        let args = DaemonArgs::try_parse_from([
            "vswitchd".as_ref(),
            "--config".as_ref(),
            path.as_os_str(),
            "--workers".as_ref(),
            "3".as_ref(),
            "--state-dir".as_ref(),
            "relative".as_ref(),
        ])
        .unwrap();
        let config = args.flags.load().unwrap();
        assert_eq!(config.daemon.workers, Some(3));
        assert_eq!(config.daemon.run_dir, PathBuf::from("/a"));
        assert_eq!(config.daemon.state_dir, PathBuf::from("relative"));
        assert_eq!(config.warnings, Vec::<String>::new());
    }

    #[test]
    fn a_missing_file_is_an_error_only_to_a_check() {
        let mut flags =
            DaemonFlags { config: Some("/nonexistent/x.toml".into()), ..Default::default() };
        assert_eq!(flags.load().unwrap().warnings.len(), 1);
        flags.check_config = true;
        let error = flags.load().unwrap_err();
        assert_eq!(
            (error.exit_code(), error.message.as_str()),
            (2, "/nonexistent/x.toml: no such file")
        );
    }

    #[test]
    fn demo_and_ranges() {
        let args = DaemonArgs::try_parse_from(["vswitchd", "demo", "--format", "json"]).unwrap();
        assert!(matches!(args.command, Some(DaemonCommand::Demo { format: Format::Json })));
        for bad in [
            &["vswitchd", "--workers", "0"][..],
            &["vswitchd", "--workers", "65"],
            &["vswitchd", "--metrics", "localhost"],
            &["vswitchd", "--purge", "--check-config"],
            &["vswitchd", "--purge", "demo"],
            &["vswitchd", "--config-schema", "--check-config"],
        ] {
            assert!(DaemonArgs::try_parse_from(bad).is_err(), "{bad:?}");
        }
        let flags = DaemonFlags { socket: Some("/x".repeat(60).into()), ..Default::default() };
        let error = flags.apply(&mut Config::default()).unwrap_err();
        assert!(error.message.contains("120 bytes long"), "{}", error.message);
    }
}
