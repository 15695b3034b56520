#!/usr/bin/env bash
# Records the captures beside this file anew, from real programs on the kernel's own stacks:
#
#   client 10.50.0.2 -- eth0 | in -- router, NAT -- out | eth0 -- server 192.0.2.2
#                  10.50.0.1                             192.0.2.1
#
# NAME.inside.pcap is what passed the client's eth0, NAME.outside.pcap what passed the server's.
# Everything runs in network namespaces that are removed again. Needs root, ip, nft, tcpdump,
# ping, curl and python3. usage: record.sh [DIRECTORY]
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
out=$(cd "${1:-$here}" && pwd)
id=vswrec$$
client=$id-client router=$id-router server=$id-server
work=$(mktemp -d)
children=()

cleanup() {
    for pid in "${children[@]}"; do kill "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    for ns in "$client" "$router" "$server"; do ip netns del "$ns" 2>/dev/null || true; done
    rm -rf "$work"
}
trap cleanup EXIT

in_client() { ip netns exec "$client" "$@"; }
in_router() { ip netns exec "$router" "$@"; }
in_server() { ip netns exec "$server" "$@"; }

start() { # runs a program in the background until the end
    "$@" >"$work/log.${#children[@]}" 2>&1 &
    children+=($!)
}

for ns in "$client" "$router" "$server"; do
    ip netns add "$ns"
    ip netns exec "$ns" sysctl -qw net.ipv6.conf.all.disable_ipv6=1 \
        net.ipv6.conf.default.disable_ipv6=1
    ip -n "$ns" link set lo up
done

link() { # NAMESPACE INTERFACE MAC ADDRESS
    ip -n "$1" link set "$2" address "$3" up
    ip -n "$1" address add "$4" dev "$2"
    ip netns exec "$1" python3 "$here/wire.py" offloads-off "$2"
}
client_mac=02:42:0a:32:00:02 gateway_mac=02:42:0a:32:00:01
ip -n "$router" link add in type veth peer name eth0 netns "$client"
ip -n "$router" link add out type veth peer name eth0 netns "$server"
link "$client" eth0 $client_mac 10.50.0.2/24
link "$router" in $gateway_mac 10.50.0.1/24
link "$router" out 02:42:c0:00:02:01 192.0.2.1/24
link "$server" eth0 02:42:c0:00:02:02 192.0.2.2/24
ip -n "$client" route add default via 10.50.0.1
in_router sysctl -qw net.ipv4.ip_forward=1 net.ipv4.icmp_ratelimit=0
in_server sysctl -qw net.ipv4.icmp_ratelimit=0
in_router nft -f - <<'NFT'
table ip nat {
    chain in {
        type nat hook prerouting priority dstnat
        iifname "out" tcp dport 8080 dnat to 10.50.0.2:80
    }
    chain out {
        type nat hook postrouting priority srcnat
        oifname "out" masquerade
    }
}
NFT

mkdir "$work/www"
head -c 20000 /dev/zero | tr '\0' 'x' >"$work/www/page.html"
start in_server python3 -m http.server --directory "$work/www" --bind 192.0.2.2 80
start in_client python3 -m http.server --directory "$work/www" --bind 10.50.0.2 80
start in_server python3 "$here/wire.py" dns-server 192.0.2.2
for _ in $(seq 50); do
    in_client curl -so /dev/null http://10.50.0.2/ && in_server curl -so /dev/null http://192.0.2.2/ &&
        break
    sleep 0.1
done

# Runs a function with tcpdump on the sides named. Neighbors are forgotten before, so that each
# capture starts with ARP; the wait behind it is for what is still on its way. Without immediate
# mode tcpdump would lose the last second.
record() { # NAME SIDES FUNCTION
    local name=$1 sides=$2 side ns pids=()
    ip -n "$client" neigh flush all
    ip -n "$router" neigh flush all
    ip -n "$server" neigh flush all
    for side in $sides; do
        ns=$client
        [ "$side" = outside ] && ns=$server
        ip netns exec "$ns" tcpdump -i eth0 --immediate-mode -U -n -s 0 -Z root --time-stamp-precision=micro \
            -w "$work/$name.$side.pcap" 2>"$work/$name.$side.log" &
        pids+=($!)
        children+=($!)
        until grep -qs "listening on" "$work/$name.$side.log"; do sleep 0.05; done
    done
    "$3"
    sleep 0.3
    kill -INT "${pids[@]}"
    wait "${pids[@]}" || true
    for side in $sides; do
        cp "$work/$name.$side.pcap" "$out/$name.$side.pcap"
        printf '%-28s %s\n' "$name.$side.pcap" "$(tcpdump --count -r "$out/$name.$side.pcap" 2>/dev/null)"
    done
}

http() { in_client curl -sSo /dev/null http://192.0.2.2/page.html; }
http_published() { in_server curl -sSo /dev/null http://192.0.2.1:8080/page.html; }
dns() {
    in_client python3 "$here/wire.py" dns-query 192.0.2.2 www.example.com 1
    in_client python3 "$here/wire.py" dns-query 192.0.2.2 www.example.com 28
}
icmp_echo() { in_client ping -q -c 3 -i 0.1 192.0.2.2 >/dev/null; }
icmp_unreachable() { in_client python3 "$here/wire.py" udp-closed 192.0.2.2 4242; }
icmp_ttl() { in_client ping -q -c 2 -i 0.1 -W 1 -t 1 192.0.2.2 >/dev/null || true; }
icmp_frag_needed() {
    ip -n "$router" link set out mtu 1280
    in_client ping -q -c 1 -W 1 -M do -s 1400 192.0.2.2 >/dev/null 2>&1 || true
    in_client ip route flush cache
    in_client curl -sSo /dev/null -X POST --data-binary @"$work/www/page.html" \
        http://192.0.2.2/page.html
    ip -n "$router" link set out mtu 1500
    in_client ip route flush cache
}
fragments() { in_client ping -q -c 2 -i 0.1 -M dont -s 3200 192.0.2.2 >/dev/null; }
tcp_retransmits() {
    in_router nft -f - <<'NFT'
table ip loss {
    chain forward {
        type filter hook forward priority filter
        meta l4proto tcp numgen inc mod 7 == 5 drop
    }
}
NFT
    http
    in_router nft delete table ip loss
}
arp() {
    # The kernel's own: request, reply, and an announcement when the link comes up.
    in_client ping -q -c 1 10.50.0.1 >/dev/null
    in_router sysctl -qw net.ipv4.conf.in.arp_notify=1
    ip -n "$router" link set in down
    ip -n "$router" link set in up
    sleep 0.2
    in_client python3 "$here/wire.py" arp-probe eth0 $client_mac 10.50.0.77
}
vlan() {
    in_client python3 "$here/wire.py" vlan eth0 $client_mac $gateway_mac 10.50.0.2 10.50.0.1 ask
    in_router python3 "$here/wire.py" vlan in $gateway_mac $client_mac 10.50.0.1 10.50.0.2 answer
}

both="inside outside"
record http "$both" http
record http-published "$both" http_published
record dns "$both" dns
record icmp-echo "$both" icmp_echo
record icmp-unreachable "$both" icmp_unreachable
record icmp-ttl "inside" icmp_ttl
record icmp-frag-needed "$both" icmp_frag_needed
record fragments "$both" fragments
record tcp-retransmits "$both" tcp_retransmits
record arp "inside" arp
record vlan "inside" vlan
