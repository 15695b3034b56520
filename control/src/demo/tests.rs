//! Parts of the demo by themselves, and what it says when it cannot run.

use super::*;

#[test]
fn kernel_versions_are_read() {
    assert_eq!(kernel_version("5.10.0-21-amd64"), Some((5, 10)));
    assert_eq!(kernel_version("6.18.44-fc-v657"), Some((6, 18)));
    assert_eq!(kernel_version("6.1"), Some((6, 1)));
    assert_eq!(kernel_version("unknown"), None);
    assert!(kernel_version(&kernel_release()).is_some_and(|version| version >= OLDEST_KERNEL));
}

/// The comparison's other half works by itself: bridged and masqueraded by the kernel.
#[test]
#[ignore = "needs root"]
fn the_kernels_switch_carries_traffic() {
    let lab = Lab::open(OWNER).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let kernel = runtime.block_on(KernelSwitch::build(&lab)).unwrap();
    let [a, b] = &kernel.machines;
    let short = Duration::from_millis(200);
    let bridged = stream::measure(a, b, kernel.peer, short).unwrap();
    let translated = stream::measure(a, &kernel.outside, wiring::SERVER, short).unwrap();
    assert!(bridged > 0.05 && translated > 0.05, "{bridged} {translated}");

    let url = std::net::SocketAddr::from((wiring::SERVER, 80));
    let server = http::Server::start(&kernel.outside, url, "hello").unwrap().unwrap();
    let reply = a.run(|| http::get(url)).unwrap().unwrap();
    assert_eq!(reply.body, format!("hello, you are {}", wiring::HOST), "masqueraded");
    drop(server);

    drop(runtime);
    drop(kernel);
    assert_eq!(lab.close(), Vec::<String>::new());
    let prefix = OWNER.name_of("");
    let left = crate::netns::list().unwrap();
    assert!(!left.iter().any(|name| name.starts_with(&prefix)), "{left:?}");
}
