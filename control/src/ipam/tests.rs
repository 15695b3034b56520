//! IPAM against a model: a plain set of addresses.

use proptest::prelude::*;

use super::*;
use crate::config::Defaults;

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn plan(subnet: &str) -> SubnetPlan {
    SubnetPlan::new(net(subnet), None, None, BTreeMap::new()).unwrap()
}

#[test]
fn the_first_subnet_that_overlaps_nothing_is_taken() {
    let pools = Defaults::default().pools;
    assert_eq!(next_subnet(&pools, &[]), Ok(net("172.16.0.0/16")));
    let taken = [net("172.16.5.0/24"), net("172.17.0.0/16")];
    assert_eq!(next_subnet(&pools, &taken), Ok(net("172.18.0.0/16")));
    assert_eq!(
        next_subnet(&pools, &[net("172.16.0.0/13"), net("172.24.0.1/32")]),
        Ok(net("172.25.0.0/16"))
    );
    let full = next_subnet(&pools, &[net("172.0.0.0/8")]).unwrap_err();
    assert!(full.is_conflict());
    assert!(full.to_string().contains("172.16.0.0/12"), "{full}");
}

#[test]
fn the_next_pool_serves_when_the_first_is_full() {
    let pools =
        [Pool { base: net("10.0.0.0/30"), size: 31 }, Pool { base: net("10.9.0.0/16"), size: 24 }];
    let taken = [net("10.0.0.0/31"), net("10.0.0.2/31")];
    assert_eq!(next_subnet(&pools, &taken), Ok(net("10.9.0.0/24")));
}

#[test]
fn a_pool_at_the_end_of_the_address_space_ends() {
    let pools = [Pool { base: net("255.255.0.0/16"), size: 24 }];
    assert!(next_subnet(&pools, &[net("255.0.0.0/8")]).is_err());
}

#[test]
fn a_plan_is_checked() {
    let new = |subnet: &str, gateway: Option<&str>, range: Option<&str>| {
        SubnetPlan::new(
            net(subnet),
            gateway.map(|g| g.parse().unwrap()),
            range.map(net),
            BTreeMap::new(),
        )
    };
    assert_eq!(plan("10.1.0.0/24").gateway, Ipv4Addr::new(10, 1, 0, 1));
    assert_eq!(plan("10.1.0.0/31").gateway, Ipv4Addr::new(10, 1, 0, 0));
    assert!(matches!(new("10.1.0.5/24", None, None), Err(IpamError::HostBits { .. })));
    assert!(matches!(new("10.1.0.5/32", None, None), Err(IpamError::TooSmall { .. })));
    assert!(matches!(new("0.0.0.0/0", None, None), Err(IpamError::NotForContainers { .. })));
    assert!(matches!(new("239.1.0.0/16", None, None), Err(IpamError::NotForContainers { .. })));
    assert!(matches!(
        new("10.1.0.0/24", Some("10.2.0.1"), None),
        Err(IpamError::Outside { what: "gateway", .. })
    ));
    assert!(matches!(
        new("10.1.0.0/24", Some("10.1.0.255"), None),
        Err(IpamError::NotAHost { what: "gateway", .. })
    ));
    assert!(matches!(
        new("10.1.0.0/24", None, Some("10.0.0.0/8")),
        Err(IpamError::Outside { what: "ip-range", .. })
    ));
}

#[test]
fn a_released_address_is_not_the_next_one_given() {
    let mut pool = AddressPool::new(plan("10.1.0.0/29"), 0);
    let first = pool.allocate().unwrap();
    assert_eq!(first, Ipv4Addr::new(10, 1, 0, 2));
    assert!(pool.release(first));
    assert!(!pool.release(first));
    let given: Vec<Ipv4Addr> = (0..5).map(|_| pool.allocate().unwrap()).collect();
    assert_eq!(given.last(), Some(&first));
    assert_eq!(pool.allocate(), Err(IpamError::Exhausted(net("10.1.0.0/29").into())));
}

