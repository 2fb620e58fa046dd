//! The policy routing that brings a backend's replies back to the proxy.
//!
//! The backend answers to the client's address, which is not ours. `plan` says which rules make
//! the kernel deliver these answers here, `kernel` puts them in and takes them away by netlink,
//! `owner` tells our rules from everybody else's.

mod kernel;
mod owner;
mod plan;

use std::io;

use anyhow::{Context, Result};
use tracing::{debug, info, warn};

use crate::cli::RoutingAction;
use crate::config::{Routing, Settings};
use kernel::Kernel;
use owner::{INSTANCE_TABLES, Lock, SWITCH_TABLE};
use plan::{Family, Need};

/// The routing that this process put in; it stays until `remove`.
#[must_use = "call remove() at exit"]
pub struct Installed(Option<(Kernel, Lock)>);

/// Puts in what is missing for the targets and says so in the log. Nothing with `-routing off`.
///
/// What cannot be put in is a warning, not an error: the routing may come later, or by hand.
/// Fails only when the process may not even look.
pub async fn install(settings: &Settings) -> Result<Installed> {
    if settings.routing == Routing::Off {
        return Ok(Installed(None));
    }
    let kernel = Kernel::connect()?;
    clean_leftovers(&kernel).await;
    let mut missing = Vec::new();
    for need in plan::needs(settings) {
        match in_place(&kernel, &need, counts_for_instance).await {
            Ok(true) => debug!("replies of {} come back already", need.target),
            Ok(false) => missing.push(need),
            Err(e) => warn!(
                "cannot ask for the way of replies of {}: {e:#}",
                need.target
            ),
        }
    }
    if missing.is_empty() {
        return Ok(Installed(None));
    }
    let lock = owner::lock_instance()?;
    for need in &missing {
        match put_in(&kernel, need, lock.table).await {
            Ok(()) => info!(
                "routing: replies of {} come back through table {} (removed at exit)",
                need.target, lock.table
            ),
            Err(e) => complain(need, &e),
        }
    }
    Ok(Installed(Some((kernel, lock))))
}

impl Installed {
    /// Takes away what `install` put in, and nothing else.
    pub async fn remove(self) {
        let Some((kernel, lock)) = self.0 else { return };
        match kernel.clear(lock.table).await {
            Ok(_) => debug!("routing: table {} is clean", lock.table),
            Err(e) => warn!("cannot take the rules of table {} away: {e}", lock.table),
        }
    }
}

/// `realpeer routing up|down|show`.
pub async fn run(action: RoutingAction, settings: &Settings) -> Result<()> {
    let kernel = Kernel::connect()?;
    match action {
        RoutingAction::Up => up(&kernel, settings).await,
        RoutingAction::Down => down(&kernel).await,
        RoutingAction::Show => show(&kernel, settings).await,
    }
}

async fn up(kernel: &Kernel, settings: &Settings) -> Result<()> {
    let _lock = owner::lock(SWITCH_TABLE).await?;
    for need in plan::needs(settings) {
        if in_place(kernel, &need, counts_for_switch).await? {
            println!("{}: in place", need.target);
            continue;
        }
        match put_in(kernel, &need, SWITCH_TABLE).await {
            Ok(()) => println!("{}: put in, table {SWITCH_TABLE}", need.target),
            Err(e) if is_excused(&need, &e) => println!("{}: skipped, {e}", need.target),
            Err(e) => return Err(e).with_context(|| explain(&need)),
        }
    }
    Ok(())
}

async fn down(kernel: &Kernel) -> Result<()> {
    let _lock = owner::lock(SWITCH_TABLE).await?;
    let found = kernel.clear(SWITCH_TABLE).await.context(
        "cannot take the rules of `realpeer routing up` away (it needs CAP_NET_ADMIN: run it as root)",
    )?;
    println!(
        "{}",
        if found {
            "taken away"
        } else {
            "nothing was in place"
        }
    );
    Ok(())
}

async fn show(kernel: &Kernel, settings: &Settings) -> Result<()> {
    for need in plan::needs(settings) {
        let state = match kernel.ask(&need.reply()).await? {
            Some(answer) if answer.local => format!("in place, table {}", answer.table),
            _ => "missing".into(),
        };
        println!("{}: {state}", need.target);
    }
    Ok(())
}

/// True if replies come back by a table that `counts`.
async fn in_place(kernel: &Kernel, need: &Need, counts: fn(u32) -> bool) -> Result<bool> {
    let answer = kernel
        .ask(&need.reply())
        .await
        .context("the kernel does not answer a route look-up")?;
    Ok(answer.is_some_and(|answer| answer.local && counts(answer.table)))
}

/// A running proxy does not rely on the rules of another one, which go when that one ends.
fn counts_for_instance(table: u32) -> bool {
    !INSTANCE_TABLES.contains(&table)
}

fn counts_for_switch(table: u32) -> bool {
    counts_for_instance(table)
}

async fn put_in(kernel: &Kernel, need: &Need, table: u32) -> io::Result<()> {
    let (rule, route) = need.steps(table);
    // The route first: a rule that leads to an empty table would do nothing, but look right.
    kernel.add_route(&route).await?;
    kernel.add_rule(&rule).await
}

/// Takes away what instances killed by SIGKILL left behind.
async fn clean_leftovers(kernel: &Kernel) {
    for family in Family::BOTH {
        let Ok(rules) = kernel.rules(family).await else {
            return;
        };
        for rule in rules.iter().filter(|rule| kernel::is_ours(rule)) {
            let table = kernel::rule_table(rule);
            if !INSTANCE_TABLES.contains(&table) {
                continue;
            }
            let Ok(Some(_lock)) = owner::try_lock(table) else {
                continue;
            };
            match kernel.clear(table).await {
                Ok(_) => info!("routing: cleaned table {table}, left behind by a killed instance"),
                Err(e) => debug!("cannot clean table {table}: {e}"),
            }
        }
    }
}

fn complain(need: &Need, error: &io::Error) {
    if is_excused(need, error) {
        info!("routing: {} is left out: {error}", need.target);
    } else {
        warn!("{}: {error}", explain(need));
    }
}

/// A host without IPv6 is no fault while nobody asked for an IPv6 target.
fn is_excused(need: &Need, error: &io::Error) -> bool {
    let capability = error.raw_os_error() == Some(libc::EPERM);
    need.family() == Family::V6 && !need.given && !capability
}

fn explain(need: &Need) -> String {
    format!(
        "replies of {} will not come back: the {} rule is missing and cannot be put in. It needs \
         CAP_NET_ADMIN: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in the unit, or once as root: \
         realpeer routing up",
        need.target,
        need.family()
    )
}
