//! The scene of targets that are in another network namespace: a load balancer and a server on one
//! wire, and a namespace that the server knows by a file, as `ip netns` makes it.

use std::net::TcpStream;

use super::stage::{self, PROXY, VISITED, VISITED6, wire};
use super::{Backend, Host, Program, Running, Session, addr, header, streams};

/// Where the server finds the namespace.
pub const PATH: &str = "/run/netns/inside";
/// Where the backends are, inside.
pub const BACKEND: &str = "127.0.0.1:9000";
pub const BACKEND6: &str = "[::1]:9000";

/// The hosts.
pub struct Elsewhere {
    pub balancer: Host,
    pub server: Host,
    pub inside: Host,
}

impl Elsewhere {
    /// Makes them.
    #[track_caller]
    pub fn new() -> Elsewhere {
        let (balancer, server) = wire();
        let inside = Host::new("inside");
        server.run(&["mkdir", "/run/netns"]);
        server.name_netns(PATH, &inside);
        Elsewhere {
            balancer,
            server,
            inside,
        }
    }

    /// Backends of both families, inside.
    #[track_caller]
    pub fn backends(&self) -> [Backend; 2] {
        [BACKEND, BACKEND6].map(|at| Backend::listen(&self.inside, at))
    }

    /// Starts realpeer on the server with the targets inside, under further flags.
    #[track_caller]
    pub fn proxy(&self, flags: &[&str]) -> Running {
        self.proxy_under(&[], flags)
    }

    /// As `proxy`, under a wrapper that ends in exec.
    #[track_caller]
    pub fn proxy_under(&self, wrapper: &[&str], flags: &[&str]) -> Running {
        let netns: &[&str] = &["-target-netns", PATH];
        let all = [&stage::ADDRESSES, netns, flags].concat();
        Program::Realpeer.start_under(wrapper, &self.server, &all)
    }

    /// A session of a client, whom the backend must see.
    #[track_caller]
    pub fn session(&self, backends: &[Backend; 2], client: &str) -> Session {
        let near = self.begin(client);
        let backend = &backends[usize::from(addr(client).is_ipv6())];
        let (far, from) = backend.accept();
        assert_eq!(from, addr(client), "the backend sees the client");
        streams::assert_carries(&near, &far);
        Session { near, far }
    }

    /// A connection with the header of a client.
    #[track_caller]
    pub fn begin(&self, client: &str) -> TcpStream {
        let near = self.balancer.dial(PROXY);
        let visited = match addr(client).is_ipv4() {
            true => VISITED,
            false => VISITED6,
        };
        streams::send(&near, header::v1(client, visited));
        near
    }
}

/// Rules, routes, nftables and the sysctl of a host, without the link-local addresses that the kernel
/// adds when it has found that no one else has them.
pub fn routing(host: &Host) -> String {
    let all = [
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "nft list ruleset",
        "sysctl net.ipv4.tcp_fwmark_accept",
    ]
    .map(|command| host.run(&command.split(' ').collect::<Vec<_>>()))
    .join("---\n");
    let is_link_local = |line: &&str| line.contains("fe80:") && line.contains("proto kernel");
    let lines = all.lines().filter(|line| !is_link_local(line));
    lines.map(|line| format!("{line}\n")).collect()
}
