//! `capture`: files, pipes, lines, and how it ends.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::Duration;

use control::capture::Recorder;
use dataplane::engine::CapturedFrame;
use dataplane::packet::types::PortId;
use etherparse::PacketBuilder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use crate::fake::{Answer, Ended, Fake};

const PATH: &str = "/v1/capture?network=app&count=2&filter=udp+port+53+and+not+arp";
const LINE: &[&str] =
    &["capture", "--network", "app", "-c", "2", "udp", "port", "53", "and", "not", "arp"];

fn frame(egress: bool) -> CapturedFrame {
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
        .ipv4([10, 1, 0, 2], [10, 1, 0, 3], 64)
        .udp(4000, 53);
    let mut bytes = Vec::new();
    builder.write(&mut bytes, b"hello").unwrap();
    let original_len = u32::try_from(bytes.len()).unwrap();
    CapturedFrame { port: PortId(1), egress, unix_nanos: 3_723_000_004_000, original_len, bytes }
}

fn pieces() -> [Vec<u8>; 3] {
    let mut recorder = Recorder::new(&[(PortId(1), "sb/eth0".to_owned())], None, None).unwrap();
    let header = recorder.take();
    assert!(recorder.record(&frame(false)));
    let first = recorder.take();
    assert!(recorder.record(&frame(true)));
    [header, first, recorder.take()]
}

/// A server that streams; the sender's drop ends the capture.
fn streaming() -> (Fake, UnboundedSender<Vec<u8>>) {
    let (sender, receiver) = unbounded_channel();
    (Fake::new([(("GET", PATH), Answer::Stream(receiver))]), sender)
}

/// All at once and the end.
fn whole() -> Fake {
    let (fake, sender) = streaming();
    pieces().into_iter().for_each(|piece| sender.send(piece).unwrap());
    fake
}

const LINES: &str = "\
01:02:03.000004 sb/eth0 in  IP 10.1.0.2.4000 > 10.1.0.3.53: UDP, length 5
01:02:03.000004 sb/eth0 out IP 10.1.0.2.4000 > 10.1.0.3.53: UDP, length 5
";

#[test]
fn without_a_file_frames_are_lines() {
    let ended = whole().run(LINE);
    assert_eq!((ended.code, ended.stderr.as_str(), ended.stdout.as_str()), (Some(0), "", LINES));
}

#[test]
fn json_is_an_array() {
    let arguments = [&["--format", "json"], LINE].concat();
    let ended = whole().run(&arguments);
    let object = |direction: &str| {
        json!({"time_ns": 3_723_000_004_000u64, "port": "sb/eth0", "direction": direction,
            "length": 47, "summary": "IP 10.1.0.2.4000 > 10.1.0.3.53: UDP, length 5"})
    };
    assert_eq!((ended.code, ended.json()), (Some(0), json!([object("in"), object("out")])));
    let (fake, sender) = streaming();
    drop(sender);
    assert_eq!(fake.run(&arguments).json(), json!([]));
}

#[test]
fn files_and_pipes_get_the_stream_as_it_is() {
    let expected = pieces().concat();
    let fake = whole();
    let path = fake.dir().join("out.pcapng");
    let ended = fake.run(&[
        LINE[0],
        &["-w", path.to_str().unwrap()].join(""),
        LINE[1],
        LINE[2],
        "-c2",
        "udp port 53 and not arp",
    ]);
    assert_eq!((ended.code, ended.stdout.as_str(), ended.stderr.as_str()), (Some(0), "", ""));
    assert_eq!(std::fs::read(&path).unwrap(), expected);

    let mut arguments = vec!["capture", "-w", "-"];
    arguments.extend(&LINE[1..]);
    let output = whole().client(&arguments).output().unwrap();
    assert_eq!(output.stdout, expected);
}

#[test]
fn a_refused_capture_leaves_no_file() {
    let fake = Fake::new([]);
    let path = fake.dir().join("out.pcapng");
    let ended = fake.run(&["capture", "--sandbox", "sb", "-w", path.to_str().unwrap()]);
    assert_eq!(ended.code, Some(1));
    assert!(!path.exists());
    let fake = whole();
    let mut arguments = vec!["capture", "-w", "/nonexistent/x"];
    arguments.extend(&LINE[1..]);
    let ended = fake.run(&arguments);
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(1), "vswitchctl: /nonexistent/x: No such file or directory (os error 2)\n")
    );
}

#[test]
fn frames_come_at_once_and_sigint_ends_well() {
    let (fake, sender) = streaming();
    let [header, first, _] = pieces();
    sender.send(header).unwrap();
    let arguments = [&["--format", "json"], LINE].concat();
    let mut child = fake.client(&arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    sender.send(first).unwrap();
    // The capture goes on: this line is there because it was not held back.
    let mut text = String::new();
    while !text.contains("summary") {
        // The last line has no newline yet: read what is there.
        let available = stdout.fill_buf().unwrap();
        assert!(!available.is_empty(), "ended early: {text}");
        text.push_str(&String::from_utf8_lossy(available));
        let len = available.len();
        stdout.consume(len);
    }
    assert!(child.try_wait().unwrap().is_none());
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGINT).unwrap();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value.as_array().unwrap().len(), 1);
}

#[test]
fn it_ends_with_its_reader_even_without_frames() {
    let (fake, sender) = streaming();
    let [header, ..] = pieces();
    let len = header.len();
    sender.send(header).unwrap();
    let mut arguments = vec!["capture", "-w", "-"];
    arguments.extend(&LINE[1..]);
    let mut child =
        fake.client(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut vec![0; len]).unwrap();
    drop(stdout);
    for _ in 0..200 {
        if child.try_wait().unwrap().is_some() {
            let ended = Ended::new(&child.wait_with_output().unwrap());
            assert_eq!((ended.code, ended.stderr.as_str()), (Some(0), ""));
            drop(sender);
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill().unwrap();
    panic!("still running 10 s after its reader went away");
}

#[test]
fn a_damaged_stream_is_told() {
    let (fake, sender) = streaming();
    sender.send(vec![6, 0, 0, 0, 13, 0, 0, 0, 0, 0, 0, 0]).unwrap();
    drop(sender);
    let ended = fake.run(LINE);
    assert_eq!(ended.code, Some(1));
    assert_eq!(ended.stderr, "vswitchctl: capture stream is damaged: impossible block length\n");
}
