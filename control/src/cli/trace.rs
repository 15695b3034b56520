//! `vswitchctl trace`: what would become of a packet.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args, ValueEnum};
use dataplane::io::pcap::PcapReader;

use super::output::{Format, Reply, print};
use super::values;
use crate::api::client::Client;
use crate::api::types::{FrameHex, Trace as Traced, TraceRequest};
use crate::error::{Error, Result, ResultExt as _};
use crate::name::Name;
use crate::trace::MAX_FRAMES;

/// Bytes of all frames of one request at most: as hexadecimal digits they fit into its body.
const MAX_BYTES: usize = 500 << 10;

/// `trace`.
#[derive(Debug, Args)]
#[command(
    group(ArgGroup::new("where").required(true).args(["sandbox", "uplink"])),
    group(ArgGroup::new("what").required(true).args(["pcap", "packet"]))
)]
pub struct Trace {
    /// It comes from this sandbox
    #[arg(long, value_parser = values::sandbox)]
    sandbox: Option<Name>,
    /// By its interface in this network [default: the one with the packet's source address]
    #[arg(long, value_parser = values::network, conflicts_with = "uplink")]
    network: Option<Name>,
    /// It comes from outside, by this uplink
    #[arg(long, value_name = "IFACE", value_parser = values::interface)]
    uplink: Option<String>,
    /// Trace the frames of this pcap or pcapng file, one after the other
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Only so many of them, the first ones
    #[arg(short, value_name = "COUNT", value_parser = values::count, requires = "pcap")]
    count: Option<u64>,
    /// The same as --format json
    #[arg(long)]
    json: bool,
    /// A packet: tcp|udp ADDRESS:PORT '>' ADDRESS:PORT, or icmp echo|reply ADDRESS '>' ADDRESS, then any of
    /// fin syn rst psh ack [N] urg, seq N, win N, id N, ttl N, len N, df, from MAC, to MAC
    #[arg(value_name = "PACKET")]
    packet: Vec<String>,
}

impl Trace {
    pub(super) async fn run(self, client: &Client, format: Format) -> Result<u8> {
        let format = if self.json { Format::Json } else { format };
        let (packet, format) = words(self.packet, format)?;
        let mut request = TraceRequest {
            sandbox: self.sandbox,
            network: self.network,
            uplink: self.uplink,
            ..TraceRequest::default()
        };
        match &self.pcap {
            Some(path) => request.frames = frames(path, self.count)?,
            None => request.packet = Some(packet.join(" ").parse()?),
        }
        let traces: Vec<Traced> = client.post("/v1/trace", &request).await?;
        let text = match format {
            // A file is a list, whatever its length.
            Format::Json if self.pcap.is_some() => Reply::list(&traces, &[])?.render(format),
            Format::Json => Reply::things(&traces)?.render(format),
            Format::Table => traces.iter().map(show).collect::<Vec<_>>().join("\n"),
        };
        print(text.as_bytes())?;
        Ok(0)
    }
}

/// The words of a packet, and how to print. None of them begins with a dash: what does, behind `--`, is a
/// flag all the same.
fn words(all: Vec<String>, mut format: Format) -> Result<(Vec<String>, Format)> {
    let (mut packet, mut all) = (Vec::with_capacity(all.len()), all.into_iter());
    while let Some(word) = all.next() {
        let value = match word.as_str() {
            "--json" => Some("json".to_owned()),
            "--format" => Some(all.next().unwrap_or_default()),
            other => other.strip_prefix("--format=").map(str::to_owned),
        };
        match value {
            Some(value) => {
                format = <Format as ValueEnum>::from_str(&value, false).map_err(|_| {
                    Error::invalid(format!("format {value:?} is neither table nor json"))
                })?;
            }
            None => packet.push(word),
        }
    }
    Ok((packet, format))
}

fn frames(path: &Path, count: Option<u64>) -> Result<Vec<FrameHex>> {
    let bytes = std::fs::read(path).failed(path.display())?;
    let wrong = |error: dataplane::io::pcap::PcapError| {
        Error::invalid(format!("{}: {error}", path.display()))
    };
    let mut reader = PcapReader::new(bytes).map_err(wrong)?;
    let (mut frames, mut total) = (Vec::new(), 0usize);
    let wanted = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    while frames.len() < wanted {
        let Some(frame) = reader.next_frame().map_err(wrong)? else { break };
        total += frame.bytes.len();
        if frames.len() == MAX_FRAMES || total > MAX_BYTES {
            return Err(Error::invalid(format!(
                "{}: has more than {MAX_FRAMES} frames or {MAX_BYTES} bytes of them; choose the \
                 first N with -c N",
                path.display()
            )));
        }
        frames.push(FrameHex(frame.bytes.to_vec()));
    }
    if frames.is_empty() {
        return Err(Error::invalid(format!("{}: has no frames", path.display())));
    }
    Ok(frames)
}

/// For people: a line for each stage, then what would leave, then how it ends.
fn show(trace: &Traced) -> String {
    let mut text = format!("{}: {}\n", trace.port, trace.frame);
    for step in &trace.steps {
        let facts: Vec<String> =
            step.facts.iter().map(|fact| format!("{} {}", fact.name, fact.value)).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  {:<10} {}", step.stage, facts.join(", "));
    }
    for sent in &trace.sent {
        let _ = writeln!(
            text,
            "  {:<10} {}: {} > {}, {}",
            "sent", sent.port, sent.from, sent.to, sent.summary
        );
    }
    for dropped in &trace.drops {
        let _ = writeln!(text, "  {:<10} {} {}", "dropped", dropped.count, dropped.reason);
    }
    let more = match (&trace.drop_reason, &trace.waits_for) {
        (Some(reason), _) => format!(": {reason}"),
        (None, Some(address)) => format!(": for {address}"),
        (None, None) => String::new(),
    };
    let _ = writeln!(text, "verdict: {}{more}", trace.verdict);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_behind_the_dashes_are_no_words_of_the_packet() {
        for (line, packet, format) in [
            ("udp a > b ttl 9", "udp a > b ttl 9", Format::Table),
            ("udp a > b --format json", "udp a > b", Format::Json),
            ("--format=json udp a > b", "udp a > b", Format::Json),
            ("udp a --json > b", "udp a > b", Format::Json),
            ("--json udp a > b --format table", "udp a > b", Format::Table),
            ("udp a > b --pcap x", "udp a > b --pcap x", Format::Table),
        ] {
            let all = line.split(' ').map(str::to_owned).collect();
            let (words, chosen) = words(all, Format::Table).unwrap();
            assert_eq!((words.join(" ").as_str(), chosen), (packet, format), "{line}");
        }
        for line in ["udp --format", "udp --format yaml", "--format= udp"] {
            let all = line.split(' ').map(str::to_owned).collect();
            let error = words(all, Format::Table).unwrap_err();
            assert!(error.message.contains("neither table nor json"), "{line}: {}", error.message);
        }
    }
}