#[test]
fn an_allocation_that_came_to_nothing_leaves_no_gap() {
    let mut pool = AddressPool::new(plan("10.1.0.0/30"), 0);
    let only = pool.allocate().unwrap();
    pool.retract(only);
    assert_eq!(pool.allocate(), Ok(only));
    let mut pool = AddressPool::new(plan("10.1.0.0/24"), 0);
    let (first, second) = (pool.allocate().unwrap(), pool.allocate().unwrap());
    // Undone last thing first.
    pool.retract(second);
    pool.retract(first);
    assert_eq!(pool.allocate(), Ok(first));
    // One that was asked for by name moves nothing.
    pool.allocate_this(Ipv4Addr::new(10, 1, 0, 9)).unwrap();
    pool.retract(Ipv4Addr::new(10, 1, 0, 9));
    assert_eq!(pool.allocate(), Ok(second));
}

#[test]
fn the_cursor_survives() {
    let mut pool = AddressPool::new(plan("10.1.0.0/24"), 0);
    let first = pool.allocate().unwrap();
    pool.release(first);
    let mut next = AddressPool::new(plan("10.1.0.0/24"), pool.cursor());
    assert_eq!(next.allocate(), Ok(Ipv4Addr::new(10, 1, 0, 3)));
}

#[test]
fn reserved_addresses_are_refused_by_name() {
    let aux = BTreeMap::from([("router".to_owned(), Ipv4Addr::new(10, 1, 0, 9))]);
    let plan = SubnetPlan::new(net("10.1.0.0/24"), None, None, aux).unwrap();
    let mut pool = AddressPool::new(plan, 0);
    let aux = pool.allocate_this(Ipv4Addr::new(10, 1, 0, 9)).unwrap_err();
    assert_eq!(aux.to_string(), "address 10.1.0.9 is reserved as aux-address \"router\"");
    let gateway = pool.allocate_this(Ipv4Addr::new(10, 1, 0, 1)).unwrap_err();
    assert_eq!(gateway.to_string(), "address 10.1.0.1 is reserved as the gateway");
}

#[test]
fn macs_follow_addresses() {
    assert_eq!(mac_for(Ipv4Addr::new(172, 30, 0, 2)).to_string(), "02:42:ac:1e:00:02");
}

fn net6(text: &str) -> Ipv6Net {
    text.parse().unwrap()
}

fn plan6(subnet: &str) -> SubnetPlan<Ipv6Net> {
    SubnetPlan::new(net6(subnet), None, None, BTreeMap::new()).unwrap()
}

