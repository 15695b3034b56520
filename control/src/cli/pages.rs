//! What a package installs beside the programs, made from the programs themselves: manual pages,
//! completions, and the JSON Schema of the configuration.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory, ValueEnum};
use clap_complete::Shell;
use clap_mangen::Man;

use super::Cli;
use super::output::print;
use crate::config::args::DaemonArgs;
use crate::config::{manual, schema};
use crate::error::{Result, ResultExt as _};

/// The shells that a package has completions for, and how each calls the file of a program.
const SHELLS: [(Shell, &str, &str, &str); 3] = [
    (Shell::Bash, "bash", "", ""),
    (Shell::Fish, "fish", "", ".fish"),
    (Shell::Zsh, "zsh", "_", ""),
];

/// A program of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Program {
    /// The client
    #[default]
    Vswitchctl,
    /// The daemon
    Vswitchd,
}

impl Program {
    fn command(self) -> Command {
        match self {
            Self::Vswitchctl => Cli::command(),
            Self::Vswitchd => DaemonArgs::command(),
        }
    }
}

/// `completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell
    shell: Shell,
    /// Of which program
    #[arg(long, value_enum, default_value_t)]
    program: Program,
}

impl Completions {
    pub(super) fn run(self) -> Result<u8> {
        print(&completions(self.program, self.shell))?;
        Ok(0)
    }
}

fn completions(program: Program, shell: Shell) -> Vec<u8> {
    let mut command = program.command();
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    script
}

/// `pages`.
#[derive(Debug, Args)]
pub struct Pages {
    /// The folder; made if it is not there
    #[arg(value_name = "DIR")]
    folder: PathBuf,
}

impl Pages {
    pub(super) fn run(self) -> Result<u8> {
        write_all(&self.folder).failed(self.folder.display())?;
        Ok(0)
    }
}

fn write_all(folder: &Path) -> io::Result<()> {
    let made = |relative: &str| {
        let path = folder.join(relative);
        fs::create_dir_all(&path).map(|()| path)
    };
    manuals(Program::Vswitchctl, "1", &made("man/man1")?)?;
    manuals(Program::Vswitchd, "8", &made("man/man8")?)?;
    fs::write(made("man/man5")?.join("vswitchd.toml.5"), manual::page())?;
    for (shell, name, before, behind) in SHELLS {
        let path = made(&format!("completions/{name}"))?;
        for program in Program::value_variants() {
            let file = format!("{before}{}{behind}", program.command().get_name());
            fs::write(path.join(file), completions(*program, shell))?;
        }
    }
    fs::write(folder.join("vswitchd.schema.json"), format!("{:#}\n", schema::document()))
}

/// A page for the program and one for each of its verbs.
fn manuals(program: Program, section: &str, folder: &Path) -> io::Result<()> {
    let mut command = program.command().disable_help_subcommand(true);
    command.build();
    manual_of(&command, section, folder)
}

fn manual_of(command: &Command, section: &str, folder: &Path) -> io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        manual_of(verb, section, folder)?;
    }
    let source = concat!("vswitchd ", env!("CARGO_PKG_VERSION"));
    Man::new(command.clone())
        .section(section)
        .source(source)
        .manual("vswitchd")
        .generate_to(folder)
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn every_verb_has_its_page() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path()).unwrap();
        let man = |section: &str| folder.path().join(format!("man/{section}"));
        let verbs = names(&man("man1"));
        for verb in ["", "-network", "-network-create", "-state-import", "-completions"] {
            assert!(verbs.contains(&format!("vswitchctl{verb}.1")), "{verb}: {verbs:?}");
        }
        assert!(!verbs.iter().any(|name| name.contains("pages") || name.contains("help")));
        assert_eq!(names(&man("man5")), ["vswitchd.toml.5"]);
        assert_eq!(names(&man("man8")), ["vswitchd-demo.8", "vswitchd.8"]);
        let page = fs::read_to_string(man("man8").join("vswitchd.8")).unwrap();
        assert!(page.contains(".TH vswitchd 8"), "{page}");
        assert!(page.contains("\\-\\-check\\-config"), "{page}");
    }

    #[test]
    fn completions_know_verbs_and_flags() {
        let folder = tempfile::tempdir().unwrap();
        write_all(folder.path()).unwrap();
        for (path, words) in [
            ("bash/vswitchctl", "--aux-address"),
            ("bash/vswitchd", "--check-config"),
            ("fish/vswitchctl.fish", "aux-address"),
            ("fish/vswitchd.fish", "check-config"),
            ("zsh/_vswitchctl", "--aux-address"),
            ("zsh/_vswitchd", "--check-config"),
        ] {
            let script = fs::read_to_string(folder.path().join("completions").join(path)).unwrap();
            assert!(script.contains(words), "{path}");
        }
        let zsh = completions(Program::Vswitchd, Shell::Zsh);
        assert!(zsh.starts_with(b"#compdef vswitchd\n"));
    }
}
