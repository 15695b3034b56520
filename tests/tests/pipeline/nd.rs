//! Neighbor discovery both ways, and router advertisements.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use dataplane::config::UplinkMode;
use dataplane::engine::Link;
use dataplane::l3::neighbor::{Asker, Resolution};
use dataplane::packet::types::Mac;
use tests::lab::{
    A, B, C, D, GATEWAY1, GATEWAY2, Lab, NEIGHBOR, NET1, ROUTER, UP, UPLINK, dual, without_guard,
};
use tests::packet::nd::{
    advertisement, announcement, probe, router_s_advertisement, router_s_announcement,
    router_solicitation, solicitation,
};
use tests::packet::{Host, Packet, icmp6, icmp6_error, udp};

const ALL_NODES: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);

/// What the gateway says of `target` to who asked from `dst`.
fn answer(gateway: &Host, target: Ipv6Addr, to: &Host, dst: Ipv6Addr) -> Packet {
    router_s_advertisement(gateway, target, to, dst)
}

fn known(lab: &Lab, link: Link, address: Ipv6Addr) -> Option<Mac> {
    lab.plane.tables().neighbors.peek(link, address.into())
}

/// Somebody sends to this address, so that it is asked for.
fn wanted(lab: &Lab, link: Link, address: Ipv6Addr) {
    let asked =
        lab.plane.tables().neighbors.resolve(link, address.into(), Asker::Port(A.port), lab.now);
    assert_eq!(asked, Resolution::Unknown { ask: true });
}

/// Rows: RFC 4861 §7.2.4.
#[test]
fn the_gateway_answers_for_its_addresses() {
    let mut lab = Lab::new(dual());
    for (host, gateway) in [(A, GATEWAY1), (D, GATEWAY2)] {
        for target in [gateway.ip6(), gateway.link_local()] {
            for own in [host.ip6(), host.link_local()] {
                let question = solicitation(&host, own, target);
                let expected = answer(&gateway, target, &host, own);
                lab.rx(host.port, &question).tx(host.port, &expected).answered();
                // To the gateway's MAC, as a host asks that checks what it knows.
                let direct = question.via(gateway.mac).dst6(target);
                lab.rx(host.port, direct).tx(host.port, expected).answered();
            }
            // Somebody tries the address for itself.
            let taken = router_s_announcement(&gateway, target);
            lab.rx(host.port, probe(&host, target)).tx(host.port, taken).answered();
        }
    }
}

/// RFC 4291 §2.6.1: to the first address of its subnet every router listens.
///
/// Rows: RFC 4291 §2.6.1.
#[test]
fn the_gateway_answers_for_the_anycast_address_of_its_subnet() {
    let mut lab = Lab::new(dual());
    for (host, gateway) in [(A, GATEWAY1), (D, GATEWAY2)] {
        let spec = &lab.spec.networks[usize::from(host == D)];
        let six = |net: IpAddr| match net {
            IpAddr::V6(first) => Some(first),
            IpAddr::V4(_) => None,
        };
        let anycast = spec.subnets.iter().find_map(|s| six(s.prefix.network())).unwrap();
        // It does not override, and comes from an address that is one node's alone.
        let question = solicitation(&host, host.ip6(), anycast);
        let expected = answer(&gateway, anycast, &host, host.ip6()).src6(gateway.link_local());
        let expected = expected.icmp_rest([0xc0, 0, 0, 0]);
        lab.rx(host.port, &question).tx(host.port, expected).answered();
        // Nobody takes it for itself.
        let name = if host == D { "d" } else { "a" };
        lab.rx(host.port, probe(&host, anycast)).dropped(name, "spoofed_nd");
        let ping = icmp6(&host, &gateway, 128, 0, [0, 9, 0, 1]).payload(b"abcdefgh");
        let pong = icmp6(&gateway, &host, 129, 0, [0, 9, 0, 1]).payload(b"abcdefgh");
        lab.rx(host.port, ping.clone().dst6(anycast)).tx(host.port, pong).answered();
        // A wrong checksum is not made right by that.
        let mut wrong = ping.dst6(anycast).bytes();
        wrong[69] ^= 1;
        lab.rx(host.port, wrong).dropped(name, "l4_malformed");
        // Nothing else is served there.
        let datagram = udp(&host, 1, &gateway, 2).v6().dst6(anycast);
        let told = icmp6_error(&gateway, &host, 1, 4, &datagram, 1232);
        lab.rx(host.port, &datagram)
            .tx(host.port, told)
            .dropped(name, "no_service")
            .moved("generated", 1);
    }
}

