//! Which inside port has which outside one, and for how many connections.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use dataplane::conntrack::{Change, ConnectionEvent};
use dataplane::engine::{Connection, FlowTuple};
use dataplane::packet::types::NetworkId;

/// An inside port with its outside one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mapping {
    pub(super) network: NetworkId,
    pub(super) proto: u8,
    pub(super) inside: SocketAddr,
    pub(super) outside: SocketAddr,
}

impl Mapping {
    /// Of a connection that speaks from another address than its own.
    fn of(connection: &Connection) -> Option<Self> {
        let Connection { network, proto, original, reply, snat, .. } = connection;
        // A client outside whose port was taken keeps its address: it is nobody's inside.
        (*snat && original.src != reply.dst).then_some(Self {
            network: *network,
            proto: *proto,
            inside: SocketAddr::new(original.src, original.src_port),
            outside: SocketAddr::new(reply.dst, reply.dst_port),
        })
    }
}

/// What is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Allocated,
    Released,
}

/// A connection: no two of a network that live have the same.
type Flow = (NetworkId, u8, FlowTuple);

const fn flow_of(connection: &Connection) -> Flow {
    (connection.network, connection.proto, connection.original)
}

/// The mappings that there are, and what for. Connections are known one by one, because one may be told twice:
/// found in the table, and then by an event that happened before.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    flows: HashMap<Flow, Mapping>,
    uses: HashMap<Mapping, u32>,
}

impl Mappings {
    /// Notes what has happened to a connection.
    pub(super) fn note(&mut self, event: &ConnectionEvent, tell: &mut impl FnMut(Told, &Mapping)) {
        match event.change {
            Change::Update => {}
            Change::New => self.enter(&event.connection, tell),
            Change::Destroy(_) => self.leave(&flow_of(&event.connection), tell),
        }
    }

    /// Begins anew from the connections that there are now.
    pub(super) fn renew(
        &mut self,
        connections: &[Connection],
        tell: &mut impl FnMut(Told, &Mapping),
    ) {
        // First what has come: a mapping whose connections have all changed is no news.
        for connection in connections {
            self.enter(connection, tell);
        }
        let now: HashSet<Flow> = connections.iter().map(flow_of).collect();
        let gone: Vec<_> = self.flows.keys().filter(|flow| !now.contains(*flow)).copied().collect();
        for flow in gone {
            self.leave(&flow, tell);
        }
    }

    fn enter(&mut self, connection: &Connection, tell: &mut impl FnMut(Told, &Mapping)) {
        let Some(mapping) = Mapping::of(connection) else { return };
        let flow = flow_of(connection);
        if self.flows.get(&flow) == Some(&mapping) {
            return;
        }
        self.leave(&flow, tell);
        self.flows.insert(flow, mapping);
        let uses = self.uses.entry(mapping).or_insert(0);
        *uses += 1;
        if *uses == 1 {
            tell(Told::Allocated, &mapping);
        }
    }

    fn leave(&mut self, flow: &Flow, tell: &mut impl FnMut(Told, &Mapping)) {
        let Some(mapping) = self.flows.remove(flow) else { return };
        let Some(uses) = self.uses.get_mut(&mapping) else { return };
        *uses -= 1;
        if *uses == 0 {
            self.uses.remove(&mapping);
            tell(Told::Released, &mapping);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::time::Duration;

    use dataplane::conntrack::EndReason;

    use super::*;

    const END: Change = Change::Destroy(EndReason::Timeout);

    fn connection(dst_port: u16) -> Connection {
        let ip = |last: u8| IpAddr::from([192, 0, 2, last]);
        let inside = IpAddr::from([10, 0, 0, 2]);
        Connection {
            proto: 6,
            state: "SYN_SENT",
            original: FlowTuple { src: inside, dst: ip(9), src_port: 40_000, dst_port },
            reply: FlowTuple { src: ip(9), dst: ip(1), src_port: dst_port, dst_port: 50_000 },
            snat: true,
            dnat: false,
            timeout: Duration::ZERO,
            packets: [0; 2],
            bytes: [0; 2],
            network: NetworkId(1),
        }
    }

    fn mapping(connection: &Connection) -> Mapping {
        Mapping::of(connection).unwrap()
    }

    impl Mappings {
        fn noted(&mut self, change: Change, connection: Connection) -> Vec<(Told, Mapping)> {
            let mut told = Vec::new();
            let event = ConnectionEvent { unix_nanos: 0, change, connection };
            self.note(&event, &mut |what, mapping| told.push((what, *mapping)));
            told
        }

        fn renewed(&mut self, connections: &[Connection]) -> Vec<(Told, Mapping)> {
            let mut told = Vec::new();
            self.renew(connections, &mut |what, mapping| told.push((what, *mapping)));
            told
        }
    }

    #[test]
    fn a_mapping_is_told_once() {
        let mut mappings = Mappings::default();
        let shared = mapping(&connection(80));
        assert_eq!(mappings.noted(Change::New, connection(80)), [(Told::Allocated, shared)]);
        assert_eq!(mappings.noted(Change::New, connection(81)), [], "the same mapping");
        assert_eq!(mappings.noted(Change::Update, connection(81)), []);
        assert_eq!(mappings.noted(END, connection(80)), []);
        assert_eq!(mappings.noted(END, connection(80)), [], "it has ended already");
        assert_eq!(mappings.noted(END, connection(81)), [(Told::Released, shared)]);
        assert!(mappings.flows.is_empty() && mappings.uses.is_empty());
    }

    #[test]
    fn who_is_not_translated_has_no_mapping() {
        let mut mappings = Mappings::default();
        let plain = Connection { snat: false, ..connection(80) };
        assert_eq!(mappings.noted(Change::New, plain), []);
        let mut outsider = connection(80);
        outsider.original.src = outsider.reply.dst;
        assert_eq!(mappings.noted(Change::New, outsider), [], "its port was changed alone");
    }

    #[test]
    fn what_was_missed_is_found_again() {
        let mut mappings = Mappings::default();
        assert_eq!(mappings.renewed(&[connection(80), connection(81)]).len(), 1);
        assert_eq!(mappings.renewed(&[connection(82)]), [], "the same mapping for another");
        let mut other = connection(80);
        other.original.src_port = 40_001;
        let told = mappings.renewed(std::slice::from_ref(&other));
        let expected =
            [(Told::Allocated, mapping(&other)), (Told::Released, mapping(&connection(82)))];
        assert_eq!(told, expected);
    }

    /// The listing has what an event of before still says.
    #[test]
    fn what_is_told_twice_counts_once() {
        let mut mappings = Mappings::default();
        assert_eq!(mappings.renewed(&[connection(80)]).len(), 1);
        assert_eq!(mappings.noted(Change::New, connection(80)), []);
        assert_eq!(mappings.noted(END, connection(80)).len(), 1);
        // The same client begins again from another outside port before its end was heard of.
        assert_eq!(mappings.noted(Change::New, connection(80)).len(), 1);
        let mut moved = connection(80);
        moved.reply.dst_port = 50_001;
        let expected =
            [(Told::Released, mapping(&connection(80))), (Told::Allocated, mapping(&moved))];
        assert_eq!(mappings.noted(Change::New, moved), expected);
    }
}
