//! What the policy routing does with a target's replies, and how that is said.

use rtnetlink::packet_route::rule::RuleMessage;

use super::check::Check;
use super::outside::quote;
use super::target::Target;
use super::{rules, words};
use crate::routing::family::Family;
use crate::routing::message::rule_table;

/// Who forgets at a reboot what `ip` was told.
const AT_BOOT: &str = "this lasts until the next boot; change it as well where the rule was set up (a unit's ExecStartPost=, /etc/network/interfaces, netplan, systemd-networkd, the VPN)";
const SYSCTL_AT_BOOT: &str =
    "this lasts until the next boot; write the same into a file in /etc/sysctl.d to keep it";

/// What the policy does with a target's replies.
#[derive(Clone, Debug)]
pub enum Diagnosis {
    /// They come back, by this table.
    InPlace(u32),
    /// Nothing is there for them.
    Missing,
    /// The rule leads to a table without routes.
    EmptyTable(RuleMessage),
    /// The table sends them away instead of delivering them.
    NotLocal(RuleMessage, String),
    /// Another rule takes them first.
    Shadowed {
        rule: RuleMessage,
        by: RuleMessage,
        effect: String,
    },
    /// The table serves something else as well.
    InUse(RuleMessage, String),
    /// The mark is looked for, but never set.
    AcceptOff,
    /// The loopback rule cannot see what a wildcard socket sends.
    Wildcard,
    /// Marked replies fail the reverse-path check on this interface.
    SrcValidMark(String),
}

/// The answer about a way that is there, or only half. A missing one is told by `missing`.
pub fn check(target: &Target, diagnosis: &Diagnosis) -> Option<Check> {
    let at = target.need.target;
    let blame = target.need.given;
    let ip = match target.need.family() {
        Family::V4 => "ip -4",
        Family::V6 => "ip -6",
    };
    Some(match diagnosis {
        Diagnosis::Missing => return None,
        Diagnosis::InPlace(table) => Check::ok(
            "no-rule",
            format!("the replies of {at} come back, by table {table}"),
        ),
        Diagnosis::EmptyTable(rule) => {
            let table = rule_table(rule);
            Check::wrong(
                "empty-table",
                blame,
                format!(
                    "the rule \"{}\" is there for {at}, but table {table} is empty",
                    words::rule(rule)
                ),
            )
            .run(format!("{ip} route add local default dev lo table {table}"))
            .advice(AT_BOOT)
        }
        Diagnosis::NotLocal(rule, route) => {
            let table = rule_table(rule);
            Check::wrong(
                "not-local-route",
                blame,
                format!(
                    "table {table} sends the replies of {at} away by \"{route}\"; its route must be of type local"
                ),
            )
            .run(format!(
                "{ip} route flush table {table} && {ip} route add local default dev lo table {table}"
            ))
            .advice(AT_BOOT)
        }
        Diagnosis::Shadowed { rule, by, effect } => Check::wrong(
            "rule-shadowed",
            blame,
            format!(
                "the rule \"{}\" takes the replies of {at} ({effect}) before \"{}\" is asked",
                words::rule(by),
                words::rule(rule)
            ),
        )
        .run(match rules::priority(by) {
            0 => format!("{ip} rule del {} priority 0", words::selector(by)),
            n => format!("{ip} rule add {} priority {}", words::selector(rule), n - 1),
        })
        .advice(AT_BOOT),
        Diagnosis::InUse(rule, use_) => {
            let table = rule_table(rule);
            Check::wrong(
                "table-in-use",
                blame,
                format!(
                    "table {table}, to which \"{}\" leads the replies of {at}, serves something else: {use_}",
                    words::rule(rule)
                ),
            )
            .run(format!("{ip} rule del {} && {}", words::selector(rule), target.up()))
            .advice(AT_BOOT)
        }
        Diagnosis::AcceptOff => Check::wrong(
            "fwmark-accept-off",
            blame,
            format!("the replies of {at} never get their mark: net.ipv4.tcp_fwmark_accept is 0"),
        )
        .run("sysctl -w net.ipv4.tcp_fwmark_accept=1")
        .advice(SYSCTL_AT_BOOT),
        Diagnosis::Wildcard => Check::wrong(
            "udp-wildcard-backend",
            blame,
            format!(
                "the UDP backend of {at} is bound to the wildcard address, so its replies have no source yet when the loopback rule looks at them"
            ),
        )
        .advice(format!(
            "bind the backend to {}, or use -routing-mode udp-port (direct clients of the port then lose their replies)",
            at.ip()
        )),
        Diagnosis::SrcValidMark(interface) => Check::wrong(
            "src-valid-mark",
            blame,
            format!(
                "src_valid_mark is 1 on {interface}, where the replies of {at} arrive: the kernel drops them once they are marked"
            ),
        )
        .run(format!(
            "sysctl -w net.ipv4.conf.all.src_valid_mark=0 {}",
            quote(&format!("net/ipv4/conf/{interface}/src_valid_mark=0"))
        ))
        .advice(SYSCTL_AT_BOOT),
    })
}

/// The answer about a way that nobody has put in, and the proxy will not either: it was told not
/// to, or it lacks the capability.
pub fn missing(target: &Target, other_family_is_fine: bool, told_not_to: bool) -> Check {
    let (family, at) = (target.need.family(), target.need.target);
    let (why, advice) = match told_not_to {
        true => (
            "",
            "this lasts until the next boot; -routing auto puts it in at every start",
        ),
        false => (
            ", and putting it in needs CAP_NET_ADMIN",
            "run this as root (it lasts until the next boot), or give the unit AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW",
        ),
    };
    let (id, found) = if other_family_is_fine {
        let other = match family {
            Family::V4 => Family::V6,
            Family::V6 => Family::V4,
        };
        let found = format!(
            "{other} has its policy rule, {family} has none: the replies of {at} do not come back{why}"
        );
        ("one-family-missing", found)
    } else {
        let found = format!(
            "no policy rule brings the replies of {at} back ({} way){why}",
            target.need.way
        );
        ("no-rule", found)
    };
    Check::wrong(id, target.need.given, found)
        .run(target.up())
        .advice(advice)
}
