//! Reads policy rules as the kernel does: which rule takes a packet, and which stands in its way.

use std::fmt::Write;
use std::net::IpAddr;

use ipnet::IpNet;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use crate::routing::kernel::rule_table;
use crate::routing::plan::Family;

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

fn mask(rule: &RuleMessage) -> u32 {
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
        _ => Effect::Away(describe_route(route)),
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

fn destination(route: &RouteMessage) -> IpAddr {
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

/// The rule in the words of `ip rule`.
pub fn describe(rule: &RuleMessage) -> String {
    format!("{}: {}", priority(rule), selector(rule))
}

/// The rule in the words of `ip rule`, without its priority: what `ip rule del` takes.
pub fn selector(rule: &RuleMessage) -> String {
    let mut text = String::new();
    if rule.header.flags.contains(RuleFlags::Invert) {
        text.push_str("not ");
    }
    let mut from = "all".to_owned();
    let mut rest = String::new();
    for attribute in &rule.attributes {
        // Writing to a string cannot fail.
        _ = match attribute {
            RuleAttribute::Source(ip) => {
                from = prefix(*ip, rule.header.src_len);
                Ok(())
            }
            RuleAttribute::Destination(ip) => {
                write!(rest, " to {}", prefix(*ip, rule.header.dst_len))
            }
            RuleAttribute::Iifname(name) => write!(rest, " iif {name}"),
            RuleAttribute::Oifname(name) => write!(rest, " oif {name}"),
            RuleAttribute::FwMark(mark) if mask(rule) == u32::MAX => {
                write!(rest, " fwmark {mark:#x}")
            }
            RuleAttribute::FwMark(mark) => write!(rest, " fwmark {mark:#x}/{:#x}", mask(rule)),
            RuleAttribute::IpProtocol(protocol) => {
                write!(rest, " ipproto {}", i32::from(*protocol))
            }
            RuleAttribute::SourcePortRange(range) => {
                write!(rest, " sport {}-{}", range.start, range.end)
            }
            RuleAttribute::DestinationPortRange(range) => {
                write!(rest, " dport {}-{}", range.start, range.end)
            }
            _ => Ok(()),
        };
    }
    let end = match rule.header.action {
        RuleAction::ToTable => format!("lookup {}", table_name(rule_table(rule))),
        RuleAction::Blackhole => "blackhole".into(),
        RuleAction::Unreachable => "unreachable".into(),
        RuleAction::Prohibit => "prohibit".into(),
        _ => "goto".into(),
    };
    _ = write!(text, "from {from}{rest} {end}");
    text
}

/// The route in the words of `ip route`.
pub fn describe_route(route: &RouteMessage) -> String {
    let bits = route.header.destination_prefix_length;
    let kind = match route.header.kind {
        RouteType::Unicast => "",
        RouteType::Local => "local ",
        RouteType::BlackHole => "blackhole ",
        RouteType::Unreachable => "unreachable ",
        RouteType::Prohibit => "prohibit ",
        RouteType::Throw => "throw ",
        _ => "other ",
    };
    let mut text = match bits {
        0 => format!("{kind}default"),
        _ => format!("{kind}{}", prefix(destination(route), bits)),
    };
    for attribute in &route.attributes {
        _ = match attribute {
            RouteAttribute::Gateway(RouteAddress::Inet(ip)) => write!(text, " via {ip}"),
            RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => write!(text, " via {ip}"),
            RouteAttribute::Oif(index) => write!(text, " dev {}", interface_name(*index)),
            _ => Ok(()),
        };
    }
    text
}

/// The name of an interface, or its number if it has gone.
pub fn interface_name(index: u32) -> String {
    nix::net::if_::if_indextoname(index)
        .ok()
        .and_then(|name| name.into_string().ok())
        .unwrap_or_else(|| index.to_string())
}

fn table_name(table: u32) -> String {
    match table {
        253 => "default".into(),
        254 => "main".into(),
        255 => "local".into(),
        other => other.to_string(),
    }
}

fn prefix(ip: IpAddr, bits: u8) -> String {
    if bits == Family::of(ip).bits() {
        ip.to_string()
    } else {
        format!("{ip}/{bits}")
    }
}
