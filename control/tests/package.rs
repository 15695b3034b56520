//! The Debian package and the systemd unit: every file that they name is there, and the unit leaves
//! the daemon what it needs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use toml::{Table, Value};

fn package() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn manifest() -> Table {
    fs::read_to_string(package().join("Cargo.toml")).unwrap().parse().unwrap()
}

fn deb() -> Table {
    manifest()["package"]["metadata"]["deb"].as_table().unwrap().clone()
}

/// Source, destination and mode of each.
fn assets() -> Vec<[String; 3]> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let assets = deb()["assets"].as_array().unwrap().clone();
    let columns = |asset: &Value| [0, 1, 2].map(|at| text(&asset.as_array().unwrap()[at]));
    assets.iter().map(columns).collect()
}

fn unit() -> String {
    let path = package().join("systemd/vswitchd.service");
    fs::read_to_string(path).unwrap()
}

/// Every value that the unit gives a key.
fn settings(key: &str) -> Vec<String> {
    let unit = unit();
    let values = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    values.map(str::to_owned).collect()
}

/// Every file below a folder, relative to it.
fn files(folder: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_owned());
            }
        }
    }
    found
}

/// Whether a pattern of one folder with at most one `*`, in the last part, means a file.
fn means(pattern: &str, file: &Path) -> bool {
    let pattern = Path::new(pattern);
    let (Some(pattern_name), Some(name)) = (pattern.file_name(), file.file_name()) else {
        return false;
    };
    let name = name.to_str().unwrap();
    let same = match pattern_name.to_str().unwrap().split_once('*') {
        Some((head, tail)) => name.starts_with(head) && name.ends_with(tail),
        None => pattern_name == name,
    };
    same && pattern.parent() == file.parent()
}

#[test]
fn every_file_of_the_package_is_there_or_made_by_the_build() {
    let folder = tempfile::tempdir().unwrap();
    let client = env!("CARGO_BIN_EXE_vswitchctl");
    let made = Command::new(client).arg("pages").arg(folder.path()).output().unwrap();
    assert!(made.status.success() && made.stdout.is_empty(), "{made:?}");
    let pages = files(folder.path());
    assert!(pages.len() > 40, "{pages:?}");
    let mut packed = BTreeSet::new();
    for [source, destination, mode] in assets() {
        assert!(["644", "755"].contains(&mode.as_str()), "{source}");
        assert!(!destination.starts_with('/'), "{destination}");
        if let Some(program) = source.strip_prefix("target/release/") {
            assert_eq!(mode, "755", "{source}");
            assert!(["vswitchd", "vswitchctl"].contains(&program), "{source}");
        } else if let Some(pattern) = source.strip_prefix("../target/pages/") {
            let meant: Vec<_> = pages.iter().filter(|file| means(pattern, file)).collect();
            assert!(!meant.is_empty(), "{source}: nothing is made of that name");
            packed.extend(meant);
        } else {
            assert!(package().join(&source).is_file(), "{source}: there is no such file");
        }
    }
    let left_out: Vec<_> = pages.iter().filter(|file| !packed.contains(file)).collect();
    assert!(left_out.is_empty(), "made and not packed: {left_out:?}");
    for file in ["license-file", "maintainer-scripts"] {
        let value = &deb()[file];
        let path = value.as_str().or_else(|| value[0].as_str()).unwrap();
        assert!(package().join(path).exists(), "{file}: {path}");
    }
}

#[test]
fn the_package_s_configuration_is_the_default_one() {
    let [source, destination, _] =
        assets().into_iter().find(|[_, to, _]| to.starts_with("etc/")).unwrap();
    let conffiles = deb()["conf-files"].as_array().unwrap().clone();
    assert_eq!(conffiles, [Value::from(format!("/{destination}"))]);
    assert_eq!(format!("/{destination}"), control::config::DEFAULT_CONFIG);
    let text = fs::read_to_string(package().join(source)).unwrap();
    let read = |text: &str| control::config::Config::parse(text, Path::new("x")).unwrap();
    assert_eq!(read(&text), read(""), "an installation changes nothing that was not chosen");
    // What is offered is right, too.
    let offered: String =
        text.lines().filter_map(|line| line.strip_prefix('#')).fold(String::new(), |all, line| {
            if line.starts_with(' ') { all } else { all + line + "\n" }
        });
    let offered = read(&offered);
    assert_eq!((offered.networks.len(), offered.uplinks.len()), (1, 1));
}

#[test]
fn nothing_starts_by_being_installed() {
    let units = deb()["systemd-units"].as_table().unwrap().clone();
    assert_eq!(units["enable"], Value::Boolean(false));
    assert_eq!(units["start"], Value::Boolean(false));
    let name = units["unit-name"].as_str().unwrap();
    let folder = units["unit-scripts"].as_str().unwrap();
    assert!(package().join(folder).join(format!("{name}.service")).is_file());
    let postrm = fs::read_to_string(package().join("deb/postrm")).unwrap();
    assert!(postrm.starts_with("#!/bin/sh\nset -e\n") && postrm.contains("#DEBHELPER#"));
}

#[test]
fn the_unit_runs_what_the_package_installs() {
    let installed: Vec<String> = assets()
        .into_iter()
        .filter(|[source, ..]| source.starts_with("target/release/"))
        .map(|[source, to, _]| format!("/{to}{}", source.trim_start_matches("target/release/")))
        .collect();
    let started = [settings("ExecStart"), settings("ExecReload")].concat();
    for line in started.iter().filter(|line| line.contains("vswitch")) {
        let program = line.split(' ').next().unwrap();
        assert!(installed.iter().any(|path| path == program), "{line}: {installed:?}");
    }
    assert_eq!(settings("ExecStart").len(), 1);
    // Pages that it names are made.
    let folder = tempfile::tempdir().unwrap();
    let client = env!("CARGO_BIN_EXE_vswitchctl");
    assert!(Command::new(client).arg("pages").arg(folder.path()).status().unwrap().success());
    let pages: BTreeSet<String> = files(&folder.path().join("man"))
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        .collect();
    for page in settings("Documentation").concat().split(' ') {
        let page = page.strip_prefix("man:").unwrap().replace('(', ".").replace(')', "");
        assert!(pages.contains(&page), "{page}: {pages:?}");
    }
}

#[test]
fn the_unit_tells_when_it_is_ready_and_gets_no_mount_namespace() {
    assert_eq!(settings("Type"), ["notify"]);
    // systemd.exec(5): each of these gives the service a mount namespace, in which namespaces of
    // sandboxes could not be seen from outside.
    for key in [
        "BindPaths",
        "BindReadOnlyPaths",
        "DynamicUser",
        "ExecPaths",
        "InaccessiblePaths",
        "MountFlags",
        "NoExecPaths",
        "PrivateDevices",
        "PrivateIPC",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateTmp",
        "PrivateUsers",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "RootDirectory",
        "RootImage",
        "RuntimeDirectory",
        "StateDirectory",
        "TemporaryFileSystem",
    ] {
        assert_eq!(settings(key), Vec::<String>::new(), "{key}");
    }
    // What hardens says why, in the lines above it or above its neighbor.
    let unit = unit();
    let mut explained = false;
    for line in unit.lines().skip_while(|line| *line != "[Service]") {
        match line.chars().next() {
            None => explained = false,
            Some('#') => explained = true,
            Some('[') => {}
            Some(_) => assert!(
                explained || line.starts_with("ExecReload") || line.starts_with("WantedBy"),
                "{line}"
            ),
        }
    }
}
