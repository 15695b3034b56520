//! A machine: smoltcp's stack, its sockets, and what programs do with them.

use std::collections::VecDeque;
use std::net::Ipv4Addr;

use dataplane::clock::Timestamp;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::{icmp, tcp, udp};
use smoltcp::time::Instant;
use smoltcp::wire::{
    EthernetAddress, HardwareAddress, Icmpv4Packet, Icmpv4Repr, IpAddress, IpCidr,
};

use crate::packet::Host;

/// Numbers that look random and are the same each time (SplitMix64, Steele et al. 2014).
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    /// The next one.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// True in `per_mille` of 1000 cases.
    pub fn happens(&mut self, per_mille: u64) -> bool {
        self.number() % 1000 < per_mille
    }

    /// Bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.number() as u8).collect()
    }
}

/// The queues of a network card.
#[derive(Debug, Default)]
pub struct Nic {
    /// Frames that have arrived.
    pub rx: VecDeque<Vec<u8>>,
    /// Frames that were sent.
    pub tx: VecDeque<Vec<u8>>,
}

/// A received frame.
#[derive(Debug)]
pub struct Received(Vec<u8>);

/// A place for a frame to be sent.
#[derive(Debug)]
pub struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Nic {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.rx.pop_front()?;
        Some((Received(frame), Sending(&mut self.tx)))
    }

    fn transmit(&mut self, _now: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.tx))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = 1514;
        capabilities
    }
}

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut bytes = vec![0; len];
        let result = f(&mut bytes);
        self.0.push_back(bytes);
        result
    }
}

/// A machine.
pub struct Machine {
    /// Where it is and who.
    pub host: Host,
    /// Its card.
    pub nic: Nic,
    /// Its sockets.
    pub sockets: SocketSet<'static>,
    iface: Interface,
    /// UDP sockets that answer with what they get.
    echoing: Vec<SocketHandle>,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("host", &self.host).finish_non_exhaustive()
    }
}

fn instant(now: Timestamp) -> Instant {
    Instant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap())
}

impl Machine {
    /// A machine in a /24 with a default route.
    #[must_use]
    pub fn new(host: &Host, gateway: Ipv4Addr, now: Timestamp) -> Self {
        let mut nic = Nic::default();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(host.mac.0)));
        config.random_seed = host.mac.as_u64();
        let mut iface = Interface::new(config, &mut nic, instant(now));
        iface.update_ip_addrs(|addresses| {
            addresses.push(IpCidr::new(IpAddress::Ipv4(host.ip), 24)).unwrap();
        });
        iface.routes_mut().add_default_ipv4_route(gateway).unwrap();
        Self { host: *host, nic, sockets: SocketSet::new(Vec::new()), iface, echoing: Vec::new() }
    }

    /// Makes a UDP socket one that [`Machine::answer`] answers for.
    pub fn serve(&mut self, handle: SocketHandle) {
        self.echoing.push(handle);
    }

    /// Sends back what the serving sockets got.
    pub fn answer(&mut self) {
        for handle in &self.echoing {
            let socket = self.sockets.get_mut::<udp::Socket<'_>>(*handle);
            while let Ok((bytes, from)) = socket.recv().map(|(b, meta)| (b.to_vec(), meta.endpoint))
            {
                let _ = socket.send_slice(&bytes, from);
            }
        }
    }

    /// Lets the stack work.
    pub fn poll(&mut self, now: Timestamp) {
        self.iface.poll(instant(now), &mut self.nic, &mut self.sockets);
    }

    fn tcp_socket() -> tcp::Socket<'static> {
        let buffer = || tcp::SocketBuffer::new(vec![0; 32_768]);
        tcp::Socket::new(buffer(), buffer())
    }

    /// A TCP socket that waits for a connection.
    pub fn listen(&mut self, port: u16) -> SocketHandle {
        let mut socket = Self::tcp_socket();
        socket.listen(port).unwrap();
        self.sockets.add(socket)
    }

    /// A TCP socket that connects.
    pub fn connect(&mut self, from_port: u16, to: Ipv4Addr, port: u16) -> SocketHandle {
        let mut socket = Self::tcp_socket();
        socket.connect(self.iface.context(), (IpAddress::Ipv4(to), port), from_port).unwrap();
        self.sockets.add(socket)
    }

    /// A UDP socket.
    pub fn udp(&mut self, port: u16) -> SocketHandle {
        let buffer =
            || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 64], vec![0; 65_536]);
        let mut socket = udp::Socket::new(buffer(), buffer());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    /// A socket that sends echo requests with this identifier.
    pub fn icmp(&mut self, id: u16) -> SocketHandle {
        let buffer =
            || icmp::PacketBuffer::new(vec![icmp::PacketMetadata::EMPTY; 64], vec![0; 65_536]);
        let mut socket = icmp::Socket::new(buffer(), buffer());
        socket.bind(icmp::Endpoint::Ident(id)).unwrap();
        self.sockets.add(socket)
    }

    /// Sends an echo request, if there is room for one more.
    pub fn ping(&mut self, handle: SocketHandle, to: Ipv4Addr, id: u16, seq: u16, data: &[u8]) {
        let request = Icmpv4Repr::EchoRequest { ident: id, seq_no: seq, data };
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(handle);
        let Ok(bytes) = socket.send(request.buffer_len(), IpAddress::Ipv4(to)) else { return };
        let capabilities = smoltcp::phy::ChecksumCapabilities::default();
        request.emit(&mut Icmpv4Packet::new_unchecked(bytes), &capabilities);
    }

    /// The sequence number and data of the next echo reply, and who sent it.
    pub fn pong(&mut self, handle: SocketHandle) -> Option<(u16, Vec<u8>, IpAddress)> {
        let socket = self.sockets.get_mut::<icmp::Socket<'_>>(handle);
        let (bytes, from) = socket.recv().ok()?;
        let packet = Icmpv4Packet::new_checked(bytes).unwrap();
        match Icmpv4Repr::parse(&packet, &Default::default()).unwrap() {
            Icmpv4Repr::EchoReply { seq_no, data, .. } => Some((seq_no, data.to_vec(), from)),
            _ => None,
        }
    }
}

