//! Who listens where on this host, as /proc tells it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::config::Protocol;

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
    let (name, state) = match protocol {
        Protocol::Tcp => ("tcp", "0A"), // TCP_LISTEN
        Protocol::Udp => ("udp", "07"), // TCP_CLOSE: bound, not connected
    };
    // /proc/net itself is hidden under ProcSubset=pid; /proc/thread-self/net is not.
    let tables = [name.to_owned(), format!("{name}6")];
    let lines = tables
        .iter()
        .filter_map(|table| fs::read_to_string(format!("/proc/thread-self/net/{table}")).ok())
        .flat_map(|text| text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>());
    lines.filter_map(|line| parse(&line, state)).collect()
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
    let (ip, port) = words.get(1)?.split_once(':')?;
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
    Some(Bound {
        addr: SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?),
        inode: words.get(9)?.parse().ok()?,
    })
}

/// The kernel prints each 32-bit word of an address in the machine's byte order.
fn word(hex: &str) -> Option<[u8; 4]> {
    Some(u32::from_str_radix(hex, 16).ok()?.to_ne_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;

    #[test]
    fn own_sockets_are_found() {
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
