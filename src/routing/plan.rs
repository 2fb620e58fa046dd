//! Which way the replies of a target come back, and what each way needs, as data.
//!
//! ```
//! use realpeer::routing::plan::{Need, Place, Protocol, Way, choose};
//!
//! let way = choose(Protocol::Tcp, Place::Loopback, false);
//! assert_eq!(way, Way::Loopback);
//! let need = Need {
//!     target: "127.0.0.1:22".parse()?,
//!     netns: None,
//!     given: true,
//!     way,
//!     mark: None,
//!     wildcard: false,
//!     stranger: [198, 18, 0, 1].into(),
//! };
//! let steps: Vec<String> = need.steps(8192).iter().map(ToString::to_string).collect();
//! assert_eq!(steps[0], "ip -4 route add local default dev lo table 8192 protocol 84");
//! assert_eq!(steps[1], "ip -4 rule add from 127.0.0.0/8 iif lo lookup 8192 protocol 84");
//! # Ok::<(), std::net::AddrParseError>(())
//! ```

use std::fmt;
use std::net::{IpAddr, SocketAddr};

pub use super::family::Family;
pub use crate::config::Protocol;

/// How the kernel is brought to hand a backend's replies to the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// go-mmproxy's: what is sent from 127.0.0.0/8 or ::1 is delivered on this host.
    Loopback,
    /// The upstream socket carries a mark, the connection it reaches inherits it
    /// (`tcp_fwmark_accept`), and what is marked so is delivered on this host. TCP only.
    Mark,
    /// nft marks the packets that arrive for a socket of the proxy, which are then delivered here.
    Socket,
    /// What is sent from the backend's UDP port is delivered on this host, whoever it is for.
    UdpPort,
}

/// Where an address is, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// 127.0.0.0/8 or ::1.
    Loopback,
    /// Another address of this host.
    Own,
    /// Not of this host.
    Behind,
}

/// What one target needs so that the replies to its clients come back to us.
#[derive(Clone, Debug)]
pub struct Need {
    /// Where connections go.
    pub target: SocketAddr,
    /// The network namespace that it is in, as `-target-netns` names it; `None` for this host's own.
    pub netns: Option<String>,
    /// The flag named the target, rather than a default.
    pub given: bool,
    /// How its replies come back.
    pub way: Way,
    /// `-mark`: the mark that the upstream sockets carry anyway.
    pub mark: Option<u32>,
    /// A UDP backend bound to 0.0.0.0 or ::, whose replies have no source address yet.
    pub wildcard: bool,
    /// An address that stands for a client; not this host's.
    pub stranger: IpAddr,
}

/// One thing to put in place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A routing table's only route.
    Route(Route),
    /// `net.ipv4.tcp_fwmark_accept=1`, which counts for IPv6 too.
    FwmarkAccept,
    /// An nft table that keeps other programs' connections from inheriting marks by that.
    MarkGuard,
    /// An nft table of ours that marks what arrives for transparent sockets.
    SocketMatch {
        /// The routing table that the mark leads to; it names the nft table.
        table: u32,
        /// The mark.
        mark: u32,
    },
    /// A policy rule.
    Rule(Rule),
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

/// Which packets a rule catches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// Sent by a process of this host from 127.0.0.0/8 or ::1.
    FromLoopback,
    /// Carrying this mark.
    Mark(u32),
    /// Sent by a process of this host from this UDP port (and, if given, this address).
    UdpPort(Option<IpAddr>, u16),
}

/// A default route of type local: every destination in this table is this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// IPv4 or IPv6.
    pub family: Family,
    /// The table it stands in.
    pub table: u32,
    /// The source for senders that have not chosen one.
    pub source: Option<IpAddr>,
    /// Its metric, by which routes to the same destination differ; `None` for the kernel's default.
    pub metric: Option<u32>,
}

/// A packet whose way is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// IPv4 or IPv6.
    pub family: Family,
    /// Its source; `None` for a socket bound to the wildcard address.
    pub from: Option<IpAddr>,
    /// Its destination.
    pub to: IpAddr,
    /// Its mark.
    pub mark: Option<u32>,
    /// The interface it arrives on; `None` when it is sent by this host.
    pub arrives_on: Option<u32>,
    /// Its UDP source port, where a rule looks at it.
    pub udp_source_port: Option<u16>,
}

