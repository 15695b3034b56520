use super::*;

fn map(options: &[(&str, &str)]) -> BTreeMap<String, String> {
    options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

#[test]
fn docker_names_are_aliases() {
    let options = map(&[
        ("com.docker.network.bridge.enable_icc", "false"),
        ("com.docker.network.bridge.enable_ip_masquerade", "0"),
        ("com.docker.network.bridge.gateway_mode_ipv4", "nat"),
        ("com.docker.network.bridge.gateway_mode_ipv6", "routed"),
        ("com.docker.network.bridge.host_binding_ipv4", "127.0.0.1"),
        ("com.docker.network.container_iface_prefix", "net"),
        ("com.docker.network.driver.mtu", "1400"),
        ("link", "tap"),
        ("querier", "true"),
        ("ra", "0"),
        ("snooping", "1"),
        ("mss_clamp", "off"),
        ("spoof_check", "f"),
        ("storm_limit", "0"),
        ("conntrack_limit", "1000"),
        ("endpoint_independent", "true"),
        ("fdb_limit", "16"),
        ("helpers", "tftp,ftp"),
        ("timeout_fdb_ageing", "20"),
        ("timeout_udp", "60"),
    ]);
    let parsed = NetworkOptions::parse(Driver::Bridge, &options).unwrap();
    let expected = NetworkOptions {
        conntrack_limit: Some(1000),
        endpoint_independent: true,
        fdb_limit: Some(16),
        gateway_mode: GatewayMode::Nat,
        gateway_mode_ipv6: Some(GatewayMode::Routed),
        helpers: Helpers { ftp: true, tftp: true },
        host_binding: Some(Ipv4Addr::LOCALHOST),
        icc: false,
        iface_prefix: "net".to_owned(),
        link: Some(LinkKind::Tap),
        masquerade: false,
        mss_clamp: false,
        mtu: Some(1400),
        querier: true,
        ra: false,
        snooping: true,
        fdb_ageing: Some(20),
        spoof_check: false,
        storm_limit: 0,
        timeouts: BTreeMap::from([("timeout_udp", 60)]),
    };
    assert_eq!(parsed, expected);
    assert_eq!(parsed.routed(), Routed { ipv4: false, ipv6: true });
    let short = canonical(Driver::Bridge, &options).unwrap();
    assert_eq!(short.get("mtu").map(String::as_str), Some("1400"));
    assert!(short.keys().all(|key| !key.contains('.')));
}

#[test]
fn every_timer_can_be_a_networks_own() {
    let everywhere = Timeouts { udp: Duration::from_secs(7), ..Timeouts::default() };
    assert_eq!(NetworkOptions::default().timers(&everywhere), None);
    for (at, (name, timer)) in TIMERS.iter().enumerate() {
        let seconds = 1000 + at as u64;
        let options = map(&[(name, &seconds.to_string())]);
        let parsed = NetworkOptions::parse(Driver::Bridge, &options).unwrap();
        let mut expected = everywhere;
        *timer(&mut expected) = Duration::from_secs(seconds);
        assert_eq!(parsed.timers(&everywhere), Some(expected), "{name}");
    }
    assert_eq!(TIMERS.len(), 13, "those of `[timeouts]` but for the FDB's and the grace");
    let options = map(&[(FDB_AGEING, "9")]);
    let parsed = NetworkOptions::parse(Driver::Bridge, &options).unwrap();
    assert_eq!((parsed.fdb_ageing, parsed.timers(&everywhere)), (Some(9), None));
}

#[test]
fn each_family_may_be_isolated() {
    let addresses = [IpAddr::from([10, 1, 0, 1]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1])];
    for (options, expected) in [
        (&[][..], [false, false]),
        (&[("gateway_mode", "nat")], [false, false]),
        (&[("gateway_mode", "isolated")], [true, true]),
        (&[("gateway_mode_ipv6", "isolated")], [false, true]),
        (&[("gateway_mode", "isolated"), ("gateway_mode_ipv6", "routed")], [true, false]),
    ] {
        let options = map(options);
        assert_eq!(addresses.map(|address| is_isolated(&options, address)), expected);
        let routed = NetworkOptions::parse(Driver::Bridge, &options).unwrap().routed();
        assert!(!(routed.ipv4 && expected[0] || routed.ipv6 && expected[1]));
    }
}

