//! How fast one TCP stream runs between two namespaces.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::DemoError;
use crate::netns::Netns;

/// As `iperf3` writes.
const CHUNK: usize = 128 * 1024;
/// Slow start is not what is to be measured.
const WARM_UP: Duration = Duration::from_millis(200);
/// A stream that stands still for so long has failed.
const STALL: Duration = Duration::from_secs(3);

/// Sends from `from` to `address`, which is in `to`, for `duration`: Gbit/s of payload received.
pub(super) fn measure(
    from: &Netns,
    to: &Netns,
    address: Ipv4Addr,
    duration: Duration,
) -> Result<f64, DemoError> {
    let io = |source| DemoError::Io { action: format!("TCP stream to {address}"), source };
    let listener = to.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)))?.map_err(io)?;
    let port = listener.local_addr().map_err(io)?.port();
    let target = SocketAddr::new(IpAddr::V4(address), port);
    let sender = from.run(|| TcpStream::connect_timeout(&target, STALL))?.map_err(io)?;
    let (receiver, _) = listener.accept().map_err(io)?;
    sender.set_write_timeout(Some(STALL)).map_err(io)?;
    receiver.set_read_timeout(Some(STALL)).map_err(io)?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sending = scope.spawn(|| send(sender, &stop));
        let rate = receive(receiver, duration);
        stop.store(true, Ordering::Relaxed);
        let sent = sending.join().unwrap_or_else(|_| Err(io::Error::other("the sender panicked")));
        match (rate, sent) {
            (Ok(rate), _) => Ok(rate),
            // The sender knows better why nothing came.
            (Err(_), Err(error)) | (Err(error), Ok(())) => Err(io(error)),
        }
    })
}

fn send(mut stream: TcpStream, stop: &AtomicBool) -> io::Result<()> {
    let chunk = vec![0x5a; CHUNK];
    while !stop.load(Ordering::Relaxed) {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

/// Takes the stream by value: closing it ends the sender.
fn receive(mut stream: TcpStream, duration: Duration) -> io::Result<f64> {
    let mut buffer = vec![0; CHUNK];
    let begin = Instant::now();
    let mut counting = None;
    loop {
        let length = match stream.read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            // A signal came: with a time limit the kernel does not go on by itself.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        let now = Instant::now();
        match &mut counting {
            None if now.duration_since(begin) >= WARM_UP => counting = Some((now, 0.0)),
            None => {}
            Some((since, bits)) => {
                *bits += bits_of(length);
                let elapsed = now.duration_since(*since);
                if elapsed >= duration {
                    return Ok(*bits / elapsed.as_secs_f64() / 1e9);
                }
            }
        }
    }
}

fn bits_of(bytes: usize) -> f64 {
    // One read is far below 4 GiB.
    f64::from(u32::try_from(bytes).unwrap_or(u32::MAX)) * 8.0
}

/// The middle one; of an even number, the lower of the two middle ones.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0]) - 1.0).abs() < f64::EPSILON);
        assert!(median(vec![]).abs() < f64::EPSILON);
    }

    #[test]
    #[ignore = "needs root"]
    fn loopback_of_a_namespace_has_a_rate() {
        let netns = Netns::anonymous().unwrap();
        let short = Duration::from_millis(200);
        let rate = measure(&netns, &netns, Ipv4Addr::LOCALHOST, short).unwrap();
        assert!(rate > 0.05, "{rate} Gbit/s");
        let nowhere = measure(&netns, &netns, Ipv4Addr::new(192, 0, 2, 1), short).unwrap_err();
        assert!(nowhere.to_string().contains("192.0.2.1"), "{nowhere}");
    }
}