/// One side of a TCP conversation: it sends all it has, closes, and keeps what it gets.
///
/// It closes only when all it sent was acknowledged: smoltcp 0.14 does not repeat a lost FIN when
/// duplicate ACKs made it repeat data before (the timer stays idle after a fast retransmit).
#[derive(Debug)]
pub struct Talk {
    /// Which machine.
    pub machine: usize,
    handle: SocketHandle,
    to_send: Vec<u8>,
    sent: usize,
    /// What came.
    pub received: Vec<u8>,
    opened: bool,
}

impl Talk {
    /// A conversation over a socket of machine number `machine`.
    #[must_use]
    pub fn new(machine: usize, handle: SocketHandle, to_send: Vec<u8>) -> Self {
        Self { machine, handle, to_send, sent: 0, received: Vec::new(), opened: false }
    }

    /// What this side sends in all.
    #[must_use]
    pub fn sent_bytes(&self) -> &[u8] {
        &self.to_send
    }

    /// Whether the connection was made.
    #[must_use]
    pub const fn is_open(&self) -> bool {
        self.opened
    }

    /// Moves bytes between the socket and us.
    pub fn pump(&mut self, machine: &mut Machine) {
        let socket = machine.sockets.get_mut::<tcp::Socket<'_>>(self.handle);
        self.opened |= socket.may_send();
        if socket.can_send() && self.sent < self.to_send.len() {
            self.sent += socket.send_slice(&self.to_send[self.sent..]).unwrap();
        }
        if self.opened && self.sent == self.to_send.len() && socket.send_queue() == 0 {
            socket.close();
        }
        while socket.can_recv() {
            let received = &mut self.received;
            socket
                .recv(|bytes| {
                    received.extend_from_slice(bytes);
                    (bytes.len(), ())
                })
                .unwrap();
        }
    }

    pub(super) fn describe(&self, machine: &Machine) -> String {
        let socket = machine.sockets.get::<tcp::Socket<'_>>(self.handle);
        let (ours, theirs) = (socket.local_endpoint(), socket.remote_endpoint());
        let (sent, of, got) = (self.sent, self.to_send.len(), self.received.len());
        format!("{ours:?} to {theirs:?}: {}, {sent} of {of} sent, {got} received", socket.state())
    }

    /// Whether both sides have closed.
    #[must_use]
    pub fn is_over(&self, machine: &Machine) -> bool {
        let state = machine.sockets.get::<tcp::Socket<'_>>(self.handle).state();
        self.opened && matches!(state, tcp::State::Closed | tcp::State::TimeWait)
    }
}
