//! What can be seen on this host: servers, and who is connected to them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::answers::{Backend, loopback};
use crate::config::{Protocol, name};
use crate::doctor::backend::container;
use crate::doctor::processes::{self, Process};
use crate::routing::bound;
use crate::sys::interfaces;

/// From here on the kernel gives ports to whoever asks for any (ip_local_port_range).
const EPHEMERAL: u16 = 32768;

/// A server that listens here.
#[derive(Clone, Debug)]
pub struct Service {
    /// The program.
    pub program: String,
    /// Where it listens.
    pub sockets: Vec<SocketAddr>,
    /// How to reach it.
    pub backend: Backend,
}

/// The servers of this host, by port, without realpeer itself and what is for local use only.
pub fn services(protocol: Protocol) -> Vec<Service> {
    let mut sockets = bound::bound(protocol);
    sockets.retain(|socket| !is_local_matter(protocol, socket.addr));
    let inodes: Vec<u64> = sockets.iter().map(|socket| socket.inode).collect();
    let holders = processes::holders(&inodes);
    let mut found: BTreeMap<(u16, String), Service> = BTreeMap::new();
    for socket in &sockets {
        let holder = holders.get(&socket.inode);
        if holder.is_some_and(|process| {
            process.is("realpeer") || processes::is_this_program(process.pid)
        }) {
            continue;
        }
        let program = holder.map_or_else(|| "unknown".to_owned(), called);
        let key = (socket.addr.port(), program.clone());
        let service = found.entry(key).or_insert_with(|| Service {
            program,
            sockets: Vec::new(),
            backend: Backend::default(),
        });
        service.sockets.push(socket.addr);
        match holder.filter(|process| process.is("docker-proxy")) {
            // What stands in between hides every client.
            Some(relay) => service.backend.extend(container(relay)),
            None => {}
        }
    }
    let mut services: Vec<Service> = found.into_values().collect();
    for service in &mut services {
        if service.backend == Backend::default() {
            service.backend = reached(&service.sockets);
        }
    }
    services
}

/// The backend with the loopback address of the other family too, if the server listens there.
pub fn completed(mut backend: Backend, protocol: Protocol) -> Backend {
    let sockets: Vec<SocketAddr> = bound::bound(protocol).iter().map(|s| s.addr).collect();
    if backend.addresses().all(|addr| addr.ip().is_loopback()) {
        let port = backend.port();
        backend.extend(at_loopback(&sockets, port));
    }
    backend
}

/// Who has connections to the backend, the most first. The load balancer, if it works already, and
/// clients that came directly.
pub fn peers(backend: &Backend, protocol: Protocol) -> Vec<(IpAddr, usize)> {
    if protocol == Protocol::Udp {
        return Vec::new();
    }
    let peers = bound::peers(backend.port()).into_iter();
    let mut peers: Vec<_> = peers
        .filter(|(ip, _)| !ip.is_loopback() && !interfaces::is_local(*ip))
        .collect();
    peers.sort_by_key(|(ip, count)| (std::cmp::Reverse(*count), *ip));
    peers
}

/// A free port that reminds of the backend's.
pub fn free_port(port: u16, protocol: Protocol) -> u16 {
    let taken: Vec<u16> = bound::bound(protocol)
        .iter()
        .map(|s| s.addr.port())
        .collect();
    let first = match port {
        22 => 2222,
        port => port.checked_add(10_000).unwrap_or_else(|| port - 10_000),
    };
    let mut ports = (first..=u16::MAX).chain(1024..first);
    ports.find(|port| !taken.contains(port)).unwrap_or(first)
}

/// The part of file names for a server.
pub fn file_name(service: Option<&Service>, port: u16) -> String {
    let known = service.map(|service| match service.program.as_str() {
        "sshd" => "ssh",
        program => program,
    });
    let known = known
        .filter(|program| !["unknown", "systemd", "realpeer", "docker-proxy"].contains(program));
    let name = known.and_then(|program| name(program).ok());
    name.unwrap_or_else(|| format!("port-{port}"))
}

