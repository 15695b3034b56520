//! Capture files: whatever is in them, reading ends, frames lie within the file, and what was read
//! can be written and read again.

use dataplane::io::pcap::{PcapReader, PcapWriter};

pub(crate) fn run(data: &[u8]) {
    let Ok(mut reader) = PcapReader::new(data) else { return };
    let mut frames: Vec<Vec<u8>> = Vec::new();
    let mut count = 0;
    while let Ok(Some(frame)) = reader.next_frame() {
        count += 1;
        // The shortest record of any format takes twelve bytes and more.
        assert!(count <= data.len() / 12 + 1, "more frames than there is room for");
        assert!(frame.bytes.len() <= data.len());
        frames.push(frame.bytes.to_vec());
    }
    let after = reader.next_frame();
    assert!(matches!(after, Ok(None)), "nothing follows the end or an error: {after:?}");
    let mut writer = PcapWriter::new(Vec::new()).unwrap();
    for (at, frame) in frames.iter().enumerate() {
        writer.write(at as u64, frame.len() as u32, frame).unwrap();
    }
    let written = writer.into_inner();
    let mut again = PcapReader::new(written.as_slice()).unwrap();
    for frame in &frames {
        assert_eq!(again.next_frame().unwrap().unwrap().bytes, frame);
    }
    assert!(again.next_frame().unwrap().is_none());
}
