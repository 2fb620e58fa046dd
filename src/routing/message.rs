//! Between our words and the kernel's: rules, routes and questions as netlink messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rtnetlink::packet_core::Nla;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage, RulePortRange};
use rtnetlink::packet_route::{AddressFamily, IpProtocol};

use super::family::Family;
use super::plan::{Question, Route, Rule, Selector};

/// The number that tells our rules and routes from everybody else's (`ip rule` shows "proto 84").
/// The kernel only stores it; rtnetlink.h gives numbers up to 192 to routing daemons, not this one.
pub const PROTOCOL_NUMBER: u8 = 84;
pub const PROTOCOL: RouteProtocol = RouteProtocol::Other(PROTOCOL_NUMBER);

/// The interface index of `lo` in every network namespace.
const LOOPBACK: u32 = 1;

/// Where the kernel would send a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// To a process of this host.
    pub local: bool,
    /// The routing table that said so.
    pub table: u32,
    /// The interface it leaves by.
    pub interface: Option<u32>,
    /// The next router on its way.
    pub gateway: Option<IpAddr>,
}

impl Answer {
    /// The kernel's answer to a question.
    pub fn read(route: &RouteMessage) -> Answer {
        let attributes = &route.attributes;
        Answer {
            local: route.header.kind == RouteType::Local,
            table: route_table(route),
            interface: attributes.iter().find_map(|a| match a {
                RouteAttribute::Oif(index) => Some(*index),
                _ => None,
            }),
            gateway: attributes.iter().find_map(|a| match a {
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
                RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
                _ => None,
            }),
        }
    }
}

/// True if the rule carries our protocol number.
pub fn is_ours(rule: &RuleMessage) -> bool {
    rule.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
}

/// FRA_SPORT_MASK and FRA_DPORT_MASK (linux/fib_rules.h): since Linux 6.15 the kernel tells the mask of
/// a port beside the port, 0xffff where none was given.
const PORT_MASKS: [u16; 2] = [28, 29];

/// True if both catch the same packets for the same table and carry the same number. What the
/// kernel fills in (priority, masks, suppressor) is not looked at.
pub fn is_same(a: &RuleMessage, b: &RuleMessage) -> bool {
    let core = |rule: &RuleMessage| -> Vec<RuleAttribute> {
        let filled_in = |a: &&RuleAttribute| {
            matches!(
                a,
                RuleAttribute::Priority(_)
                    | RuleAttribute::FwMask(_)
                    | RuleAttribute::SuppressPrefixLen(_)
            ) || is_whole_port(a)
        };
        let attributes = rule.attributes.iter();
        attributes.filter(|a| !filled_in(a)).cloned().collect()
    };
    let (a_core, b_core) = (core(a), core(b));
    a.header.src_len == b.header.src_len
        && a_core.len() == b_core.len()
        && a_core.iter().all(|attribute| b_core.contains(attribute))
}

fn is_whole_port(attribute: &RuleAttribute) -> bool {
    let RuleAttribute::Other(mask) = attribute else {
        return false;
    };
    let mut value = [0; 2];
    let fits = PORT_MASKS.contains(&mask.kind()) && mask.value_len() == value.len();
    if fits {
        mask.emit_value(&mut value);
    }
    value == [0xff; 2]
}

/// The table a rule leads to.
pub fn rule_table(rule: &RuleMessage) -> u32 {
    let wide = rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or(rule.header.table.into())
}

/// True if the rule looks at marks.
pub fn looks_at_marks(rule: &RuleMessage) -> bool {
    let of_mark = |a: &RuleAttribute| {
        matches!(a, RuleAttribute::FwMark(_))
            || matches!(a, RuleAttribute::FwMask(mask) if *mask != 0)
    };
    rule.attributes.iter().any(of_mark)
}

/// The table a route stands in.
pub fn route_table(route: &RouteMessage) -> u32 {
    let wide = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    wide.unwrap_or(route.header.table.into())
}

impl Family {
    /// AF_INET or AF_INET6.
    pub fn number(self) -> AddressFamily {
        match self {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        }
    }
}

impl Question {
    /// As the kernel is told.
    pub fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        let bits = self.family.bits();
        message.header.address_family = self.family.number();
        message.header.destination_prefix_length = bits;
        // The answer then names the table that was used. For IPv6 it does so anyway, and the
        // flag is EINVAL.
        if self.family == Family::V4 {
            message.header.flags = RouteFlags::LookupTable;
        }
        let attributes = &mut message.attributes;
        attributes.push(RouteAttribute::Destination(address(self.to)));
        if let Some(from) = self.from {
            message.header.source_prefix_length = bits;
            attributes.push(RouteAttribute::Source(address(from)));
        }
        attributes.extend(self.mark.map(RouteAttribute::Mark));
        attributes.extend(self.arrives_on.map(RouteAttribute::Iif));
        if let Some(port) = self.udp_source_port {
            attributes.push(RouteAttribute::IpProto(libc::IPPROTO_UDP as u8));
            attributes.push(RouteAttribute::Sport(port));
        }
        message
    }
}

impl Rule {
    /// As the kernel is told.
    pub fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = self.family.number();
        message.header.action = RuleAction::ToTable;
        message.attributes = vec![
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(PROTOCOL),
        ];
        let attributes = &mut message.attributes;
        let from_here = || RuleAttribute::Iifname("lo".into());
        match self.selector {
            Selector::FromLoopback => {
                let (from, bits) = match self.family {
                    Family::V4 => (Ipv4Addr::new(127, 0, 0, 0).into(), 8),
                    Family::V6 => (Ipv6Addr::LOCALHOST.into(), 128),
                };
                message.header.src_len = bits;
                attributes.extend([RuleAttribute::Source(from), from_here()]);
            }
            Selector::Mark(mark) => attributes.push(RuleAttribute::FwMark(mark)),
            Selector::UdpPort(from, port) => {
                if let Some(from) = from {
                    message.header.src_len = self.family.bits();
                    attributes.push(RuleAttribute::Source(from));
                }
                let range = RulePortRange {
                    start: port,
                    end: port,
                };
                attributes.extend([
                    from_here(),
                    RuleAttribute::IpProtocol(IpProtocol::Udp),
                    RuleAttribute::SourcePortRange(range),
                ]);
            }
        }
        message
    }
}

impl Route {
    /// As the kernel is told.
    pub fn message(&self) -> RouteMessage {
        let mut message = RouteMessage::default();
        message.header.address_family = self.family.number();
        message.header.kind = RouteType::Local;
        message.header.scope = RouteScope::Host;
        message.header.protocol = PROTOCOL;
        message.attributes = vec![
            RouteAttribute::Table(self.table),
            RouteAttribute::Oif(LOOPBACK),
        ];
        let source = self.source.map(address).map(RouteAttribute::PrefSource);
        message.attributes.extend(source);
        let metric = self.metric.map(RouteAttribute::Priority);
        message.attributes.extend(metric);
        message
    }
}

fn address(ip: IpAddr) -> RouteAddress {
    match ip {
        IpAddr::V4(ip) => RouteAddress::Inet(ip),
        IpAddr::V6(ip) => RouteAddress::Inet6(ip),
    }
}
