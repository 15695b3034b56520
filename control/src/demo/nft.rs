//! The kernel's own masquerading, set up by nf_tables messages: what `nft add rule ip nat
//! postrouting oifname UPLINK masquerade` sends.
//!
//! Constants are those of `linux/netfilter/nf_tables.h` and `nfnetlink.h`.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};

use crate::netlink::blocking::{BlockingSocket, encode};

/// `linux/netlink.h`.
const NETLINK_NETFILTER: isize = 12;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_NEWCHAIN: u16 = 3;
const NFT_MSG_NEWRULE: u16 = 6;
/// `linux/netlink.h`: `NLM_F_APPEND`.
const NLM_F_APPEND: u16 = 0x800;
/// `linux/netlink.h`: `NLA_F_NESTED`.
const NLA_F_NESTED: u16 = 0x8000;
/// `linux/netfilter.h`: `NFPROTO_IPV4`, `NF_INET_POST_ROUTING`.
const NFPROTO_IPV4: u8 = 2;
const NF_INET_POST_ROUTING: u32 = 4;
/// `linux/netfilter_ipv4.h`: `NF_IP_PRI_NAT_SRC`.
const NF_IP_PRI_NAT_SRC: u32 = 100;

const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_CHAIN_HOOK: u16 = 4;
const NFTA_CHAIN_TYPE: u16 = 7;
const NFTA_HOOK_HOOKNUM: u16 = 1;
const NFTA_HOOK_PRIORITY: u16 = 2;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;
const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFT_META_OIFNAME: u32 = 7;
const NFT_REG_1: u32 = 1;
const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;
const NFT_CMP_EQ: u32 = 0;
const NFTA_DATA_VALUE: u16 = 1;
/// `linux/if.h`: `IFNAMSIZ`, the size of the register `oifname` is loaded into.
const IFNAMSIZ: usize = 16;

/// Masquerades what leaves by `uplink`, in the namespace of the calling thread.
///
/// # Errors
/// When the kernel has no nf_tables or no NAT.
pub(super) fn masquerade(uplink: &str) -> io::Result<()> {
    let mut socket = BlockingSocket::open(NETLINK_NETFILTER)?;
    let table = string(NFTA_TABLE_NAME, "nat");
    let hook = [
        number(NFTA_HOOK_HOOKNUM, NF_INET_POST_ROUTING),
        number(NFTA_HOOK_PRIORITY, NF_IP_PRI_NAT_SRC),
    ]
    .concat();
    let chain = [
        string(NFTA_CHAIN_TABLE, "nat"),
        string(NFTA_CHAIN_NAME, "postrouting"),
        nested(NFTA_CHAIN_HOOK, &hook),
        string(NFTA_CHAIN_TYPE, "nat"),
    ]
    .concat();
    let mut name = uplink.as_bytes().to_vec();
    name.resize(IFNAMSIZ, 0);
    let expressions = [
        expression(
            "meta",
            &[number(NFTA_META_DREG, NFT_REG_1), number(NFTA_META_KEY, NFT_META_OIFNAME)].concat(),
        ),
        expression(
            "cmp",
            &[
                number(NFTA_CMP_SREG, NFT_REG_1),
                number(NFTA_CMP_OP, NFT_CMP_EQ),
                nested(NFTA_CMP_DATA, &attribute(NFTA_DATA_VALUE, &name)),
            ]
            .concat(),
        ),
        expression("masq", &[]),
    ]
    .concat();
    let rule = [
        string(NFTA_RULE_TABLE, "nat"),
        string(NFTA_RULE_CHAIN, "postrouting"),
        nested(NFTA_RULE_EXPRESSIONS, &expressions),
    ]
    .concat();

    let message = |kind: u16| NFNL_SUBSYS_NFTABLES << 8 | kind;
    let body = |attributes: &[u8]| [&family(NFPROTO_IPV4, 0)[..], attributes].concat();
    let frame = family(0, NFNL_SUBSYS_NFTABLES).to_vec();
    // All or nothing: what lies between begin and end is committed as one.
    let messages = [
        (NFNL_MSG_BATCH_BEGIN, 0, frame.clone()),
        (message(NFT_MSG_NEWTABLE), NLM_F_CREATE, body(&table)),
        (message(NFT_MSG_NEWCHAIN), NLM_F_CREATE, body(&chain)),
        (message(NFT_MSG_NEWRULE), NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK, body(&rule)),
        (NFNL_MSG_BATCH_END, 0, frame),
    ];
    let mut batch = Vec::new();
    let mut acknowledged = 0;
    for (kind, flags, payload) in messages {
        let sequence = socket.next_sequence();
        if flags & NLM_F_ACK != 0 {
            acknowledged = sequence;
        }
        batch.extend(encode(kind, NLM_F_REQUEST | flags, sequence, &payload)?);
    }
    socket.send(&batch)?;
    socket.answers(acknowledged, false)?;
    Ok(())
}

/// `struct nfgenmsg`: family, version 0, resource id in network order.
fn family(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    // Everything here is far below 64 KiB.
    let length = u16::try_from(value.len() + 4).unwrap_or(u16::MAX);
    let mut bytes = Vec::with_capacity(value.len() + 8);
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn nested(kind: u16, value: &[u8]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, value)
}

fn string(kind: u16, value: &str) -> Vec<u8> {
    attribute(kind, &[value.as_bytes(), &[0]].concat())
}

/// nf_tables numbers are in network order.
fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn expression(name: &str, data: &[u8]) -> Vec<u8> {
    let body = [string(NFTA_EXPR_NAME, name), nested(NFTA_EXPR_DATA, data)].concat();
    nested(NFTA_LIST_ELEM, &body)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::netns::Netns;

    #[test]
    #[ignore = "needs root"]
    fn the_rule_reads_as_nft_writes_it() {
        let netns = Netns::anonymous().unwrap();
        netns.run(|| masquerade("uplink0")).unwrap().unwrap();
        let output =
            netns.run(|| Command::new("nft").args(["list", "ruleset"]).output()).unwrap().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            words,
            "table ip nat { chain postrouting { type nat hook postrouting priority srcnat; \
             policy accept; oifname \"uplink0\" masquerade } }"
        );
    }
}
