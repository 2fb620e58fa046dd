//! The firewall in front of the listener, by its rules: no probe of ours comes from outside.
//!
//! The rules of the input hook (nft, and iptables of both kinds) are followed for a first packet to `-l` that arrives on another
//! interface than lo. A rule that asks for what is not known here may take it or not. Something is
//! said only where a drop is certain, so a strange ruleset is taken for a good one.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::check::Check;
use super::iptables;
use crate::config::{Choice, ListenerConfig};
use crate::sys;

/// Jumps deeper than the kernel allows are no ruleset's.
const DEEPEST: usize = 16;

/// `firewall-listener`: failed if load balancers cannot reach the listener; none if nothing in the
/// rules is certain to stop them, or if nft is not here.
pub fn check(config: &ListenerConfig, listen: SocketAddr, from: Option<IpAddr>) -> Option<Check> {
    let alone = sys::interfaces::addresses()
        .iter()
        .all(|ip| ip.is_loopback());
    if listen.ip().is_loopback() || alone {
        return None;
    }
    let output = ["nft", "/usr/sbin/nft"].iter().find_map(|nft| {
        Command::new(nft)
            .args(["-j", "list", "ruleset"])
            .output()
            .ok()
    })?;
    let ruleset: Value = serde_json::from_slice(&output.stdout).ok()?;
    let packet = Packet {
        ipv6: from.map_or(listen.is_ipv6() && !listen.ip().is_unspecified(), |ip| {
            ip.is_ipv6()
        }),
        from,
        protocol: config.protocol.word(),
        port: listen.port(),
    };
    let mut rules = ruleset["nftables"].as_array()?.clone();
    rules.extend(iptables::filters());
    let place = Rules(&rules).stopped(&packet)?;
    let whom = from.map_or_else(|| "load balancers".to_owned(), |ip| ip.to_string());
    let (protocol, port) = (packet.protocol, packet.port);
    Some(
        Check::wrong(
            "firewall-listener",
            true,
            format!("{place} drops or rejects what {whom} send to {listen} ({protocol})"),
        )
        .advice(format!(
            "let the firewall accept {protocol} port {port} from your load balancers' addresses, and from nobody else"
        )),
    )
}

/// What is known of the first packet of a load balancer.
struct Packet {
    ipv6: bool,
    from: Option<IpAddr>,
    protocol: &'static str,
    port: u16,
}

/// Whether a rule takes the packet.
#[derive(Clone, Copy, PartialEq)]
enum Fit {
    Yes,
    No,
    Maybe,
}

/// How a chain ends.
enum End {
    /// No more rule of this hook's chain matters: it is accepted, or may be.
    Passes,
    /// By this rule.
    Dropped(String),
    /// The chain is over.
    Over,
}

/// What `nft -j list ruleset` prints.
struct Rules<'a>(&'a Vec<Value>);

impl Rules<'_> {
    /// The rule or policy that is certain to stop the packet.
    fn stopped(&self, packet: &Packet) -> Option<String> {
        let bases = self.0.iter().filter_map(|item| item.get("chain"));
        let mut bases = bases.filter(|chain| {
            let family = if packet.ipv6 { "ip6" } else { "ip" };
            chain["hook"] == "input"
                && chain["type"] == "filter"
                && (chain["family"] == "inet" || chain["family"] == family)
        });
        bases.find_map(|chain| {
            let name = chain["name"].as_str()?;
            match self.follow(chain, name, packet, 0) {
                End::Dropped(place) => Some(place),
                End::Over if chain["policy"] == "drop" => Some(match chain["text"].as_str() {
                    Some(text) => format!("\"{text}\""),
                    None => format!("the policy of {}", place_of(chain, name)),
                }),
                _ => None,
            }
        })
    }

    /// Goes through the rules of the chain called `name` in the table of `base`.
    fn follow(&self, base: &Value, name: &str, packet: &Packet, depth: usize) -> End {
        let of_chain = self
            .0
            .iter()
            .filter_map(|item| item.get("rule"))
            .filter(|rule| {
                rule["chain"] == name
                    && rule["table"] == base["table"]
                    && rule["family"] == base["family"]
            });
        for rule in of_chain {
            match self.apply(base, rule, packet, depth) {
                End::Over => {}
                End::Dropped(place) if place.is_empty() => return End::Over,
                end => return end,
            }
        }
        End::Over
    }

    /// An empty place stands for `return`.
    fn apply(&self, base: &Value, rule: &Value, packet: &Packet, depth: usize) -> End {
        let Some(statements) = rule["expr"].as_array() else {
            return End::Over;
        };
        let mut fit = Fit::Yes;
        for statement in statements {
            let Some((kind, body)) = statement.as_object().and_then(|o| o.iter().next()) else {
                return End::Over;
            };
            match kind.as_str() {
                "match" => match fits(body, packet) {
                    Fit::No => return End::Over,
                    Fit::Maybe => fit = Fit::Maybe,
                    Fit::Yes => {}
                },
                "accept" => return End::Passes,
                "drop" | "reject" if fit == Fit::Yes => {
                    let handle = &rule["handle"];
                    let chain = rule["chain"].as_str().unwrap_or_default();
                    return End::Dropped(match rule["text"].as_str() {
                        Some(text) => format!("\"{text}\""),
                        None => {
                            format!("the rule with handle {handle} in {}", place_of(base, chain))
                        }
                    });
                }
                "drop" | "reject" => return End::Over,
                "return" if fit == Fit::Yes => return End::Dropped(String::new()),
                // It may go on behind this rule or leave the chain, whose rest is then uncertain.
                "return" => return End::Passes,
                "jump" | "goto" => {
                    let Some(target) = body["target"].as_str().filter(|_| depth < DEEPEST) else {
                        return End::Passes;
                    };
                    return match self.follow(base, target, packet, depth + 1) {
                        End::Dropped(_) if fit == Fit::Maybe => End::Over,
                        End::Over if kind == "goto" && fit == Fit::Yes => {
                            End::Dropped(String::new())
                        }
                        End::Over if kind == "goto" => End::Passes,
                        end => end,
                    };
                }
                // They look on, or change what is not asked for here.
                "counter" | "log" | "comment" => {}
                // A target of iptables' own, which may be final.
                "xt" if body["type"] == "target" => return End::Passes,
                "limit" | "xt" | "quota" | "connlimit" | "ct count" => fit = Fit::Maybe,
                // A verdict map, a set that is filled, a queue: anything may come of it.
                _ => return End::Passes,
            }
        }
        End::Over
    }
}

