//! The addresses of this host and of the networks that it is in.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Oddity;
use crate::networks::Networks;

/// What the kernel said at one moment.
#[derive(Debug, Default)]
pub struct Host {
    odd: HashMap<IpAddr, Oddity>,
    broadcasts: Networks,
}

impl Host {
    /// `own` are the addresses of all interfaces, `attached` the networks that they are in,
    /// `broadcasts` the destinations of routes of the type broadcast.
    pub fn new(
        own: impl IntoIterator<Item = IpAddr>,
        attached: impl IntoIterator<Item = IpNet>,
        broadcasts: impl IntoIterator<Item = IpNet>,
    ) -> Host {
        // A network of one or two addresses has none for itself (RFC 3021, RFC 6164).
        let whole = |network: &IpNet| network.max_prefix_len() - network.prefix_len() > 1;
        let networks = attached.into_iter().filter(whole);
        let networks = networks.map(|network| (network.network(), Oddity::Network));
        let mut odd: HashMap<IpAddr, Oddity> = networks.collect();
        odd.extend(own.into_iter().map(|ip| (ip, Oddity::Own)));
        let mut host = Host {
            odd,
            broadcasts: Networks::default(),
        };
        for network in broadcasts {
            host.broadcasts.insert(network);
        }
        host
    }

    /// What is odd about `ip` on this very host.
    pub fn oddity(&self, ip: IpAddr) -> Option<Oddity> {
        match self.odd.get(&ip) {
            // Some hosts have an address that is its network's broadcast address, too. The kernel
            // takes it for the host's own.
            Some(Oddity::Own) => Some(Oddity::Own),
            _ if self.broadcasts.contains(ip) => Some(Oddity::Broadcast),
            other => other.copied(),
        }
    }

    /// Whether an interface has this address.
    pub fn has(&self, ip: IpAddr) -> bool {
        self.odd.get(&ip) == Some(&Oddity::Own)
    }
}
