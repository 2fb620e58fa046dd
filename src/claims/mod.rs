//! Addresses that a header may not claim, and from whom. realpeer.8 has the table with the reasons.

mod host;
mod watch;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ipnet::IpNet;

use crate::addr::{ClientAddr, PeerAddr};
use crate::namespaces::Namespace;
use crate::networks::Networks;

pub use host::Host;
pub use watch::follow;

/// Judges claims by this host's addresses, which change while the proxy runs, and by what the
/// administrator allows.
#[derive(Debug, Default)]
pub struct Claims {
    allowed: Networks,
    // Read for each datagram: a lock would be shared by all workers.
    host: Arc<ArcSwap<Host>>,
    /// Where targets are, if not on this host: the addresses there are as odd.
    inside: Option<Arc<Namespace>>,
}

/// What is odd about an address, so that not everybody may claim it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oddity {
    /// 0.0.0.0 or ::.
    Unspecified,
    /// 224.0.0.0/4 or ff00::/8.
    Multicast,
    /// 255.255.255.255, or what a route of the type broadcast names.
    Broadcast,
    /// 127.0.0.0/8 or ::1.
    Loopback,
    /// On an interface of this host.
    Own,
    /// The first address of a network that this host is in.
    Network,
    /// 0.0.0.0/8.
    ThisNetwork,
    /// 240.0.0.0/4.
    Reserved,
    /// 169.254.0.0/16 or fe80::/10.
    LinkLocal,
}

impl Claims {
    /// `allowed` is `-allow-claims`, `host` what `follow` keeps up to date.
    pub fn new(allowed: &[IpNet], host: Arc<ArcSwap<Host>>) -> Claims {
        Claims {
            allowed: allowed.iter().copied().collect(),
            host,
            inside: None,
        }
    }

    /// The same for targets in that namespace.
    pub fn inside(mut self, namespace: Option<Arc<Namespace>>) -> Claims {
        self.inside = namespace;
        self
    }

    /// Whether this peer may claim that client; `named` tells whether `-allowed-subnets` names it.
    /// Called for each datagram: it asks neither the kernel nor for memory.
    pub fn judge(
        &self,
        peer: PeerAddr,
        client: ClientAddr,
        named: impl FnOnce() -> bool,
    ) -> Result<(), Oddity> {
        let host = self.host.load();
        let inside = |ip| self.inside.as_ref()?.addresses(|there| oddity(ip, there))?;
        let Some(oddity) = oddity(client.ip(), &host).or_else(|| inside(client.ip())) else {
            return Ok(());
        };
        let fine = match oddity {
            Oddity::Unspecified | Oddity::Multicast | Oddity::Broadcast => false,
            _ if peer.ip().is_loopback() => true,
            Oddity::Loopback => false,
            _ if host.has(peer.ip()) => true,
            Oddity::Own if named() => true,
            _ => self.allows(client.ip()),
        };
        if fine { Ok(()) } else { Err(oddity) }
    }

    fn allows(&self, ip: IpAddr) -> bool {
        let embedded = || embedded(ip).is_some_and(|v4| self.allowed.contains(v4.into()));
        self.allowed.contains(ip) || embedded()
    }
}

fn oddity(ip: IpAddr, host: &Host) -> Option<Oddity> {
    match ip {
        IpAddr::V4(v4) => oddity_v4(v4, host),
        IpAddr::V6(v6) if v6.is_unspecified() => Some(Oddity::Unspecified),
        IpAddr::V6(v6) if v6.is_multicast() => Some(Oddity::Multicast),
        IpAddr::V6(v6) if v6.is_loopback() => Some(Oddity::Loopback),
        IpAddr::V6(v6) => host
            .oddity(ip)
            .or(v6.is_unicast_link_local().then_some(Oddity::LinkLocal))
            // Behind a 6to4 router of this host, clients have its address in theirs.
            .or_else(|| oddity_v4(embedded(ip)?, host).filter(|odd| *odd != Oddity::Own)),
    }
}

