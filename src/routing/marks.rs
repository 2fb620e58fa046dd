//! The marks of mark-accept, for those who open sockets.

use std::net::{IpAddr, UdpSocket};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::family::Family;
use super::keeper::{Keeper, Outcome};
use super::plan::{Need, Way};
use crate::config::Settings;

/// Which marks upstream sockets carry so that mark-accept brings their replies back.
#[derive(Debug)]
pub struct Marks {
    user: Option<u32>,
    /// The targets that are reached by mark-accept; an unspecified one stands for all of this host.
    targets: RwLock<Vec<IpAddr>>,
    /// The mark for IPv4 and IPv6; 0 for none.
    marks: [AtomicU32; 2],
}

impl Marks {
    /// No mark but the one that `-mark` says.
    pub fn new(settings: &Settings) -> Marks {
        Marks {
            user: settings.mark,
            targets: RwLock::default(),
            marks: [AtomicU32::new(0), AtomicU32::new(0)],
        }
    }

    /// The mark for a socket that goes to `target`: the user's, or that of mark-accept.
    pub fn of(&self, target: IpAddr) -> Option<u32> {
        if self.user.is_some() {
            return self.user;
        }
        let mark = self.marks[usize::from(target.is_ipv6())].load(Ordering::Relaxed);
        (mark != 0 && self.is_marked(target)).then_some(mark)
    }

    fn is_marked(&self, target: IpAddr) -> bool {
        let any = match target {
            IpAddr::V4(_) => IpAddr::from([0, 0, 0, 0]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        let Ok(targets) = self.targets.read() else {
            return false;
        };
        // Only an address of this host can be bound: elsewhere a mark would lead astray.
        targets.contains(&target)
            || (targets.contains(&any) && UdpSocket::bind((target, 0)).is_ok())
    }

    /// What the keeper achieved. A target that is no longer reached by mark-accept gets no mark.
    pub(super) fn set(&self, needs: &[Need], outcomes: &[Outcome]) {
        if let Ok(mut targets) = self.targets.write() {
            let still = |ip: &IpAddr| {
                let mut needs = needs.iter();
                needs.any(|need| need.way == Way::Mark && need.target.ip() == *ip)
            };
            targets.retain(still);
        }
        let marked = needs
            .iter()
            .zip(outcomes)
            .filter(|(n, _)| n.way == Way::Mark);
        for (need, outcome) in marked {
            if let Outcome::InPlace(table) | Outcome::PutIn(table) = outcome {
                self.set_one(need, *table);
            }
        }
    }

    /// What is in place already.
    pub(super) async fn look(&self, keeper: &Keeper) {
        for need in keeper.needs.iter().filter(|need| need.way == Way::Mark) {
            if let Ok(Some(table)) = keeper.serving(need).await {
                self.set_one(need, table);
            }
        }
    }

    fn set_one(&self, need: &Need, table: u32) {
        let slot = usize::from(need.family() == Family::V6);
        self.marks[slot].store(need.mark_in(table), Ordering::Relaxed);
        if let Ok(mut targets) = self.targets.write()
            && !targets.contains(&need.target.ip())
        {
            targets.push(need.target.ip());
        }
    }
}
