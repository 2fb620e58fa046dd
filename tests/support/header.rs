//! The bytes of PROXY protocol headers, right ones and wrong ones.

use std::net::{IpAddr, SocketAddr};

use super::addr;

/// A v1 header: a line of text.
pub fn v1(source: &str, destination: &str) -> Vec<u8> {
    let (source, destination) = (addr(source), addr(destination));
    let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
    format!(
        "PROXY {family} {} {} {} {}\r\n",
        source.ip(),
        destination.ip(),
        source.port(),
        destination.port()
    )
    .into_bytes()
}

/// A v2 header for a connection from `source` to `destination`.
pub fn v2(source: &str, destination: &str) -> V2 {
    let (source, destination) = (addr(source), addr(destination));
    let family = if source.is_ipv4() { INET } else { INET6 };
    V2::new(PROXY, family | STREAM, addresses(source, destination))
}

/// The signature that every v2 header starts with.
pub const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Version 2 and the command.
pub const LOCAL: u8 = 0x20;
pub const PROXY: u8 = 0x21;

/// Address families, to be joined with a transport.
pub const UNSPEC: u8 = 0x00;
pub const INET: u8 = 0x10;
pub const INET6: u8 = 0x20;
pub const UNIX: u8 = 0x30;

/// Transports.
pub const STREAM: u8 = 0x01;
pub const DGRAM: u8 = 0x02;

/// TLV types.
pub const ALPN: u8 = 0x01;
pub const AUTHORITY: u8 = 0x02;
pub const CRC32C: u8 = 0x03;
pub const NOOP: u8 = 0x04;
pub const UNIQUE_ID: u8 = 0x05;
pub const AWS: u8 = 0xEA;

/// A v2 header in its parts.
#[derive(Clone)]
pub struct V2 {
    command: u8,
    family: u8,
    body: Vec<u8>,
    announced: Option<u16>,
}

impl V2 {
    /// Any command byte, any family byte, any bytes in place of the addresses.
    pub fn new(command: u8, family: u8, body: Vec<u8>) -> V2 {
        V2 {
            command,
            family,
            body,
            announced: None,
        }
    }

    /// Appends a TLV.
    pub fn tlv(mut self, kind: u8, value: &[u8]) -> V2 {
        self.body.push(kind);
        self.body.extend((value.len() as u16).to_be_bytes());
        self.body.extend(value);
        self
    }

    /// Appends bytes as they are, for TLVs that lie.
    pub fn raw(mut self, bytes: &[u8]) -> V2 {
        self.body.extend(bytes);
        self
    }

    /// Announces another length than the header has.
    pub fn announce(mut self, length: u16) -> V2 {
        self.announced = Some(length);
        self
    }

    /// Appends the checksum TLV, computed over the whole header with zeros in its place.
    pub fn checksum(self) -> V2 {
        let mut whole = self.tlv(CRC32C, &[0; 4]);
        let sum = crc32c::crc32c(&whole.bytes());
        let place = whole.body.len() - 4;
        whole.body[place..].copy_from_slice(&sum.to_be_bytes());
        whole
    }

    /// Fills up with one NOOP TLV until the length field says `length`.
    pub fn fill_to(self, length: u16) -> V2 {
        let filler = usize::from(length) - self.body.len() - 3;
        self.tlv(NOOP, &vec![0; filler])
    }

    /// The header as it goes over the wire.
    pub fn bytes(&self) -> Vec<u8> {
        let length = self
            .announced
            .unwrap_or(u16::try_from(self.body.len()).expect("a v2 header fits"));
        let mut bytes = SIGNATURE.to_vec();
        bytes.extend([self.command, self.family]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(&self.body);
        bytes
    }
}

/// The address block of INET and INET6: both addresses, then both ports.
pub fn addresses(source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let mut block = Vec::new();
    for ip in [source.ip(), destination.ip()] {
        match ip {
            IpAddr::V4(ip) => block.extend(ip.octets()),
            IpAddr::V6(ip) => block.extend(ip.octets()),
        }
    }
    for port in [source.port(), destination.port()] {
        block.extend(port.to_be_bytes());
    }
    block
}
