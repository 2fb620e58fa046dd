//! `realpeer doctor`: looks at the machine as it is and names what is wrong.
//!
//! The quick part reads the kernel's state. The full one also sends a stranger's packet through
//! the real path, and asks nft who dropped it when it is lost. For each target the first true
//! cause ends the search: what follows from it is no cause of its own.

mod backend;
mod bans;
mod check;
mod diagnosis;
mod dropped;
mod examination;
mod host;
mod inbound;
mod listener;
mod loopback;
mod obstacles;
mod outside;
mod pass;
mod policy;
mod probe;
mod probing;
mod processes;
mod remote;
mod rules;
mod running;
mod shot;
mod target;
mod trace;
mod words;

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::config::{Routing, Settings};
pub use check::{Check, Status};
use examination::{Examination, Verdict};

/// What `realpeer doctor` was asked beside the proxy's flags.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The load balancer to judge by the allowed-subnets file.
    pub from: Option<IpAddr>,
    /// Answer in JSON.
    pub json: bool,
    /// Probe targets that are not on this host too.
    pub probe_remote: bool,
}

/// What `-json` prints.
#[derive(Serialize)]
struct Answer<'a> {
    ok: bool,
    checks: &'a [Check],
}

/// Examines, prints, and returns whether no check failed.
pub fn command(settings: &Settings, options: &Options) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let checks = runtime.block_on(examine(settings, options))?;
    let ok = checks.iter().all(|check| check.status != Status::Failed);
    if options.json {
        let answer = Answer {
            ok,
            checks: &checks,
        };
        println!("{}", serde_json::to_string(&answer)?);
    } else {
        for check in &checks {
            println!("{check}");
        }
    }
    Ok(ok)
}

/// The quick part, for the start of the proxy, in the log: it reads the kernel's state and contacts
/// nobody. Nothing that it finds keeps the proxy from running.
pub async fn warn_at_start(settings: &Settings) {
    match quick(settings).await {
        Ok(checks) => {
            for check in checks.iter().filter(|check| check.status != Status::Ok) {
                tracing::warn!(check = check.id, fix = check.fix(), "{}", check.found());
            }
        }
        Err(e) => tracing::debug!("the quick examination failed: {e:#}"),
    }
}

/// A missing way back is left to the routing to tell, which has just tried to put it in.
async fn quick(settings: &Settings) -> Result<Vec<Check>> {
    let options = Options::default();
    let examination = Examination::new(settings, &options, true).await?;
    let mut checks = examination.surroundings();
    for target in &examination.targets {
        let (found, verdict) = examination.still(target).await?;
        checks.extend(found);
        if let Verdict::Open(Some(backend)) = verdict {
            checks.push(backend::check(&target.0, &backend));
        }
    }
    if settings.routing == Routing::Auto {
        checks.retain(|check| !matches!(check.id, "no-rule" | "one-family-missing"));
    }
    Ok(checks)
}

/// The whole examination.
pub async fn examine(settings: &Settings, options: &Options) -> Result<Vec<Check>> {
    let examination = Examination::new(settings, options, false).await?;
    let mut checks = examination.surroundings();
    let mut open = Vec::new();
    for target in &examination.targets {
        let (found, verdict) = examination.still(target).await?;
        checks.extend(found);
        if let Verdict::Open(backend) = verdict {
            open.push((&target.0, backend));
        }
    }
    checks.extend(loopback::check());
    checks.extend(inbound::check(settings, options.from));
    if let Some(running) = &examination.running {
        checks.extend(running.checks(settings));
    }
    checks.extend(probing::probe(&examination, open).await?);
    Ok(checks)
}
