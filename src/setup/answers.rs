//! What setup has to know.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::IpNet;

use crate::addr::canonical;
use crate::config::{Addresses, Protocol, UdpHeader, resolve, target};
use crate::networks;

/// The answers to all questions.
#[derive(Clone, Debug)]
pub struct Answers {
    /// What the instance is called.
    pub name: String,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where a datagram's header stands.
    pub udp_header: UdpHeader,
    /// The server.
    pub backend: Backend,
    /// The load balancers, one at least.
    pub from: Vec<IpNet>,
    /// Where they connect to.
    pub listen: Addresses,
}

/// Where a server is, for the clients of each family; one address at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    /// For IPv4 clients.
    pub v4: Option<SocketAddr>,
    /// For IPv6 clients.
    pub v6: Option<SocketAddr>,
}

impl Backend {
    /// Its addresses.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + use<> {
        [self.v4, self.v6].into_iter().flatten()
    }

    /// The port, by which it is named; that for IPv4, if they differ.
    pub fn port(&self) -> u16 {
        self.addresses().next().map_or(0, |addr| addr.port())
    }

    /// Takes an address, unless there is one of its family.
    pub fn add(&mut self, addr: SocketAddr) -> bool {
        let place = match addr.is_ipv4() {
            true => &mut self.v4,
            false => &mut self.v6,
        };
        let free = place.is_none();
        place.get_or_insert(addr);
        free
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all: Vec<String> = self.addresses().map(|addr| addr.to_string()).collect();
        f.write_str(&all.join(","))
    }
}

/// The value of `-backend`. A server on every address is found on the loopback one.
pub fn backend(text: &str) -> Result<Backend, String> {
    let mut found = Backend::default();
    for part in text.split(',') {
        let addr = canonical(resolve(&target(part.trim())?, Some)?);
        let addr = match addr.ip() {
            ip if ip.is_unspecified() => SocketAddr::new(loopback(ip.is_ipv4()), addr.port()),
            _ => addr,
        };
        if !found.add(addr) {
            return Err("give one address of each family, IPv4 and IPv6".into());
        }
    }
    Ok(found)
}

/// 127.0.0.1 or ::1.
pub fn loopback(v4: bool) -> IpAddr {
    match v4 {
        true => Ipv4Addr::LOCALHOST.into(),
        false => Ipv6Addr::LOCALHOST.into(),
    }
}

/// The value of `-from`. Whoever is listed may claim to be any client: never everybody.
pub fn balancers(text: &str) -> Result<Vec<IpNet>, String> {
    let network = |part: &str| {
        let network = networks::parse(part.trim()).ok_or_else(|| {
            format!("{part:?} is neither an address nor a network such as 10.0.0.0/8")
        })?;
        match network.prefix_len() {
            0 => Err(format!(
                "{network} would let everybody claim to be any client: list only your load balancers"
            )),
            _ => Ok(network),
        }
    };
    text.split(',').map(network).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_have_an_address_of_each_family_at_most() {
        let read = |text: &str| backend(text).map(|backend| backend.to_string());
        for (text, told) in [
            ("127.0.0.1:22", "127.0.0.1:22"),
            ("[::1]:22", "[::1]:22"),
            ("0.0.0.0:22", "127.0.0.1:22"),
            ("[::ffff:192.0.2.1]:22", "192.0.2.1:22"),
            (
                "[2001:db8::1]:22, 192.0.2.1:2200",
                "192.0.2.1:2200,[2001:db8::1]:22",
            ),
        ] {
            assert_eq!(read(text).as_deref(), Ok(told), "{text}");
        }
        for text in [
            "",
            "22",
            ":22",
            "127.0.0.1",
            "127.0.0.1:0",
            "127.0.0.1:22,127.0.0.2:22",
            "::1:22",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn nobody_is_a_load_balancer_because_all_are() {
        assert!(balancers("192.0.2.5, 2001:db8::/64").is_ok_and(|list| list.len() == 2));
        for text in [
            "",
            "0.0.0.0/0",
            "192.0.2.5,::/0",
            "::ffff:0.0.0.0/96",
            "balancer",
            "192.0.2.5,",
        ] {
            assert!(balancers(text).is_err(), "{text}");
        }
    }
}
