//! The kinds of address a proxied connection knows, each a type of its own.
//!
//! ```
//! use realpeer::addr::{ClientAddr, canonical};
//!
//! let client = ClientAddr(canonical("[::ffff:203.0.113.9]:51234".parse()?));
//! assert_eq!(client.to_string(), "203.0.113.9:51234");
//! # Ok::<(), std::net::AddrParseError>(())
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr};

macro_rules! address_kind {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub struct $name(pub SocketAddr);

        impl $name {
            /// The address without its port.
            pub fn ip(&self) -> IpAddr {
                self.0.ip()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

address_kind! {
    /// Who really opened the connection to us: the load balancer. Never IPv4-mapped.
    PeerAddr
}
address_kind! {
    /// The address of ours that the peer connected to. Never IPv4-mapped.
    LocalAddr
}
address_kind! {
    /// Whom the header names, and whom the upstream connection claims to be. Never IPv4-mapped.
    ClientAddr
}
address_kind! {
    /// Where the upstream connection goes: the backend.
    TargetAddr
}

/// An IPv4-mapped IPv6 address (`::ffff:203.0.113.9`) as the IPv4 address it stands for.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
