//! Tables of requests that are wrong by themselves, and of their right neighbors.

use super::*;
use crate::api::types::RouteAdd;

fn network_json(json: &str) -> Result<NetworkOptions> {
    network(&serde_json::from_str(json).unwrap())
}

#[test]
fn networks() {
    let fine = [
        r#"{"name":"n"}"#,
        r#"{"name":"n","subnets":[{"subnet":"10.1.0.0/30"}]}"#,
        r#"{"name":"n","subnets":[{"subnet":"10.1.0.0/24","gateway":"10.1.0.254",
            "ip_range":"10.1.0.128/25","aux_addresses":{"a":"10.1.0.5"}},{"subnet":"10.2.0.0/24"}]}"#,
        r#"{"name":"n","ipv6":true,"options":{"mtu":"1280"}}"#,
        r#"{"name":"n","subnets":[{"subnet":"fd00:1::/64","gateway":"fd00:1::ffff:ffff:ffff:ffff",
            "ip_range":"fd00:1::8000:0:0:0/65","aux_addresses":{"a":"fd00:1::5"}}]}"#,
        r#"{"name":"n","subnets":[{"subnet":"fd00::/48"},{"subnet":"fd00:0:1::/126"}]}"#,
    ];
    for json in fine {
        network_json(json).unwrap();
    }
    let subnet = |fields: &str| format!(r#"{{"name":"n","subnets":[{{{fields}}}]}}"#);
    let wrong = [
        (r#"{"name":"n","driver":"host"}"#.to_owned(), "exists always"),
        (r#"{"name":"n","driver":"overlay"}"#.to_owned(), "driver overlay is not built yet"),
        (
            r#"{"name":"n","ipv6":true,"options":{"mtu":"1279"}}"#.to_owned(),
            "IPv6 needs an MTU of 1280 or more",
        ),
        (
            r#"{"name":"n","subnets":[{"subnet":"fd00::/64"}],"options":{"mtu":"1279"}}"#
                .to_owned(),
            "IPv6 needs an MTU of 1280 or more",
        ),
        (r#"{"name":"n","options":{"x":"y"}}"#.to_owned(), "known options of driver bridge are"),
        (subnet(r#""subnet":"10.1.0.1/24""#), "has host bits set; write 10.1.0.0/24"),
        (subnet(r#""subnet":"10.1.0.0/31""#), "prefix length must be from 1 to 30"),
        (subnet(r#""subnet":"0.0.0.0/0""#), "prefix length must be"),
        (subnet(r#""subnet":"10.1.0.0/32""#), "prefix length must be from 1 to 30"),
        (subnet(r#""subnet":"0.1.0.0/16""#), "overlaps 0.0.0.0/8, which is for \"this host\""),
        (subnet(r#""subnet":"127.0.0.0/24""#), "overlaps 127.0.0.0/8, which is loopback; choose"),
        (subnet(r#""subnet":"169.254.0.0/16""#), "overlaps 169.254.0.0/16, which is link-local"),
        (subnet(r#""subnet":"169.254.9.0/24""#), "overlaps 169.254.0.0/16, which is link-local"),
        (subnet(r#""subnet":"224.0.0.0/24""#), "overlaps 224.0.0.0/4, which is multicast"),
        (subnet(r#""subnet":"240.0.0.0/8""#), "overlaps 240.0.0.0/4, which is reserved"),
        (subnet(r#""subnet":"255.255.255.0/24""#), "overlaps 240.0.0.0/4, which is reserved"),
        // Begins with addresses that hosts may have.
        (subnet(r#""subnet":"126.0.0.0/7""#), "overlaps 127.0.0.0/8, which is loopback"),
        (subnet(r#""subnet":"168.0.0.0/7""#), "overlaps 169.254.0.0/16, which is link-local"),
        (subnet(r#""subnet":"128.0.0.0/1""#), "overlaps 169.254.0.0/16"),
        (subnet(r#""subnet":"fd00::1/64""#), "has host bits set; write fd00::/64"),
        (subnet(r#""subnet":"fd00::/47""#), "prefix length must be from 48 to 126"),
        (subnet(r#""subnet":"fd00::/127""#), "prefix length must be from 48 to 126"),
        (subnet(r#""subnet":"fe80::/64""#), "overlaps fe80::/10, which is link-local"),
        (subnet(r#""subnet":"ff02::/64""#), "overlaps ff00::/8, which is multicast"),
        (subnet(r#""subnet":"fd00::/64","gateway":"10.1.0.1""#), "is IPv4"),
        (subnet(r#""subnet":"fd00::/64","gateway":"fd00::""#), "is the routers' anycast address"),
        (subnet(r#""subnet":"fd00::/64","gateway":"fd01::1""#), "gateway fd01::1 is outside"),
        (subnet(r#""subnet":"10.1.0.0/24","gateway":"10.2.0.1""#), "gateway 10.2.0.1 is outside"),
        (subnet(r#""subnet":"10.1.0.0/24","gateway":"10.1.0.0""#), "is the network address"),
        (subnet(r#""subnet":"10.1.0.0/24","gateway":"10.1.0.255""#), "is the broadcast address"),
        (subnet(r#""subnet":"10.1.0.0/24","gateway":"fd00::1""#), "is IPv6"),
        (subnet(r#""subnet":"10.1.0.0/24","ip_range":"10.2.0.0/25""#), "does not lie in it"),
        (subnet(r#""subnet":"10.1.0.0/24","ip_range":"10.1.0.1/25""#), "write 10.1.0.0/25"),
        (
            subnet(
                r#""subnet":"10.1.0.0/24","gateway":"10.1.0.9","aux_addresses":{"a":"10.1.0.9"}"#,
            ),
            "aux-address a=10.1.0.9 is the gateway's address",
        ),
        (
            subnet(r#""subnet":"10.1.0.0/24","aux_addresses":{"a":"10.1.0.9","b":"10.1.0.9"}"#),
            "aux-address b=10.1.0.9 has the address of another",
        ),
        (
            r#"{"name":"n","subnets":[{"subnet":"10.0.0.0/8"},{"subnet":"10.1.0.0/24"}]}"#
                .to_owned(),
            "subnet 10.1.0.0/24 overlaps subnet 10.0.0.0/8 of the same network",
        ),
    ];
    for (json, fault) in wrong {
        let error = network_json(&json).unwrap_err();
        assert!(error.message.starts_with("network \"n\": "), "{}", error.message);
        assert!(error.message.contains(fault), "{json}: {}", error.message);
        assert_eq!(error.exit_code(), 2);
    }
}

#[test]
fn flags_find_their_subnet() {
    let nets: Vec<IpNet> = vec!["10.1.0.0/24".parse().unwrap(), "10.2.0.0/24".parse().unwrap()];
    let gateways: Vec<IpAddr> = vec!["10.2.0.1".parse().unwrap()];
    let ranges: Vec<IpNet> = vec!["10.1.0.128/25".parse().unwrap()];
    let aux = BTreeMap::from([("a".to_owned(), "10.2.0.7".parse().unwrap())]);
    let made = subnets(&nets, &gateways, &ranges, &aux).unwrap();
    assert_eq!(made[0].gateway, None);
    assert_eq!(made[0].ip_range, Some(ranges[0]));
    assert_eq!(made[1].gateway, Some(gateways[0]));
    assert_eq!(made[1].aux_addresses, aux);

    let none = BTreeMap::new();
    let error = subnets(&[], &gateways, &[], &none).unwrap_err();
    assert!(error.message.contains("gateway 10.2.0.1 needs a subnet"), "{}", error.message);
    let error = subnets(&nets[..1], &gateways, &[], &none).unwrap_err();
    assert!(error.message.contains("lies in none of the subnets"), "{}", error.message);
    let two = [gateways[0], "10.2.0.2".parse().unwrap()];
    let error = subnets(&nets, &two, &[], &none).unwrap_err();
    assert!(error.message.contains("has two gateways, 10.2.0.1 and 10.2.0.2"), "{}", error.message);
}

#[test]
fn sandboxes() {
    let fine = [
        r#"{"name":"s"}"#,
        r#"{"name":"s","networks":["a","b"],"ip":"10.0.0.2","mac":"02:00:00:00:00:01"}"#,
        r#"{"name":"s","networks":["a"],"ip6":"fd00::2"}"#,
        r#"{"name":"s","networks":["none"],"netns":"pid:1"}"#,
        r#"{"name":"s","networks":["container:t"]}"#,
        r#"{"name":"s","publish":["80:80","80:80/udp","81:80","80","80"]}"#,
        r#"{"name":"s","publish":["127.0.0.1:80:80","127.0.0.2:80:80"]}"#,
    ];
    for json in fine {
        sandbox(&serde_json::from_str(json).unwrap()).unwrap();
    }
    let wrong = [
        (r#""networks":["none","a"]"#, "network none stands alone"),
        (r#""networks":["host"],"publish":["80:80"]"#, "-p needs an interface, which network host"),
        (r#""networks":["none"],"ip":"10.0.0.1""#, "--ip needs an interface"),
        (r#""networks":["host"],"netns":"/run/netns/x""#, "both say which namespace"),
        (r#""networks":["container:s"]"#, "cannot share its own namespace"),
        (r#""networks":["a","a"]"#, "network a is given twice"),
        (r#""ip6":"ff02::2""#, "cannot be a host's"),
        (r#""ip6":"::1""#, "cannot be a host's"),
        (r#""ip":"224.0.0.1""#, "cannot be a host's"),
        (r#""mac":"01:00:5e:00:00:01""#, "cannot be an interface's"),
        (r#""mac":"00:00:00:00:00:00""#, "cannot be an interface's"),
        (
            r#""publish":["8000-8010:1-11","127.0.0.1:8005:80"]"#,
            "overlaps publish 8000-8010:1-11/tcp",
        ),
    ];
    for (fields, fault) in wrong {
        let json = format!(r#"{{"name":"s",{fields}}}"#);
        let error = sandbox(&serde_json::from_str(&json).unwrap()).unwrap_err();
        assert!(error.message.starts_with("sandbox \"s\": "), "{}", error.message);
        assert!(error.message.contains(fault), "{json}: {}", error.message);
    }
}

#[test]
fn uplinks() {
    let fine = [
        r#"{"interface":"eth0"}"#,
        r#"{"interface":"eth0","mode":"dedicated","addresses":["192.0.2.2/24"],"gateway":"192.0.2.1"}"#,
        r#"{"interface":"eth0","mode":"dedicated","addresses":["192.0.2.2/31","192.0.2.9/32"]}"#,
    ];
    for json in fine {
        uplink(&serde_json::from_str(json).unwrap()).unwrap();
    }
    let wrong = [
        (r#""interface":"a/b""#, "not an interface name"),
        (r#""interface":"sixteen-bytes-ab""#, "not an interface name"),
        (r#""interface":"e","mode":"dedicated""#, "add --address CIDR"),
        (r#""interface":"e","addresses":["192.0.2.0/24"]"#, "network or broadcast address"),
        (r#""interface":"e","addresses":["192.0.2.2/24","192.0.2.2/25"]"#, "is given twice"),
        (
            r#""interface":"e","addresses":["192.0.2.2/24"],"gateway":"192.0.3.1""#,
            "lies in the prefix of none",
        ),
        (r#""interface":"e","addresses":["192.0.2.2/24"],"gateway":"192.0.2.2""#, "own address"),
    ];
    for (fields, fault) in wrong {
        let error = uplink(&serde_json::from_str(&format!("{{{fields}}}")).unwrap()).unwrap_err();
        assert!(error.message.starts_with("uplink \""), "{}", error.message);
        assert!(error.message.contains(fault), "{fields}: {}", error.message);
    }
}

#[test]
fn fdb_entries_name_one_place() {
    let base = r#""network":"n","mac":"02:00:00:00:00:01""#;
    let read = |fields: &str| serde_json::from_str(&format!("{{{base}{fields}}}")).unwrap();
    fdb_add(&read(r#","sandbox":"s""#)).unwrap();
    fdb_add(&read(r#","port":"s/eth0","vlan":4094"#)).unwrap();
    for (fields, fault) in [
        ("", "say where it is"),
        (r#","sandbox":"s","port":"p""#, "not both"),
        (r#","sandbox":"s","vlan":4095"#, "VLAN 4095 is above 4094"),
    ] {
        let error = fdb_add(&read(fields)).unwrap_err();
        assert!(error.message.contains(fault), "{}", error.message);
    }
}

#[test]
fn routes() {
    let read = |json: &str| serde_json::from_str::<RouteAdd>(json).unwrap();
    route(&read(r#"{"destination":"0.0.0.0/0","via":"192.0.2.1","uplink":"eth0"}"#)).unwrap();
    for (json, fault) in [
        (r#"{"destination":"10.1.2.3/16","via":"192.0.2.1"}"#, "write 10.1.0.0/16"),
        (r#"{"destination":"10.1.0.0/16","via":"224.0.0.1"}"#, "cannot be a host's"),
        (r#"{"destination":"10.1.0.0/16","via":"192.0.2.1","uplink":"a/b"}"#, "not an interface"),
    ] {
        let error = route(&read(json)).unwrap_err();
        assert!(error.message.starts_with("route 10.1."), "{}", error.message);
        assert!(error.message.contains(fault), "{}", error.message);
    }
}

#[test]
fn networks_that_are_but_a_name_are_chosen_at_creation_only() {
    let request = |json: &str| serde_json::from_str::<ConnectRequest>(json).unwrap();
    let plain = request(r#"{"sandbox":"s"}"#);
    let name = |text: &str| text.parse::<Name>().unwrap();
    connect(&name("app"), &plain).unwrap();
    disconnect(&name("app")).unwrap();
    for network in ["host", "none"] {
        let refused = [connect(&name(network), &plain), disconnect(&name(network))];
        for error in refused.map(Result::unwrap_err) {
            assert_eq!(error.exit_code(), 2);
            assert!(
                error.message.starts_with(&format!("network {network:?}: cannot be ")),
                "{error}"
            );
        }
    }
    connect(&name("app"), &request(r#"{"sandbox":"s","options":{"trusted":"true"}}"#)).unwrap();
    let odd = request(r#"{"sandbox":"s","options":{"icc":"true"}}"#);
    let error = connect(&name("app"), &odd).unwrap_err();
    assert!(error.message.starts_with("sandbox \"s\": option \"icc\" is unknown"), "{error}");
    let multicast = request(r#"{"sandbox":"s","ip":"224.0.0.1"}"#);
    let error = connect(&name("app"), &multicast).unwrap_err();
    assert!(error.message.starts_with("sandbox \"s\": address 224.0.0.1"), "{error}");
}

#[test]
fn fdb_entries_to_remove() {
    let remove = |vlan: u16| {
        let json = format!(r#"{{"network":"n","mac":"02:00:00:00:00:01","vlan":{vlan}}}"#);
        fdb_remove(&serde_json::from_str(&json).unwrap())
    };
    remove(0).unwrap();
    remove(MAX_VLAN).unwrap();
    let error = remove(MAX_VLAN + 1).unwrap_err();
    assert_eq!(error.message, "fdb 02:00:00:00:00:01: VLAN 4095 is above 4094");
}
