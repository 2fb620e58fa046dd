//! What the keeper achieved: the marks of mark-accept, for those who open sockets, and what is missing.

use std::net::{IpAddr, UdpSocket};
use std::sync::RwLock;

use super::keeper::{Keeper, Outcome};
use super::plan::{Need, Way};
use super::{explain, is_excused};

/// Which marks upstream sockets carry so that mark-accept brings their replies back.
#[derive(Debug, Default)]
pub struct Marks {
    /// The targets that are reached by mark-accept; an unspecified one stands for all of this host.
    targets: RwLock<Vec<(IpAddr, u32)>>,
    /// The ways that could not be put in, in words.
    missing: RwLock<Vec<String>>,
}

impl Marks {
    /// The mark of mark-accept for a socket that goes to `target`.
    pub fn of(&self, target: IpAddr) -> Option<u32> {
        self.of_place(target, || UdpSocket::bind((target, 0)).is_ok())
    }

    /// The same; `is_local` tells whether the target can be bound where the socket is.
    pub(crate) fn of_place(&self, target: IpAddr, is_local: impl FnOnce() -> bool) -> Option<u32> {
        let any = match target {
            IpAddr::V4(_) => IpAddr::from([0, 0, 0, 0]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        let targets = self.targets.read().ok()?;
        let mark = |wanted| {
            targets
                .iter()
                .find(|(ip, _)| *ip == wanted)
                .map(|(_, mark)| *mark)
        };
        if let Some(mark) = mark(target) {
            return Some(mark);
        }
        // Only an address of this host can be bound: elsewhere a mark would lead astray.
        mark(any).filter(|_| is_local())
    }

    /// Why replies of targets will not come back.
    pub fn missing(&self) -> Vec<String> {
        let missing = self.missing.read();
        missing.map(|missing| missing.clone()).unwrap_or_default()
    }

    /// The keeper achieved nothing.
    pub(super) fn failed(&self, why: String) {
        if let Ok(mut missing) = self.missing.write() {
            *missing = vec![why];
        }
    }

    /// What the keeper achieved. A target that is no longer reached by mark-accept gets no mark;
    /// one whose way could not be put back keeps the mark that it had.
    pub(super) fn set(&self, needs: &[Need], outcomes: &[Outcome]) {
        if let Ok(mut missing) = self.missing.write() {
            let failed = needs.iter().zip(outcomes);
            let failed = failed.filter_map(|(need, outcome)| match outcome {
                Outcome::Failed(e) if !is_excused(need, e) => Some(explain(need, e)),
                _ => None,
            });
            *missing = failed.collect();
        }
        let Ok(mut targets) = self.targets.write() else {
            return;
        };
        let marked = |need: &&Need| need.way == Way::Mark && need.mark.is_none();
        targets.retain(|(ip, _)| {
            needs
                .iter()
                .filter(marked)
                .any(|need| need.target.ip() == *ip)
        });
        for (need, outcome) in needs.iter().zip(outcomes).filter(|(need, _)| marked(need)) {
            let (Outcome::InPlace(table) | Outcome::PutIn(table)) = outcome else {
                continue;
            };
            let ip = need.target.ip();
            targets.retain(|(known, _)| *known != ip);
            targets.push((ip, need.mark_in(*table)));
        }
    }

    /// What is in place already.
    pub(super) async fn look(&self, keeper: &Keeper) {
        if let Ok(outcomes) = keeper.look().await {
            self.set(&keeper.needs, &outcomes);
        }
    }
}
