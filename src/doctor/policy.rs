//! The policy routing as it stands: is each target's way back there, and if not, why not.

use std::fs;
use std::io;

use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};

use super::check::Check;
use super::diagnosis::Diagnosis;
use super::rules::{self, Effect, Packet};
use super::target::Target;
use super::words;
use crate::config::Protocol;
use crate::routing::accept;
use crate::routing::family::Family;
use crate::routing::kernel::Kernel;
use crate::routing::message::{is_ours, rule_table};
use crate::routing::nft;
use crate::routing::owner::{INSTANCE_TABLES, SWITCH_TABLE};
use crate::routing::plan::{Need, Place, Question, Step, Way};

/// Finds out what becomes of the replies of `target`.
pub async fn diagnose(kernel: &Kernel, target: &Target) -> io::Result<Diagnosis> {
    let need = &target.need;
    if let Some(interface) = src_valid_mark(target) {
        return Ok(Diagnosis::SrcValidMark(interface));
    }
    if target.wildcard && need.way == Way::Loopback {
        return Ok(Diagnosis::Wildcard);
    }
    let rules = kernel.rules(need.family()).await?;
    // Another proxy's rules go when it ends.
    let rules: Vec<_> = rules
        .into_iter()
        .filter(|rule| !(is_ours(rule) && INSTANCE_TABLES.contains(&rule_table(rule))))
        .collect();
    let answer = kernel.ask(&reply(target)).await?;
    let home = answer.filter(|answer| answer.local && !INSTANCE_TABLES.contains(&answer.table));
    match home {
        Some(answer) => good(kernel, target, &rules, answer.table).await,
        None => bad(kernel, target, &rules).await,
    }
}

/// The replies come back; is there anything to say against it all the same?
async fn good(
    kernel: &Kernel,
    target: &Target,
    rules: &[RuleMessage],
    table: u32,
) -> io::Result<Diagnosis> {
    let need = &target.need;
    let led = rules
        .iter()
        .find(|rule| rule_table(rule) == table && is_aimed(rule, target));
    if let Some(rule) = led
        && let Some(use_) = other_use(kernel, need.family(), rule, rules).await?
    {
        return Ok(Diagnosis::InUse(rule.clone(), use_));
    }
    let unmarked = Question {
        mark: None,
        ..need.reply(SWITCH_TABLE, target.interface)
    };
    Ok(match need.way {
        Way::Mark if !accept::is_on() => match kernel.ask(&unmarked).await? {
            Some(answer) if answer.local => Diagnosis::InPlace(table),
            _ => Diagnosis::AcceptOff,
        },
        Way::Socket if !nft::has_table(&nft::table_name(SWITCH_TABLE))? => Diagnosis::Missing,
        _ => Diagnosis::InPlace(table),
    })
}

/// The replies do not come back: why?
async fn bad(kernel: &Kernel, target: &Target, rules: &[RuleMessage]) -> io::Result<Diagnosis> {
    let need = &target.need;
    let packet = packet(target);
    let aimed = |rule: &&RuleMessage| is_aimed(rule, target) && rules::takes(rule, &packet);
    let Some(aim) = rules.iter().position(|rule| aimed(&rule)) else {
        let only_loopback = need.wildcard
            && target.place == Place::Loopback
            && loopback_rule_works(kernel, target).await?;
        return Ok(if only_loopback {
            Diagnosis::Wildcard
        } else {
            Diagnosis::Missing
        });
    };
    let rule = rules[aim].clone();
    for (position, other) in rules
        .iter()
        .enumerate()
        .filter(|(_, other)| rules::takes(other, &packet))
    {
        let routes = kernel.routes(need.family(), rule_table(other)).await?;
        match rules::effect(other, &routes, &packet) {
            Effect::Away(effect) if position < aim => {
                return Ok(Diagnosis::Shadowed {
                    rule,
                    by: other.clone(),
                    effect,
                });
            }
            Effect::Away(effect) if position == aim => {
                return Ok(
                    match other_use(kernel, need.family(), &rule, rules).await? {
                        Some(use_) => Diagnosis::InUse(rule, use_),
                        None => Diagnosis::NotLocal(rule, effect),
                    },
                );
            }
            _ if position == aim => {
                let in_use = match routes.is_empty() {
                    true => None,
                    false => other_use(kernel, need.family(), &rule, rules).await?,
                };
                return Ok(match in_use {
                    Some(use_) => Diagnosis::InUse(rule, use_),
                    None => Diagnosis::EmptyTable(rule),
                });
            }
            _ => {}
        }
    }
    Ok(Diagnosis::EmptyTable(rule))
}

/// Whether accepted connections inherit marks by which another program's rules, such as those of
/// TPROXY, keep their answers on this host. `own` is the user's `-mark`.
pub async fn marks(kernel: &Kernel, own: Option<u32>) -> io::Result<Option<Check>> {
    if !accept::is_on() {
        return Ok(None);
    }
    for rule in kernel.foreign_mark_rules().await? {
        let wanted = |a: &RuleAttribute| matches!(a, RuleAttribute::FwMark(n) if Some(*n) != own);
        if rule.header.flags.contains(RuleFlags::Invert) || !rule.attributes.iter().any(wanted) {
            continue;
        }
        let family = match rule.header.family {
            AddressFamily::Inet6 => Family::V6,
            _ => Family::V4,
        };
        let routes = kernel.routes(family, rule_table(&rule)).await?;
        if routes.iter().any(rules::is_local_default) {
            return mark_accept(&words::rule(&rule)).map(Some);
        }
    }
    Ok(None)
}