fn oddity_v4(ip: Ipv4Addr, host: &Host) -> Option<Oddity> {
    let of_host = host.oddity(ip.into());
    Some(match ip.octets() {
        [0, 0, 0, 0] => Oddity::Unspecified,
        [255, 255, 255, 255] => Oddity::Broadcast,
        [224..=239, ..] => Oddity::Multicast,
        _ if of_host == Some(Oddity::Broadcast) => Oddity::Broadcast,
        [127, ..] => Oddity::Loopback,
        _ if of_host.is_some() => return of_host,
        [0, ..] => Oddity::ThisNetwork,
        [240..=255, ..] => Oddity::Reserved,
        [169, 254, ..] => Oddity::LinkLocal,
        _ => return None,
    })
}

/// The IPv4 address in an IPv4-mapped, 6to4 (2002::/16, RFC 3056) or NAT64 (64:ff9b::/96,
/// RFC 6052) address.
fn embedded(ip: IpAddr) -> Option<Ipv4Addr> {
    let IpAddr::V6(v6) = ip else { return None };
    let v4 = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match v6.segments() {
        [0x2002, high, low, ..] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Some(v4(high, low)),
        _ => v6.to_ipv4_mapped(),
    }
}

/// Reads `-allow-claims`: networks and addresses, separated by commas. Fails for what can never be
/// allowed.
pub fn parse_allowed(text: &str) -> Result<Vec<IpNet>, String> {
    let mut allowed = Vec::new();
    for entry in text.split(',').map(str::trim) {
        let network = crate::networks::parse(entry)
            .ok_or_else(|| format!("{entry:?} is no address and no network such as 10.0.0.0/8"))?;
        // A wide one, such as 0.0.0.0/0, holds such addresses too; they stay refused.
        let first = oddity(network.addr(), &Host::default());
        let last = oddity(network.broadcast(), &Host::default());
        if let (Some(odd), true) = (first, first == last)
            && !odd.can_be_allowed()
        {
            return Err(format!("{entry} is {odd}: it can never be allowed"));
        }
        allowed.push(network);
    }
    Ok(allowed)
}

impl Oddity {
    fn can_be_allowed(self) -> bool {
        !matches!(
            self,
            Oddity::Unspecified | Oddity::Multicast | Oddity::Broadcast | Oddity::Loopback
        )
    }

    /// Who may claim such an address all the same.
    pub fn claimants(self) -> &'static str {
        match self {
            Oddity::Unspecified | Oddity::Multicast | Oddity::Broadcast => "which no client has",
            Oddity::Loopback => "which only a local peer may claim",
            Oddity::Own => {
                "which only a local peer may claim, or a load balancer that -allowed-subnets names"
            }
            _ => {
                "which only a local peer may claim; if clients really have it, allow it by -allow-claims"
            }
        }
    }
}

