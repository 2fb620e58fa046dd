//! A firewall rule that accepts all of `lo` before others are asked: then the bans that fail2ban
//! puts into the firewall never see what realpeer sends to a backend on this host.

use std::process::Command;

use super::check::Check;

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
            let listing = run(program, &["-S"])?;
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
