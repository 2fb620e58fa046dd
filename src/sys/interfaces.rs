//! The addresses of this host's interfaces.

use std::net::IpAddr;

use nix::ifaddrs::getifaddrs;

/// Every address of every interface; none when they cannot be listed.
pub fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else {
        return Vec::new();
    };
    let addresses = interfaces.filter_map(|interface| interface.address);
    let ip = addresses.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
        let v6 = address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip()));
        v4.or(v6)
    });
    ip.collect()
}

/// Whether an address is on one of this host's interfaces. When they cannot be listed, no.
pub fn is_local(ip: IpAddr) -> bool {
    addresses().contains(&ip)
}
