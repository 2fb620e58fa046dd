//! Which rules and routes a target needs, as data.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Settings;

/// One of the two kinds of IP address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// Which packets a rule catches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Sent by a process of this host from 127.0.0.0/8 or ::1.
    FromLoopback,
}

/// A policy rule: packets of `selector` are looked up in `table`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Which packets.
    pub selector: Selector,
    /// The table they are looked up in.
    pub table: u32,
}

/// A default route of type local: every destination in this table is this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// IPv4 or IPv6.
    pub family: Family,
    /// The table it stands in.
    pub table: u32,
}

/// A packet whose way is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Its source.
    pub from: IpAddr,
    /// Its destination.
    pub to: IpAddr,
}

/// What one target needs so that the replies to its clients come back to us.
#[derive(Clone, Debug)]
pub struct Need {
    /// The target's address.
    pub target: IpAddr,
    /// The flag named it, rather than a default.
    pub given: bool,
}

impl Need {
    /// The rules and routes, in `table`.
    pub fn steps(&self, table: u32) -> (Rule, Route) {
        let family = self.family();
        let rule = Rule {
            family,
            selector: Selector::FromLoopback,
            table,
        };
        (rule, Route { family, table })
    }

    /// A reply of the target to a client; with the routing in place it is delivered locally.
    pub fn reply(&self) -> Question {
        Question {
            from: self.target,
            to: self.family().stranger(),
        }
    }

    /// The family of the target, and so of its clients.
    pub fn family(&self) -> Family {
        Family::of(self.target)
    }
}

/// What the targets of `settings` need.
pub fn needs(settings: &Settings) -> Vec<Need> {
    let targets = &settings.targets;
    let both = [
        (IpAddr::V4(*targets.v4.ip()), targets.v4_given),
        (IpAddr::V6(*targets.v6.ip()), targets.v6_given),
    ];
    let loopback = both.into_iter().filter(|(ip, _)| ip.is_loopback());
    loopback
        .map(|(target, given)| Need { target, given })
        .collect()
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

    /// An address that no host owns (RFC 5737, RFC 3849), to stand for a client.
    pub fn stranger(self) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::new(203, 0, 113, 77).into(),
            Family::V6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 77).into(),
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
