//! Other programs: finding them, building ours, and running them in a namespace.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use control::lab::Lab;
use control::netns::Netns;

use crate::error::{VersusError, io};

/// Where Debian has programs that need not be in `PATH`.
const MORE_DIRECTORIES: [&str; 4] =
    ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/lib/openvswitch-switch"];

/// Our programs under measurement.
#[derive(Debug, Clone)]
pub(crate) struct Ours {
    pub vswitchd: PathBuf,
    pub vswitchctl: PathBuf,
    /// Worker threads; `None`: as many as it takes by itself.
    pub workers: Option<u16>,
}

/// The programs beside our own executable, built anew if they are missing or older than their
/// sources, so that no figure is of a program other than the one that is read.
pub(crate) fn ours(workers: Option<u16>) -> Result<Ours, VersusError> {
    let own = std::env::current_exe().map_err(io("find the own executable"))?;
    let directory = own.parent().unwrap_or(Path::new("/"));
    let [vswitchd, vswitchctl] = ["vswitchd", "vswitchctl"].map(|name| directory.join(name));
    let ours = Ours { vswitchd, vswitchctl, workers };
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"));
    if is_current(&ours.vswitchd, workspace) && is_current(&ours.vswitchctl, workspace) {
        return Ok(ours);
    }
    if let Err(error) = build(workspace, directory) {
        let text = format!("{error}; build them with cargo build --release --bins");
        return Err(VersusError::Program(text));
    }
    Ok(ours)
}

/// Whether a program is there and not older than any source of the two crates it is made of.
/// Programs that were carried elsewhere have no sources beside them and are taken as they are.
fn is_current(program: &Path, workspace: &Path) -> bool {
    let Ok(built) = fs::metadata(program).and_then(|meta| meta.modified()) else { return false };
    ["control/src", "dataplane/src"]
        .iter()
        .filter_map(|sources| newest(&workspace.join(sources)))
        .all(|changed| changed <= built)
}

/// When the newest file below a directory was written.
fn newest(directory: &Path) -> Option<SystemTime> {
    let entries = fs::read_dir(directory).ok()?.flatten();
    let times = entries.filter_map(|entry| {
        let meta = entry.metadata().ok()?;
        if meta.is_dir() { newest(&entry.path()) } else { meta.modified().ok() }
    });
    times.max()
}

fn build(workspace: &Path, directory: &Path) -> Result<(), VersusError> {
    eprintln!(
        "versus: building vswitchd and vswitchctl, which are missing or older than the sources"
    );
    // Set by `cargo run`.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(["build", "--quiet", "--locked", "--package", "control", "--bins"]);
    if directory.ends_with("release") {
        command.arg("--release");
    }
    if let Some(target) = directory.parent() {
        command.arg("--target-dir").arg(target);
    }
    let status = command.current_dir(workspace).status().map_err(io("run cargo"))?;
    if status.success() {
        Ok(())
    } else {
        Err(VersusError::Program("vswitchd and vswitchctl could not be built".to_owned()))
    }
}

/// The path of a program, if it is installed.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(MORE_DIRECTORIES.map(PathBuf::from));
    directories.map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// Starts a program that stays, in a namespace, with its messages in a file. The laboratory ends it.
pub(crate) fn start(
    lab: &Lab,
    netns: &Netns,
    mut command: Command,
    log: &Path,
) -> Result<u32, VersusError> {
    let file = File::create(log).map_err(io(format!("create {}", log.display())))?;
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(file)
        // A Ctrl-C is for us alone, who then end it in order.
        .process_group(0);
    let name = command.get_program().to_string_lossy().into_owned();
    // A child belongs to the namespace of the thread that starts it.
    netns.run(|| lab.start(&mut command))?.map_err(io(format!("start {name}")))
}

/// Runs a program in a namespace, with `input` to read, and gives what it prints. Its last message
/// is the error.
pub(crate) fn run(netns: &Netns, mut command: Command, input: &str) -> Result<String, VersusError> {
    let name = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = netns.run(|| command.spawn())?.map_err(io(format!("start {name}")))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A program that ends without reading says why itself.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = child.wait_with_output().map_err(io(format!("wait for {name}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let messages = String::from_utf8_lossy(&output.stderr);
    let last = messages.lines().rev().find(|line| !line.trim().is_empty());
    let text = match last {
        Some(line) => line.trim().to_owned(),
        None => format!("{name}: {}", output.status),
    };
    Err(VersusError::Program(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_older_than_a_source_is_not_current() {
        let workspace = std::env::temp_dir().join(format!("versus-test-{}", std::process::id()));
        let sources = workspace.join("control/src/deep");
        fs::create_dir_all(&sources).unwrap();
        let (program, source) = (workspace.join("program"), sources.join("x.rs"));
        fs::write(&source, "").unwrap();
        assert!(!is_current(&program, &workspace), "missing");
        fs::write(&program, "").unwrap();
        assert!(is_current(&program, &workspace));
        let later = SystemTime::now() + std::time::Duration::from_secs(60);
        File::options().write(true).open(&source).unwrap().set_modified(later).unwrap();
        assert!(!is_current(&program, &workspace), "older");
        fs::remove_dir_all(&workspace).unwrap();
    }

    #[test]
    fn what_a_program_prints_and_what_it_complains_of() {
        let netns = Netns::current().unwrap();
        let mut shell = Command::new("sh");
        shell.args(["-c", "cat; echo complaint >&2; exit $CODE"]);
        let mut good = Command::new("sh");
        good.args(["-c", "cat"]);
        // Entering one's own namespace needs privileges too.
        if nix::unistd::geteuid().is_root() {
            assert_eq!(run(&netns, good, "text").unwrap(), "text");
            shell.env("CODE", "3");
            assert_eq!(run(&netns, shell, "").unwrap_err().to_string(), "complaint");
        } else {
            assert!(run(&netns, good, "text").is_err());
        }
        assert!(find("sh").is_some() && find("no-such-program").is_none());
    }
}