#[test]
fn a_gateway_that_leads_nowhere_any_more_is_told_of_at_once() {
    let mut lab = Lab::new(dual());
    lab.reconfigure(|spec| spec.networks[0].ra = true);
    for _ in 0..40 {
        lab.after(Duration::from_secs(1)).only_balanced();
    }
    lab.reconfigure(|spec| spec.networks[0].internal = true);
    let none = router_advertisement(0, Some(1500), ALL_NODES, all_nodes());
    lab.after(Duration::from_secs(1))
        .flooded(&[A.port, B.port, C.port], &none)
        .moved("generated", 3);
}

#[test]
fn containers_answer_for_themselves() {
    let mut lab = Lab::new(dual());
    for target in [B.ip6(), B.link_local(), GATEWAY2.ip6(), GATEWAY2.link_local()] {
        let who = solicitation(&A, A.ip6(), target);
        lab.rx(A.port, &who).flooded(&[B.port, C.port, GATEWAY1.port], &who).moved("replicated", 2);
    }
    let reply = advertisement(&B, B.ip6(), &A, A.ip6());
    lab.rx(B.port, &reply).tx(A.port, &reply);
}

#[test]
fn a_gateway_without_an_address_of_ipv6_says_nothing() {
    let mut lab = Lab::default();
    lab.reconfigure(|spec| spec.networks[0].ra = true);
    for frame in [
        solicitation(&A, A.link_local(), GATEWAY1.ip6()),
        solicitation(&A, A.link_local(), GATEWAY1.link_local()),
        router_solicitation(&A, A.link_local()),
    ] {
        lab.rx(A.port, &frame)
            .flooded(&[B.port, C.port, GATEWAY1.port], &frame)
            .moved("replicated", 2);
    }
    lab.after(Duration::from_secs(1000));
}

#[test]
fn the_host_s_own_questions_are_answered_by_containers() {
    let mut lab = Lab::new(dual());
    let who = solicitation(&GATEWAY1, GATEWAY1.ip6(), A.ip6());
    lab.rx(GATEWAY1.port, &who).flooded(&[A.port, B.port, C.port], &who).moved("replicated", 2);
    let reply = advertisement(&A, A.ip6(), &GATEWAY1, GATEWAY1.ip6());
    lab.rx(A.port, &reply).tx(GATEWAY1.port, &reply);
    let options = [200, 1, 0, 0, 0, 0, 0, 0].repeat(180);
    let long = reply.payload(&[&A.ip6().octets()[..], &options].concat());
    lab.rx(A.port, &long).dropped("a", "oversize");
    // The host tries its own address: the engine is the same machine.
    for own in
        [probe(&GATEWAY1, GATEWAY1.ip6()), router_solicitation(&GATEWAY1, GATEWAY1.link_local())]
    {
        lab.rx(GATEWAY1.port, &own).flooded(&[A.port, B.port, C.port], &own).moved("replicated", 2);
    }
    // Without the host's leg it was the engine that asked.
    let reply = advertisement(&D, D.ip6(), &GATEWAY2, GATEWAY2.link_local());
    lab.rx(D.port, reply).moved("consumed", 1);
}

