//! One line for a frame, in the manner of `tcpdump -n`.

use std::fmt::Write as _;
use std::net::IpAddr;

use dataplane::packet::types::ip_proto;

use super::view::{Detail, NetView, TcpFlags, View};

/// The time of day, UTC, in microseconds.
#[must_use]
pub fn time_of_day(unix_nanos: u64) -> String {
    let micros = unix_nanos / 1000;
    let secs = micros / 1_000_000 % 86_400;
    format!("{:02}:{:02}:{:02}.{:06}", secs / 3600, secs / 60 % 60, secs % 60, micros % 1_000_000)
}

/// What the frame is.
#[must_use]
pub fn describe(view: &View) -> String {
    let mut text = String::new();
    for vlan in &view.vlans {
        // Writing to a string cannot fail.
        let _ = write!(text, "vlan {vlan}, ");
    }
    match view.net {
        NetView::Arp { operation, sender, target, sender_mac } => {
            let _ = match operation {
                1 => write!(text, "ARP, Request who-has {target} tell {sender}"),
                2 => write!(text, "ARP, Reply {sender} is-at {sender_mac}"),
                other => write!(text, "ARP, operation {other} from {sender} about {target}"),
            };
            let _ = write!(text, ", length {}", view.len);
        }
        NetView::Ip { src, dst, proto, later_fragment, payload_len } => {
            text.push_str(if src.is_ipv4() { "IP " } else { "IP6 " });
            let (src_port, dst_port) = view.ports.unzip();
            end(&mut text, src, src_port);
            text.push_str(" > ");
            end(&mut text, dst, dst_port);
            text.push_str(": ");
            transport(&mut text, view, proto, later_fragment, payload_len);
        }
        NetView::Other => match (view.macs, view.ethertype) {
            (Some((src, dst)), Some(ethertype)) => {
                let _ =
                    write!(text, "{src} > {dst}, ethertype 0x{ethertype:04x}, length {}", view.len);
            }
            _ => {
                let _ = write!(text, "cut short, length {}", view.len);
            }
        },
    }
    text
}

fn end(text: &mut String, address: IpAddr, port: Option<u16>) {
    let _ = match port {
        Some(port) => write!(text, "{address}.{port}"),
        None => write!(text, "{address}"),
    };
}

fn transport(text: &mut String, view: &View, proto: u8, later_fragment: bool, payload_len: usize) {
    let _ = match (view.detail, proto) {
        _ if later_fragment => write!(text, "fragment of protocol {proto}, length {payload_len}"),
        (Detail::Tcp { flags, seq, ack, window, len }, _) => {
            let ack = ack.map(|ack| format!(", ack {ack}")).unwrap_or_default();
            let flags = tcp_flags(flags);
            write!(text, "Flags [{flags}], seq {seq}{ack}, win {window}, length {len}")
        }
        (Detail::Icmp { kind, code, echo }, _) => {
            let family = if proto == ip_proto::ICMP { "ICMP" } else { "ICMP6" };
            match (echo, kind) {
                (Some((id, seq)), 8 | 128) => {
                    write!(text, "{family} echo request, id {id}, seq {seq}, length {payload_len}")
                }
                (Some((id, seq)), _) => {
                    write!(text, "{family} echo reply, id {id}, seq {seq}, length {payload_len}")
                }
                (None, _) => {
                    write!(text, "{family} type {kind} code {code}, length {payload_len}")
                }
            }
        }
        // 8: the UDP header.
        (_, ip_proto::UDP) => write!(text, "UDP, length {}", payload_len.saturating_sub(8)),
        (_, ip_proto::TCP) => write!(text, "TCP, length {payload_len}"),
        (_, ip_proto::SCTP) => write!(text, "SCTP, length {payload_len}"),
        _ => write!(text, "protocol {proto}, length {payload_len}"),
    };
}

/// As tcpdump writes them.
fn tcp_flags(flags: TcpFlags) -> String {
    let letters =
        [(flags.syn, 'S'), (flags.fin, 'F'), (flags.rst, 'R'), (flags.psh, 'P'), (flags.ack, '.')];
    let text: String = letters.iter().filter(|(set, _)| *set).map(|(_, letter)| *letter).collect();
    if text.is_empty() { "none".to_owned() } else { text }
}