/// The best way for a target.
pub fn choose(protocol: Protocol, place: Place, wildcard: bool) -> Way {
    match (protocol, place) {
        (_, Place::Behind) => Way::Socket,
        (Protocol::Udp, Place::Loopback) if !wildcard => Way::Loopback,
        (Protocol::Udp, _) => Way::UdpPort,
        (Protocol::Tcp, Place::Loopback) => Way::Loopback,
        (Protocol::Tcp, Place::Own) => Way::Mark,
    }
}

impl Need {
    /// What is put in place, in order: a rule that leads to an empty table would only look right.
    pub fn steps(&self, table: u32) -> Vec<Step> {
        let family = self.family();
        let rule = |selector| {
            Step::Rule(Rule {
                family,
                selector,
                table,
            })
        };
        let route = |source| {
            Step::Route(Route {
                family,
                table,
                source,
                metric: None,
            })
        };
        match self.way {
            Way::Loopback => vec![route(None), rule(Selector::FromLoopback)],
            Way::Mark => vec![
                route(None),
                Step::FwmarkAccept,
                rule(Selector::Mark(self.mark_in(table))),
            ],
            Way::Socket => vec![
                route(None),
                rule(Selector::Mark(table)),
                Step::SocketMatch { table, mark: table },
            ],
            Way::UdpPort => vec![
                route(Some(self.target.ip())),
                rule(Selector::UdpPort(
                    (!self.wildcard).then_some(self.target.ip()),
                    self.target.port(),
                )),
            ],
        }
    }

    /// A reply of the target to a client. With the routing of `table`, or one placed by hand, in
    /// place, it is delivered locally. `arrives_on` is the interface towards a target behind us.
    pub fn reply(&self, table: u32, arrives_on: Option<u32>) -> Question {
        let mark = match self.way {
            Way::Mark => Some(self.mark_in(table)),
            Way::Socket => Some(table),
            Way::Loopback | Way::UdpPort => None,
        };
        // One may only ask about what this host sends, or what arrives.
        let not_seen = self.way == Way::Socket && arrives_on.is_none();
        Question {
            family: self.family(),
            from: (!self.wildcard && !not_seen).then_some(self.target.ip()),
            to: self.stranger,
            mark,
            arrives_on: arrives_on.filter(|_| self.way == Way::Socket),
            udp_source_port: (self.way == Way::UdpPort).then_some(self.target.port()),
        }
    }

    /// True if the upstream socket would carry the mark that the socket match gives to replies:
    /// its packets would never leave this host.
    pub fn collides(&self, table: u32) -> bool {
        self.way == Way::Socket && self.mark == Some(table)
    }

    /// The mark of mark-accept: the user's, or one of our own that is as good as the table's.
    pub fn mark_in(&self, table: u32) -> u32 {
        self.mark.unwrap_or(table)
    }

    /// The target, as messages name it.
    pub fn name(&self) -> String {
        match &self.netns {
            Some(netns) => format!("{} in {netns}", self.target),
            None => self.target.to_string(),
        }
    }

    /// The family of the target, and so of its clients.
    pub fn family(&self) -> Family {
        Family::of(self.target.ip())
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Loopback => "loopback",
            Way::Mark => "mark",
            Way::Socket => "socket",
            Way::UdpPort => "udp-port",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_follows_from_the_target() {
        use Protocol::{Tcp, Udp};
        for (protocol, place, wildcard, way) in [
            (Tcp, Place::Loopback, false, Way::Loopback),
            (Tcp, Place::Own, false, Way::Mark),
            (Tcp, Place::Behind, false, Way::Socket),
            (Udp, Place::Loopback, false, Way::Loopback),
            (Udp, Place::Loopback, true, Way::UdpPort),
            (Udp, Place::Own, false, Way::UdpPort),
            (Udp, Place::Behind, true, Way::Socket),
        ] {
            assert_eq!(
                choose(protocol, place, wildcard),
                way,
                "{protocol:?} {place:?}"
            );
        }
    }

    #[test]
    fn under_socket_match_the_rules_mark_is_never_the_users() {
        let need = Need {
            target: SocketAddr::from(([172, 17, 0, 2], 80)),
            netns: None,
            given: true,
            way: Way::Socket,
            mark: Some(5),
            wildcard: false,
            stranger: [198, 18, 0, 1].into(),
        };
        let rule = Step::Rule(Rule {
            family: Family::V4,
            selector: Selector::Mark(8193),
            table: 8193,
        });
        assert!(need.steps(8193).contains(&rule));
    }
}