/// Rows: RFC 4861 §7.1.
#[test]
fn what_may_have_come_from_afar_is_not_believed() {
    let mut lab = Lab::new(dual());
    let question = solicitation(&A, A.ip6(), GATEWAY1.ip6());
    let mut wrong_sum = question.bytes();
    wrong_sum[14 + 40 + 2] ^= 1;
    let mut truncated = question.bytes();
    truncated.truncate(14 + 40 + 20);
    truncated[18..20].copy_from_slice(&20u16.to_be_bytes());
    for frame in [
        question.clone().ttl(254).bytes(),
        question.clone().ttl(1).bytes(),
        wrong_sum,
        truncated,
        question.clone().vlan(5).bytes(),
    ] {
        let others = [B.port, C.port, GATEWAY1.port];
        let step = lab.rx(A.port, frame.clone()).flooded(&others, frame);
        step.moved("replicated", 2).tolerate("fdb.learned").sums_may_be_wrong();
    }
    let link = Link::Uplink(UPLINK);
    wanted(&lab, link, NEIGHBOR.ip6());
    let reply = advertisement(&NEIGHBOR, NEIGHBOR.ip6(), &UP, UP.ip6());
    for forged in [reply.clone().ttl(254), reply.clone().fragment_header(0, false, 1)] {
        lab.rx(UP.port, forged).moved("consumed", 1);
        assert_eq!(known(&lab, link, NEIGHBOR.ip6()), None);
    }
    let far = solicitation(&NEIGHBOR, NEIGHBOR.ip6(), UP.ip6()).ttl(64);
    lab.rx(UP.port, far).moved("consumed", 1);
    lab.rx(UP.port, reply).moved("consumed", 1);
    assert_eq!(known(&lab, link, NEIGHBOR.ip6()), Some(NEIGHBOR.mac));
}

/// Rows: RFC 4861 §7.2.3.
#[test]
fn a_dedicated_uplink_answers_for_its_addresses_and_a_shared_one_never() {
    let mut lab = Lab::new(dual());
    let ask = |own: Ipv6Addr, target: Ipv6Addr| solicitation(&NEIGHBOR, own, target);
    for own in [NEIGHBOR.ip6(), NEIGHBOR.link_local()] {
        for (number, target) in [UP.ip6(), UP.link_local()].into_iter().enumerate() {
            lab.rx(UP.port, ask(own, target))
                .tx(UP.port, answer(&UP, target, &NEIGHBOR, own))
                .answered()
                // It need not be asked for its own address any more.
                .moved("neighbors", i64::from(number == 0));
        }
        assert_eq!(known(&lab, Link::Uplink(UPLINK), own), Some(NEIGHBOR.mac));
    }
    // Somebody on the wire tries it.
    lab.rx(UP.port, probe(&NEIGHBOR, UP.ip6()))
        .tx(UP.port, router_s_announcement(&UP, UP.ip6()))
        .answered();
    lab.rx(UP.port, ask(NEIGHBOR.ip6(), "2001:db8::77".parse().unwrap())).moved("consumed", 1);
    lab.rx(UP.port, ask(NEIGHBOR.ip6(), GATEWAY1.ip6())).moved("consumed", 1);
    lab.rx(UP.port, router_solicitation(&NEIGHBOR, NEIGHBOR.link_local())).moved("consumed", 1);
    lab.reconfigure(|spec| spec.uplinks[0].mode = UplinkMode::Shared);
    for target in [UP.ip6(), UP.link_local()] {
        lab.rx(UP.port, ask(NEIGHBOR.ip6(), target)).moved("consumed", 1);
        lab.rx(UP.port, probe(&NEIGHBOR, target)).moved("consumed", 1);
    }
    // An uplink without IPv6 has no address of it at all.
    lab.reconfigure(|spec| {
        spec.uplinks[0].mode = UplinkMode::Dedicated;
        spec.uplinks[0].addresses.truncate(1);
    });
    lab.rx(UP.port, ask(NEIGHBOR.ip6(), UP.link_local())).moved("consumed", 1);
}

