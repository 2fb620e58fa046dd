//! Simple Proxy Protocol (Cloudflare Spectrum, Tencent EdgeOne): 38 bytes before every payload.
//!
//! Magic 0x56EC, the client's address (16 bytes, IPv4 as IPv4-mapped), the proxy's address (16),
//! the client's port (2), the proxy's port (2), all big-endian. Answers carry the same 38 bytes.
//! <https://developers.cloudflare.com/spectrum/how-to/enable-proxy-protocol/>
//!
//! ```
//! use realpeer::header::{Claim, spp};
//!
//! let mut datagram = [0; spp::LEN + 5];
//! datagram[..2].copy_from_slice(&[0x56, 0xec]);
//! datagram[12..18].copy_from_slice(&[0xff, 0xff, 203, 0, 113, 9]);
//! datagram[28..34].copy_from_slice(&[0xff, 0xff, 192, 0, 2, 1]);
//! datagram[34..38].copy_from_slice(&[0xc8, 0x22, 0, 53]);
//! datagram[38..].copy_from_slice(b"query");
//!
//! let header = spp::parse(&datagram)?;
//! assert!(matches!(header.claim, Claim::Client { source, .. } if source.0.port() == 51234));
//! assert_eq!(&datagram[header.len..], b"query");
//! # Ok::<(), realpeer::header::HeaderError>(())
//! ```

use std::net::{Ipv6Addr, SocketAddr};

use super::{Beginning, Claim, Header, HeaderError};
use crate::addr::{ClientAddr, canonical};

/// The length of the header.
pub const LEN: usize = 38;

/// How it begins.
const MAGIC: [u8; 2] = [0x56, 0xec];

/// Reads the header of a datagram.
pub fn parse(datagram: &[u8]) -> Result<Header, HeaderError> {
    if !datagram.starts_with(&MAGIC) {
        return Err(HeaderError::Absent(Beginning::of(datagram)));
    }
    let Some(header) = datagram.first_chunk::<LEN>() else {
        return Err(HeaderError::Malformed(
            "the datagram is shorter than the 38 bytes of an SPP header".into(),
        ));
    };
    let claim = Claim::Client {
        source: ClientAddr(endpoint(header, 2, 34)),
        destination: endpoint(header, 18, 36),
    };
    Ok(Header {
        claim,
        len: LEN,
        unique_id: None,
    })
}

/// The address and the port that stand at these places.
fn endpoint(header: &[u8; LEN], ip: usize, port: usize) -> SocketAddr {
    let mut octets = [0; 16];
    octets.copy_from_slice(&header[ip..ip + 16]);
    let port = u16::from_be_bytes([header[port], header[port + 1]]);
    canonical((Ipv6Addr::from(octets), port).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(client: &str, proxy: &str) -> Vec<u8> {
        let (client, proxy): (SocketAddr, SocketAddr) =
            (client.parse().unwrap(), proxy.parse().unwrap());
        let mut bytes = MAGIC.to_vec();
        for addr in [client, proxy] {
            let ip = match addr.ip() {
                std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                std::net::IpAddr::V6(ip) => ip,
            };
            bytes.extend(ip.octets());
        }
        for addr in [client, proxy] {
            bytes.extend(addr.port().to_be_bytes());
        }
        bytes
    }

    #[test]
    fn both_families() {
        for (client, proxy) in [
            ("203.0.113.9:51234", "192.0.2.1:53"),
            ("[2001:db8::9]:1", "[2001:db8::1]:65535"),
        ] {
            let mut bytes = header(client, proxy);
            bytes.extend(b"payload");
            let claim = Claim::Client {
                source: ClientAddr(client.parse().unwrap()),
                destination: proxy.parse().unwrap(),
            };
            let read = parse(&bytes).unwrap();
            assert_eq!((read.claim, read.len), (claim, LEN));
        }
    }

    #[test]
    fn short_and_foreign_datagrams_are_refused() {
        let whole = header("203.0.113.9:51234", "192.0.2.1:53");
        for cut in 0..LEN {
            assert!(parse(&whole[..cut]).is_err(), "{cut}");
        }
        let absent = parse(b"GET / HTTP/1.1").unwrap_err();
        assert!(matches!(absent, HeaderError::Absent(_)), "{absent}");
        let short = parse(&whole[..37]).unwrap_err();
        assert!(matches!(short, HeaderError::Malformed(_)), "{short}");
    }
}