impl fmt::Display for Oddity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Oddity::Unspecified => "the unspecified address",
            Oddity::Multicast => "a multicast address",
            Oddity::Broadcast => "a broadcast address",
            Oddity::Loopback => "a loopback address",
            Oddity::Own => "an address of this host",
            Oddity::Network => "the address of a whole network",
            Oddity::ThisNetwork => "an address of 0.0.0.0/8",
            Oddity::Reserved => "an address of 240.0.0.0/4",
            Oddity::LinkLocal => "a link-local address",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::canonical;

    const LOCAL: &str = "127.0.0.1";
    const OWN: &str = "10.9.0.1";
    const STRANGER: &str = "192.0.2.1";

    fn claims(allowed: &str) -> Claims {
        let networks = ["10.9.0.1/24", "10.8.0.1/31", "2001:db8::1/64"];
        let networks = networks.map(|network| network.parse::<ipnet::IpNet>().unwrap());
        let broadcasts = ["10.9.0.255/32".parse().unwrap()];
        let own = networks.map(|network| network.addr());
        let host = Host::new(own, networks, broadcasts);
        let allowed = match allowed {
            "" => Vec::new(),
            allowed => parse_allowed(allowed).unwrap(),
        };
        Claims::new(&allowed, Arc::new(ArcSwap::from_pointee(host)))
    }

    fn judge(claims: &Claims, peer: &str, client: &str, named: bool) -> Option<Oddity> {
        let socket = |ip: &str| canonical((ip.parse::<IpAddr>().unwrap(), 1).into());
        let (peer, client) = (PeerAddr(socket(peer)), ClientAddr(socket(client)));
        claims.judge(peer, client, || named).err()
    }

    /// Each with who may claim it: nobody, this host by loopback, this host by any address, or who
    /// is allowed to.
    const TABLE: [(&str, Oddity, u8); 29] = [
        ("0.0.0.0", Oddity::Unspecified, 0),
        ("::", Oddity::Unspecified, 0),
        ("224.0.0.1", Oddity::Multicast, 0),
        ("239.255.255.255", Oddity::Multicast, 0),
        ("ff02::1", Oddity::Multicast, 0),
        ("::ffff:224.0.0.1", Oddity::Multicast, 0),
        ("2002:e000:1::", Oddity::Multicast, 0),
        ("255.255.255.255", Oddity::Broadcast, 0),
        ("10.9.0.255", Oddity::Broadcast, 0),
        ("::ffff:10.9.0.255", Oddity::Broadcast, 0),
        ("2002:a09:ff::1", Oddity::Broadcast, 0),
        ("64:ff9b::10.9.0.255", Oddity::Broadcast, 0),
        ("127.0.0.1", Oddity::Loopback, 1),
        ("127.255.255.254", Oddity::Loopback, 1),
        ("::1", Oddity::Loopback, 1),
        ("::ffff:127.0.0.1", Oddity::Loopback, 1),
        ("2002:7f00:1::", Oddity::Loopback, 1),
        ("64:ff9b::127.0.0.1", Oddity::Loopback, 1),
        ("0.1.2.3", Oddity::ThisNetwork, 2),
        ("240.0.0.1", Oddity::Reserved, 2),
        ("64:ff9b::240.0.0.1", Oddity::Reserved, 2),
        ("169.254.7.7", Oddity::LinkLocal, 2),
        ("2002:a9fe:707::9", Oddity::LinkLocal, 2),
        ("fe80::1", Oddity::LinkLocal, 2),
        ("febf::1", Oddity::LinkLocal, 2),
        ("10.9.0.0", Oddity::Network, 2),
        ("64:ff9b::10.9.0.0", Oddity::Network, 2),
        ("2001:db8::", Oddity::Network, 2),
        ("2001:db8::1", Oddity::Own, 2),
    ];

    #[test]
    fn odd_addresses_are_refused_but_from_this_host() {
        let claims = claims("");
        for (client, oddity, who) in TABLE {
            let odd = |here: bool| (!here).then_some(oddity);
            for (peer, expected) in [
                (STRANGER, odd(false)),
                (OWN, odd(who >= 2)),
                (LOCAL, odd(who >= 1)),
                ("::1", odd(who >= 1)),
            ] {
                assert_eq!(
                    judge(&claims, peer, client, false),
                    expected,
                    "{peer} {client}"
                );
            }
            let expected = odd(oddity == Oddity::Own);
            assert_eq!(judge(&claims, STRANGER, client, true), expected, "{client}");
        }
    }

    #[test]
    fn what_clients_can_have_is_fine() {
        let claims = claims("");
        for client in [
            "203.0.113.9",
            "1.0.0.0",
            "126.255.255.255",
            "10.9.0.7",
            "10.8.0.0",
            "169.253.0.1",
            "2001:db8::7",
            // A client behind this host's own 6to4 router.
            "2002:a09:1::9",
            "64:ff9b::203.0.113.9",
            "64:ff9b:1::127.0.0.1",
        ] {
            assert_eq!(judge(&claims, STRANGER, client, false), None, "{client}");
        }
    }

    #[test]
    fn the_administrator_can_allow_what_clients_really_have() {
        let everything = "0.0.0.0/0, ::/0";
        let claims = claims(everything);
        for (client, oddity, who) in TABLE {
            let expected = (who < 2).then_some(oddity);
            assert_eq!(
                judge(&claims, STRANGER, client, false),
                expected,
                "{client}"
            );
        }
        for never in [
            "127.0.0.0/8",
            "10.0.0.0/8,127.0.0.1",
            "::1",
            "224.0.0.0/4",
            "ff02::/16",
            "255.255.255.255",
            "0.0.0.0",
        ] {
            assert!(
                parse_allowed(never).unwrap_err().contains("never"),
                "{never}"
            );
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0.1,", "somewhere"] {
            assert!(parse_allowed(wrong).is_err(), "{wrong:?}");
        }
    }
}