/// Rows: RFC 4861 §7.2.5.
#[test]
fn an_answer_is_believed_and_what_nobody_asked_for_only_updates() {
    let mut spec = dual();
    without_guard(&mut spec);
    let mut lab = Lab::new(spec);
    let link = Link::Network(NET1);
    // A machine behind C's port that control knows nothing of.
    let guest = Host { port: C.port, mac: Mac([2, 0, 0, 0, 0, 0x66]), ip: [10, 1, 0, 99].into() };
    let all = [A.port, B.port, GATEWAY1.port];
    let unasked = announcement(&guest, guest.ip6());
    lab.rx(C.port, &unasked).flooded(&all, &unasked).moved("replicated", 2).moved("fdb.learned", 1);
    assert_eq!(known(&lab, link, guest.ip6()), None);

    wanted(&lab, link, guest.ip6());
    let reply = advertisement(&guest, guest.ip6(), &GATEWAY1, GATEWAY1.link_local());
    // The host's stack may have asked, with the same MAC.
    lab.rx(C.port, &reply).tx(GATEWAY1.port, &reply);
    assert_eq!(known(&lab, link, guest.ip6()), Some(guest.mac));

    // One that does not override what is known says nothing new.
    let other = Host { mac: Mac([2, 0, 0, 0, 0, 0x67]), ..guest };
    let moved = announcement(&other, guest.ip6());
    let meek = moved.clone().icmp_rest([0; 4]);
    lab.rx(C.port, &meek).flooded(&all, &meek).moved("replicated", 2).moved("fdb.learned", 1);
    assert_eq!(known(&lab, link, guest.ip6()), Some(guest.mac));
    lab.rx(C.port, &moved).flooded(&all, &moved).moved("replicated", 2);
    assert_eq!(known(&lab, link, guest.ip6()), Some(other.mac));
    // Who asks for the gateway says who it is.
    let question = solicitation(&guest, guest.ip6(), GATEWAY1.ip6());
    let told = answer(&GATEWAY1, GATEWAY1.ip6(), &guest, guest.ip6());
    lab.rx(C.port, question).tx(C.port, told).answered();
    assert_eq!(known(&lab, link, guest.ip6()), Some(guest.mac));
    // Nobody is the gateway but the gateway.
    lab.rx(C.port, announcement(&guest, GATEWAY1.ip6())).only_balanced();
    assert_eq!(known(&lab, link, GATEWAY1.ip6()), None);
}

#[test]
fn a_shared_uplink_learns_from_what_the_host_is_told() {
    let mut spec = dual();
    spec.uplinks[0].mode = UplinkMode::Shared;
    let mut lab = Lab::new(spec);
    let link = Link::Uplink(UPLINK);
    let reply = advertisement(&ROUTER, ROUTER.ip6(), &UP, UP.ip6());
    lab.rx(UP.port, &reply).moved("consumed", 1);
    assert_eq!(known(&lab, link, ROUTER.ip6()), None);
    wanted(&lab, link, ROUTER.ip6());
    lab.rx(UP.port, &reply).moved("consumed", 1);
    assert_eq!(known(&lab, link, ROUTER.ip6()), Some(ROUTER.mac));
    // What the host itself says is heard here, too.
    let own = announcement(&UP, ROUTER.ip6());
    lab.rx(UP.port, own).moved("consumed", 1);
    assert_eq!(known(&lab, link, ROUTER.ip6()), Some(ROUTER.mac));
}

#[test]
fn nobody_fills_the_neighbor_table_from_the_wire() {
    let mut lab = Lab::new(dual());
    for n in 0..200u8 {
        let stranger = Host { ip: [203, 0, 113, n].into(), ..NEIGHBOR };
        let foreign = "2001:db8::250".parse().unwrap();
        lab.rx(UP.port, solicitation(&stranger, stranger.ip6(), foreign)).moved("consumed", 1);
        lab.rx(UP.port, announcement(&stranger, stranger.ip6())).moved("consumed", 1);
        // From outside the prefix, to us.
        let liar = Host { ip: [198, 18, 0, n].into(), ..NEIGHBOR };
        lab.rx(UP.port, solicitation(&liar, liar.ip6(), UP.ip6()))
            .tx(UP.port, answer(&UP, UP.ip6(), &liar, liar.ip6()))
            .answered();
    }
}

/// What the gateway of network 1 advertises to the holder of `dst`.
fn router_advertisement(lifetime: u16, mtu: Option<u32>, to: Mac, dst: Ipv6Addr) -> Packet {
    let [high, low] = lifetime.to_be_bytes();
    let mut rest = vec![0; 8];
    rest.extend([1, 1]);
    rest.extend(GATEWAY1.mac.0);
    if let Some(mtu) = mtu {
        rest.extend([5, 1, 0, 0]);
        rest.extend(mtu.to_be_bytes());
    }
    // On the link, and nobody is to make addresses of it.
    rest.extend([3, 4, 120, 0x80]);
    rest.extend(2_592_000u32.to_be_bytes());
    rest.extend(604_800u32.to_be_bytes());
    rest.extend([0; 4]);
    rest.extend("fd00::a01:0".parse::<Ipv6Addr>().unwrap().octets());
    icmp6(&GATEWAY1, &A, 134, 0, [64, 0, high, low])
        .payload(&rest)
        .src6(GATEWAY1.link_local())
        .dst6(dst)
        .macs(GATEWAY1.mac, to)
        .ttl(255)
}