fn ip6(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

#[test]
fn ipv6_addresses_are_given_out_one_after_the_other() {
    let mut pool = AddressPool::new(plan6("fd00:1::/64"), 0);
    assert_eq!(pool.plan().gateway, ip6("fd00:1::1"));
    assert_eq!(pool.allocate(), Ok(ip6("fd00:1::2")));
    assert_eq!(pool.allocate(), Ok(ip6("fd00:1::3")));
    // The last is a host's as any other; the first is the routers'.
    pool.allocate_this(ip6("fd00:1::ffff:ffff:ffff:ffff")).unwrap();
    let anycast = pool.allocate_this(ip6("fd00:1::")).unwrap_err().to_string();
    assert_eq!(
        anycast,
        "address fd00:1:: is the anycast address of the routers of subnet fd00:1::/64"
    );
    assert_eq!(
        pool.allocate_this(ip6("fd00:1::3")),
        Err(IpamError::InUse(ip6("fd00:1::3").into()))
    );
    // The cursor goes round at the very end of the address space, too.
    let mut last = AddressPool::new(plan6("fd00:1::/126"), ip6("fd00:1::3").to_bits());
    assert_eq!(last.allocate(), Ok(ip6("fd00:1::3")));
    assert_eq!(last.allocate(), Ok(ip6("fd00:1::2")));
    assert_eq!(last.allocate(), Err(IpamError::Exhausted(net6("fd00:1::/126").into())));
}

#[test]
fn ipv6_plans_are_checked() {
    let new = |subnet: &str, gateway: Option<&str>| {
        SubnetPlan::new(net6(subnet), gateway.map(ip6), None, BTreeMap::new())
    };
    assert_eq!(new("2001:db8::/48", Some("2001:db8::ff")).unwrap().gateway, ip6("2001:db8::ff"));
    assert!(matches!(new("fd00::1/64", None), Err(IpamError::HostBits { .. })));
    assert!(matches!(new("fd00::/127", None), Err(IpamError::TooSmall { longest: 126, .. })));
    assert!(matches!(new("fd00::/64", Some("fd01::1")), Err(IpamError::Outside { .. })));
    for block in ["::/64", "::ffff:0:0/96", "fe80::/64", "febf::/16", "ff05::/64", "f000::/4"] {
        let error = new(block, None).unwrap_err();
        assert!(matches!(error, IpamError::NotForContainers { .. }), "{block}: {error}");
        assert!(error.to_string().ends_with("such as fd00:20:1::/64"), "{error}");
    }
}

#[test]
fn an_installation_has_ipv6_prefixes_of_its_own() {
    let pool = local_pool("0123456789abcdef");
    assert_eq!(pool, local_pool("0123456789abcdef"));
    assert_ne!(pool, local_pool("1123456789abcdef"));
    assert_eq!((pool.base.prefix_len(), pool.size), (48, 64));
    assert_eq!(pool.base.trunc(), pool.base);
    assert!(net6("fd00::/8").contains(&pool.base), "{}", pool.base);
    let first = next_subnet(&[pool], &[]).unwrap();
    assert_eq!(first.network(), pool.base.network());
    let second = next_subnet(&[pool], &[first]).unwrap();
    assert_eq!(second.network().to_bits() - first.network().to_bits(), 1 << 64);
    // Neither a scan of 65,536 prefixes nor past the end.
    let half = Ipv6Net::new(pool.base.network(), 49).unwrap();
    let behind = next_subnet(&[pool], &[half]).unwrap();
    assert_eq!(behind.network().to_bits(), half.broadcast().to_bits() + 1);
    assert!(next_subnet(&[pool], &[pool.base]).unwrap_err().is_conflict());
}

#[test]
fn an_ipv6_pool_at_the_end_of_the_address_space_ends() {
    let base = net6("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ff00/120");
    assert!(next_subnet(&[Pool { base, size: 124 }], &[base]).is_err());
}

#[derive(Debug, Clone)]
enum Operation {
    Allocate,
    AllocateThis(u8),
    Release(u8),
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        3 => Just(Operation::Allocate),
        2 => any::<u8>().prop_map(Operation::AllocateThis),
        2 => any::<u8>().prop_map(Operation::Release),
    ]
}

