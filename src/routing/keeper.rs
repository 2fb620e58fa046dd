//! Puts in place what is missing, and only that.

use std::fs;
use std::io;

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;
use super::nft;
use super::owner::{self, INSTANCE_TABLES, Lock, SWITCH_TABLE};
use super::plan::{Need, Step, Way};

/// The one sysctl of mark-accept, for both families.
pub const FWMARK_ACCEPT: &str = "/proc/sys/net/ipv4/tcp_fwmark_accept";

/// Keeps the routing of some targets in place.
pub struct Keeper {
    /// The way to the kernel.
    pub kernel: Kernel,
    /// What is kept in place.
    pub needs: Vec<Need>,
    /// The table of ours, once something had to be put in.
    pub lock: Option<Lock>,
    /// A socket match was put in.
    nft: bool,
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
            nft: false,
        }
    }

    /// Puts in what is missing, for each need in turn.
    /// Fails when no table can be had.
    pub async fn ensure(&mut self) -> Result<Vec<Outcome>> {
        let mut outcomes = Vec::new();
        for i in 0..self.needs.len() {
            outcomes.push(self.ensure_one(i).await?);
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
            clear(&self.kernel, lock.table, self.nft).await?;
        }
        Ok(())
    }

    async fn ensure_one(&mut self, i: usize) -> Result<Outcome> {
        if let Some(table) = self.serving(&self.needs[i]).await? {
            return Ok(Outcome::InPlace(table));
        }
        let table = self.own_table().await?;
        self.nft |= self.needs[i].way == Way::Socket;
        let need = &self.needs[i];
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
        if INSTANCE_TABLES.contains(&answer.table) && !self.owns_whole(need, table).await? {
            return Ok(false);
        }
        Ok(match need.way {
            Way::Loopback | Way::UdpPort => true,
            Way::Mark => fwmark_accept(),
            Way::Socket => nft::has_table(&nft::table_name(table))?,
        })
    }

    /// True if `table` is ours and all that `need` wants of it is there.
    async fn owns_whole(&self, need: &Need, table: u32) -> Result<bool> {
        if self.lock.as_ref().is_none_or(|lock| lock.table != table) {
            return Ok(false);
        }
        for step in need.steps(table) {
            let there = match &step {
                Step::Rule(rule) => self.kernel.find_rule(rule).await?.is_some(),
                Step::Route(route) => self.kernel.has_route(route).await?,
                Step::FwmarkAccept | Step::SocketMatch { .. } => true,
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
            if let Some(lock) = owner::try_lock(table)?
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

    async fn put_in(&self, need: &Need, table: u32) -> io::Result<()> {
        for step in need.steps(table) {
            match &step {
                Step::Route(route) => self.kernel.add_route(route).await?,
                Step::Rule(rule) => self.kernel.add_rule(rule).await?,
                Step::SocketMatch { table, mark } => nft::add_socket_match(*table, *mark)?,
                Step::FwmarkAccept => set_fwmark_accept()?,
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

/// Takes away all of ours in `table`, the socket match too `with_nft`: merely to ask for it makes
/// the kernel load nf_tables. True if there was anything.
pub async fn clear(kernel: &Kernel, table: u32, with_nft: bool) -> io::Result<bool> {
    // The rules go last: by them a leftover is recognised.
    let name = nft::table_name(table);
    let nft = with_nft && nft::has_table(&name)? && nft::remove_table(&name)?;
    Ok(kernel.clear(table).await? | nft)
}

/// True if accepted connections inherit the mark of the SYN.
pub fn fwmark_accept() -> bool {
    fs::read_to_string(FWMARK_ACCEPT).is_ok_and(|text| text.trim() == "1")
}

fn set_fwmark_accept() -> io::Result<()> {
    if fwmark_accept() {
        return Ok(());
    }
    fs::write(FWMARK_ACCEPT, "1").map_err(|e| {
        let hint = "set it by `sysctl -w net.ipv4.tcp_fwmark_accept=1`; a unit with \
                    ProtectKernelTunables=yes cannot";
        io::Error::new(
            e.kind(),
            format!("cannot write {FWMARK_ACCEPT} ({e}): {hint}"),
        )
    })
}
