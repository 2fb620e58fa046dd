//! The usual scene: a load balancer and a server on one wire; on the server the proxy, and a
//! backend for each family. The test plays the load balancer and the backends.

use std::net::TcpStream;

use super::{Backend, Host, Program, Running, addr, header, streams};

/// The load balancer, the server and what runs there.
pub struct Stage {
    pub balancer: Host,
    pub server: Host,
    /// On 127.0.0.1:9000.
    pub backend: Backend,
    /// On `[::1]:9000`.
    pub backend6: Backend,
    pub proxy: Running,
}

/// A connection from the load balancer through the proxy to the backend.
pub struct Session {
    /// The load balancer's end.
    pub near: TcpStream,
    /// The backend's end.
    pub far: TcpStream,
}

/// Where the proxy listens.
pub const PROXY: &str = "192.0.2.10:2222";
/// The flags that say so, and where the backends are.
pub const ADDRESSES: [&str; 6] = [
    "-l",
    "0.0.0.0:2222",
    "-4",
    "127.0.0.1:9000",
    "-6",
    "[::1]:9000",
];
/// A second address of the load balancer; its first is 192.0.2.5.
pub const OTHER_BALANCER: &str = "192.0.2.6:0";
/// A client, and its header's destination.
pub const CLIENT: &str = "203.0.113.7:40000";
pub const CLIENT6: &str = "[2001:db8:c::7]:40000";
pub const VISITED: &str = "198.51.100.1:22";
pub const VISITED6: &str = "[2001:db8:b::1]:22";

impl Stage {
    /// The scene with realpeer under these flags, besides the addresses.
    #[track_caller]
    pub fn new(flags: &[&str]) -> Stage {
        Stage::of(Program::Realpeer, flags)
    }

    /// The scene with either program. A flag given twice counts the last time, so `flags` may
    /// say another `-l`.
    #[track_caller]
    pub fn of(program: Program, flags: &[&str]) -> Stage {
        Stage::under(program, &[], flags)
    }

    /// The scene with the program under a wrapper that ends in exec.
    #[track_caller]
    pub fn under(program: Program, wrapper: &[&str], flags: &[&str]) -> Stage {
        let (balancer, server) = wire();
        let backend = Backend::listen(&server, "127.0.0.1:9000");
        let backend6 = Backend::listen(&server, "[::1]:9000");
        let proxy = program.start_under(wrapper, &server, &[&ADDRESSES, flags].concat());
        Stage {
            balancer,
            server,
            backend,
            backend6,
            proxy,
        }
    }

    /// A connection from the load balancer to the proxy.
    #[track_caller]
    pub fn dial(&self) -> TcpStream {
        self.balancer.dial(PROXY)
    }

    /// A connection that starts with these bytes.
    #[track_caller]
    pub fn dial_and_send(&self, bytes: impl AsRef<[u8]>) -> TcpStream {
        let near = self.dial();
        streams::send(&near, bytes);
        near
    }

    /// Waits until the proxy has read all that was sent on this connection.
    #[track_caller]
    pub fn wait_until_read(&self, near: &TcpStream) {
        let port = near.local_addr().expect("our own address").port();
        let proxy_port = addr(PROXY).port();
        super::wait_until("the proxy has read what was sent", || {
            self.balancer
                .queues(port, proxy_port)
                .is_some_and(|(unacknowledged, _)| unacknowledged == 0)
                && self
                    .server
                    .queues(proxy_port, port)
                    .is_some_and(|(_, unread)| unread == 0)
        });
    }

    /// A whole session of this client, which the backend must see under the client's address.
    #[track_caller]
    pub fn session(&self, client: &str) -> Session {
        let near = self.dial();
        let far = self.introduce(&near, client);
        Session { near, far }
    }

    /// Sends a client's header on a connection and returns the backend's end of it.
    #[track_caller]
    pub fn introduce(&self, near: &TcpStream, client: &str) -> TcpStream {
        let (backend, visited) = if addr(client).is_ipv4() {
            (&self.backend, VISITED)
        } else {
            (&self.backend6, VISITED6)
        };
        streams::send(near, header::v1(client, visited));
        let (far, from) = backend.accept();
        assert_eq!(from, addr(client), "the backend sees the client");
        far
    }

    /// Checks that the proxy still serves, as a client that no other test line uses.
    #[track_caller]
    pub fn assert_serves(&self) {
        let session = self.session("203.0.113.99:9999");
        streams::assert_carries(&session.near, &session.far);
    }
}

/// Two hosts: the load balancer with two addresses of each family, and the server.
pub fn wire() -> (Host, Host) {
    let (balancer, server) = (Host::new("balancer"), Host::new("server"));
    balancer.connect(
        &[
            "192.0.2.5/24",
            "192.0.2.6/24",
            "2001:db8::5/64",
            "2001:db8::6/64",
        ],
        &server,
        &["192.0.2.10/24", "2001:db8::10/64"],
    );
    (balancer, server)
}

/// Three hosts in a row: a client at 203.0.113.7 and 2001:db8:c::7, the load balancer at
/// 203.0.113.1 and 2001:db8:c::1, and behind it the server at 192.0.2.10, which knows no way to
/// the client.
pub fn row() -> (Host, Host, Host) {
    let (balancer, server) = wire();
    let client = Host::new("client");
    client.connect(
        &["203.0.113.7/24", "2001:db8:c::7/64"],
        &balancer,
        &["203.0.113.1/24", "2001:db8:c::1/64"],
    );
    (client, balancer, server)
}
