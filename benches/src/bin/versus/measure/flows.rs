//! What a daemon keeps for each tracked connection: the memory of its process before and after.
//!
//! Connections are UDP datagrams from some sockets to many ports of an address that nobody has.
//! Memory is the proportional set size (`/proc/PID/smaps_rollup`), which counts shared pages by how
//! many share them and includes tables that are mapped files. Tables that were written before they
//! are needed do not grow, so what the whole process has afterwards is a figure too.

use std::fs;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use super::{Better, Family, Sample, float};
use crate::contender::Contender;
use crate::error::{VersusError, io as failed};

/// Ports that each socket sends to, from the first one.
const PORTS: u16 = 1000;
const FIRST_PORT: u16 = 10_000;
/// What the figure is given for.
const PER: f64 = 100_000.0;
/// Datagrams between pauses: about 100,000 a second, which every contender takes.
const BURST: u16 = 200;
const PAUSE: Duration = Duration::from_millis(2);
/// Some may be lost: those are sent again.
const PASSES: usize = 5;

pub(super) fn measure(
    on: &Contender,
    family: Family,
    connections: u32,
) -> Result<Vec<Sample>, VersusError> {
    let Some(process) = on.process else { return Ok(Vec::new()) };
    let what = "many connections";
    let sockets = connections.div_ceil(u32::from(PORTS));
    let open = || {
        let socket = |_| UdpSocket::bind((family.unspecified(), 0));
        (0..sockets).map(socket).collect::<std::io::Result<Vec<_>>>()
    };
    let sockets = on.machines.a.run(open)?.map_err(failed(what))?;
    // What the first packet makes is not what each further one costs.
    let first = sockets.iter().take(1).try_for_each(|socket| send(socket, family, 1));
    first.map_err(failed(what))?;
    thread::sleep(Duration::from_millis(100));
    let (before, had) = (memory(process)?, on.connections()?);
    for _ in 0..PASSES {
        sockets.iter().try_for_each(|socket| send(socket, family, PORTS)).map_err(failed(what))?;
        if on.connections()?.saturating_sub(had) >= u64::from(connections) * 99 / 100 {
            break;
        }
    }
    let (after, has) = (memory(process)?, on.connections()?);
    let made = float(has.saturating_sub(had));
    if made == 0.0 {
        return Err(VersusError::Traffic("no connection was tracked".to_owned()));
    }
    let mib = |bytes: u64| float(bytes) / f64::from(1 << 20);
    let growth = mib(after.saturating_sub(before)) * PER / made;
    let mut samples = vec![Sample::new("100k connections more", "MiB", Better::Less, growth)];
    // Of fewer, as of a quick run, it would be another figure.
    if f64::from(connections) >= PER {
        samples.push(Sample::new("daemon with them", "MiB", Better::Less, mib(after)));
    }
    Ok(samples)
}

fn send(socket: &UdpSocket, family: Family, ports: u16) -> std::io::Result<()> {
    for number in 0..ports {
        socket.send_to(&[0], (family.nowhere(), FIRST_PORT + number))?;
        if number % BURST == BURST - 1 {
            thread::sleep(PAUSE);
        }
    }
    Ok(())
}

/// Bytes of a process.
fn memory(process: u32) -> Result<u64, VersusError> {
    let path = format!("/proc/{process}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(failed(format!("read {path}")))?;
    proportional(&text).ok_or_else(|| VersusError::Program(format!("{path} has no Pss")))
}

fn proportional(rollup: &str) -> Option<u64> {
    let kib = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    Some(kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_proportional_size_is_read() {
        let text = "5581-7ffc ---p 00000000 00:00 0  [rollup]\nRss:    12 kB\nPss:     7 kB\nPss_Dirty: 3 kB\n";
        assert_eq!(proportional(text), Some(7 * 1024));
        assert_eq!(proportional("Rss: 12 kB\n"), None);
        assert!(memory(std::process::id()).unwrap() > 0);
    }
}
