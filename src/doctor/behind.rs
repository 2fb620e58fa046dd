//! Bans behind a rule: an accept in front of that rule would end them too.

use std::collections::{HashMap, HashSet};

use super::dropped::{ByAddress, Direction, Dropped, by_address, nft};

/// A rule with its handle.
type Rule = (u64, String);

/// The rule that bans clients, in words, and that packets could meet in the same chain at the hook
/// if `dropped` let them pass; `None` if there is none.
pub fn ban(dropped: &Dropped) -> Option<String> {
    // Nothing comes behind the policy.
    let handle = dropped.handle?;
    let listing = nft(&["-a", "list", "table", dropped.family, &dropped.table])?;
    let table = Table {
        chains: read(&listing),
        direction: dropped.direction,
    };
    let jumps = dropped.jumps.iter().rev();
    let places = jumps.map(|jump| (&*jump.chain, jump.handle));
    let mut seen = HashSet::new();
    [(&*dropped.chain, handle)]
        .into_iter()
        .chain(places)
        .find_map(|(chain, handle)| {
            let rules = table.chains.get(chain)?;
            let at = rules.iter().position(|(other, _)| *other == handle)?;
            table.ban_in(chain, &rules[at + 1..], &mut seen)
        })
}

struct Table<'a> {
    chains: HashMap<&'a str, Vec<Rule>>,
    direction: Direction,
}

impl<'a> Table<'a> {
    /// Follows the jumps.
    fn ban_in(
        &'a self,
        chain: &str,
        rules: &'a [Rule],
        seen: &mut HashSet<&'a str>,
    ) -> Option<String> {
        rules.iter().find_map(|(_, rule)| {
            let accepts = rule.split_whitespace().any(|word| word == "accept");
            if !accepts && by_address(rule, self.direction) == Some(ByAddress::Named) {
                return Some(format!("\"{rule}\" in chain {chain}"));
            }
            let next = target(rule).filter(|next| seen.insert(next))?;
            self.ban_in(next, self.chains.get(next)?, seen)
        })
    }
}

/// The chain to which a rule jumps.
fn target(rule: &str) -> Option<&str> {
    let mut words = rule.split_whitespace();
    words.find(|word| matches!(*word, "jump" | "goto"))?;
    words.next()
}

/// The chains of what `nft -a list table` prints.
fn read(listing: &str) -> HashMap<&str, Vec<Rule>> {
    let mut chains: HashMap<&str, Vec<Rule>> = HashMap::new();
    let mut chain = "";
    for line in listing.lines().map(str::trim) {
        let Some((text, handle)) = line.rsplit_once(" # handle ") else {
            continue;
        };
        if let Some(name) = text.strip_prefix("chain ") {
            chain = name.trim_end_matches(" {");
        } else if let Ok(handle) = handle.parse() {
            let rule = (handle, text.to_owned());
            chains.entry(chain).or_default().push(rule);
        }
    }
    chains
}