/// A resolver on 127.0.0.53, ports that a program has drawn for itself.
fn is_local_matter(protocol: Protocol, addr: SocketAddr) -> bool {
    let ip = addr.ip();
    let odd = ip.is_loopback() && ip != loopback(ip.is_ipv4());
    odd || (addr.port() >= EPHEMERAL && (ip.is_loopback() || protocol == Protocol::Udp))
}

/// What administrators call it.
fn called(process: &Process) -> String {
    match process.name.as_str() {
        "master" if process.program().contains("postfix") => "postfix".into(),
        name => name.to_owned(),
    }
}

/// Where a server that is bound like this is reached from this host.
fn reached(sockets: &[SocketAddr]) -> Backend {
    let mut backend = Backend::default();
    let port = sockets.first().map_or(0, SocketAddr::port);
    backend.extend(at_loopback(sockets, port));
    let usable = |addr: &&SocketAddr| !addr.ip().is_unspecified();
    backend.extend(sockets.iter().filter(usable).copied());
    backend
}

fn at_loopback(sockets: &[SocketAddr], port: u16) -> impl Iterator<Item = SocketAddr> {
    let both = [true, false].map(loopback).into_iter();
    both.filter(move |ip| {
        let mut sockets = sockets.iter();
        sockets.any(|s| s.port() == port && bound::serves(s.ip(), *ip))
    })
    .map(move |ip| SocketAddr::new(ip, port))
}

impl Extend<SocketAddr> for Backend {
    fn extend<I: IntoIterator<Item = SocketAddr>>(&mut self, addrs: I) {
        for addr in addrs {
            self.add(addr);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(sockets: &[&str]) -> String {
        let sockets: Vec<SocketAddr> = sockets
            .iter()
            .map(|s| s.parse().expect("an address"))
            .collect();
        reached(&sockets).to_string()
    }

    #[test]
    fn a_server_is_reached_where_it_listens() {
        for (sockets, backend) in [
            (&["0.0.0.0:22", "[::]:22"][..], "127.0.0.1:22,[::1]:22"),
            (&["0.0.0.0:22"], "127.0.0.1:22"),
            (&["[::]:3000"], "127.0.0.1:3000,[::1]:3000"),
            (&["192.0.2.1:25", "127.0.0.1:25"], "127.0.0.1:25"),
            (&["192.0.2.1:25"], "192.0.2.1:25"),
            (
                &["127.0.0.1:25", "[2001:db8::1]:25"],
                "127.0.0.1:25,[2001:db8::1]:25",
            ),
        ] {
            assert_eq!(at(sockets), backend);
        }
    }

    #[test]
    fn what_is_for_this_host_only_is_not_offered() {
        let is =
            |protocol, addr: &str| is_local_matter(protocol, addr.parse().expect("an address"));
        assert!(is(Protocol::Udp, "127.0.0.53:53"));
        assert!(is(Protocol::Tcp, "127.0.0.1:41234"));
        assert!(is(Protocol::Udp, "0.0.0.0:41234"));
        assert!(!is(Protocol::Tcp, "0.0.0.0:41234"));
        assert!(!is(Protocol::Tcp, "127.0.0.1:3000"));
        assert!(!is(Protocol::Udp, "[::1]:53"));
    }

    #[test]
    fn names_come_from_programs() {
        let service = |program: &str| Service {
            program: program.into(),
            sockets: vec![],
            backend: Backend::default(),
        };
        for (program, name) in [
            ("sshd", "ssh"),
            ("gitea", "gitea"),
            ("systemd", "port-22"),
            ("a b/c", "port-22"),
        ] {
            assert_eq!(file_name(Some(&service(program)), 22), name);
        }
        assert_eq!(file_name(None, 22), "port-22");
    }
}
