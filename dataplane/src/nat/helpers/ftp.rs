//! What FTP says of data connections: `PORT` (RFC 959) and `EPRT` (RFC 2428) of a client, the replies 227 to
//! `PASV` and 229 to `EPSV` of a server.
//!
//! Only the line that a segment begins with is read, and only if it is whole in it: so does Linux'
//! `nf_conntrack_ftp`. That a segment begins so proves little: who receives chooses by its window and MSS where
//! segments begin, and may have a part in what is sent (a name of a file in a reply). So lines count from the
//! start of the connection on, and a reply is believed only if a client has asked for it ([`asks`]). What is in
//! a line beside the address and the port is never touched.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

/// A longer line is not read: the longest `EPRT` has 59 octets, replies say more or less beside.
const MAX_LINE: usize = 256;

/// Where a side can be reached, as a line says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Announced {
    /// `None`: that of the sender (229).
    pub(super) address: Option<IpAddr>,
    pub(super) port: u16,
    /// Where in the line it is said.
    pub(super) range: Range<usize>,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `h1,h2,h3,h4,p1,p2`.
    Commas,
    /// An address and a port with this octet between them.
    Pair(u8),
    Port,
}

/// What a client's segment announces.
pub(super) fn command(payload: &[u8]) -> Option<Announced> {
    let line = first_line(payload)?;
    if let Some(at) = behind(line, b"PORT ") {
        return commas(line, at).filter(|said| ends(line, said.range.end));
    }
    let at = behind(line, b"EPRT ")?;
    let delimiter = delimiter(line, at)?;
    let mut parts = line.get(at + 1..)?.split(|octet| *octet == delimiter);
    let (family, address, port) = (parts.next()?, parts.next()?, parts.next()?);
    let address: IpAddr = std::str::from_utf8(address).ok()?.parse().ok()?;
    // RFC 2428 §2: the numbers of the address families.
    if family != (if address.is_ipv4() { b"1" } else { b"2" }) || !is_rest_blank(parts.next()?) {
        return None;
    }
    let start = at + 1 + family.len() + 1;
    let end = start + addressed(line, start, delimiter)? + 1 + port.len();
    Some(Announced {
        address: Some(address),
        port: number(port)?,
        range: start..end,
        form: Form::Pair(delimiter),
    })
}

/// What a server's segment announces.
pub(super) fn reply(payload: &[u8]) -> Option<Announced> {
    let line = first_line(payload)?;
    if let Some(at) = behind(line, b"227 ") {
        // RFC 1123 §4.1.2.6: with parentheses or without.
        let rest = line.get(at..)?;
        let open = rest.iter().position(|octet| *octet == b'(').map(|open| open + 1);
        let first = open.or_else(|| rest.iter().position(u8::is_ascii_digit))?;
        return commas(line, at + first);
    }
    let at = behind(line, b"229 ")?;
    let at = at + line.get(at..)?.iter().position(|octet| *octet == b'(')? + 1;
    let delimiter = delimiter(line, at)?;
    if line.get(at..at + 3)? != [delimiter; 3] {
        return None;
    }
    let start = at + 3;
    let len = addressed(line, start, delimiter)?;
    let port = number(line.get(start..start + len)?)?;
    Some(Announced { address: None, port, range: start..start + len, form: Form::Port })
}

/// At which octet of a client's segment a line begins that asks where the server can be called: the last one.
/// `begins_line`: a line begins with the segment.
pub(super) fn asks(payload: &[u8], begins_line: bool) -> Option<u32> {
    let (mut at, mut asked) = (0, None);
    for line in payload.split_inclusive(|octet| *octet == b'\n') {
        if (at > 0 || begins_line) && is_question(line) {
            asked = u32::try_from(at).ok();
        }
        at += line.len();
    }
    asked
}