fn place_of(base: &Value, chain: &str) -> String {
    let text = |key: &str| base[key].as_str().unwrap_or_default().to_owned();
    format!("table {} {}, chain {chain}", text("family"), text("table"))
}

fn fits(condition: &Value, packet: &Packet) -> Fit {
    let (left, right) = (&condition["left"], &condition["right"]);
    let fit = fits_plainly(left, right, packet);
    match (condition["op"].as_str(), fit) {
        (Some("==" | "in"), fit) => fit,
        (Some("!="), Fit::Yes) => Fit::No,
        (Some("!="), Fit::No) => Fit::Yes,
        _ => Fit::Maybe,
    }
}

fn fits_plainly(left: &Value, right: &Value, packet: &Packet) -> Fit {
    let field = left["payload"]["field"].as_str();
    let protocol = left["payload"]["protocol"].as_str();
    match (
        protocol,
        field,
        left["meta"]["key"].as_str(),
        left["ct"]["key"].as_str(),
    ) {
        (Some(of @ ("tcp" | "udp")), ..) if of != packet.protocol => Fit::No,
        (Some("icmp" | "icmpv6" | "sctp"), ..) => Fit::No,
        (Some("tcp" | "udp" | "th"), Some("dport"), ..) => {
            one_of(right, |value| port(value, packet.port))
        }
        (Some("ip"), ..) if packet.ipv6 => Fit::No,
        (Some("ip6"), ..) if !packet.ipv6 => Fit::No,
        (Some("ip" | "ip6"), Some("saddr"), ..) => {
            one_of(right, |value| address(value, packet.from))
        }
        (Some("ip" | "ip6"), Some("protocol" | "nexthdr"), ..) | (.., Some("l4proto"), _) => {
            one_of(right, |value| same(value, packet.protocol))
        }
        (.., Some("iif" | "iifname"), _) => one_of(right, |value| match value.as_str() {
            Some("lo") => Fit::No,
            _ => Fit::Maybe,
        }),
        (.., Some("nfproto"), _) => one_of(right, |value| {
            same(value, if packet.ipv6 { "ipv6" } else { "ipv4" })
        }),
        _ if left["fib"]["result"] == "type" && left["fib"]["flags"] == json!(["daddr"]) => {
            one_of(right, |value| same(value, "local"))
        }
        (.., Some("state")) => one_of(right, |value| same(value, "new")),
        _ => Fit::Maybe,
    }
}

/// A value, or a list or an anonymous set of them; what a named set holds is not looked up.
fn one_of(right: &Value, fit: impl Fn(&Value) -> Fit) -> Fit {
    let Some(values) = right["set"].as_array().or_else(|| right.as_array()) else {
        return fit(right);
    };
    let fits: Vec<_> = values.iter().map(fit).collect();
    match () {
        () if fits.contains(&Fit::Yes) => Fit::Yes,
        () if fits.contains(&Fit::Maybe) => Fit::Maybe,
        () => Fit::No,
    }
}

fn same(value: &Value, wanted: &str) -> Fit {
    match value.as_str() {
        Some(text) if text.starts_with('@') => Fit::Maybe,
        Some(text) if text == wanted => Fit::Yes,
        Some(_) => Fit::No,
        None => Fit::Maybe,
    }
}

fn port(value: &Value, wanted: u16) -> Fit {
    let number = |value: &Value| value.as_u64();
    let range = match value["range"].as_array() {
        Some(ends) => ends
            .first()
            .and_then(number)
            .zip(ends.get(1).and_then(number)),
        None => number(value).map(|port| (port, port)),
    };
    match range {
        Some((first, last)) if (first..=last).contains(&wanted.into()) => Fit::Yes,
        Some(_) => Fit::No,
        None => Fit::Maybe,
    }
}

fn address(value: &Value, from: Option<IpAddr>) -> Fit {
    let prefix = &value["prefix"];
    let network: Option<IpNet> = match (value.as_str(), prefix["addr"].as_str()) {
        (Some(text), _) => text.parse().ok().map(|ip: IpAddr| ip.into()),
        (None, Some(text)) => text
            .parse()
            .ok()
            .and_then(|ip: IpAddr| IpNet::new(ip, prefix["len"].as_u64()?.try_into().ok()?).ok()),
        (None, None) => None,
    };
    match (network, from) {
        (Some(network), Some(from)) if network.contains(&from) => Fit::Yes,
        (Some(_), Some(_)) => Fit::No,
        // No load balancer is at a loopback address and comes from outside.
        (Some(network), None) if network.addr().is_loopback() => Fit::No,
        _ => Fit::Maybe,
    }
}