#[test]
fn faults_are_named() {
    let table = [
        (
            ("colour", "red"),
            "option \"colour\" is unknown; known options of driver bridge are conntrack_limit, endpoint_independent, fdb_limit, gateway_mode, gateway_mode_ipv6, helpers, host_binding, icc, iface_prefix, link, masquerade, mss_clamp, mtu, querier, ra, snooping, spoof_check, storm_limit, timeout_fdb_ageing, timeout_fragments, timeout_fragments_v6, timeout_icmp, timeout_other, timeout_sctp_established, timeout_sctp_other, timeout_tcp_closing, timeout_tcp_established, timeout_tcp_opening, timeout_tcp_reset, timeout_tcp_time_wait, timeout_udp, timeout_udp_dns",
        ),
        (("conntrack_limit", "0"), "is not a number from 1 to 16777216"),
        (("fdb_limit", "many"), "is not a number from 1 to 16777216"),
        (("parent", "eth0"), "option \"parent\" is not one of driver bridge"),
        (("mtu", "575"), "option mtu=575: is not a number from 576 to 65521"),
        (("mtu", "1e3"), "option mtu=1e3: is not a number"),
        (("icc", "yes"), "option icc=yes: is neither true nor false"),
        (("ra", "maybe"), "option ra=maybe: is neither true nor false"),
        (("querier", "maybe"), "option querier=maybe: is neither true nor false"),
        (("snooping", "maybe"), "option snooping=maybe: is neither true nor false"),
        (("gateway_mode", "x"), "is neither nat, routed nor isolated"),
        (("helpers", "ftp,sip"), "option helpers=ftp,sip: is not a list of ftp and tftp"),
        (("helpers", "ftp,"), "is not a list of ftp and tftp"),
        (("link", "x"), "is neither tap nor veth"),
        (("mss_clamp", "true"), "is neither auto nor off"),
        (("endpoint_independent", "yes"), "is neither true nor false"),
        (("timeout_udp", "0"), "is not a number of seconds from 1 to 31536000"),
        (("timeout_fdb_ageing", "0"), "is not a number of seconds from 1 to 31536000"),
        (("timeout_tcp_established", "5d"), "is not a number of seconds from 1 to 31536000"),
        (("iface_prefix", "a/b"), "must be 1 to 12"),
        (("iface_prefix", ""), "must be 1 to 12"),
        (("host_binding", "::1"), "is not an IPv4 address"),
        (("storm_limit", "-1"), "is not a number from 0 to 1000000000; 0: no limit"),
        (("storm_limit", "1000000001"), "is not a number from 0 to 1000000000"),
    ];
    for (option, fault) in table {
        let error = NetworkOptions::parse(Driver::Bridge, &map(&[option])).unwrap_err();
        assert!(error.message.contains(fault), "{option:?}: {}", error.message);
    }
    for (option, fault) in [
        (
            ("colour", "red"),
            "option \"colour\" is unknown; known options of an endpoint are trunk, trusted, vlan",
        ),
        (
            ("link", "tap"),
            "option \"link\" is unknown to endpoints, which know trunk, trusted, vlan: it is one of networks",
        ),
        (("trusted", "yes"), "option trusted=yes: is neither true nor false"),
        (("vlan", "4095"), "option vlan=4095: is not a number from 0 to 4094"),
        (("vlan", "-1"), "option vlan=-1: is not a number from 0 to 4094"),
        (("trunk", "0"), "option trunk=0: is no list of VLANs from 1 to 4094"),
        (("trunk", "10,4095"), "option trunk=10,4095: is no list of VLANs"),
        (("trunk", "1-65535"), "option trunk=1-65535: is no list of VLANs"),
        (("trunk", "30-20"), "option trunk=30-20: is no list of VLANs"),
        (("trunk", ""), "option trunk=: is no list of VLANs"),
        (("trunk", "10,,20"), "is no list of VLANs"),
    ] {
        let error = EndpointOptions::parse(&map(&[option])).unwrap_err();
        assert!(error.message.contains(fault), "{option:?}: {}", error.message);
    }
    assert_eq!(EndpointOptions::parse(&map(&[])), Ok(EndpointOptions::default()));
    let trusted = EndpointOptions::parse(&map(&[("trusted", "true")]));
    assert_eq!(trusted, Ok(EndpointOptions { trusted: true, vlans: Vlans::All }));
    let twice = map(&[("mtu", "1400"), ("com.docker.network.driver.mtu", "1400")]);
    let error = canonical(Driver::Bridge, &twice).unwrap_err();
    assert!(error.message.contains("\"mtu\" is given twice"), "{}", error.message);
}

#[test]
fn an_endpoint_is_in_the_vlans_it_names() {
    let vlans = |options: &[(&str, &str)]| EndpointOptions::parse(&map(options)).unwrap().vlans;
    let trunk = |native, tagged: &[u16]| Vlans::Trunk {
        native,
        tagged: Box::new(tagged.iter().copied().collect()),
    };
    assert_eq!(vlans(&[("vlan", "10")]), Vlans::Access(10));
    assert_eq!(vlans(&[("vlan", "0")]), Vlans::Access(0));
    assert_eq!(vlans(&[("trunk", "10, 20-22")]), trunk(None, &[10, 20, 21, 22]));
    assert_eq!(vlans(&[("trunk", "4094"), ("vlan", "5")]), trunk(Some(5), &[4094]));
    let both = EndpointOptions::parse(&map(&[("trunk", "1-10"), ("vlan", "5")])).unwrap_err();
    assert!(both.message.contains("option vlan=5: is in trunk too"), "{}", both.message);
}