/// `PASV`, `EPSV`, `EPSV 1`: not `EPSV ALL`, which asks for nothing.
fn is_question(line: &[u8]) -> bool {
    let Some(line) = first_line(line) else { return false };
    let is_number = |octet: &u8| *octet == b' ' || octet.is_ascii_digit();
    behind(line, b"PASV").is_some_and(|at| ends(line, at))
        || behind(line, b"EPSV")
            .and_then(|at| line.get(at..))
            .is_some_and(|rest| rest.iter().all(is_number))
}

/// Whether a server's segment answers the question, be it with a refusal (RFC 959 §4.2: 4yz and 5yz).
pub(super) fn answers(payload: &[u8]) -> bool {
    let Some(line) = first_line(payload) else { return false };
    match line {
        [b'4' | b'5', second, third, b' ', ..] => second.is_ascii_digit() && third.is_ascii_digit(),
        [b'2', b'2', b'7' | b'9', b' ', ..] => true,
        _ => false,
    }
}

/// The first line without its end, if all of it is there.
fn first_line(payload: &[u8]) -> Option<&[u8]> {
    let beginning = payload.get(..payload.len().min(MAX_LINE))?;
    let end = beginning.iter().position(|octet| *octet == b'\n')?;
    let line = beginning.get(..end)?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

/// Where the line goes on behind a word, in capitals or not.
fn behind(line: &[u8], word: &[u8]) -> Option<usize> {
    line.get(..word.len())?.eq_ignore_ascii_case(word).then_some(word.len())
}

/// RFC 2428 §2: any octet from 33 to 126; one that can be part of an address or a number is none.
fn delimiter(line: &[u8], at: usize) -> Option<u8> {
    let octet = *line.get(at)?;
    let is_part = octet.is_ascii_hexdigit() || matches!(octet, b'.' | b':');
    (octet.is_ascii_graphic() && !is_part).then_some(octet)
}

/// How many octets follow until the delimiter.
fn addressed(line: &[u8], start: usize, delimiter: u8) -> Option<usize> {
    line.get(start..)?.iter().position(|octet| *octet == delimiter)
}

fn is_rest_blank(rest: &[u8]) -> bool {
    rest.iter().all(|octet| *octet == b' ')
}

fn ends(line: &[u8], at: usize) -> bool {
    line.get(at..).is_some_and(is_rest_blank)
}

/// A port in up to five digits; none is zero.
fn number(digits: &[u8]) -> Option<u16> {
    let all_digits = (1..=5).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(digits).ok().filter(|_| all_digits)?;
    text.parse().ok().filter(|port| *port != 0)
}

/// Six numbers below 256, from `at` on.
fn commas(line: &[u8], at: usize) -> Option<Announced> {
    let mut octets = [0u8; 6];
    let mut next = at;
    for (place, octet) in octets.iter_mut().enumerate() {
        if place > 0 {
            next += line.get(next).filter(|octet| **octet == b',').map(|_| 1)?;
        }
        let rest = line.get(next..)?;
        let digits = rest.iter().take(4).take_while(|octet| octet.is_ascii_digit()).count();
        *octet = std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()?;
        next += digits;
    }
    let [a, b, c, d, high, low] = octets;
    let port = u16::from_be_bytes([high, low]);
    (port != 0).then(|| Announced {
        address: Some(Ipv4Addr::new(a, b, c, d).into()),
        port,
        range: at..next,
        form: Form::Commas,
    })
}

/// Octets of a [`Text`] at most: an IPv6 address, a delimiter and a port have 45.
const MAX_TEXT: usize = 48;

/// What stands in a line instead of what a side has said.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Text {
    octets: [u8; MAX_TEXT],
    len: u8,
}

impl Text {
    pub(super) const EMPTY: Self = Self { octets: [0; MAX_TEXT], len: 0 };

    pub(super) fn as_bytes(&self) -> &[u8] {
        self.octets.get(..usize::from(self.len)).unwrap_or_default()
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", String::from_utf8_lossy(self.as_bytes()))
    }
}

