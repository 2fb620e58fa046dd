//! Rules and routes in the words of `ip`.

use std::fmt::Write;
use std::net::IpAddr;

use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};

use super::outside::quote;
use super::rules::{destination, mask, priority};
use crate::routing::family::Family;
use crate::routing::message::rule_table;

/// The rule in the words of `ip rule`.
pub fn rule(rule: &RuleMessage) -> String {
    format!("{}: {}", priority(rule), selector(rule))
}

/// The rule in the words of `ip rule`, without its priority: what `ip rule del` takes, quoted for
/// bash.
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
            RuleAttribute::Iifname(name) => write!(rest, " iif {}", quote(name)),
            RuleAttribute::Oifname(name) => write!(rest, " oif {}", quote(name)),
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
pub fn route(route: &RouteMessage) -> String {
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
            RouteAttribute::Oif(index) => write!(text, " dev {}", interface(*index)),
            _ => Ok(()),
        };
    }
    text
}

/// The name of an interface, or its number if it has gone.
pub fn interface(index: u32) -> String {
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
