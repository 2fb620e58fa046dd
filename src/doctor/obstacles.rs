//! All that nft, or iptables over nft, puts in the way of a probe, found one after the other: each
//! is passed for the probe's own sender, so that the next one shows itself.

use super::check::Check;
use super::dropped::{ByAddress, Direction, Dropped};
use super::pass::{Pass, Temporary};
use super::probe::Answer;
use super::target::Target;
use super::trace;

/// More rules than this are no mistake.
const MOST: usize = 8;

/// What was found on the way.
#[derive(Debug, Default)]
pub struct Obstacles {
    /// Rules that dropped the probe, in the order in which it met them.
    pub drops: Vec<Dropped>,
    /// Rules that changed its mark, where that was its end.
    pub markers: Vec<Dropped>,
    /// The mark of the reply when it was last seen; `None` if there was no reply.
    pub reply_mark: Option<u32>,
    /// What ended the search: a rule that looks at the client's address, as a ban does. Nothing may
    /// be let by it.
    pub by_address: Option<(Dropped, ByAddress)>,
    /// What lets the target's traffic by.
    passes: Vec<Pass>,
    /// With these passes the probe was answered.
    cleared: bool,
}

/// Looks for the obstacles of `target`; `fire` sends the probe's packets. What is put in for the
/// search is taken out before this returns.
pub fn find(target: &Target, mut fire: impl FnMut() -> Answer) -> Obstacles {
    let mut found = Obstacles::default();
    let mut open = Vec::new();
    let mut markers = Vec::new();
    while open.len() < MOST && !found.cleared {
        let watched = trace::watch(target.need.stranger, || {
            found.cleared = matches!(fire(), Answer::Came);
        });
        // A kernel without nftables has no rules of nftables.
        let Ok((drop, journey)) = watched else {
            break;
        };
        found.reply_mark = journey.reply_mark().or(found.reply_mark);
        if found.cleared {
            found.markers = markers;
            break;
        }
        if let Some((drop, by)) = drop.as_ref().and_then(|d| Some((d, d.by_address()?))) {
            found.by_address = Some((drop.clone(), by));
            break;
        }
        let next: Vec<_> = match &drop {
            Some(drop) => vec![drop.clone()],
            None => journey
                .markers
                .into_iter()
                .filter(|m| !markers.contains(m))
                .collect(),
        };
        match drop {
            Some(drop) => found.drops.push(drop),
            None => markers.extend(next.clone()),
        }
        if next.is_empty() || !found.get_past(&next, target, &mut open) {
            break;
        }
    }
    found
}

impl Obstacles {
    /// False if no command can do it: then nothing more can be seen.
    fn get_past(&mut self, next: &[Dropped], target: &Target, open: &mut Vec<Temporary>) -> bool {
        next.iter().all(|place| {
            let pass = Pass::new(place, target.protocol_name(), target.need.target);
            let temporary = pass
                .as_ref()
                .map(|pass| pass.open_for(target.need.stranger));
            match (pass, temporary) {
                (Some(pass), Some(Ok(temporary))) => {
                    self.passes.push(pass);
                    open.push(temporary);
                    true
                }
                _ => false,
            }
        })
    }

    /// `firewall-input`, `firewall-output` or `mark-changed`; none if nothing is to blame.
    pub fn check(&self, target: &Target) -> Option<Check> {
        let at = target.need.target;
        let mut found: Vec<_> = self
            .drops
            .iter()
            .map(|drop| format!("{} drops or rejects {} {at}", drop.describe(), drop.what()))
            .collect();
        let changes = self.markers.iter().map(|marker| {
            format!(
                "{} changes the mark of {} {at}, so that the replies go astray",
                marker.describe(),
                marker.what()
            )
        });
        found.extend(changes);
        let id = match (self.drops.first(), self.markers.is_empty()) {
            (Some(drop), _) if drop.direction == Direction::Request => "firewall-input",
            (Some(_), _) => "firewall-output",
            (None, false) => "mark-changed",
            (None, true) => return None,
        };
        let check = Check::wrong(id, true, found.join("; then "));
        let Some(pass) = self.passes.first() else {
            return Some(check.advice("let the firewall accept that traffic; its names cannot be written on a command line"));
        };
        let commands: Vec<_> = self.passes.iter().map(Pass::command).collect();
        let more = match self.cleared {
            true => "",
            false => "more is in the way after this; ",
        };
        Some(
            check
                .run(commands.join(" && "))
                .advice(format!("{more}{}", pass.keeping())),
        )
    }
}