fn all_nodes() -> Ipv6Addr {
    "ff02::1".parse().unwrap()
}

/// Rows: RFC 4861 §6.2.6.
#[test]
fn who_asks_for_routers_is_told() {
    let mut lab = Lab::new(dual());
    lab.reconfigure(|spec| spec.networks[0].ra = true);
    let others = [B.port, C.port, GATEWAY1.port];
    let alone = router_advertisement(1800, Some(1500), A.mac, A.link_local());
    let to_all = router_advertisement(1800, Some(1500), ALL_NODES, all_nodes());
    for (own, expected) in [(A.link_local(), &alone), (Ipv6Addr::UNSPECIFIED, &to_all)] {
        // There may be other routers.
        let question = router_solicitation(&A, own);
        lab.rx(A.port, &question)
            .tx(A.port, expected)
            .flooded(&others, &question)
            .moved("generated", 1)
            .moved("replicated", 2);
    }
    // Nothing leaves an internal network; IPv6 needs 1280 bytes.
    lab.reconfigure(|spec| {
        spec.networks[0].internal = true;
        spec.networks[0].mtu = 1200;
    });
    let question = router_solicitation(&A, A.link_local());
    lab.rx(A.port, &question)
        .tx(A.port, router_advertisement(0, None, A.mac, A.link_local()))
        .flooded(&others, &question)
        .moved("generated", 1)
        .moved("replicated", 2);
    lab.reconfigure(|spec| spec.networks[0].ra = false);
    lab.rx(A.port, &question).flooded(&others, &question).moved("replicated", 2);
}

/// Rows: RFC 4861 §6.2.1, §6.2.4; RFC 4861 §6.2.5.
#[test]
fn the_gateway_advertises_itself_now_and_then() {
    let mut lab = Lab::new(dual());
    lab.reconfigure(|spec| spec.networks[0].ra = true);
    let frame = router_advertisement(1800, Some(1500), ALL_NODES, all_nodes());
    // Three soon, to the containers: the host's stack is behind the very gateway.
    for wait in [1, 16, 16] {
        if wait > 1 {
            lab.after(Duration::from_secs(wait - 1));
        }
        lab.after(Duration::from_secs(1))
            .flooded(&[A.port, B.port, C.port], &frame)
            .moved("generated", 3);
    }
    let mut waits = Vec::new();
    for _ in 0..5 {
        let mut waited = 0;
        let generated = |lab: &Lab| lab.plane.worker_stats()[0].generated;
        let before = generated(&lab);
        while generated(&lab) == before {
            lab.after(Duration::from_secs(1)).only_balanced();
            waited += 1;
        }
        assert_eq!(generated(&lab), before + 3);
        assert!((200..=600).contains(&waited), "{waited}");
        waits.push(waited);
    }
    waits.dedup();
    assert!(waits.len() > 1, "not at random: {waits:?}");
    // It ceases to be a router, and says so three times (RFC 4861 §6.2.5); who asks gets no answer.
    lab.reconfigure(|spec| spec.networks[0].ra = false);
    let last = router_advertisement(0, Some(1500), ALL_NODES, all_nodes());
    for wait in [1, 3, 3] {
        if wait > 1 {
            lab.after(Duration::from_secs(wait - 1));
        }
        lab.after(Duration::from_secs(1))
            .flooded(&[A.port, B.port, C.port], &last)
            .moved("generated", 3);
    }
    lab.after(Duration::from_secs(1000));
    // A network that comes again is a new one.
    lab.reconfigure(|spec| spec.networks[0].ra = true);
    lab.after(Duration::from_secs(1))
        .flooded(&[A.port, B.port, C.port], &frame)
        .moved("generated", 3);
}
