//! Bans: clients that are not served for a time, whatever the files say.

mod journal;
mod list;

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use anyhow::Result;
use ipnet::IpNet;

pub use journal::Change;
use journal::Journal;
pub use list::{Ban, BanList, UnixSeconds, after, now};

/// The bans of a running proxy. New connections read them, the main thread alone changes them.
#[derive(Debug, Default)]
pub struct Bans {
    listener: Option<String>,
    list: RwLock<BanList>,
    journal: Mutex<Option<Journal>>,
}

impl Bans {
    /// The bans as they are on disk; without a file none, and they end with the program.
    pub fn open(listener: Option<String>, file: Option<&Path>) -> Result<Bans> {
        let Some(file) = file else {
            return Ok(Bans {
                listener,
                ..Bans::default()
            });
        };
        let (journal, list) = Journal::open(file, now())?;
        Ok(Bans {
            listener,
            list: RwLock::new(list),
            journal: Mutex::new(Some(journal)),
        })
    }

    /// The listener that these bans are for (`-name`).
    pub fn listener(&self) -> Option<&str> {
        self.listener.as_deref()
    }

    /// The ban that a client is under.
    pub fn find(&self, client: IpAddr) -> Option<Arc<Ban>> {
        let list = self.list();
        // The clock is read only if there is anything to compare it with.
        if list.is_empty() {
            return None;
        }
        list.find(client, self.listener(), now()).cloned()
    }

    /// Bans a network from now on. Fails if the ban could not be written down; it holds all the
    /// same, until the program ends.
    pub fn ban(&self, ban: Ban) -> Result<()> {
        self.list_mut().insert(ban.clone());
        self.write(&Change::Ban(ban))
    }

    /// Lifts the bans on exactly this network, and returns them.
    pub fn unban(&self, network: IpNet, listener: Option<&str>) -> (Vec<Arc<Ban>>, Result<()>) {
        let ended = self.list_mut().remove(&network, listener);
        if ended.is_empty() {
            return (ended, Ok(()));
        }
        let listener = listener.map(str::to_owned);
        (ended, self.write(&Change::Unban { network, listener }))
    }

    /// Removes the bans that have expired, and returns them.
    pub fn expire(&self) -> Vec<Arc<Ban>> {
        let now = now();
        if self.list().next_end().is_none_or(|end| now < end) {
            return Vec::new();
        }
        self.list_mut().expire(now)
    }

    /// The bans, to read.
    pub fn list(&self) -> RwLockReadGuard<'_, BanList> {
        self.list.read().unwrap_or_else(PoisonError::into_inner)
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
