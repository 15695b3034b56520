//! `vswitchctl capture`: pcapng to a file or a pipe, or one line for each frame.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use clap::{ArgGroup, Args};
use dataplane::io::pcap::Direction;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use super::output::{Format, print};
use super::values;
use crate::api::client::Client;
use crate::api::types::CaptureQuery;
use crate::capture::filter::Filter;
use crate::capture::stream::{StreamFrame, StreamReader};
use crate::capture::summary::{describe, time_of_day};
use crate::capture::view::View;
use crate::error::{Error, Result, ResultExt as _};
use crate::name::Name;

/// `capture`.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("where").required(true).args(["sandbox", "uplink", "network"])))]
pub struct Capture {
    /// Every interface of this sandbox
    #[arg(long, value_parser = values::sandbox)]
    sandbox: Option<Name>,
    /// This uplink
    #[arg(long, value_name = "IFACE", value_parser = values::interface)]
    uplink: Option<String>,
    /// Every port of this network
    #[arg(long, value_parser = values::network)]
    network: Option<Name>,
    /// Write pcapng to this file, or to stdout with -
    #[arg(short, value_name = "FILE")]
    write: Option<PathBuf>,
    /// End after so many frames
    #[arg(short, value_name = "COUNT", value_parser = values::count)]
    count: Option<u64>,
    /// Only these frames, e.g. tcp port 80 and not host 10.20.1.5
    #[arg(value_name = "FILTER", trailing_var_arg = true)]
    filter: Vec<OsString>,
}

/// Where frames go.
enum Sink {
    File(File, PathBuf),
    Json { first: bool },
    Lines,
    Stdout,
}

impl Capture {
    /// Runs until the count is reached, the reader goes away, or SIGINT.
    pub(super) async fn run(self, client: &Client, format: Format) -> Result<u8> {
        let filter =
            self.filter.iter().map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
        let filter = (!filter.trim().is_empty()).then_some(filter);
        if let Some(filter) = &filter {
            filter.parse::<Filter>()?;
        }
        let query = CaptureQuery {
            sandbox: self.sandbox,
            uplink: self.uplink,
            network: self.network,
            count: self.count,
            filter,
        };
        let mut stream = client.stream("/v1/capture", &query).await?;
        // Only now: a capture that the daemon refuses leaves no empty file behind.
        let mut sink = match self.write {
            None if format == Format::Json => Sink::Json { first: true },
            None => Sink::Lines,
            Some(path) if path.as_os_str() == "-" => Sink::Stdout,
            Some(path) => {
                let file = File::create(&path)
                    .map_err(|error| Error::failed(format!("{}: {error}", path.display())))?;
                Sink::File(file, path)
            }
        };
        if matches!(sink, Sink::Json { .. }) && !print(b"[")? {
            return Ok(0);
        }
        let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
        let mut closed = std::pin::pin!(stdout_closed());
        let mut reader = StreamReader::default();
        loop {
            let piece = tokio::select! {
                piece = stream.next() => piece?,
                _ = &mut interrupt => None,
                () = &mut closed => return Ok(0),
            };
            let Some(piece) = piece else { break };
            if !sink.take(&mut reader, &piece)? {
                return Ok(0);
            }
        }
        if let Sink::Json { first } = sink {
            print(if first { b"]\n" } else { b"\n]\n" })?;
        }
        Ok(0)
    }
}

impl Sink {
    /// Passes a piece of the stream on; false: there is nobody to write for any more.
    fn take(&mut self, reader: &mut StreamReader, piece: &[u8]) -> Result<bool> {
        match self {
            Self::File(file, path) => {
                file.write_all(piece).failed(path.display())?;
                Ok(true)
            }
            // A piece is whole frames: whoever reads the pipe sees them at once.
            Self::Stdout => print(piece),
            Self::Json { .. } | Self::Lines => {
                reader.push(piece);
                while let Some(frame) = reader.next_frame()? {
                    if !self.show(&frame)? {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
        }
    }

    fn show(&mut self, frame: &StreamFrame) -> Result<bool> {
        let direction = match frame.direction {
            Direction::Inbound => "in",
            Direction::Outbound => "out",
        };
        let summary = describe(&View::parse(&frame.bytes, frame.original_len));
        let line = if let Self::Json { first } = self {
            let before = if std::mem::take(first) { "\n" } else { ",\n" };
            let object = json!({
                "time_ns": frame.unix_nanos,
                "port": frame.port,
                "direction": direction,
                "length": frame.original_len,
                "summary": summary,
            });
            format!("{before}{object}")
        } else {
            let time = time_of_day(frame.unix_nanos);
            format!("{time} {} {direction:<3} {summary}\n", frame.port)
        };
        print(line.as_bytes())
    }
}

/// Ends when the reader of stdout goes away: `capture … -w - | tcpdump -c 1` ends with tcpdump,
/// not with the frame after. Never ends when stdout is a file.
async fn stdout_closed() {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread that is not waited for: it sleeps in poll() until the process ends.
    std::thread::spawn(move || {
        let stdout = std::io::stdout();
        // No event is asked for: errors and hang-ups are always told (poll(2)).
        let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
        if poll(&mut fds, PollTimeout::NONE).is_ok() {
            // The receiver is gone when the capture ended otherwise.
            let _ = sender.send(());
        }
    });
    if receiver.await.is_err() {
        std::future::pending::<()>().await;
    }
}
