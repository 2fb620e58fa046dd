//! Bans: clients that are not served for a time, whatever the files say.

mod decisions;
mod file;
mod journal;
mod list;

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::{Context, Result};
use ipnet::IpNet;

use crate::events::{Event, Events};
pub use decisions::{Cause, Decision, Decisions};
pub use journal::Change;
use journal::Journal;
pub use list::{Ban, BanList, UnixSeconds, after, now};

/// What keeps a client away.
#[derive(Clone, Debug)]
pub enum Banned {
    /// A ban that was spoken here.
    Here(Arc<Ban>),
    /// A decision of a CrowdSec engine.
    Decided(Decision),
}

impl Banned {
    /// The network that is banned.
    pub fn network(&self) -> &IpNet {
        match self {
            Banned::Here(ban) => &ban.network,
            Banned::Decided(decision) => &decision.network,
        }
    }
}

impl fmt::Display for Banned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Banned::Here(ban) => ban.fmt(f),
            Banned::Decided(decision) => decision.fmt(f),
        }
    }
}

/// The bans of a running proxy. New connections read them; the main thread alone changes those that
/// were spoken here.
#[derive(Debug, Default)]
pub struct Bans {
    list: RwLock<BanList>,
    /// Those of a CrowdSec engine, which are never written down: the engine has them.
    pub decisions: Decisions,
    journal: Mutex<Option<Journal>>,
    /// While another process may have the file.
    resting: Mutex<Option<Journal>>,
    /// Held by who waits for the disk.
    syncing: tokio::sync::Mutex<()>,
    events: Arc<Events>,
}

impl Bans {
    /// None yet. Changes are told there.
    pub fn new(events: Arc<Events>) -> Bans {
        Bans {
            events,
            ..Bans::default()
        }
    }

    /// Takes over the bans of a file, and keeps later ones there. Without it, bans end with the
    /// program.
    pub fn open(&self, file: &Path) -> Result<()> {
        let (journal, list) = Journal::open(file, now())?;
        *self.list_mut() = list;
        *self.journal() = Some(journal);
        Ok(())
    }

    /// Takes over the bans of another process, in place of those that a file may have had.
    pub fn take_over(&self, bans: BanList) {
        *self.list_mut() = bans;
        if let Some(journal) = self.journal().as_mut()
            && let Err(error) = journal.mend(&self.list())
        {
            tracing::warn!(
                error = format!("{error:#}"),
                "changes of the bans cannot be written down for now"
            );
        }
    }

    /// Leaves the file to another process until `go_on`.
    pub fn rest(&self) {
        let journal = self.journal().take();
        *self.resting.lock().unwrap_or_else(PoisonError::into_inner) = journal.map(Journal::let_go);
    }

