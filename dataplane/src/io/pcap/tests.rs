use proptest::prelude::*;

use super::*;
use crate::frame::{Frame, MAX_FRAME_LEN};
use crate::io::Port;
use crate::pool::Pool;

type Read = (Vec<(u64, u32, u32, Vec<u8>)>, u64, Option<PcapError>);

/// Reads to the end: frames, how many records were skipped, and the error that ended it.
fn read(bytes: &[u8]) -> Read {
    let mut reader = PcapReader::new(bytes).unwrap();
    let mut frames = Vec::new();
    let error = loop {
        match reader.next_frame() {
            Ok(Some(f)) => {
                frames.push((f.unix_nanos, f.interface, f.original_len, f.bytes.to_vec()));
            }
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    assert_eq!(reader.next_frame(), Ok(None));
    (frames, reader.skipped(), error)
}

/// A file builder for either byte order.
struct File {
    big: bool,
    bytes: Vec<u8>,
}

impl File {
    fn u16(mut self, value: u16) -> Self {
        let raw = if self.big { value.to_be_bytes() } else { value.to_le_bytes() };
        self.bytes.extend(raw);
        self
    }

    fn u32(mut self, value: u32) -> Self {
        let raw = if self.big { value.to_be_bytes() } else { value.to_le_bytes() };
        self.bytes.extend(raw);
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend(bytes);
        self
    }

    fn pcap(big: bool, magic: u32, link: u32) -> Self {
        let file = Self { big, bytes: Vec::new() };
        file.u32(magic).u16(2).u16(4).u32(0).u32(0).u32(65535).u32(link)
    }

    fn block(self, kind: u32, body: impl FnOnce(Self) -> Self) -> Self {
        let inner = body(Self { big: self.big, bytes: Vec::new() }).bytes;
        let len = u32::try_from(inner.len() + 12).unwrap();
        self.u32(kind).u32(len).raw(&inner).u32(len)
    }

    fn section(big: bool) -> Self {
        let file = Self { big, bytes: Vec::new() };
        file.block(BLOCK_SECTION, |b| b.u32(BYTE_ORDER_MAGIC).u16(1).u16(0).raw(&[0xff; 8]))
    }

    fn interface(self, link: u16, snap_len: u32, options: &[u8]) -> Self {
        self.block(BLOCK_INTERFACE, |b| b.u16(link).u16(0).u32(snap_len).raw(options))
    }

    fn enhanced(self, interface: u32, time: u64, data: &[u8; 4]) -> Self {
        let (high, low) = (u32::try_from(time >> 32).unwrap(), u32::try_from(time << 32 >> 32));
        self.block(BLOCK_ENHANCED_PACKET, |b| {
            b.u32(interface).u32(high).u32(low.unwrap()).u32(4).u32(60).raw(data)
        })
    }
}

#[test]
fn pcap_in_both_orders_and_all_resolutions() {
    for big in [false, true] {
        for (magic, nanos) in [(MAGIC_MICROS, 7_000), (MAGIC_NANOS, 7)] {
            let file = File::pcap(big, magic, 1).u32(5).u32(7).u32(3).u32(60).raw(b"abc");
            let expected = (5_000_000_000 + nanos, 0, 60, b"abc".to_vec());
            assert_eq!(read(&file.bytes), (vec![expected], 0, None), "{big} {magic:x}");
        }
        let file = File::pcap(big, MAGIC_KUZNETZOV, 1).u32(5).u32(7).u32(3).u32(60);
        let file = file.raw(&[0; 8]).raw(b"abc").bytes;
        assert_eq!(read(&file).0, [(5_000_007_000, 0, 60, b"abc".to_vec())]);
    }
}

#[test]
fn pcap_of_another_link_type_is_counted_not_delivered() {
    let file = File::pcap(false, MAGIC_MICROS, 101).u32(5).u32(7).u32(3).u32(3).raw(b"abc");
    assert_eq!(read(&file.bytes), (vec![], 1, None));
    // The upper half tells of a frame check sequence.
    let file = File::pcap(false, MAGIC_MICROS, 0x2400_0001).u32(5).u32(7).u32(1).u32(1).raw(b"a");
    assert_eq!(read(&file.bytes).0.len(), 1);
}

#[test]
fn pcap_cut_short_delivers_what_is_whole() {
    let file = File::pcap(true, MAGIC_MICROS, 1).u32(5).u32(7).u32(1).u32(1).raw(b"a");
    let whole = file.bytes.len();
    let file = file.u32(5).u32(7).u32(u32::MAX).u32(1).raw(b"bcd").bytes;
    for end in whole + 1..=file.len() {
        let (frames, _, error) = read(&file[..end]);
        assert_eq!((frames.len(), error), (1, Some(PcapError::CutShort(whole))));
    }
    assert_eq!(read(&file[..whole]).2, None);
}

#[test]
fn other_files_are_refused() {
    let refusal = |bytes: &[u8]| PcapReader::new(bytes.to_vec()).map(|_| ()).unwrap_err();
    assert_eq!(refusal(b""), PcapError::NotACapture);
    assert_eq!(refusal(b"\xd4\xc3\xb2"), PcapError::NotACapture);
    assert_eq!(refusal(b"#!/bin/sh\necho no capture"), PcapError::NotACapture);
    assert_eq!(refusal(&File::pcap(true, MAGIC_NANOS, 1).bytes[..23]), PcapError::CutShort(0));
}

#[test]
fn pcapng_with_several_interfaces_sections_and_unknown_blocks() {
    for big in [false, true] {
        // 2^-10 s, one second later.
        let mut options = File { big, bytes: Vec::new() };
        options = options.u16(OPTION_IF_TSRESOL).u16(1).raw(&[0x8a, 0, 0, 0]);
        options = options.u16(OPTION_IF_TSOFFSET).u16(8);
        options = if big { options.u32(0).u32(1) } else { options.u32(1).u32(0) };
        let file = File::section(big)
            .interface(1, 0, &[])
            .interface(101, 0, &[])
            .interface(1, 0, &options.bytes)
            .block(0x0bad_cafe, |b| b.raw(b"whatever"))
            .enhanced(0, 1 << 32, b"abcd")
            .enhanced(1, 0, b"skip")
            .enhanced(2, 512, b"efgh")
            .block(BLOCK_PACKET, |b| b.u16(0).u16(9).u32(0).u32(3).u32(2).u32(2).raw(b"ij\0\0"));
        let second = File::section(!big)
            .interface(1, 2, &[])
            .block(BLOCK_SIMPLE_PACKET, |b| b.u32(99).raw(b"kl\0\0"));
        let expected = vec![
            ((1 << 32) * 1000, 0, 60, b"abcd".to_vec()),
            (1_500_000_000, 2, 60, b"efgh".to_vec()),
            (3_000, 0, 2, b"ij".to_vec()),
            (0, 0, 99, b"kl".to_vec()),
        ];
        assert_eq!(read(&file.raw(&second.bytes).bytes), (expected, 1, None));
    }
}

#[test]
fn damaged_pcapng_ends_with_its_offset() {
    let start = || File::section(false).interface(1, 0, &[]);
    let at = start().bytes.len();
    let error = |file: File| read(&file.bytes).2.unwrap();
    assert_eq!(error(start().enhanced(1, 0, b"abcd")), PcapError::UnknownInterface(at));
    let beyond = |b: File| b.u32(0).u32(0).u32(0).u32(5).u32(5).raw(b"abcd");
    assert_eq!(error(start().block(6, beyond)), PcapError::BlockLength(at));
    assert_eq!(error(start().block(6, |b| b.u32(0))), PcapError::BlockLength(at));
    assert_eq!(error(start().block(3, |b| b.u32(5).raw(b"abcd"))), PcapError::BlockLength(at));
    assert_eq!(error(start().block(1, |b| b.u32(1))), PcapError::BlockLength(at));
    for len in [0, 4, 11, 13] {
        let file = start().u32(5).u32(len).raw(&[0; 32]);
        assert_eq!(error(file), PcapError::BlockLength(at));
    }
    assert_eq!(error(start().u32(5).u32(u32::MAX - 3).u32(0)), PcapError::CutShort(at));
    assert_eq!(error(start().u32(5).u32(16).u32(0).u32(20)), PcapError::BlockLength(at));
    let no_order = start().u32(BLOCK_SECTION).u32(28).raw(&[0; 20]);
    assert_eq!(error(no_order), PcapError::ByteOrder(at));
}

#[test]
fn extreme_times_do_not_overflow() {
    for resolution in [0, 6, 9, 19, 38, 39, 0x7f, 0x80, 0xbf, 0xff] {
        let mut options = vec![9, 0, 1, 0, resolution, 0, 0, 0, 14, 0, 8, 0];
        options.extend(i64::MIN.to_le_bytes());
        let file = File::section(false).interface(1, 0, &options);
        let (frames, _, error) = read(&file.enhanced(0, u64::MAX, b"abcd").bytes);
        assert_eq!((frames.len(), error), (1, None));
    }
}

proptest! {
    #[test]
    fn whatever_the_bytes_reading_ends_without_panic(
        kind in 0..6usize,
        tail in prop::collection::vec(prop_oneof![0..9u8, any::<u8>()], 0..400),
    ) {
        let head = match kind {
            0 => File::pcap(false, MAGIC_MICROS, 1),
            1 => File::pcap(true, MAGIC_KUZNETZOV, 1),
            2 => File::section(false),
            3 => File::section(true),
            4 => File::section(false).interface(1, 0, &[]),
            _ => File { big: false, bytes: Vec::new() },
        };
        let bytes = head.raw(&tail).bytes;
        if let Ok(mut reader) = PcapReader::new(&bytes) {
            let mut frames = 0;
            while let Ok(Some(frame)) = reader.next_frame() {
                prop_assert!(frame.bytes.len() <= bytes.len());
                frames += 1;
            }
            prop_assert!(frames <= bytes.len());
        }
    }

    #[test]
    fn what_is_written_is_read(
        frames in prop::collection::vec(
            (any::<u32>(), any::<u32>(), prop::collection::vec(any::<u8>(), 0..70)), 0..20),
    ) {
        let mut pcap = PcapWriter::new(Vec::new()).unwrap();
        let mut pcapng = PcapngWriter::new(Vec::new()).unwrap();
        prop_assert!(pcapng.write(0, Direction::Inbound, 0, 0, b"").is_err());
        let one = pcapng.add_interface("one", 0).unwrap();
        let two = pcapng.add_interface("sandbox-two", 64).unwrap();
        let mut expected = Vec::new();
        for (time, len, bytes) in &frames {
            let nanos = u64::from(*time) * 1_000_000_007;
            if nanos >> 32 >= 1_000_000_000 {
                continue; // beyond the 32-bit seconds of pcap
            }
            let (interface, direction) =
                if len % 2 == 0 { (one, Direction::Inbound) } else { (two, Direction::Outbound) };
            pcap.write(nanos, *len, bytes).unwrap();
            pcapng.write(interface, direction, nanos, *len, bytes).unwrap();
            expected.push((nanos, interface, *len, bytes.clone()));
        }
        prop_assert_eq!(read(&pcapng.into_inner()), (expected.clone(), 0, None));
        expected.iter_mut().for_each(|frame| frame.1 = 0);
        prop_assert_eq!(read(&pcap.into_inner()), (expected, 0, None));
    }
}

#[test]
fn the_port_replays_the_file_and_collects_what_is_sent() {
    let mut file = PcapWriter::new(Vec::new()).unwrap();
    for number in 0..5u8 {
        file.write(u64::from(number), 60, &[number; 60]).unwrap();
    }
    let long = MAX_FRAME_LEN + 1;
    file.write(5, u32::try_from(long).unwrap(), &vec![0; long]).unwrap();
    file.inner_mut().extend([1, 2, 3]);
    let (port, peer) = PcapPort::new(file.into_inner()).unwrap();
    let mut halves = Box::new(port).split(2).unwrap();
    let mut pool = Pool::new(3);
    let mut batch: Vec<Frame> = Vec::new();
    assert_eq!(halves.rx.rx(2, &mut pool, &mut batch), Ok(2));
    assert_eq!(halves.rx.rx(2, &mut pool, &mut batch), Ok(1)); // the pool is empty
    assert!(!peer.finished());
    assert_eq!(halves.tx[1].tx(&mut batch, &mut pool).sent_bytes, 180);
    assert_eq!(halves.rx.rx(9, &mut pool, &mut batch), Ok(2));
    assert!(peer.finished());
    assert_eq!((peer.delivered(), peer.skipped()), (5, 1));
    assert!(matches!(peer.error(), Some(PcapError::CutShort(_))));
    assert_eq!(halves.tx[0].tx_copy(&mut batch[0], &mut pool).sent, 1);
    let sent: Vec<_> = read(&peer.output()).0.into_iter().map(|f| (f.0, f.3[0])).collect();
    assert_eq!(sent, [(2, 0), (2, 1), (2, 2), (4, 3)]);
}

#[test]
fn the_port_is_readable_until_the_file_ends() {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let file = PcapWriter::new(Vec::new()).unwrap().into_inner();
    let (port, peer) = PcapPort::new(file).unwrap();
    let mut rx = Box::new(port).split(0).unwrap().rx;
    let readable = |rx: &dyn crate::io::PortRx| {
        let mut fds = [PollFd::new(rx.fd().unwrap(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).unwrap() == 1
    };
    assert!(readable(&*rx));
    assert_eq!(rx.rx(1, &mut Pool::new(1), &mut Vec::new()), Ok(0));
    assert!(!readable(&*rx));
    assert!(peer.finished());
}
