//! Who listens where on this host, as /proc tells it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Protocol;

/// TCP_ESTABLISHED.
const ESTABLISHED: &str = "01";
/// TCP_LISTEN, and TCP_CLOSE, which is a UDP socket that is bound and not connected.
const LISTEN: &str = "0A";
const CLOSE: &str = "07";

/// A socket that takes connections or datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Where it is bound.
    pub addr: SocketAddr,
    /// The number by which /proc/PID/fd names it.
    pub inode: u64,
}

/// The listening TCP sockets, or the unconnected UDP sockets, of this network namespace.
/// What cannot be read counts as nothing: this knowledge only makes advice better.
pub fn bound(protocol: Protocol) -> Vec<Bound> {
    tables(protocol)
        .flat_map(|table| of_table(table, protocol))
        .collect()
}

/// The kernel's tables of sockets, IPv4 and IPv6.
fn tables(protocol: Protocol) -> impl Iterator<Item = BufReader<File>> {
    let names = match protocol {
        Protocol::Tcp => ["tcp", "tcp6"],
        Protocol::Udp => ["udp", "udp6"],
    };
    // /proc/net itself is hidden under ProcSubset=pid; /proc/thread-self/net is not.
    let tables = names.map(|name| File::open(format!("/proc/thread-self/net/{name}")));
    tables.into_iter().flatten().map(BufReader::new)
}

/// The table of TCP has the listening sockets first (proc_net_tcp.txt in the kernel's
/// documentation). The others are not read: on a busy host they are 100,000s, which the kernel
/// takes seconds to print.
fn of_table(table: impl BufRead, protocol: Protocol) -> Vec<Bound> {
    let lines = table.lines().skip(1).map_while(Result::ok);
    match protocol {
        Protocol::Tcp => lines.map_while(|line| parse(&line, LISTEN)).collect(),
        Protocol::Udp => lines.filter_map(|line| parse(&line, CLOSE)).collect(),
    }
}

/// Who has TCP connections to this port of this host, and how many. All connections are read: this is
/// not for a busy proxy.
pub fn peers(port: u16) -> HashMap<IpAddr, usize> {
    let mut peers = HashMap::new();
    let lines = tables(Protocol::Tcp).flat_map(|table| table.lines().skip(1).map_while(Result::ok));
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, local, peer, ESTABLISHED, ..] = words[..] else {
            continue;
        };
        if address(local).is_some_and(|local| local.port() == port)
            && let Some(peer) = address(peer)
        {
            *peers.entry(peer.ip()).or_default() += 1;
        }
    }
    peers
}

/// True if a datagram to `target` reaches a socket that is bound to no address of its own.
pub fn is_wildcard(sockets: &[Bound], target: SocketAddr) -> bool {
    let on_port = || sockets.iter().filter(|s| s.addr.port() == target.port());
    let own = on_port().any(|s| s.addr.ip() == target.ip());
    let any = on_port().any(|s| s.addr.ip().is_unspecified() && serves(s.addr.ip(), target.ip()));
    any && !own
}

/// True if a socket bound to `bound` gets what is sent to `target`. One on :: gets IPv4 too,
/// unless it says otherwise, which /proc does not tell.
pub fn serves(bound: IpAddr, target: IpAddr) -> bool {
    bound == target || (bound.is_unspecified() && (bound.is_ipv6() || target.is_ipv4()))
}

fn parse(line: &str, state: &str) -> Option<Bound> {
    let words: Vec<&str> = line.split_whitespace().collect();
    if *words.get(3)? != state {
        return None;
    }
    Some(Bound {
        addr: address(words.get(1)?)?,
        inode: words.get(9)?.parse().ok()?,
    })
}

/// An address and a port as the tables have them.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(ip)?).into(),
        _ => {
            let mut bytes = [0; 16];
            for (i, chunk) in bytes.chunks_mut(4).enumerate() {
                chunk.copy_from_slice(&word(ip.get(i * 8..i * 8 + 8)?)?);
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

/// The kernel prints each 32-bit word of an address in the machine's byte order.
fn word(hex: &str) -> Option<[u8; 4]> {
    Some(u32::from_str_radix(hex, 16).ok()?.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    /// Ends the test when it is read.
    struct Never;

    impl std::io::Read for Never {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            panic!("connections are read, too");
        }
    }

    #[test]
    fn of_the_table_of_tcp_only_the_listening_sockets_are_read() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            \x20  0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n\
            \x20  1: 0100007F:1F91 0100007F:C350 06 00000000:00000000 03:00001770 00000000     0        0 0 3 0\n";
        let table = BufReader::new(std::io::Read::chain(table.as_bytes(), Never));
        let found = of_table(table, Protocol::Tcp);
        let [Bound { addr, inode: 4711 }] = found[..] else {
            panic!("{found:?}");
        };
        assert_eq!(addr.port(), 8080);
    }

    #[test]
    fn own_sockets_are_found() {
        let socket = std::net::TcpListener::bind("[::1]:0").expect("bind");
        let addr = socket.local_addr().expect("address");
        assert!(bound(Protocol::Tcp).iter().any(|s| s.addr == addr));
        for addr in ["127.0.0.1:0", "[::1]:0"] {
            let socket = UdpSocket::bind(addr).expect("bind");
            let addr = socket.local_addr().expect("address");
            let found = bound(Protocol::Udp);
            assert!(found.iter().any(|s| s.addr == addr), "{addr} {found:?}");
            assert!(!is_wildcard(&found, addr));
        }
        let socket = UdpSocket::bind("0.0.0.0:0").expect("bind");
        let port = socket.local_addr().expect("address").port();
        let target = SocketAddr::from(([127, 0, 0, 1], port));
        assert!(is_wildcard(&bound(Protocol::Udp), target));
    }
}
