//! Reads policy rules as the kernel does: which rule takes a packet, and which stands in its way.

use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::words;

/// A packet, as far as rules look at it.
#[derive(Clone, Debug)]
pub struct Packet {
    /// Its source; `None` while the sender has not chosen one.
    pub from: Option<IpAddr>,
    /// Its destination.
    pub to: IpAddr,
    /// Its mark, 0 for none.
    pub mark: u32,
    /// Where it comes from; `lo` for what this host sends.
    pub interface: String,
    /// IPPROTO_TCP or IPPROTO_UDP.
    pub protocol: i32,
    /// Its source port: the target's.
    pub source_port: u16,
}

/// True if the rule takes the packet.
pub fn takes(rule: &RuleMessage, packet: &Packet) -> bool {
    let inverted = rule.header.flags.contains(RuleFlags::Invert);
    let plain = rule.header.tos == 0 && rule.attributes.iter().all(|a| fits(rule, a, packet));
    plain != inverted
}

fn fits(rule: &RuleMessage, attribute: &RuleAttribute, packet: &Packet) -> bool {
    match attribute {
        RuleAttribute::Source(ip) => packet
            .from
            .is_some_and(|from| within(*ip, rule.header.src_len, from)),
        RuleAttribute::Destination(ip) => within(*ip, rule.header.dst_len, packet.to),
        RuleAttribute::Iifname(name) => *name == packet.interface,
        RuleAttribute::FwMark(mark) => packet.mark & mask(rule) == *mark,
        RuleAttribute::IpProtocol(protocol) => i32::from(*protocol) == packet.protocol,
        RuleAttribute::SourcePortRange(range) => {
            (range.start..=range.end).contains(&packet.source_port)
        }
        // Nothing of this is true of an answer to a stranger.
        RuleAttribute::DestinationPortRange(_)
        | RuleAttribute::Oifname(_)
        | RuleAttribute::TunId(_)
        | RuleAttribute::UidRange(_)
        | RuleAttribute::L3MDev(true) => false,
        _ => true,
    }
}

/// The bits of the mark that the rule looks at.
pub fn mask(rule: &RuleMessage) -> u32 {
    let given = rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::FwMask(mask) => Some(*mask),
        _ => None,
    });
    given.unwrap_or(u32::MAX)
}

fn within(ip: IpAddr, bits: u8, what: IpAddr) -> bool {
    IpNet::new(ip, bits).is_ok_and(|net| net.contains(&what))
}

/// What a rule does with a packet that it takes.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The next rules are asked.
    Nothing,
    /// It is delivered on this host.
    Local,
    /// It goes elsewhere, or nowhere: what the rule or its route says.
    Away(String),
}

/// What `rule` does; `routes` are those of its table.
pub fn effect(rule: &RuleMessage, routes: &[RouteMessage], packet: &Packet) -> Effect {
    match rule.header.action {
        RuleAction::ToTable => {}
        RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => {
            return Effect::Away("the packet is thrown away".into());
        }
        _ => return Effect::Nothing,
    }
    let Some(route) = best(routes, packet.to) else {
        return Effect::Nothing;
    };
    let suppressed = rule.attributes.iter().any(|a| match a {
        RuleAttribute::SuppressPrefixLen(bits) => {
            *bits != u32::MAX && u32::from(route.header.destination_prefix_length) <= *bits
        }
        _ => false,
    });
    match route.header.kind {
        RouteType::Local => Effect::Local,
        RouteType::Throw => Effect::Nothing,
        _ if suppressed => Effect::Nothing,
        _ => Effect::Away(words::route(route)),
    }
}

/// The route that a table has for an address.
pub fn best(routes: &[RouteMessage], to: IpAddr) -> Option<&RouteMessage> {
    let serves = routes.iter().filter(|route| {
        within(
            destination(route),
            route.header.destination_prefix_length,
            to,
        )
    });
    serves.max_by_key(|route| {
        (
            route.header.destination_prefix_length,
            std::cmp::Reverse(metric(route)),
        )
    })
}

/// True for `local default`: what every table of ours holds, and nothing else.
pub fn is_local_default(route: &RouteMessage) -> bool {
    route.header.kind == RouteType::Local && route.header.destination_prefix_length == 0
}

/// Where the route leads; all zeros for a default route.
pub fn destination(route: &RouteMessage) -> IpAddr {
    let found = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    });
    let v6 = route.header.address_family == rtnetlink::packet_route::AddressFamily::Inet6;
    found.unwrap_or(if v6 {
        IpAddr::from([0; 16])
    } else {
        IpAddr::from([0; 4])
    })
}

fn metric(route: &RouteMessage) -> u32 {
    let found = route.attributes.iter().find_map(|a| match a {
        RouteAttribute::Priority(metric) => Some(*metric),
        _ => None,
    });
    found.unwrap_or(0)
}

/// The rule's place in the order.
pub fn priority(rule: &RuleMessage) -> u32 {
    let found = rule.attributes.iter().find_map(|a| match a {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    found.unwrap_or(0)
}

/// True if the rule asks for a mark, and does not turn that round.
pub fn wants_a_mark(rule: &RuleMessage) -> bool {
    let marked = |a: &RuleAttribute| matches!(a, RuleAttribute::FwMark(mark) if *mark != 0);
    !rule.header.flags.contains(RuleFlags::Invert) && rule.attributes.iter().any(marked)
}

/// True if the rule is for what loopback addresses send.
pub fn is_for_loopback(rule: &RuleMessage) -> bool {
    let loopback = |a: &RuleAttribute| matches!(a, RuleAttribute::Source(ip) if ip.is_loopback());
    !rule.header.flags.contains(RuleFlags::Invert) && rule.attributes.iter().any(loopback)
}

/// True if the rule looks at the source port.
pub fn is_for_port(rule: &RuleMessage, port: u16) -> bool {
    rule.attributes.iter().any(
        |a| matches!(a, RuleAttribute::SourcePortRange(range) if range.start <= port && port <= range.end),
    )
}
