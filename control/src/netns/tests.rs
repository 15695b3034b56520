//! Needs root: namespaces cannot be made without it. Names carry the pid, so that runs in parallel
//! do not meet.

use std::process;

use super::*;

/// Removes the name also when the test fails.
struct Named(String);

impl Named {
    fn new(suffix: &str) -> Self {
        Self(format!("vsw-test-{}-{suffix}", process::id()))
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        let _ = delete(&self.0);
    }
}

#[test]
fn names_that_are_no_plain_file_names_are_refused() {
    let long = "n".repeat(256);
    for name in ["", ".", "..", "a/b", "/etc/passwd", "../x", "a\0b", "a\nb", long.as_str()] {
        assert!(matches!(path_of(name), Err(NetnsError::BadName(_))), "{name:?}");
        assert!(matches!(Netns::create(name), Err(NetnsError::BadName(_))), "{name:?}");
        assert!(matches!(delete(name), Err(NetnsError::BadName(_))), "{name:?}");
    }
    assert_eq!(path_of("web.1-a_b").unwrap(), Path::new("/run/netns/web.1-a_b"));
}

#[test]
fn files_that_are_no_network_namespaces_are_refused() {
    for path in ["/proc/self/ns/uts", "/etc/passwd", "/proc/self/status"] {
        let error = Netns::open_path(Path::new(path)).unwrap_err();
        assert!(matches!(error, NetnsError::NotANetns(_)), "{path}: {error}");
    }
    assert!(matches!(Netns::open_reference("relative/path"), Err(NetnsError::BadName(_))));
    assert!(matches!(Netns::open_reference("pid:none"), Err(NetnsError::NotFound(_))));
    assert!(matches!(Netns::open_reference("pid:4194305"), Err(NetnsError::NotFound(_))));
}

#[test]
fn settings_cannot_lead_out_of_proc_sys() {
    for key in ["", "net/../../../etc/passwd", "/net", "net//x", "net/./x"] {
        assert!(sysctl_path(key).is_err(), "{key}");
    }
}

#[test]
fn we_are_in_our_own_namespace() {
    let own = Netns::current().unwrap().id().unwrap();
    assert_eq!(Netns::open_pid(process::id()).unwrap().id().unwrap(), own);
}

#[test]
#[ignore = "needs root"]
fn a_namespace_is_made_found_entered_and_removed() {
    let name = Named::new("life");
    let before = Netns::current().unwrap().id().unwrap();
    let made = Netns::create(&name.0).unwrap();
    assert!(matches!(Netns::create(&name.0), Err(NetnsError::Exists(_))));
    assert!(exists(&name.0).unwrap());
    assert!(list().unwrap().contains(&name.0));

    let found = Netns::open(&name.0).unwrap();
    assert_eq!(found.id().unwrap(), made.id().unwrap());
    assert_ne!(found.id().unwrap(), before);
    let inside = found.run(|| Netns::current().unwrap().id().unwrap()).unwrap();
    assert_eq!(inside, found.id().unwrap());
    let links = found.run(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
    assert!(links.contains("lo:") && links.lines().count() == 3, "{links}");
    found
        .run(|| std::net::TcpListener::bind("127.0.0.1:1").map(drop))
        .unwrap()
        .expect("lo is up and its port 1 free");
    assert_eq!(Netns::current().unwrap().id().unwrap(), before, "this thread has not moved");

    delete(&name.0).unwrap();
    assert!(!path_of(&name.0).unwrap().exists());
    assert!(matches!(delete(&name.0), Err(NetnsError::NotFound(_))));
    assert!(matches!(Netns::open(&name.0), Err(NetnsError::NotFound(_))));
    assert!(found.run(|| ()).is_ok(), "an open handle keeps the namespace");
}

#[test]
#[ignore = "needs root"]
fn a_file_left_by_a_crash_is_no_namespace_and_can_be_deleted() {
    let name = Named::new("crash");
    directory::prepare().unwrap();
    fs::write(path_of(&name.0).unwrap(), "").unwrap();
    assert!(!exists(&name.0).unwrap());
    assert!(matches!(Netns::open(&name.0), Err(NetnsError::NotANetns(_))));
    assert!(matches!(Netns::create(&name.0), Err(NetnsError::Exists(_))));
    delete(&name.0).unwrap();
    assert!(!path_of(&name.0).unwrap().exists());
}

#[test]
#[ignore = "needs root"]
fn a_panic_inside_is_an_error_outside() {
    let netns = Netns::anonymous().unwrap();
    let result = netns.run(|| assert_eq!(1, 2, "on purpose"));
    assert!(matches!(result, Err(NetnsError::Panicked)));
}

#[test]
#[ignore = "needs root"]
fn commands_see_the_namespace_and_its_sysfs() {
    let name = Named::new("exec");
    let netns = Netns::create(&name.0).unwrap();
    let mut command = process::Command::new("ls");
    command.arg("/sys/class/net").stdout(process::Stdio::piped());
    let child = spawn(&netns, Some(&name.0), &mut command).unwrap().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "lo");

    let mut plain = process::Command::new("readlink");
    plain.arg("/proc/self/ns/net");
    let inside = netns.run(|| plain.output().unwrap()).unwrap();
    let outside = plain.output().unwrap();
    assert_ne!(inside.stdout, outside.stdout);
}

