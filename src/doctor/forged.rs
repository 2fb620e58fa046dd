//! Datagrams of both directions on a backend's own port, that no program gets to read: their
//! checksum is wrong, which is looked at behind the firewall only.

use std::io;
use std::net::{IpAddr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

/// Sends a datagram to `target` in the name of `stranger`, and the answer to it.
pub fn exchange(target: SocketAddr, stranger: IpAddr, mark: Option<u32>) -> io::Result<()> {
    // Any port that is not the target's.
    let client = SocketAddr::new(stranger, target.port() ^ 0x8000);
    send(client, target, mark)?;
    send(target, client, None)
}

fn send(from: SocketAddr, to: SocketAddr, mark: Option<u32>) -> io::Result<()> {
    let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(Protocol::UDP))?;
    match from {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    if let Some(mark) = mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&SocketAddr::new(from.ip(), 0).into())?;
    let datagram = bad_datagram(from, to);
    // A raw socket takes the protocol's number for a port, or none.
    socket.send_to(&datagram, &SocketAddr::new(to.ip(), 0).into())?;
    Ok(())
}

/// A UDP header (RFC 768) without data.
fn bad_datagram(from: SocketAddr, to: SocketAddr) -> [u8; 8] {
    let sum = checksum(from, to).wrapping_add(1).max(1);
    let fields = [from.port(), to.port(), 8, sum];
    let mut bytes = [0; 8];
    for (two, field) in bytes.chunks_mut(2).zip(fields) {
        two.copy_from_slice(&field.to_be_bytes());
    }
    bytes
}

/// The right one, over addresses, protocol, length and ports.
fn checksum(from: SocketAddr, to: SocketAddr) -> u16 {
    const UDP: u32 = 17;
    const LENGTH: u32 = 8;
    let words = |ip: IpAddr| -> u32 {
        let bytes = super::dropped::octets(ip);
        let pairs = bytes.chunks(2);
        pairs
            .map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])))
            .sum()
    };
    let ports = u32::from(from.port()) + u32::from(to.port());
    let mut sum = words(from.ip()) + words(to.ip()) + UDP + 2 * LENGTH + ports;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand from RFC 768: the sum of all words and the checksum is 0xffff.
    #[test]
    fn the_checksum_is_wrong_and_never_absent() {
        let (from, to) = ("203.0.113.1:1".parse(), "127.0.0.1:53".parse());
        let (from, to) = (from.expect("an address"), to.expect("an address"));
        let words =
            0xcb00 + 0x7101 + 0x7f00 + 0x0001 + 17 + 8 + 8 + 1 + 53 + u32::from(checksum(from, to));
        assert_eq!((words & 0xffff) + (words >> 16), 0xffff);
        let sent = &bad_datagram(from, to)[6..];
        assert_ne!(sent, checksum(from, to).to_be_bytes());
        assert_ne!(sent, [0, 0]);
    }
}
