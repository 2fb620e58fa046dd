//! The marks of mark-accept, for those who open sockets.

use std::net::IpAddr;
use std::sync::RwLock;

use super::keeper::{Keeper, Outcome};
use super::plan::{Need, Way};

/// Which marks upstream sockets carry so that mark-accept brings their replies back.
#[derive(Debug, Default)]
pub struct Marks {
    /// The targets that are reached by mark-accept; an unspecified one stands for all of this host.
    targets: RwLock<Vec<(IpAddr, u32)>>,
}

impl Marks {
    /// The mark of mark-accept for a socket that goes to `target`; `is_local` tells whether that can be
    /// bound where the socket is.
    pub fn of(&self, target: IpAddr, is_local: impl FnOnce() -> bool) -> Option<u32> {
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

    /// What the keeper achieved. A target that is no longer reached by mark-accept gets no mark;
    /// one whose way could not be put back keeps the mark that it had.
    pub(super) fn set(&self, needs: &[Need], outcomes: &[Outcome]) {
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