#[test]
#[ignore = "needs root"]
fn settings_are_those_of_the_namespace() {
    let netns = Netns::anonymous().unwrap();
    netns.disable_ipv6("lo").unwrap();
    assert_eq!(netns.read_sysctl("net/ipv6/conf/lo/disable_ipv6").unwrap(), "1");
    let outside = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6").unwrap();
    assert_eq!(outside.trim(), "0", "the caller's own lo keeps IPv6");
    // The kernel has no setting for a device with less than IPv6 needs, and is asked in vain.
    let mut add = process::Command::new("ip");
    add.args(["link", "add", "v0", "mtu", "1279", "type", "veth", "peer", "name", "v1"]);
    assert!(netns.run(|| add.status()).unwrap().unwrap().success());
    assert!(netns.read_sysctl("net/ipv6/conf/v0/disable_ipv6").is_err());
    netns.disable_ipv6("v0").unwrap();
    let error = netns.disable_ipv6("eth9").unwrap_err().to_string();
    assert!(error.contains("eth9"), "{error}");
}

/// As in a container: what is as it should be need not be written, and what is not is named.
///
/// Rows: netavark `read-only /proc`.
#[test]
#[ignore = "needs root"]
fn where_proc_is_read_only_settings_that_are_right_do() {
    on_own_thread(|| {
        // For this thread and those it starts alone.
        unshare(CloneFlags::CLONE_NEWNS).map_err(errno("unshare"))?;
        let (none, sys) = (None::<&str>, Path::new("/proc/sys"));
        mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).unwrap();
        mount(Some(sys), sys, none, MsFlags::MS_BIND, none).unwrap();
        let read_only = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(none, sys, none, read_only, none).unwrap();
        let netns = Netns::anonymous()?;
        let key = "net/ipv4/conf/lo/arp_announce";
        let before = netns.read_sysctl(key)?;
        netns.write_sysctl(key, &before)?;
        let error = netns.write_sysctl(key, if before == "2" { "1" } else { "2" }).unwrap_err();
        let said = error.to_string();
        assert!(said.contains(key) && said.contains("Read-only"), "{said}");
        assert_eq!(netns.read_sysctl(key)?, before);
        Ok(())
    })
    .unwrap();
}

#[test]
#[ignore = "needs root"]
fn it_does_not_matter_whether_the_directory_is_there() {
    on_own_thread(|| {
        // An empty /run for this thread and those it starts.
        unshare(CloneFlags::CLONE_NEWNS).map_err(errno("unshare"))?;
        let flags = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
        mount(None::<&str>, "/", Some("none"), flags, None::<&str>).map_err(errno("private"))?;
        mount(Some("none"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .map_err(errno("tmpfs"))?;
        for (prepare, found) in [(None, Directory::Missing), (Some(()), Directory::Plain)] {
            if prepare.is_some() {
                fs::create_dir(NETNS_DIR).map_err(system("mkdir"))?;
            }
            assert_eq!(directory(), found);
            Netns::create("a")?;
            Netns::create("b")?;
            assert_eq!(list()?, ["a", "b"]);
            assert_eq!(directory(), Directory::Mounted);
            delete("a")?;
            restore_directory(found)?;
            assert_eq!(list()?, ["b"], "kept for the name that is left");
            delete("b")?;
            restore_directory(found)?;
            assert_eq!(directory(), found);
        }
        Ok(())
    })
    .unwrap();
}
