//! The command line, without a daemon.

use clap::CommandFactory as _;

use super::*;

fn parse(line: &str) -> std::result::Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once("vswitchctl").chain(line.split_whitespace()))
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_contract_s_lines_are_understood() {
    let lines = [
        "network create app",
        "network create app -d bridge --subnet 10.1.0.0/24 --subnet 10.2.0.0/24 --gateway 10.1.0.1 \
         --ip-range 10.1.0.128/25 --aux-address a=10.1.0.5 --internal -o mtu=1400 --opt icc=false \
         --label a=b --label c",
        "network create app --driver=overlay --ipv6",
        "network ls --format json",
        "--format json network ls",
        "network inspect a b",
        "network rm a b",
        "network prune",
        "network connect net sb --ip 10.1.0.5 --ip6 fd00::5 --mac 02:00:00:00:00:05 --alias x --alias y",
        "network disconnect net sb",
        "sandbox create sb --network a --network b --ip 10.1.0.5 -p 80 -p 127.0.0.1:8080:80/tcp",
        "sandbox create sb --network container:other",
        "sandbox create sb --netns pid:1",
        "sandbox ls",
        "sandbox inspect sb",
        "sandbox rm a b c",
        "run --network a -p 80:80 --name x -- ip -br a --format json",
        "run true",
        "exec sb -- sh -c exit",
        "exec sb ping -c1 10.0.0.1",
        "port ls",
        "port publish sb 8080:80 53:53/udp",
        "port unpublish sb 8080:80",
        "uplink add eth0",
        "uplink add eth1 --mode dedicated --address 192.0.2.2/24 --address 192.0.2.3/24 --gateway 192.0.2.1",
        "uplink ls",
        "uplink rm eth0",
        "route add 10.9.0.0/16 via 192.0.2.1 --uplink eth1",
        "route add default via 192.0.2.1",
        "route ls",
        "route rm 10.9.0.0/16",
        "policy add app --deny --src 203.0.113.0/24 --proto tcp --port 80 --position 1",
        "policy add app --allow --in --from network:web --to sandbox:db --dport 80-90 --host-port 8080",
        "policy ls --network app",
        "policy rm app 7",
        "neigh show",
        "status",
        "fdb show --network a",
        "fdb add 02:00:00:00:00:05 --network a --sandbox sb",
        "fdb add 02:00:00:00:00:05 --network a --port sb/eth0 --vlan 5",
        "fdb del 02:00:00:00:00:05 --network a",
        "fdb flush",
        "mdb show",
        "mdb show --network a",
        "conntrack list --proto tcp --src 10.0.0.0/8 --dst 1.2.3.4 --sport 1 --dport 2 --state established --network a",
        "conntrack flush --proto 17",
        "conntrack stats",
        "nat rules",
        "drops --network a --sandbox b",
        "stats --sandbox b",
        "capture --sandbox s -w - -c 5 tcp port 80 and not host 10.0.0.1",
        "capture --network n",
        "capture --uplink eth0 -w out.pcapng ( arp or icmp )",
        "trace --sandbox s --format json udp 10.0.0.1:1 > 10.0.0.2:2",
        "trace --sandbox s udp 10.0.0.1:1 > 10.0.0.2:2 ttl 9 --format json --socket /tmp/x",
        "trace udp 10.0.0.1:1 > 10.0.0.2:2 --json --sandbox s",
        "--format json trace --sandbox s -- udp 10.0.0.1:1 > 10.0.0.2:2",
        "trace --uplink u -- udp 10.0.0.1:1 > 10.0.0.2:2 --format json",
        "state export",
        "state export -",
        "state export state.json --format json",
        "state import state.json",
        "completions bash",
        "completions zsh --program vswitchd",
        "pages target/pages",
        "purge --yes",
        "--socket /tmp/x status",
    ];
    for line in lines {
        if let Err(error) = parse(line) {
            panic!("{line}: {error}");
        }
    }
}

#[test]
fn what_syntax_decides_is_refused() {
    let lines = [
        ("network create a/b", "contains '/'"),
        ("network create a --subnet 10.1.0.0", "not a prefix like"),
        ("network create a --gateway 10.1.0.0/24", "not an IP address"),
        ("network create a --aux-address 10.1.0.1", "not NAME=IP"),
        ("network create a -o mtu", "not KEY=VALUE"),
        ("network create a -d brigde", "driver \"brigde\" is unknown"),
        ("network inspect", "required"),
        ("network connect n s --mac 02:00", "not six pairs"),
        ("network connect n s --ip fd00::1", "is IPv6"),
        ("sandbox create ..", "contains \"..\""),
        ("sandbox create s -p 0:80", "port \"0\""),
        ("sandbox create s --network container:", "is empty"),
        ("sandbox create s --netns relative", "neither an absolute path nor pid:N"),
        ("port publish s", "required"),
        ("uplink add a/b", "not an interface name"),
        ("uplink add e --mode both", "possible values: shared, dedicated"),
        ("uplink add e --address 192.0.2.2", "not an address with prefix length"),
        ("uplink add e --nat-ports 9-8", "ends before it begins"),
        ("route add 10.0.0.0/8 192.0.2.1", "via"),
        ("route add 10.0.0/8 via 192.0.2.1", "neither a prefix"),
        ("policy add app", "required"),
        ("policy add app --allow --deny", "cannot be used with"),
        ("policy add app --deny --in --out", "cannot be used with"),
        ("policy add app --deny --src 203.0.113.7/24", "write 203.0.113.0/24"),
        ("policy add app --deny --port 0", "port"),
        ("policy rm app", "required"),
        ("fdb add 02:00:00:00:00:05 --network a", "required"),
        ("fdb add 02:00:00:00:00:05 --network a --sandbox s --port p", "cannot be used with"),
        ("fdb del 02:00:00:00:00:05 --network a --vlan 4095", "not a VLAN id"),
        ("conntrack list --proto tpc", "neither tcp"),
        ("conntrack list --state FOO", "known are SYN_SENT"),
        ("conntrack flush --state FOO", "known are SYN_SENT"),
        ("conntrack list --src 10.0.0.0/33", "neither an IP address nor"),
        ("conntrack list --dport 70000", "not a number from 0 to 65535"),
        ("conntrack list --sport x", "not a number from 0 to 65535"),
        ("trace --sandbox s udp a > b --fromat json", "unexpected argument '--fromat'"),
        ("capture", "required"),
        ("capture --sandbox s --network n", "cannot be used with"),
        ("capture --sandbox s -c 0", "not a whole number from 1"),
        ("capture --sandbox s -c x", "not a whole number from 1"),
        ("state import", "required"),
        ("state", "requires a subcommand"),
        ("completions tcsh", "possible values: bash"),
        ("completions bash --program x", "possible values: vswitchctl, vswitchd"),
        ("pages", "required"),
        ("exec s", "required"),
        ("run --name x", "required"),
        ("--format yaml status", "possible values: table, json"),
        ("frobnicate", "unrecognized subcommand"),
        ("network", "requires a subcommand"),
        ("", "requires a subcommand"),
    ];
    for (line, fault) in lines {
        let error = parse(line).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{line}");
        assert!(error.to_string().contains(fault), "{line}: {error}");
    }
}
