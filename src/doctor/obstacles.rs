//! All that nft, or iptables over nft, puts in the way of a probe, found one after the other: each
//! is passed for the probe's own sender, so that the next one shows itself.

use super::behind;
use super::check::Check;
use super::dropped::{ByAddress, Direction, Dropped};
use super::pass::Pass;
use super::probe::Answer;
use super::target::Target;
use super::trace;
use crate::config::Protocol;
use crate::routing::accept;

/// More rules than this are no mistake.
const MOST: usize = 8;

/// What was found on the way.
#[derive(Debug, Default)]
pub struct Obstacles {
    /// In the order in which the probe met them.
    met: Vec<Obstacle>,
    /// The mark of the reply that was lost; `None` if there was no reply.
    pub reply_mark: Option<u32>,
    /// A mark that something else than nft set.
    pub foreign_mark: Option<u32>,
    /// What ended the search: a rule that looks at the client's address, as a ban does. Nothing may
    /// be let by it.
    pub by_address: Option<(Dropped, ByAddress)>,
    /// With all passes the probe was answered.
    cleared: bool,
}

#[derive(Debug)]
struct Obstacle {
    rule: Dropped,
    /// It changes the mark of the probe, and does not drop it.
    marks: bool,
    /// A ban behind it, which a pass for clients would end.
    ban: Option<String>,
    /// What lets the target's traffic by; `None` if no command can.
    pass: Option<Pass>,
}

/// Looks for the obstacles of `target`; `fire` sends the probe's packets. What is put in for the
/// search is taken out before this returns.
pub fn find(target: &Target, mut fire: impl FnMut() -> Answer) -> Obstacles {
    let mut found = Obstacles::default();
    let mut open = Vec::new();
    while found.met.len() < MOST {
        let watched = trace::watch(target.need.stranger, || {
            found.cleared = matches!(fire(), Answer::Came);
        });
        // A kernel without nftables has no rules of nftables.
        let Ok((drop, journey)) = watched else {
            break;
        };
        found.cleared |= target.protocol == Protocol::Udp && journey.is_complete();
        if found.cleared {
            return found;
        }
        found.reply_mark = journey.reply_mark().or(found.reply_mark);
        found.foreign_mark = journey.foreign_mark.or(found.foreign_mark);
        if let Some((drop, by)) = drop.as_ref().and_then(|d| Some((d, d.by_address()?))) {
            found.by_address = Some((drop.clone(), by));
            break;
        }
        let marks = drop.is_none();
        let mut rules = match drop {
            Some(drop) => vec![drop],
            None => journey.markers,
        };
        // One that is met again is not passed in this way.
        rules.retain(|rule| (!marks || matters(rule)) && !found.has_met(rule));
        if rules.is_empty() {
            break;
        }
        for rule in rules {
            let ban = behind::ban(&rule);
            let pass = Pass::new(&rule, target.protocol_name(), target.need.target);
            let temporary = pass.as_ref().map(|p| p.open_for(target.need.stranger));
            found.met.push(Obstacle {
                rule,
                marks,
                ban,
                pass,
            });
            match temporary {
                Some(Ok(temporary)) => open.push(temporary),
                // What comes after it cannot be seen.
                _ => return found.without_marks(),
            }
        }
    }
    found.without_marks()
}

/// What clients send counts only where replies inherit its mark.
fn matters(marker: &Dropped) -> bool {
    let is_ours = marker.table.starts_with("realpeer");
    !is_ours && (marker.direction == Direction::Reply || accept::is_on())
}

impl Obstacles {
    fn has_met(&self, rule: &Dropped) -> bool {
        self.met.iter().any(|met| met.rule == *rule)
    }

    /// A changed mark is to blame only if the probe was answered without it.
    fn without_marks(mut self) -> Obstacles {
        self.met.retain(|met| !met.marks);
        self
    }

    /// True if nothing but a rule that looks at the client's address was found.
    pub fn is_empty(&self) -> bool {
        self.met.is_empty()
    }

    /// True if nothing is in the way.
    pub fn is_clear(&self) -> bool {
        self.cleared && self.met.is_empty()
    }

    /// `firewall-input`, `firewall-output` or `mark-changed`; none if nothing is to blame.
    /// `taken`: where replies go with the mark that they had.
    pub fn check(&self, target: &Target, taken: Option<&str>) -> Option<Check> {
        let first = self.met.first()?;
        let id = match (first.marks, first.rule.direction) {
            (true, _) => "mark-changed",
            (false, Direction::Request) => "firewall-input",
            (false, Direction::Reply) => "firewall-output",
        };
        let said = self.met.iter().map(|met| met.describe(target));
        let marked = self.met.iter().any(|met| met.marks);
        let taken = taken.unwrap_or("the replies do not come back").to_owned();
        let found: Vec<_> = said.chain(marked.then_some(taken)).collect();
        let check = Check::wrong(id, true, found.join("; then "));
        if let Some(ban) = self.met.iter().find_map(|met| met.ban.as_ref()) {
            return Some(check.advice(format!(
                "let the firewall accept this traffic behind its bans: move them in front of the rule, then run the doctor again. An accept right before it would let banned clients pass {ban}"
            )));
        }
        let passes: Vec<_> = self
            .met
            .iter()
            .filter_map(|met| met.pass.as_ref())
            .collect();
        let Some(pass) = passes.first() else {
            return Some(
                check.advice(
                    "let the firewall accept this traffic (no command can name that place)",
                ),
            );
        };
        let commands: Vec<_> = passes.iter().map(|pass| pass.command()).collect();
        let more = match self.cleared {
            true => "",
            false => "run the doctor again after this, more is in the way; ",
        };
        let advice = format!("{more}{}", pass.keeping());
        Some(check.run(commands.join(" && ")).advice(advice))
    }
}

impl Obstacle {
    fn describe(&self, target: &Target) -> String {
        let does = match self.marks {
            true => "changes the mark of",
            false => "drops or rejects",
        };
        let (rule, at) = (&self.rule, target.need.target);
        format!("{} {does} {} {at}", rule.describe(), rule.what())
    }
}
