//! The scene of the UDP stories: a load balancer and a server on one wire, on the server the proxy
//! and a backend for each family. The test plays the load balancer and the backends.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use super::header::{DGRAM, INET, INET6, PROXY as COMMAND, V2, addresses};
use super::stage::{VISITED, VISITED6, wire};
use super::{DEADLINE, Host, Program, Running, addr, wait_until};

/// Where the proxy listens, by two of the server's addresses and in both families.
pub const PROXY: &str = "192.0.2.10:2222";
pub const PROXY_TOO: &str = "192.0.2.11:2222";
pub const PROXY_V6: &str = "[2001:db8::10]:2222";

/// Where the backends are.
pub const BACKEND: &str = "127.0.0.1:9000";
pub const BACKEND_V6: &str = "[::1]:9000";

/// The hosts and what runs there.
pub struct Scene {
    pub balancer: Host,
    pub server: Host,
    pub backend: UdpSocket,
    pub backend6: UdpSocket,
    pub proxy: Running,
}

impl Scene {
    /// The scene with realpeer under these flags, besides the addresses.
    #[track_caller]
    pub fn new(flags: &[&str]) -> Scene {
        let (balancer, server) = wire();
        server.add_address("192.0.2.11/24", "to-balancer");
        let (backend, backend6) = (open(&server, BACKEND), open(&server, BACKEND_V6));
        let proxy = start(&server, flags);
        Scene {
            balancer,
            server,
            backend,
            backend6,
            proxy,
        }
    }

    /// A socket of the load balancer that speaks to the proxy.
    #[track_caller]
    pub fn socket(&self) -> UdpSocket {
        self.socket_to(PROXY)
    }

    /// As `socket`, to another of the proxy's addresses. Connected: it takes answers only from
    /// the address that it sends to.
    #[track_caller]
    pub fn socket_to(&self, proxy: &str) -> UdpSocket {
        let any = if addr(proxy).is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = open(&self.balancer, any);
        socket.connect(addr(proxy)).expect("connect a UDP socket");
        socket
    }

    /// Sends a client's datagram, checks that the backend gets it from the client, and returns
    /// where from exactly.
    #[track_caller]
    pub fn pass(&self, near: &UdpSocket, client: &str, payload: &[u8]) -> SocketAddr {
        near.send(&every(client, payload))
            .expect("send to the proxy");
        self.expect(client, payload)
    }

    /// As `pass`, for what is sent already.
    #[track_caller]
    pub fn expect(&self, client: &str, payload: &[u8]) -> SocketAddr {
        let backend = if addr(client).is_ipv4() {
            &self.backend
        } else {
            &self.backend6
        };
        let (got, from) = receive(backend);
        assert_eq!(got, payload, "what the backend gets");
        assert_eq!(from.ip(), addr(client).ip(), "whom the backend sees");
        from
    }

    /// A datagram of this client each way, from its own port.
    #[track_caller]
    pub fn converse(&self, near: &UdpSocket, client: &str) {
        let from = self.pass(near, client, b"there");
        assert_eq!(from, addr(client), "whom the backend sees");
        let backend = if from.is_ipv4() {
            &self.backend
        } else {
            &self.backend6
        };
        backend.send_to(b"and back", from).expect("answer");
        assert_eq!(receive(near).0, b"and back");
    }
}

/// Starts realpeer with UDP and waits until it listens.
#[track_caller]
pub fn start(server: &Host, flags: &[&str]) -> Running {
    let fixed = [
        "-p",
        "udp",
        "-l",
        "[::]:2222",
        "-4",
        BACKEND,
        "-6",
        BACKEND_V6,
    ];
    let proxy = Program::Realpeer.spawn(&[], server, &[&fixed, flags].concat());
    proxy.wait_for_line("listening");
    proxy
}

/// A UDP socket on a host, which never blocks for ever.
#[track_caller]
pub fn open(host: &Host, address: &str) -> UdpSocket {
    let mut socket = None;
    // A program that another test just starts holds a copy of each socket until its exec: an
    // address may still be taken after its socket is closed.
    wait_until(&format!("{address} can be bound"), || {
        let bound = host.enter(|| UdpSocket::bind(addr(address)));
        let taken = |e: &io::Error| e.kind() == io::ErrorKind::AddrInUse;
        if !bound.as_ref().is_err_and(taken) {
            socket = Some(bound);
        }
        socket.is_some()
    });
    let socket = socket.expect("the wait is over");
    let socket = socket.unwrap_or_else(|e| panic!("cannot bind {address}: {e}"));
    socket
        .set_read_timeout(Some(DEADLINE))
        .expect("set a read timeout");
    socket
}

/// The next datagram and its sender.
#[track_caller]
pub fn receive(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.recv_from(&mut buffer) {
            // As in `streams::read`: a wait with a deadline is not taken up again.
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            result => {
                let (len, from) = result.unwrap_or_else(|e| panic!("no datagram came: {e}"));
                buffer.truncate(len);
                return (buffer, from);
            }
        }
    }
}

/// Checks that nothing has come. It proves something only after a datagram that would have come
/// later.
#[track_caller]
pub fn assert_silent(socket: &UdpSocket) {
    socket
        .set_nonblocking(true)
        .expect("make a socket non-blocking");
    if let Ok((len, from)) = socket.recv_from(&mut [0; 64]) {
        panic!("{len} bytes came from {from} where nothing should");
    }
    socket
        .set_nonblocking(false)
        .expect("make a socket blocking");
}

/// A PROXY v2 header for a client's datagrams.
pub fn header(client: &str) -> V2 {
    let visited = if addr(client).is_ipv4() {
        VISITED
    } else {
        VISITED6
    };
    header_to(client, visited)
}

/// As `header`, to this destination.
pub fn header_to(client: &str, visited: &str) -> V2 {
    let family = if addr(client).is_ipv4() { INET } else { INET6 };
    V2::new(
        COMMAND,
        family | DGRAM,
        addresses(addr(client), addr(visited)),
    )
}

/// A client's datagram in style `every`, also the first in style `first`.
pub fn every(client: &str, payload: &[u8]) -> Vec<u8> {
    [&header(client).bytes(), payload].concat()
}

/// A datagram of Simple Proxy Protocol.
pub fn spp(client: &str, proxy: &str, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x56, 0xec];
    for end in [client, proxy] {
        let ip = match addr(end).ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        bytes.extend(ip.octets());
    }
    for end in [client, proxy] {
        bytes.extend(addr(end).port().to_be_bytes());
    }
    bytes.extend(payload);
    bytes
}
