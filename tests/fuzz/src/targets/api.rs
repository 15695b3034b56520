//! Bodies and queries of the API, and the small languages in them: read, or refused in one line; and
//! what was read says the same when it is written and read again.

use std::fmt::{Debug, Display};
use std::str::FromStr;

use control::api::server::{read_body, read_query};
use control::api::types::{
    AddressMatch, CaptureQuery, ConnectRequest, ConntrackFilter, Driver, DropsQuery, FdbAdd,
    FdbFlush, FdbQuery, FdbRemove, FrameHex, IpProtocol, MacAddr, NetnsRef, NetworkCreate,
    NetworkRef, PublishRequest, RouteAdd, RouteRemove, SandboxCreate, StatsQuery, TraceRequest,
    UplinkAdd,
};
use control::capture::filter::Filter;
use control::capture::view::View;
use control::error::Error;
use control::options::{EndpointOptions, NetworkOptions};
use control::publish::PublishSpec;
use control::trace::{Macs, PacketText};
use dataplane::packet::parse::parse;
use dataplane::packet::types::Mac;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tests::packet::Wire;
use tests::sums;

/// A refusal is one line for the user.
fn refused(error: &Error) {
    assert!(!error.message.is_empty() && !error.message.contains('\n'), "{:?}", error.message);
    assert_eq!(error.exit_code(), 2, "{error:?}");
}

/// What was read, if it was.
fn body<T: DeserializeOwned + Serialize + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    match read_body::<T>(data) {
        Ok(value) => {
            let text = serde_json::to_vec(&value).unwrap();
            let again = read_body::<T>(&text);
            assert_eq!(again.as_ref().ok(), Some(&value), "{}", String::from_utf8_lossy(&text));
            Some(value)
        }
        Err(error) => {
            refused(&error);
            None
        }
    }
}

fn query<T: DeserializeOwned + Debug>(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(error) = read_query::<T>(text) {
        refused(&error);
    }
}

/// A word with a language of its own.
fn word<T: FromStr<Err = Error> + Display + PartialEq + Debug>(data: &[u8]) -> Option<T> {
    match std::str::from_utf8(data).ok()?.parse::<T>() {
        Ok(value) => {
            let text = value.to_string();
            let again = text.parse::<T>();
            assert_eq!(again.as_ref().ok(), Some(&value), "{text:?}");
            Some(value)
        }
        Err(error) => {
            refused(&error);
            None
        }
    }
}

fn packet(data: &[u8]) {
    let Some(text) = word::<PacketText>(data) else { return };
    let macs = Macs { from: Mac([2; 6]), to: Mac([4; 6]) };
    let wire = Wire::from(text.packet().frame(macs));
    assert!(sums::check(&wire).are_right(), "{wire:?}");
    assert!(parse(&wire.bytes).is_ok());
}

fn filter(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match text.parse::<Filter>() {
        Ok(filter) => {
            let _ = filter.matches(&View::parse(data, data.len() as u32));
        }
        Err(error) => refused(&error),
    }
}

/// Which one, and what it reads.
const READERS: [fn(&[u8]); 25] = [
    |data| {
        if let Some(request) = body::<NetworkCreate>(data) {
            let _ =
                NetworkOptions::parse(request.driver, &request.options).map_err(|e| refused(&e));
        }
    },
    |data| {
        if let Some(request) = body::<ConnectRequest>(data) {
            let _ = EndpointOptions::parse(&request.options).map_err(|e| refused(&e));
        }
    },
    |data| _ = body::<SandboxCreate>(data),
    |data| _ = body::<PublishRequest>(data),
    |data| _ = body::<UplinkAdd>(data),
    |data| _ = body::<RouteAdd>(data),
    |data| _ = body::<RouteRemove>(data),
    |data| _ = body::<FdbAdd>(data),
    |data| _ = body::<FdbRemove>(data),
    |data| _ = body::<FdbFlush>(data),
    |data| _ = body::<ConntrackFilter>(data),
    |data| _ = body::<TraceRequest>(data),
    query::<FdbQuery>,
    query::<ConntrackFilter>,
    query::<DropsQuery>,
    query::<StatsQuery>,
    query::<CaptureQuery>,
    packet,
    filter,
    |data| _ = word::<PublishSpec>(data),
    |data| _ = (word::<NetworkRef>(data), word::<NetnsRef>(data)),
    |data| _ = (word::<MacAddr>(data), word::<AddressMatch>(data)),
    |data| _ = word::<IpProtocol>(data),
    |data| _ = word::<FrameHex>(data),
    |data| _ = word::<Driver>(data),
];

/// One byte that says who reads the rest.
pub(crate) fn run(data: &[u8]) {
    if let Some((which, rest)) = data.split_first() {
        READERS[usize::from(*which) % READERS.len()](rest);
    }
}
