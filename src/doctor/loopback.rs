//! A firewall rule that accepts all of `lo` before others are asked: then the bans that fail2ban
//! puts into the firewall never see what realpeer sends to a backend on this host.

use std::process::Command;

use std::net::{SocketAddr, UdpSocket};

use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;

use super::check::Check;
use super::host;
use super::iptables;
use crate::config::ListenerConfig;

/// `lo-down`: without it neither a backend on this host nor the way back can be reached. None if it
/// is as it should be.
pub fn lo(config: &ListenerConfig) -> Option<Check> {
    const ID: &str = "lo-down";
    let is_lo_up = || {
        let mut interfaces = getifaddrs().ok()?;
        let lo = interfaces.find(|interface| interface.interface_name == "lo")?;
        Some(lo.flags.contains(InterfaceFlags::IFF_UP))
    };
    if is_lo_up() == Some(false) {
        return Some(
            Check::wrong(ID, true, "the interface lo is down: nothing on this host is reached, and no reply comes back")
                .run("ip link set lo up")
                .advice("look for what takes it down (ip link set lo down, ifdown lo) and for what should bring it up at boot (auto lo in /etc/network/interfaces, systemd-networkd)"),
        );
    }
    let targets = &config.targets;
    let given = [
        (SocketAddr::V4(targets.v4), targets.v4_given),
        (
            SocketAddr::V6(targets.v6),
            targets.v6_given && !host::is_ipv6_off((*targets.v6.ip()).into()),
        ),
    ];
    let gone = |(at, given): &(SocketAddr, bool)| {
        let ip = at.ip();
        *given && ip.is_loopback() && UdpSocket::bind((ip, 0)).is_err()
    };
    let (at, _) = given.into_iter().find(gone)?;
    let address = if at.is_ipv4() {
        "127.0.0.1/8"
    } else {
        "::1/128"
    };
    Some(
        Check::wrong(
            ID,
            true,
            format!("the interface lo has no address for the target {at}"),
        )
        .run(format!("ip address add {address} dev lo"))
        .advice("look for what takes it away; this lasts until the next boot"),
    )
}

/// `lo-accepted`; none if no such rule is seen.
pub fn check() -> Option<Check> {
    let place = nftables().or_else(legacy)?;
    Some(Check::wrong(
        "lo-accepted",
        false,
        format!(
            "{place} accepts all of lo: a ban that fail2ban puts behind it (iptables, nftables) does not hold for a backend on this host"
        ),
    )
    .advice("let fail2ban ban by packaging/fail2ban/action.d/realpeer.conf, or accept only what really is loopback: ip saddr 127.0.0.0/8 iif lo accept"))
}

fn nftables() -> Option<String> {
    let listing = run("nft", &["list", "ruleset"])?;
    let (mut table, mut chain, mut forward) = (String::new(), String::new(), false);
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches(" {").to_owned();
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {").to_owned();
            forward = false;
        } else if line.starts_with("type ") {
            // Only what arrives matters: on its way out there is nothing to ban.
            forward = !line.contains(" hook input ");
        } else if !forward && accepts_lo(line) {
            return Some(format!("\"{line}\" in table {table}, chain {chain},"));
        }
    }
    None
}

/// `iif "lo" accept`, with or without a counter; a rule that asks for more is another matter.
fn accepts_lo(rule: &str) -> bool {
    let rest = ["iif \"lo\" ", "iifname \"lo\" "]
        .iter()
        .find_map(|lo| rule.strip_prefix(lo));
    let Some(words) = rest.map(|rest| rest.split(' ').collect::<Vec<_>>()) else {
        return false;
    };
    matches!(
        words[..],
        ["accept", ..]
            | ["counter", "accept", ..]
            | ["counter", "packets", _, "bytes", _, "accept", ..]
    )
}

/// iptables that is not nft in disguise.
fn legacy() -> Option<String> {
    ["iptables-legacy", "ip6tables-legacy"]
        .iter()
        .find_map(|program| {
            let listing = iptables::filter(program)?;
            let rule = listing.lines().find(|line| {
                let chain = line
                    .strip_prefix("-A ")
                    .and_then(|rest| rest.split_once(' '));
                chain.is_some_and(|(chain, rule)| {
                    !matches!(chain, "OUTPUT" | "FORWARD") && rule == "-i lo -j ACCEPT"
                })
            })?;
            Some(format!("\"{program} {rule}\""))
        })
}

fn run(program: &str, words: &[&str]) -> Option<String> {
    let places = [program.to_owned(), format!("/usr/sbin/{program}")];
    let output = places
        .iter()
        .find_map(|place| Command::new(place).args(words).output().ok())?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::accepts_lo;

    #[test]
    fn only_a_rule_that_takes_everything_counts() {
        for rule in [
            "iif \"lo\" accept",
            "iifname \"lo\" counter packets 7 bytes 420 accept",
            "iifname \"lo\" accept comment \"loopback\"",
        ] {
            assert!(accepts_lo(rule), "{rule}");
        }
        for rule in [
            "iif \"lo\" tcp dport 22 accept",
            "iif != \"lo\" accept",
            "iif \"lo\" drop",
            "accept",
        ] {
            assert!(!accepts_lo(rule), "{rule}");
        }
    }
}
