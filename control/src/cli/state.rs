//! `vswitchctl state`.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use clap::Subcommand;

use super::Outcome;
use super::output::{Reply, print};
use crate::api::client::Client;
use crate::api::server::read_state;
use crate::api::types::{Imported, State};
use crate::check;
use crate::error::{Error, Result, ResultExt as _};

/// Verbs of the state as a whole.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write networks with their policies, sandboxes, published ports, uplinks, routes and static FDB entries as JSON
    Export {
        /// Where to; -: stdout
        #[arg(value_name = "FILE", default_value = "-")]
        file: PathBuf,
    },
    /// Make everything that an export says, or nothing
    Import {
        /// Where from; -: stdin
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
}

impl Command {
    pub(super) async fn run(self, client: &Client) -> Result<Outcome> {
        match self {
            Self::Export { file } => {
                let state: State = client.get("/v1/state").await?;
                let text = format!("{:#}\n", serde_json::to_value(&state).failed("output")?);
                if is_standard(&file) {
                    // The document is the result, whatever the format of results.
                    print(text.as_bytes())?;
                    return Ok(Outcome::Exit(0));
                }
                replace(&file, text.as_bytes()).failed(file.display())?;
                Ok(Reply::names(&[file.to_string_lossy()]).into())
            }
            Self::Import { file } => {
                let (name, text) = read(&file)?;
                let state = read_state(&name, &text)?;
                check::state(&state).map_err(|error| error.context(&name))?;
                let imported: Imported = client.post("/v1/state", &state).await?;
                Ok(Reply::done(&imported, summary(&imported))?.into())
            }
        }
    }
}

fn is_standard(file: &Path) -> bool {
    file.as_os_str() == "-"
}

/// A file's name for messages, and its text.
fn read(file: &Path) -> Result<(String, Vec<u8>)> {
    let mut text = Vec::new();
    let (name, outcome) = if is_standard(file) {
        ("stdin".to_owned(), io::stdin().read_to_end(&mut text).map(drop))
    } else {
        let read = File::open(file).and_then(|mut file| file.read_to_end(&mut text));
        (file.display().to_string(), read.map(drop))
    };
    match outcome {
        Ok(()) => Ok((name, text)),
        // Whatever the reason: what the user named is no state.
        Err(error) => Err(Error::invalid(format!("{name}: {error}"))),
    }
}

/// Puts a file in the place of another in one step, so that whoever reads it never sees a part. What
/// is no file, as a pipe or `/dev/stdout`, is written to.
fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return File::options().write(true).open(path)?.write_all(text);
    }
    // The file that a link leads to is what its reader sees.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(name);
    let written = File::create_new(&beside).and_then(|mut file| {
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&beside, &path)
    });
    if written.is_err() {
        // Perhaps it was never made.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn summary(imported: &Imported) -> String {
    format!(
        "made {} networks, {} policies, {} sandboxes, {} uplinks, {} routes, {} FDB entries; {} were there",
        imported.networks.len(),
        imported.policy.len(),
        imported.sandboxes.len(),
        imported.uplinks.len(),
        imported.routes.len(),
        imported.fdb.len(),
        imported.kept
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_in_one_step_and_nothing_else_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.json");
        for text in ["first", "2nd"] {
            replace(&path, text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
        let link = dir.path().join("link.json");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        replace(&link, b"by a link").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "by a link");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert!(replace(&dir.path().join("none/state.json"), b"").is_err());
        assert!(replace(dir.path(), b"").is_err(), "a folder");
        replace(Path::new("/dev/null"), b"lost").unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
