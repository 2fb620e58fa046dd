//! IPv4 or IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One of the two kinds of IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// IPv4 and IPv6.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(ip: IpAddr) -> Family {
        if ip.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The length of an address in bits.
    pub fn bits(self) -> u8 {
        match self {
            Family::V4 => 32,
            Family::V6 => 128,
        }
    }

    /// Addresses that nobody should own (RFC 5737, RFC 3849), to stand for a client.
    pub fn strangers(self) -> [IpAddr; 3] {
        match self {
            Family::V4 => [[203, 0, 113, 251], [198, 51, 100, 251], [192, 0, 2, 251]]
                .map(|octets| Ipv4Addr::from(octets).into()),
            Family::V6 => [0xfff1, 0xfff2, 0xfff3]
                .map(|net| Ipv6Addr::new(0x2001, 0xdb8, net, 0, 0, 0, 0, 0x251).into()),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        })
    }
}
