//! Puts in place what is missing, and only that.

use std::io;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, bail};
use tracing::warn;

use super::accept;
use super::kernel::Kernel;
use super::nft;
use super::owner::{self, INSTANCE_TABLES, Lock, SWITCH_TABLE};
use super::plan::{Need, Step, Way};
use crate::handover::message::RoutingPaper;

/// Keeps the routing of some targets in place.
pub struct Keeper {
    /// The way to the kernel.
    pub kernel: Kernel,
    /// What is kept in place.
    pub needs: Vec<Need>,
    /// The table of ours, once something had to be put in.
    pub lock: Option<Lock>,
    /// What was put in, in order.
    steps: Vec<Step>,
    /// A socket match was put in.
    nft: bool,
    /// `tcp_fwmark_accept` was off before us, and is on for our sake.
    accept: bool,
    /// The guard of other programs' marks was put in or found.
    guarded: bool,
    /// That the guard cannot be put in was said.
    warned: bool,
    /// A process before this one has put something in.
    inherited: bool,
}

/// What became of one need.
#[derive(Debug)]
pub enum Outcome {
    /// It was there; marks are those of this table.
    InPlace(u32),
    /// It is there now, in this table.
    PutIn(u32),
    /// It is missing.
    Failed(io::Error),
}

impl Keeper {
    /// `lock`: the table to use; `None` to find one when it is needed.
    pub fn new(kernel: Kernel, needs: Vec<Need>, lock: Option<Lock>) -> Keeper {
        Keeper {
            kernel,
            needs,
            lock,
            steps: Vec::new(),
            nft: false,
            accept: false,
            guarded: false,
            warned: false,
            inherited: false,
        }
    }

    /// Takes over what a process before this one has put in, whose table `lock` stands for.
    pub fn inherit(&mut self, paper: RoutingPaper, lock: Lock) {
        self.lock = Some(lock);
        (self.nft, self.accept, self.guarded) = (paper.nft, paper.accept, paper.guarded);
        self.inherited = true;
    }

    /// What is to be passed on, if anything was put in.
    pub fn paper(&self) -> Option<(RoutingPaper, OwnedFd)> {
        let lock = self.lock.as_ref()?;
        let paper = RoutingPaper {
            table: lock.table,
            nft: self.nft,
            accept: self.accept,
            guarded: self.guarded,
        };
        Some((paper, lock.descriptor().ok()?))
    }

