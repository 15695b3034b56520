#!/usr/bin/env python3
"""What record.sh needs and no everyday program does: run inside a namespace, see `main`."""

import ctypes
import errno
import fcntl
import socket
import struct
import sys
import time

ETH_P_ALL = 3


def offloads_off(ifname):
    """As `ethtool -K IF rx off tx off tso off gso off gro off sg off`: frames as on a wire."""
    # SIOCETHTOOL and ETHTOOL_S{RXCSUM,TXCSUM,SG,TSO,GSO,GRO} of linux/ethtool.h.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in (0x1F, 0x24, 0x2C, 0x17, 0x19, 0x15):
            value = ctypes.create_string_buffer(struct.pack("II", command, 0))
            request = struct.pack("16sP16x", ifname.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(sock, 0x8946, request)
            except OSError as error:
                # A feature that the device does not have is off already.
                if error.errno != errno.EOPNOTSUPP:
                    raise


def dns_name(name):
    return b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"


def dns_server(address):
    """Answers A questions with 192.0.2.80, others with NXDOMAIN, until it is ended."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, 53))
        while True:
            query, peer = sock.recvfrom(512)
            end = query.index(0, 12) + 5
            kind = struct.unpack("!H", query[end - 4 : end - 2])[0]
            found = kind == 1
            header = query[:2] + struct.pack("!HHHHH", 0x8580 if found else 0x8583, 1, found, 0, 0)
            answer = struct.pack("!HHHIH4B", 0xC00C, 1, 1, 60, 4, 192, 0, 2, 80) if found else b""
            sock.sendto(header + query[12:end] + answer, peer)


def dns_query(address, name, kind):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        ident = 0x1000 + int(kind)
        question = dns_name(name) + struct.pack("!HH", int(kind), 1)
        sock.sendto(struct.pack("!HHHHHH", ident, 0x0100, 1, 0, 0, 0) + question, (address, 53))
        assert struct.unpack("!H", sock.recv(512)[:2])[0] == ident


def udp_closed(address, port):
    """Sends to a port on which nothing listens and waits to be told so."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect((address, int(port)))
        sock.send(b"is anybody there?")
        try:
            sock.recv(64)
        except ConnectionRefusedError:
            return
        sys.exit("no ICMP error came")


def raw(ifname):
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    sock.bind((ifname, 0))
    return sock


def mac(text):
    return bytes.fromhex(text.replace(":", ""))


def arp(op, sender_mac, sender_ip, target_mac, target_ip):
    return struct.pack(
        "!HHBBH6s4s6s4s",
        1, 0x0800, 6, 4, op,
        mac(sender_mac), socket.inet_aton(sender_ip),
        mac(target_mac), socket.inet_aton(target_ip),
    )  # fmt: skip


ZERO_MAC = "00:00:00:00:00:00"
BROADCAST = "ff:ff:ff:ff:ff:ff"


def arp_probe(ifname, own_mac, address):
    """Three probes and an announcement, as RFC 5227 has a host do before it takes an address."""
    with raw(ifname) as sock:
        link = mac(BROADCAST) + mac(own_mac) + b"\x08\x06"
        for _ in range(3):
            sock.send(link + arp(1, own_mac, "0.0.0.0", ZERO_MAC, address))
            time.sleep(0.1)
        sock.send(link + arp(1, own_mac, address, ZERO_MAC, address))
        # The other form of a gratuitous ARP: an unasked reply.
        sock.send(link + arp(2, own_mac, address, BROADCAST, address))


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo(kind, src, dst, sequence):
    message = struct.pack("!BBHHH", kind, 0, 0, 0x7A67, sequence) + bytes(range(48))
    message = message[:2] + struct.pack("!H", checksum(message)) + message[4:]
    header = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(message), sequence, 0, 64, 1, 0,
        socket.inet_aton(src), socket.inet_aton(dst),
    )  # fmt: skip
    return header[:10] + struct.pack("!H", checksum(header)) + header[12:] + message


TAGS = {
    "customer": [(0x8100, 100)],
    "priority": [(0x8100, 5 << 13)],
    "provider": [(0x88A8, 200), (0x8100, 100)],
}


def vlan(ifname, own_mac, peer_mac, own_ip, peer_ip, role):
    """Tagged ARP and ping; `role` is `ask` (sends requests) or `answer` (sends the replies)."""
    with raw(ifname) as sock:
        for sequence, (name, tags) in enumerate(TAGS.items(), 1):
            # A kernel takes and answers priority-tagged frames as untagged ones.
            if name == "priority" and role == "answer":
                continue
            tag = b"".join(struct.pack("!HH", tpid, tci) for tpid, tci in tags)
            asks = role == "ask"
            first = mac(BROADCAST if asks else peer_mac) + mac(own_mac) + tag
            target = ZERO_MAC if asks else peer_mac
            body = arp(1 if asks else 2, own_mac, own_ip, target, peer_ip)
            sock.send(first + b"\x08\x06" + body)
            kind = 8 if asks else 0
            packet = echo(kind, own_ip, peer_ip, sequence)
            sock.send(mac(peer_mac) + mac(own_mac) + tag + b"\x08\x00" + packet)


def main():
    commands = {
        "offloads-off": offloads_off,
        "dns-server": dns_server,
        "dns-query": dns_query,
        "udp-closed": udp_closed,
        "arp-probe": arp_probe,
        "vlan": vlan,
    }
    commands[sys.argv[1]](*sys.argv[2:])


if __name__ == "__main__":
    main()
