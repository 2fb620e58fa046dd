//! Sends the probes, and says what became of them.

use std::io;
use std::net::IpAddr;

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use super::backend::{self, Backend};
use super::check::Check;
use super::examination::Examination;
use super::shot::Shot;
use super::target::Target;
use crate::config::{Protocol, Routing};
use crate::routing::keeper::{Keeper, Outcome};
use crate::routing::plan::{Place, Way};
use crate::routing::stranger;

/// Probes the targets that are still open. Under `-routing auto` the way back is put in first and
/// taken away afterwards, whatever happens.
pub async fn probe(
    examination: &Examination<'_>,
    open: Vec<(&Target, Option<Backend>)>,
) -> Result<Vec<Check>> {
    let mut keeper = Keeper::new(
        examination.kernel.clone(),
        open.iter().map(|(target, _)| target.need.clone()).collect(),
        None,
    );
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let checks = tokio::select! {
        checks = probe_all(examination, &mut keeper, open) => checks,
        _ = terminate.recv() => Err(anyhow::anyhow!("ended by SIGTERM")),
        _ = interrupt.recv() => Err(anyhow::anyhow!("ended by SIGINT")),
        _ = hangup.recv() => Err(anyhow::anyhow!("ended by SIGHUP")),
    };
    if keeper.lock.is_some() {
        let cleared = keeper.clear().await;
        cleared.context("cannot take the probe's rules away")?;
    }
    checks
}

async fn probe_all(
    examination: &Examination<'_>,
    keeper: &mut Keeper,
    open: Vec<(&Target, Option<Backend>)>,
) -> Result<Vec<Check>> {
    let powers = examination.powers;
    let put_in = examination.config.process.routing == Routing::Auto && powers.administrate;
    let outcomes = match put_in {
        true => keeper.ensure().await?,
        false => keeper.look().await?,
    };
    let mut checks = Vec::new();
    for ((target, backend), outcome) in open.into_iter().zip(outcomes) {
        let table = match outcome {
            Outcome::InPlace(table) | Outcome::PutIn(table) => Some(table),
            Outcome::Failed(e) if put_in => {
                checks.push(not_put_in(target, &e));
                continue;
            }
            Outcome::Failed(_) => None,
        };
        let remote = target.place == Place::Behind && !examination.options.probe_remote;
        let (Some(table), true, false) = (table, powers.claim, remote) else {
            checks.extend(backend.map(|backend| backend::check(target, &backend)));
            continue;
        };
        let mark = match target.need.way {
            Way::Mark => Some(target.need.mark_in(table)),
            _ => target.need.mark,
        };
        let shot = Shot {
            kernel: examination.kernel.clone(),
            target: target.clone(),
            mark,
            trace: powers.administrate,
            others: others(examination, target).await?,
        };
        checks.extend(match (target.protocol, backend) {
            (Protocol::Udp, backend) => shot.udp(backend).await?,
            (Protocol::Tcp, Some(backend)) => shot.tcp_here(backend).await?,
            (Protocol::Tcp, None) => shot.tcp_remote().await?,
        });
    }
    mend_at_once(&mut checks);
    Ok(checks)
}

/// One paste for the firewall of both families: the first check's command does it all.
fn mend_at_once(checks: &mut [Check]) {
    let mut firewall = checks.iter_mut().filter(|check| check.is_of_firewall());
    if let Some(first) = firewall.next() {
        firewall.for_each(|other| first.take_over(other));
    }
}

/// Addresses of the networks that the target's stranger is not from.
async fn others(examination: &Examination<'_>, target: &Target) -> io::Result<Vec<IpAddr>> {
    let mut others = Vec::new();
    for network in stranger::networks(target.need.family()) {
        if !network.contains(&target.need.stranger) {
            others.extend(stranger::draw_from(&examination.kernel, network).await?);
        }
    }
    Ok(others)
}

fn not_put_in(target: &Target, error: &io::Error) -> Check {
    let found = format!(
        "the way back from {} cannot be put in: {error}",
        target.need.target
    );
    let advice = "`realpeer routing show -as commands`, with the same flags, prints the commands to try one by one as root";
    Check::wrong("no-rule", target.need.given, found).advice(advice)
}