/// Which rule takes a reply of `target` with this mark, in words; none if it comes back.
pub async fn taken(kernel: &Kernel, target: &Target, mark: u32) -> io::Result<Option<String>> {
    let need = &target.need;
    let question = Question {
        mark: Some(mark),
        ..need.reply(SWITCH_TABLE, target.interface)
    };
    let carry = match mark {
        0 => format!("the replies of {} carry no mark", need.target),
        mark => format!("the replies of {} carry the mark {mark:#x}", need.target),
    };
    let answer = kernel.ask(&question).await?;
    if answer.as_ref().is_some_and(|answer| answer.local) {
        return Ok(None);
    }
    let packet = Packet {
        mark,
        ..packet(target)
    };
    for rule in kernel.rules(need.family()).await? {
        let routes = kernel.routes(need.family(), rule_table(&rule)).await?;
        if rules::takes(&rule, &packet)
            && let Effect::Away(effect) = rules::effect(&rule, &routes, &packet)
        {
            return Ok(Some(format!(
                "{carry}, and the rule \"{}\" takes them ({effect})",
                words::rule(&rule)
            )));
        }
    }
    Ok(Some(format!(
        "{carry}, and no rule brings them back with it"
    )))
}

/// The table of a running proxy that brings the replies of `target` back.
pub async fn running(kernel: &Kernel, target: &Target) -> io::Result<Option<u32>> {
    let need = &target.need;
    for rule in kernel.rules(need.family()).await? {
        let table = rule_table(&rule);
        if !is_ours(&rule) || !INSTANCE_TABLES.contains(&table) {
            continue;
        }
        let answer = kernel.ask(&need.reply(table, target.interface)).await?;
        if answer.is_some_and(|answer| answer.local && answer.table == table) {
            return Ok(Some(table));
        }
    }
    Ok(None)
}

fn mark_accept(rule: &str) -> io::Result<Check> {
    const ID: &str = "mark-accept";
    if nft::has_table(nft::GUARD)? {
        let found = format!(
            "net.ipv4.tcp_fwmark_accept is on; nft table {} keeps it from the connections of \"{rule}\"",
            nft::GUARD
        );
        return Ok(Check::ok(ID, found));
    }
    let found = format!(
        "net.ipv4.tcp_fwmark_accept is on, so accepted connections inherit the mark of \"{rule}\", and their answers never leave this host"
    );
    Ok(Check::wrong(ID, false, found).run(Step::MarkGuard.to_string()))
}

/// A reply of `target`. Where accepted connections inherit marks, that of `-mark` counts.
fn reply(target: &Target) -> Question {
    let need = &target.need;
    let question = need.reply(SWITCH_TABLE, target.interface);
    let inherits = need.way == Way::Loopback && target.protocol == Protocol::Tcp && accept::is_on();
    Question {
        mark: question.mark.or(need.mark.filter(|_| inherits)),
        ..question
    }
}

/// True if the rule was made for the way of this target.
fn is_aimed(rule: &RuleMessage, target: &Target) -> bool {
    match target.need.way {
        Way::Loopback => rules::is_for_loopback(rule),
        Way::Mark | Way::Socket => rules::wants_a_mark(rule),
        Way::UdpPort => rules::is_for_port(rule, target.need.target.port()),
    }
}

async fn loopback_rule_works(kernel: &Kernel, target: &Target) -> io::Result<bool> {
    let bound = Need {
        way: Way::Loopback,
        wildcard: false,
        ..target.need.clone()
    };
    let answer = kernel.ask(&bound.reply(SWITCH_TABLE, None)).await?;
    Ok(answer.is_some_and(|answer| answer.local))
}

/// What else the rule's table serves. Several marks may share a table of nothing but
/// `local default`: that is what TPROXY set-ups look like.
async fn other_use(
    kernel: &Kernel,
    family: Family,
    rule: &RuleMessage,
    rules: &[RuleMessage],
) -> io::Result<Option<String>> {
    let table = rule_table(rule);
    if (253..=255).contains(&table) {
        return Ok(Some("it is one of the system's own tables".into()));
    }
    let routes = kernel.routes(family, table).await?;
    let all_local = routes.iter().all(rules::is_local_default);
    let kindred = |rule: &RuleMessage| {
        rules::is_for_loopback(rule) || is_ours(rule) || (all_local && rules::wants_a_mark(rule))
    };
    let mut others = rules
        .iter()
        .filter(|other| rule_table(other) == table && *other != rule);
    if let Some(other) = others.find(|other| !kindred(other)) {
        return Ok(Some(format!(
            "the rule \"{}\" leads there too",
            words::rule(other)
        )));
    }
    let foreign = routes
        .iter()
        .find(|route| route.header.destination_prefix_length != 0);
    Ok(foreign.map(|route| format!("it holds the route \"{}\"", words::route(route))))
}

/// The interface on which the socket match cannot work.
fn src_valid_mark(target: &Target) -> Option<String> {
    let interface = words::interface(target.interface?);
    let is_on = |name: &str| {
        let file = format!("/proc/sys/net/ipv4/conf/{name}/src_valid_mark");
        fs::read_to_string(file).is_ok_and(|text| text.trim() == "1")
    };
    let concerned = target.need.way == Way::Socket && target.need.family() == Family::V4;
    (concerned && (is_on("all") || is_on(&interface))).then_some(interface)
}

fn packet(target: &Target) -> Packet {
    let need = &target.need;
    let reply = reply(target);
    Packet {
        from: reply.from,
        to: reply.to,
        mark: reply.mark.unwrap_or(0),
        interface: target
            .interface
            .map_or_else(|| "lo".into(), words::interface),
        protocol: match target.protocol {
            Protocol::Tcp => libc::IPPROTO_TCP,
            Protocol::Udp => libc::IPPROTO_UDP,
        },
        source_port: need.target.port(),
    }
}