proptest! {
    /// Whatever is asked for: an address is given once, never a reserved one, and allocation fails
    /// exactly when the model finds no free one.
    #[test]
    fn pool_agrees_with_a_set(
        len in 26u8..=31,
        range_len in 0u8..=4,
        range_at in any::<u32>(),
        gateway in proptest::option::of(any::<u8>()),
        aux in proptest::collection::vec(any::<u8>(), 0..3),
        cursor in any::<u32>(),
        operations in proptest::collection::vec(operation(), 1..200),
    ) {
        let subnet = Ipv4Net::new(Ipv4Addr::new(10, 1, 2, 0), len).unwrap();
        let at = |offset: u8| {
            Ipv4Addr::from(u32::from(subnet.network()) + u32::from(offset))
        };
        let range_len = (len + range_len).min(32);
        let range = Ipv4Net::new(
            Ipv4Addr::from(
                u32::from(subnet.network()) | range_at & u32::from(subnet.hostmask())
            ),
            range_len,
        ).unwrap().trunc();
        let aux: BTreeMap<String, Ipv4Addr> =
            aux.iter().enumerate().map(|(i, o)| (i.to_string(), at(*o))).collect();
        let Ok(plan) = SubnetPlan::new(subnet, gateway.map(at), Some(range), aux.clone()) else {
            return Ok(());
        };
        let is_host = |a: Ipv4Addr| {
            subnet.contains(&a)
                && (len == 31 || a != subnet.network() && a != subnet.broadcast())
        };
        let allowed = |a: Ipv4Addr| {
            is_host(a) && a != plan.gateway && !aux.values().any(|x| *x == a)
        };
        let mut model: BTreeSet<Ipv4Addr> = BTreeSet::new();
        let mut pool = AddressPool::new(plan.clone(), cursor.into());
        for operation in operations {
            match operation {
                Operation::Allocate => {
                    let free = (u32::from(range.network())..=u32::from(range.broadcast()))
                        .map(Ipv4Addr::from)
                        .any(|a| allowed(a) && !model.contains(&a));
                    match pool.allocate() {
                        Ok(a) => {
                            prop_assert!(range.contains(&a) && allowed(a));
                            prop_assert!(model.insert(a));
                        }
                        Err(e) => {
                            prop_assert!(!free);
                            prop_assert!(e.is_conflict());
                        }
                    }
                }
                Operation::AllocateThis(offset) => {
                    let a = at(offset);
                    let expected = allowed(a) && !model.contains(&a);
                    prop_assert_eq!(pool.allocate_this(a).is_ok(), expected);
                    if expected {
                        model.insert(a);
                    }
                }
                Operation::Release(offset) => {
                    prop_assert_eq!(pool.release(at(offset)), model.remove(&at(offset)));
                }
            }
        }
    }

    /// The same for IPv6, where a subnet may have more addresses than fit a number of 64 bits.
    #[test]
    fn ipv6_pool_agrees_with_a_set(
        len in 48u8..=126,
        high in any::<bool>(),
        gateway in proptest::option::of(any::<u8>()),
        cursor in any::<u128>(),
        operations in proptest::collection::vec(operation(), 1..200),
    ) {
        // At the lowest and at the highest addresses that there are for containers.
        let base = if high { ip6("feff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") } else { ip6("100::") };
        let subnet = Ipv6Net::new(base, len).unwrap().trunc();
        let at = |offset: u8| {
            Ipv6Addr::from_bits(subnet.network().to_bits().wrapping_add(u128::from(offset)))
        };
        let Ok(plan) = SubnetPlan::new(subnet, gateway.map(at), None, BTreeMap::new()) else {
            return Ok(());
        };
        let allowed = |a: Ipv6Addr| {
            subnet.contains(&a) && a != subnet.network() && a != plan.gateway
        };
        let hosts = (subnet.broadcast().to_bits() - subnet.network().to_bits()) - 1;
        let mut model: BTreeSet<Ipv6Addr> = BTreeSet::new();
        let mut pool = AddressPool::new(plan.clone(), cursor);
        for operation in operations {
            match operation {
                Operation::Allocate => match pool.allocate() {
                    Ok(a) => {
                        prop_assert!(allowed(a), "{a}");
                        prop_assert!(model.insert(a));
                    }
                    Err(e) => {
                        prop_assert!(e.is_conflict());
                        prop_assert_eq!(model.len() as u128, hosts);
                    }
                },
                Operation::AllocateThis(offset) => {
                    let a = at(offset);
                    let expected = allowed(a) && !model.contains(&a);
                    prop_assert_eq!(pool.allocate_this(a).is_ok(), expected);
                    if expected {
                        model.insert(a);
                    }
                }
                Operation::Release(offset) => {
                    prop_assert_eq!(pool.release(at(offset)), model.remove(&at(offset)));
                }
            }
        }
    }

    /// The subnet found overlaps nothing; when none is found, every candidate overlaps something.
    #[test]
    fn subnets_agree_with_a_scan(
        size in 8u8..=14,
        taken in proptest::collection::vec((any::<u32>(), 8u8..=32), 0..40),
    ) {
        let pool = Pool { base: net("10.0.0.0/8"), size };
        let taken: Vec<Ipv4Net> = taken
            .into_iter()
            .map(|(a, len)| {
                Ipv4Net::new(Ipv4Addr::from(0x0a00_0000 | a & 0x00ff_ffff), len).unwrap().trunc()
            })
            .collect();
        let expected = pool
            .base
            .subnets(size)
            .unwrap()
            .find(|c| !taken.iter().any(|t| overlaps(*t, *c)));
        prop_assert_eq!(next_subnet(&[pool], &taken).ok(), expected);
    }
}