    /// Takes the file again, and writes it anew.
    pub fn go_on(&self) {
        let resting = self.resting.lock();
        let resting = resting.unwrap_or_else(PoisonError::into_inner).take();
        if let Some(journal) = resting {
            *self.journal() = Some(journal);
            if let Err(error) = self.mend() {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "changes of the bans cannot be written down for now"
                );
            }
        }
    }

    /// The ban that a client is under at a listener: the one on the narrowest network.
    pub fn find(&self, client: IpAddr, listener: Option<&str>) -> Option<Banned> {
        let list = self.list();
        // The clock is read only if there is anything to compare it with.
        if list.is_empty() && self.decisions.is_empty() {
            return None;
        }
        let now = now();
        let here = list.find(client, listener, now).cloned();
        drop(list);
        match (here, self.decisions.find(client, now)) {
            (Some(ban), Some(decision))
                if decision.network.prefix_len() > ban.network.prefix_len() =>
            {
                Some(Banned::Decided(decision))
            }
            (Some(ban), _) => Some(Banned::Here(ban)),
            (None, decision) => decision.map(Banned::Decided),
        }
    }

    /// Bans a network from now on; `sync` makes that last. Fails if the ban could not be written
    /// down; it holds all the same, until the program ends.
    pub fn ban(&self, ban: Ban) -> Result<()> {
        self.list_mut().insert(ban.clone());
        self.events.tell(|| Event::Ban {
            network: ban.network,
            listener: ban.listener.clone(),
            until: ban.until,
            reason: ban.reason.clone(),
        });
        self.write(&Change::Ban(ban))
    }

    /// Lifts the bans on exactly this network, and returns them.
    pub fn unban(&self, network: IpNet, listener: Option<&str>) -> (Vec<Arc<Ban>>, Result<()>) {
        let ended = self.list_mut().remove(&network, listener);
        if ended.is_empty() {
            return (ended, Ok(()));
        }
        self.tell_ended(&ended, false);
        let listener = listener.map(str::to_owned);
        (ended, self.write(&Change::Unban { network, listener }))
    }

    /// Removes the bans that have expired, and returns them.
    pub fn expire(&self) -> Vec<Arc<Ban>> {
        let now = now();
        if self.list().next_end().is_none_or(|end| now < end) {
            return Vec::new();
        }
        let ended = self.list_mut().expire(now);
        self.tell_ended(&ended, true);
        ended
    }

    fn tell_ended(&self, bans: &[Arc<Ban>], expired: bool) {
        for ban in bans {
            self.events.tell(|| Event::Unban {
                network: ban.network,
                listener: ban.listener.clone(),
                expired,
            });
        }
    }

    /// The bans, to read.
    pub fn list(&self) -> RwLockReadGuard<'_, BanList> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the changes so far would survive a power cut. Fails if they may not.
    pub async fn sync(&self) -> Result<()> {
        // What another one is waiting for may be ours.
        let _turn = self.syncing.lock().await;
        let unsynced = self.journal().as_mut().and_then(Journal::unsynced);
        let Some(file) = unsynced else {
            return Ok(());
        };
        // A slow disk must not hold up signals and other clients.
        let synced = tokio::task::spawn_blocking(move || file.sync_data()).await;
        let synced = synced.unwrap_or_else(|e| Err(io::Error::other(e)));
        if synced.is_err()
            && let Some(journal) = self.journal().as_mut()
        {
            journal.distrust();
        }
        synced.context("cannot write the bans to disk")
    }

    /// Writes down what could not be written when it happened; tells whether there was anything.
    pub fn mend(&self) -> Result<bool> {
        match self.journal().as_mut() {
            Some(journal) => journal.mend_if_behind(&self.list()),
            None => Ok(false),
        }
    }

    /// Leaves the file to another process.
    pub fn release(&self) {
        self.journal().take();
    }

    /// Whether bans are kept over a restart.
    pub fn are_kept(&self) -> bool {
        self.journal().is_some()
    }

    fn write(&self, change: &Change) -> Result<()> {
        match self.journal().as_mut() {
            Some(journal) => journal.write(change, &self.list()),
            None => Ok(()),
        }
    }

    fn list_mut(&self) -> RwLockWriteGuard<'_, BanList> {
        self.list.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn journal(&self) -> MutexGuard<'_, Option<Journal>> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::mpsc;

    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn who_finds_nothing_to_sync_waits_for_who_syncs() {
        let directory = std::env::temp_dir().join(format!("realpeer-bans-{}", std::process::id()));
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.max_blocking_threads(1).build().unwrap();
        let bans = Bans::default();
        bans.open(&directory.join("bans")).unwrap();
        let ban = Ban {
            network: "203.0.113.7/32".parse().unwrap(),
            listener: None,
            since: 0,
            until: None,
            reason: String::new(),
        };
        bans.ban(ban).unwrap();
        runtime.block_on(async {
            // As a slow disk would, this keeps the first from its end.
            let (disk, slow) = mpsc::channel::<()>();
            tokio::task::spawn_blocking(move || slow.recv());
            let (mut first, mut second) = (pin!(bans.sync()), pin!(bans.sync()));
            assert!(first.as_mut().now_or_never().is_none());
            assert!(second.as_mut().now_or_never().is_none());
            drop(disk);
            first.await.unwrap();
            second.await.unwrap();
        });
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
