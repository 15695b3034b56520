//! One byte there and back over TCP, again and again: what the slowest half and the slowest
//! hundredth of the answers take.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use super::{Better, Path, STALL, Sample, WARM_UP};
use crate::error::{VersusError, io as failed};

pub(super) fn measure(path: &Path<'_>, duration: Duration) -> Result<Vec<Sample>, VersusError> {
    let what = "TCP ping-pong";
    let listener = path
        .server
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, path.port)))?
        .map_err(failed(what))?;
    let target = path.target(listener.local_addr().map_err(failed(what))?.port());
    let client =
        path.client.run(|| TcpStream::connect_timeout(&target, STALL))?.map_err(failed(what))?;
    let (server, _) = listener.accept().map_err(failed(what))?;
    for stream in [&client, &server] {
        stream.set_nodelay(true).map_err(failed(what))?;
        stream.set_read_timeout(Some(STALL)).map_err(failed(what))?;
    }
    let mut times = thread::scope(|scope| {
        let echoing = scope.spawn(move || echo(server));
        // Closes its end, at which the other ends.
        let times = ask(client, duration);
        let echoed = echoing.join().unwrap_or_else(|_| Err(io::Error::other("panicked")));
        times.and_then(|times| echoed.map(|()| times))
    })
    .map_err(failed(what))?;
    times.sort_unstable();
    let at = |hundredths: usize| {
        let time = times.get(times.len() * hundredths / 100);
        time.map(|time| time.as_secs_f64() * 1e6)
            .ok_or_else(|| VersusError::Traffic("no answer came in the time of a run".to_owned()))
    };
    Ok(vec![
        Sample::new("p50", "µs", Better::Less, at(50)?),
        Sample::new("p99", "µs", Better::Less, at(99)?),
    ])
}

fn ask(mut stream: TcpStream, duration: Duration) -> io::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(1 << 16);
    let begin = Instant::now();
    let mut byte = [0];
    loop {
        let asked = Instant::now();
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        let since = asked.duration_since(begin);
        if since >= WARM_UP {
            times.push(asked.elapsed());
        }
        if since >= WARM_UP + duration {
            return Ok(times);
        }
    }
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Ok(0) => return Ok(()),
            Ok(_) => stream.write_all(&byte)?,
            // A signal came: with a time limit the kernel does not go on by itself.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
