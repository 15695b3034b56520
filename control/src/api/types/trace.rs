//! Bodies of traces.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{DropCount, MacAddr};
use crate::error::{Error, Result};
use crate::name::Name;
use crate::text::serde_as_text;
use crate::trace::PacketText;

serde_as_text!(PacketText, "a packet in words", "tcp 10.20.1.2:40000 > 203.0.113.2:80 syn");

/// A frame as hexadecimal digits, from the Ethernet header on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FrameHex(pub Vec<u8>);

serde_as_text!(FrameHex, "a frame in hexadecimal digits", "ffffffffffff0242ac1400020806");

impl fmt::Display for FrameHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for FrameHex {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits: Option<Vec<u32>> = text.chars().map(|digit| digit.to_digit(16)).collect();
        let bytes = digits.filter(|digits| digits.len() % 2 == 0).map(|digits| {
            let byte = |pair: &[u32]| match pair {
                [high, low] => u8::try_from(high << 4 | low).unwrap_or(u8::MAX),
                _ => 0,
            };
            digits.chunks(2).map(byte).collect()
        });
        bytes.map(Self).ok_or_else(|| Error::invalid("frame: is not pairs of hexadecimal digits"))
    }
}

/// `POST /v1/trace`: `packet` or `frames`, of `sandbox` or by `uplink`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// Who sends it.
    #[serde(default)]
    pub sandbox: Option<Name>,
    /// By its interface in this network; left out: by the one with the packet's source address, else by
    /// the one with the default route.
    #[serde(default)]
    pub network: Option<Name>,
    /// Frames from outside: the uplink that they come by.
    #[serde(default)]
    pub uplink: Option<String>,
    /// A packet in words.
    #[serde(default)]
    pub packet: Option<PacketText>,
    /// Whole frames, one after the other: each meets what those before it have changed.
    #[serde(default)]
    pub frames: Vec<FrameHex>,
}

/// Something that a stage found or did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceFact {
    /// What.
    pub name: String,
    /// For people.
    pub value: String,
}

/// A stage that the frame came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceStep {
    /// Its name.
    pub stage: String,
    /// What it found and did.
    pub facts: Vec<TraceFact>,
}

/// A frame that would leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TraceSent {
    /// By this port.
    pub port: String,
    /// From this MAC.
    pub from: MacAddr,
    /// To this one.
    pub to: MacAddr,
    /// So many bytes.
    pub length: u64,
    /// What it is.
    pub summary: String,
}

/// What would become of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Trace {
    /// What it is.
    pub frame: String,
    /// Where it comes in.
    pub port: String,
    /// The stages that it comes to.
    pub steps: Vec<TraceStep>,
    /// `forward`, `flood`, `answer`, `consume`, `hold` or `drop`.
    pub verdict: String,
    /// With `drop`: why.
    pub drop_reason: Option<String>,
    /// With `hold`: the neighbor that it waits for.
    pub waits_for: Option<String>,
    /// Everything that would leave because of it, what the daemon itself says included.
    pub sent: Vec<TraceSent>,
    /// What would be counted as dropped.
    pub drops: Vec<DropCount>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_pairs_of_digits() {
        let frame: FrameHex = "00fFa5".parse().unwrap();
        assert_eq!(
            (frame.0.as_slice(), frame.to_string().as_str()),
            (&[0, 255, 0xa5][..], "00ffa5")
        );
        for bad in ["0", "0g", "+1", "é0"] {
            assert!(bad.parse::<FrameHex>().is_err(), "{bad}");
        }
    }
}