    /// Puts in what is missing, for each need in turn.
    /// Fails when no table can be had.
    pub async fn ensure(&mut self) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for i in 0..self.needs.len() {
            outcomes.push(self.ensure_one(i).await?);
        }
        match self.look_after_marks().await {
            Ok(()) => self.warned = false,
            Err(e) if !self.warned => {
                warn!("routing: {e}; realpeer routing show -as commands prints what to do");
                self.warned = true;
            }
            Err(_) => {}
        }
        Ok(outcomes)
    }

    /// As `ensure`, but puts nothing in.
    pub async fn look(&self) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for need in &self.needs {
            let missing = || Outcome::Failed(io::ErrorKind::NotFound.into());
            outcomes.push(
                self.serving(need)
                    .await?
                    .map_or_else(missing, Outcome::InPlace),
            );
        }
        Ok(outcomes)
    }

    /// Takes away what was put in.
    pub async fn clear(&self) -> io::Result<()> {
        if let Some(lock) = &self.lock {
            clear(&self.kernel, lock.table, self.has_nft()).await?;
        }
        Ok(())
    }

    /// Takes away what was put in for targets that are gone.
    pub async fn take_away_unneeded(&mut self) -> io::Result<()> {
        let Some(table) = self.lock.as_ref().map(|lock| lock.table) else {
            return Ok(());
        };
        let needed: Vec<Step> = self
            .needs
            .iter()
            .flat_map(|need| need.steps(table))
            .collect();
        let gone: Vec<Step> = self
            .steps
            .extract_if(.., |step| !needed.contains(step))
            .collect();
        // Rules first: without its route a rule would send packets nowhere.
        for step in gone.iter().rev() {
            match step {
                Step::Rule(rule) => self.kernel.remove_rule(rule).await?,
                Step::Route(route) => self.kernel.remove_route(route).await?,
                Step::SocketMatch { table, .. } => {
                    nft::remove_table(&nft::table_name(*table))?;
                    self.nft = false;
                }
                Step::FwmarkAccept if self.accept => {
                    let _lock = accept::lock().await?;
                    self.kernel.remove_route(&accept::marker(table)).await?;
                    accept::put_back(&self.kernel, self.guarded).await?;
                    (self.accept, self.guarded) = (false, false);
                }
                Step::FwmarkAccept | Step::MarkGuard => {}
            }
        }
        Ok(())
    }

    /// True if something of ours is in nftables.
    pub fn has_nft(&self) -> bool {
        self.nft || self.guarded
    }

    /// The running proxy whose rules bring the replies of `need` back: its table and process.
    pub async fn served_by(&self, need: &Need) -> Result<Option<(u32, u32)>> {
        let tables = self.kernel.own_tables().await?;
        for table in tables.into_iter().filter(|t| INSTANCE_TABLES.contains(t)) {
            if let Some(pid) = owner::holder(table)
                && self.is_in_place(need, table).await?
            {
                return Ok(Some((table, pid)));
            }
        }
        Ok(None)
    }

    async fn look_after_marks(&mut self) -> io::Result<()> {
        if !self.needs.iter().any(|need| need.way == Way::Mark) {
            return Ok(());
        }
        if let (true, Some(lock)) = (self.accept, &self.lock) {
            self.kernel.add_route(&accept::marker(lock.table)).await?;
        }
        accept::keep_guard(&self.kernel, &mut self.guarded).await
    }

    async fn ensure_one(&mut self, i: usize) -> Result<Outcome> {
        if let Some(table) = self.serving(&self.needs[i]).await? {
            let own = self.lock.as_ref().map(|lock| lock.table) == Some(table);
            if own && self.inherited && self.is_whole(&self.needs[i], table).await? {
                let steps = self.needs[i].steps(table).into_iter();
                let new: Vec<Step> = steps.filter(|step| !self.steps.contains(step)).collect();
                self.steps.extend(new);
            }
            return Ok(Outcome::InPlace(table));
        }
        let table = self.own_table().await?;
        self.nft |= self.needs[i].way == Way::Socket;
        let need = &self.needs[i].clone();
        let mut done = self.put_in(need, table).await;
        if done.is_ok() && self.serving(need).await?.is_none() {
            // The rule stands, but behind one that takes its packets: bring it to the front.
            done = self.put_in_front(need, table).await;
        }
        Ok(match done {
            Ok(()) => Outcome::PutIn(table),
            Err(e) => Outcome::Failed(e),
        })
    }

    /// The table whose marks bring the replies of `need` back; `None` if they do not come back.
    pub async fn serving(&self, need: &Need) -> Result<Option<u32>> {
        let own = self.lock.as_ref().map(|lock| lock.table);
        let switch = (own != Some(SWITCH_TABLE)).then_some(SWITCH_TABLE);
        for table in switch.into_iter().chain(own) {
            if self.is_in_place(need, table).await? {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    async fn is_in_place(&self, need: &Need, table: u32) -> Result<bool> {
        if need.collides(table) {
            return Ok(false);
        }
        let (_, interface) = self.kernel.locate(need.target.ip()).await?;
        let answer = self
            .kernel
            .ask(&need.reply(table, interface))
            .await
            .context("the kernel does not answer a route look-up")?;
        let Some(answer) = answer.filter(|answer| answer.local) else {
            return Ok(false);
        };
        // Another proxy's rules may stand in front of ours, but they go when it ends.
        if INSTANCE_TABLES.contains(&answer.table) && !self.is_whole(need, table).await? {
            return Ok(false);
        }
        Ok(match need.way {
            Way::Loopback | Way::UdpPort => true,
            Way::Mark => accept::is_on(),
            Way::Socket => nft::has_table(&nft::table_name(table))?,
        })
    }

    /// True if all that `need` wants of `table` is there.
    async fn is_whole(&self, need: &Need, table: u32) -> Result<bool> {
        // What `routing up` put in counts by the kernel's answer only.
        let own = self.lock.as_ref().map(|lock| lock.table);
        if table == SWITCH_TABLE && own != Some(SWITCH_TABLE) {
            return Ok(false);
        }
        for step in need.steps(table) {
            let there = match &step {
                Step::Rule(rule) => self.kernel.find_rule(rule).await?.is_some(),
                Step::Route(route) => self.kernel.has_route(route).await?,
                Step::FwmarkAccept | Step::MarkGuard | Step::SocketMatch { .. } => true,
            };
            if !there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn own_table(&mut self) -> Result<u32> {
        let lock = match self.lock.take() {
            Some(lock) => lock,
            None => self.lock_instance().await?,
        };
        let table = lock.table;
        self.lock = Some(lock);
        Ok(table)
    }

    /// Takes the first table that no other proxy and no other program uses.
    async fn lock_instance(&self) -> Result<Lock> {
        let marks: Vec<u32> = self.needs.iter().filter_map(|need| need.mark).collect();
        for table in INSTANCE_TABLES.filter(|table| !marks.contains(table)) {
            if let Some(lock) = owner::try_lock(table).await?
                && self.kernel.foreigner(table).await?.is_none()
            {
                return Ok(lock);
            }
        }
        bail!(
            "routing tables {} to {} are all taken",
            INSTANCE_TABLES.start(),
            INSTANCE_TABLES.end()
        )
    }

    async fn put_in(&mut self, need: &Need, table: u32) -> io::Result<()> {
        for step in need.steps(table) {
            match &step {
                Step::Route(route) => self.kernel.add_route(route).await?,
                Step::Rule(rule) => self.kernel.add_rule(rule).await?,
                Step::SocketMatch { table, mark } => nft::add_socket_match(*table, *mark)?,
                Step::FwmarkAccept => self.accept |= accept::turn_on(&self.kernel, table).await?,
                Step::MarkGuard => nft::add_guard()?,
            }
            if !self.steps.contains(&step) {
                self.steps.push(step);
            }
        }
        Ok(())
    }

    async fn put_in_front(&self, need: &Need, table: u32) -> io::Result<()> {
        for step in need.steps(table) {
            if let Step::Rule(rule) = step {
                self.kernel.remove_rule(&rule).await?;
                self.kernel.add_rule(&rule).await?;
            }
        }
        Ok(())
    }
}

/// Takes away all of ours in `table`, what is in nftables too `with_nft`: merely to ask for it makes
/// the kernel load nf_tables. True if there was anything.
pub async fn clear(kernel: &Kernel, table: u32, with_nft: bool) -> io::Result<bool> {
    let needs_accept = kernel.has_route(&accept::marker(table)).await?;
    let _lock = match needs_accept {
        true => Some(accept::lock().await?),
        false => None,
    };
    // The rules go last: by them a leftover is recognised.
    let name = nft::table_name(table);
    let nft = with_nft && nft::has_table(&name)? && nft::remove_table(&name)?;
    let found = kernel.clear(table).await? | nft;
    if needs_accept {
        accept::put_back(kernel, with_nft).await?;
    }
    Ok(found)
}
