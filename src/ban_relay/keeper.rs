//! Carries calls out, one after the other, by what the book says.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;

use super::backend::{Backend, Banned};
use super::book::{self, Book, End};
use super::fail2ban;
use super::store::Store;

/// Who bans, and for whom.
#[derive(Debug)]
pub struct Keeper {
    backend: Backend,
    book: Book,
    store: Option<Store>,
}

impl Keeper {
    /// Goes on where the store left off.
    pub fn new(backend: Backend, store: Option<Store>) -> Keeper {
        Keeper {
            backend,
            book: store.as_ref().map(Store::read).unwrap_or_default(),
            store,
        }
    }

    /// Bans an address for a caller, at least until `end`. Returns what was done.
    pub async fn ban(&mut self, target: IpAddr, caller: IpAddr, end: End) -> Result<&'static str> {
        let new = match &self.backend {
            Backend::Nft(set) => {
                let held = set.held(target)?;
                self.book.see(target, held);
                set.hold(target, held, self.book.end(target).max(Some(end)))?;
                held.is_none()
            }
            Backend::Fail2ban { jail } => {
                let new = fail2ban::ban(jail, target).await?;
                if !new && self.book.end(target).is_none() {
                    self.book.see(target, Some(End::Never));
                }
                new
            }
        };
        self.book.claim(target, caller, end);
        self.save();
        Ok(match new {
            true => "banned",
            false => "was banned already",
        })
    }

    /// Ends a caller's ban; the address stays banned for as long as others want it.
    pub async fn unban(&mut self, target: IpAddr, caller: IpAddr) -> Result<&'static str> {
        const OTHERS: &str = "still banned: not by this caller";
        if !self.book.has(target, caller) {
            return Ok(match self.backend.holds(target).await? {
                true => OTHERS,
                false => "was not banned",
            });
        }
        let was_held = match &self.backend {
            Backend::Nft(set) => {
                let held = set.held(target)?;
                self.book.see(target, held);
                set.hold(target, held, self.book.end_without(target, caller))?;
                held.is_some()
            }
            Backend::Fail2ban { jail } => match self.book.end_without(target, caller) {
                None => fail2ban::unban(jail, target).await?,
                Some(_) => true,
            },
        };
        let others = self.book.end_without(target, caller).is_some();
        self.book.release(target, caller);
        self.save();
        Ok(match (was_held, others) {
            (false, _) => "was not banned",
            (true, true) => OTHERS,
            (true, false) => "unbanned",
        })
    }

    /// Who is banned.
    pub async fn list(&self) -> Result<Vec<Banned>> {
        self.backend.list().await
    }

    /// Puts back what a reboot, or a reload of the firewall, took out of the sets. fail2ban keeps its
    /// bans itself.
    pub fn restore(&mut self) -> Result<()> {
        let Backend::Nft(set) = &self.backend else {
            return Ok(());
        };
        self.book.forget_what_is_over(book::now());
        for target in self.book.targets() {
            let held = set.held(target)?;
            self.book.see(target, held);
            set.hold(target, held, self.book.end(target))?;
        }
        Ok(())
    }

    /// How long it is until a ban ends.
    pub fn next_end(&self) -> Option<Duration> {
        self.book.next_end()
    }

    /// Ends what is over. The kernel sees to its sets itself; fail2ban has to be told.
    pub async fn end_what_is_over(&mut self) -> Result<()> {
        let now = book::now();
        if let Backend::Fail2ban { jail } = &self.backend {
            for target in self.book.over(now) {
                fail2ban::unban(jail, target).await?;
                tracing::info!(%target, exec = %self.backend, "ban over");
            }
        }
        self.book.forget_what_is_over(now);
        self.save();
        Ok(())
    }

    fn save(&self) {
        let Some(store) = &self.store else { return };
        if let Err(error) = store.write(&self.book) {
            let error = format!("{error:#}");
            tracing::error!(error, "who asked for which ban is not kept over a restart");
        }
    }
}