impl std::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let start = usize::from(self.len);
        let place = self.octets.get_mut(start..start + text.len()).ok_or(std::fmt::Error)?;
        place.copy_from_slice(text.as_bytes());
        self.len += u8::try_from(text.len()).map_err(|_| std::fmt::Error)?;
        Ok(())
    }
}

impl Announced {
    /// The same in the same form with another address and port.
    pub(super) fn shown(&self, address: IpAddr, port: u16) -> Option<Text> {
        let mut text = Text::EMPTY;
        match (self.form, address) {
            (Form::Commas, IpAddr::V4(v4)) => {
                let ([a, b, c, d], [high, low]) = (v4.octets(), port.to_be_bytes());
                write!(text, "{a},{b},{c},{d},{high},{low}")
            }
            (Form::Commas, IpAddr::V6(_)) => return None,
            (Form::Pair(delimiter), address) => {
                write!(text, "{address}{}{port}", char::from(delimiter))
            }
            (Form::Port, _) => write!(text, "{port}"),
        }
        .ok()?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(found: Option<Announced>, line: &[u8]) -> Option<(String, u16, String)> {
        found.map(|it| {
            let address = it.address.map_or_else(|| "-".to_owned(), |address| address.to_string());
            (address, it.port, String::from_utf8(line[it.range].to_vec()).unwrap())
        })
    }

    #[test]
    fn what_a_client_announces() {
        for (line, address, port, range) in [
            ("PORT 10,1,0,2,4,1\r\n", "10.1.0.2", 1025, "10,1,0,2,4,1"),
            ("port 10,1,0,2,255,255\n", "10.1.0.2", 65_535, "10,1,0,2,255,255"),
            ("PORT 010,001,000,002,4,1  \r\nLIST\r\n", "10.1.0.2", 1025, "010,001,000,002,4,1"),
            ("EPRT |1|132.235.1.2|6275|\r\n", "132.235.1.2", 6275, "132.235.1.2|6275"),
            ("EPRT !2!fd00::2!5282!\r\n", "fd00::2", 5282, "fd00::2!5282"),
        ] {
            let found = said(command(line.as_bytes()), line.as_bytes());
            assert_eq!(found, Some((address.to_owned(), port, range.to_owned())), "{line:?}");
            assert_eq!(reply(line.as_bytes()), None);
        }
    }

    #[test]
    fn what_a_server_announces() {
        for (line, address, port, range) in [
            (
                "227 Entering Passive Mode (10,1,0,3,19,137).\r\n",
                "10.1.0.3",
                5001,
                "10,1,0,3,19,137",
            ),
            ("227 Entering Passive Mode. 10,1,0,3,19,137\r\n", "10.1.0.3", 5001, "10,1,0,3,19,137"),
            ("227 (10,1,0,3,0,21)\n", "10.1.0.3", 21, "10,1,0,3,0,21"),
            ("229 Entering Extended Passive Mode (|||6446|)\r\n", "-", 6446, "6446"),
            ("229 ok ($$$1$)\r\n", "-", 1, "1"),
        ] {
            let found = said(reply(line.as_bytes()), line.as_bytes());
            assert_eq!(found, Some((address.to_owned(), port, range.to_owned())), "{line:?}");
            assert_eq!(command(line.as_bytes()), None);
        }
    }

    #[test]
    fn what_asks_and_what_answers() {
        for (said, from_line, within) in [
            ("PASV\r\n", Some(0), None),
            ("epsv 1 \n", Some(0), None),
            ("TYPE I\r\nPASV\r\nEPSV\r\n", Some(14), Some(14)),
            ("PASV", None, None),
            ("EPSV ALL\r\n", None, None),
            ("PASVX\r\n", None, None),
            ("STOR PASV\r\n", None, None),
            ("", None, None),
        ] {
            let said = said.as_bytes();
            assert_eq!((asks(said, true), asks(said, false)), (from_line, within), "{said:?}");
        }
        for (said, is) in [
            ("227 ok\r\n", true),
            ("229 ok\n", true),
            ("500 what\r\n", true),
            ("425 no\r\n", true),
            ("500-what\r\n", false),
            ("200 ok\r\n", false),
            ("227 ok", false),
            ("5", false),
        ] {
            assert_eq!(answers(said.as_bytes()), is, "{said:?}");
        }
    }

    #[test]
    fn what_announces_nothing() {
        let long = format!("PORT 10,1,0,2,4,1{}\r\n", " ".repeat(MAX_LINE));
        for line in [
            "",
            "\r\n",
            "PORT",
            "PORT \r\n",
            "PORT 10,1,0,2,4,1",
            "PORT 10,1,0,2,4\r\n",
            "PORT 10,1,0,2,4,\r\n",
            "PORT 10,1,0,2,4,1,9\r\n",
            "PORT 10,1,0,2,4,256\r\n",
            "PORT 10,1,0,2,0,0\r\n",
            "PORT 1000,1,0,2,4,1\r\n",
            "PORT 00100100,0,2,4,1\r\n",
            "PORT 10,1,0,2,00040001\r\n",
            "PORT -10,1,0,2,4,1\r\n",
            "PORT +10,1,0,2,4,1\r\n",
            "PORT 10.1.0.2.4.1\r\n",
            "PORTS 10,1,0,2,4,1\r\n",
            " PORT 10,1,0,2,4,1\r\n",
            "NOOP\r\nPORT 10,1,0,2,4,1\r\n",
            "EPRT |2|10.1.0.2|6275|\r\n",
            "EPRT |1|fd00::2|6275|\r\n",
            "EPRT |1|10.1.0.2|0|\r\n",
            "EPRT |1|10.1.0.2|65536|\r\n",
            "EPRT |1|10.1.0.2|+625|\r\n",
            "EPRT |1|10.1.0.2|6275\r\n",
            "EPRT |1|10.1.0.2|6275|x\r\n",
            "EPRT 1|10.1.0.2|6275|\r\n",
            "EPRT .1.10.1.0.2.6275.\r\n",
            "227-Entering (10,1,0,3,19,137)\r\n",
            "227 Entering\r\n",
            "227 Entering (10,1,0,3,19)\r\n",
            "229 Entering (|||6446)\r\n",
            "229 Entering (|1||6446|)\r\n",
            "229 Entering |||6446|\r\n",
            "229 Entering (|||0|)\r\n",
            "229 Entering (|||99999|)\r\n",
            "2270 (10,1,0,3,19,137)\r\n",
            long.as_str(),
        ] {
            let found = (command(line.as_bytes()), reply(line.as_bytes()));
            assert_eq!(found, (None, None), "{line:?}");
        }
    }

    #[test]
    fn the_longest_text_fits() {
        let line = b"EPRT |2|ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe|65535|\r\n";
        let announced = command(line).unwrap();
        let text = announced.shown(announced.address.unwrap(), announced.port).unwrap();
        assert_eq!(text.as_bytes(), &line[announced.range]);
    }

    proptest! {
        /// Whatever is found is in the line, and says the same when it is written again.
        #[test]
        fn any_payload_is_read(start in 0..7usize, rest in "[0-9a-fA-F,.:|() \r\nx]{0,80}") {
            let words = ["PORT ", "EPRT |1|", "EPRT |2|", "227 ", "229 (|||", "", "227 ("];
            let payload = format!("{}{rest}\r\n", words[start]);
            for found in [command(payload.as_bytes()), reply(payload.as_bytes())].into_iter().flatten() {
                let sender = IpAddr::from([192, 0, 2, 1]);
                let address = found.address.unwrap_or(sender);
                let text = found.shown(address, found.port).unwrap();
                let mut again = payload.as_bytes().to_vec();
                again.splice(found.range.clone(), text.as_bytes().iter().copied());
                let second = command(&again).or_else(|| reply(&again)).unwrap();
                prop_assert_eq!((second.address, second.port), (found.address, found.port));
            }
        }

        #[test]
        fn any_octets_are_read(payload: Vec<u8>) {
            let _ = (command(&payload), reply(&payload));
        }
    }
}
