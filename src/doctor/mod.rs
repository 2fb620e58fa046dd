//! `realpeer doctor`: looks at the machine as it is and names what is wrong.
//!
//! The quick part reads the kernel's state. The full one also sends a stranger's packet through
//! the real path, and asks nft who dropped it when it is lost. For each target the first true
//! cause ends the search: what follows from it is no cause of its own.

pub(crate) mod backend;
mod bans;
mod behind;
mod check;
mod diagnosis;
mod dropped;
mod engine;
mod examination;
mod forged;
mod host;
mod inbound;
mod iptables;
pub(crate) mod listener;
mod loopback;
mod obstacles;
mod outside;
mod pass;
mod policy;
mod probe;
mod probing;
pub(crate) mod processes;
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
use tokio::runtime::Runtime;

use crate::config::{Config, ListenerConfig, Routing, TargetNetns};
use crate::control;
use crate::namespaces::{here, within};
use crate::output::print;
pub use check::{Check, IDS, Status};
use examination::{Examination, Verdict};
pub(crate) use outside::printable;

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
pub fn command(config: &Config, options: &Options) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let checks = runtime.block_on(examine_all(config, options))?;
    let ok = checks.iter().all(|check| check.status != Status::Failed);
    if options.json {
        let answer = Answer {
            ok,
            checks: &checks,
        };
        print(format_args!("{}\n", serde_json::to_string(&answer)?))?;
    } else {
        for check in &checks {
            print(format_args!("{check}\n"))?;
        }
    }
    Ok(ok)
}

/// The quick part, for the start of the proxy, in the log: it reads the kernel's state and contacts
/// nobody. Nothing that it finds keeps the proxy from running.
pub async fn warn_at_start(config: &Config) {
    let mut told = Vec::new();
    for listener in &config.listeners {
        match quick(config, listener).await {
            Ok(mut checks) => {
                checks.retain(|check| check.status != Status::Ok && !told.contains(check));
                for check in &checks {
                    let name = listener.label.as_deref();
                    tracing::warn!(
                        listener = name,
                        check = check.id,
                        fix = check.fix(),
                        "{}",
                        check.found()
                    );
                }
                told.extend(checks);
            }
            Err(e) => tracing::debug!("the quick examination failed: {e:#}"),
        }
    }
}

/// What no list of load balancers means.
pub const ANYBODY: &str = "no -allowed-subnets: whoever reaches the listener can claim to be any client; list your load balancers in a file";

/// What the doctor says of this very process by what it has counted, and by its configuration; it
/// looks at nothing and contacts nobody.
pub fn of_running(status: &control::Status, config: &Config) -> Vec<String> {
    let open = config
        .listeners
        .iter()
        .filter(|l| l.allowed_subnets.is_none());
    let open = open.map(|listener| {
        let name = listener.name.as_deref().map(|name| format!("{name}: "));
        format!("{}{ANYBODY}", name.unwrap_or_default())
    });
    let wrong = running::wrong(status, config).into_iter();
    let wrong = wrong.map(|check| format!("{}: {}", check.found(), check.fix()));
    open.chain(wrong).collect()
}

/// A missing way back is left to the routing to tell, which has just tried to put it in.
async fn quick(config: &Config, listener: &ListenerConfig) -> Result<Vec<Check>> {
    let options = Options::default();
    let targets = here(&listener.route_targets());
    let examination = Examination::new(config, listener, &options, true, &targets).await?;
    let mut checks = examination.surroundings();
    for target in &examination.targets {
        let (found, verdict) = examination.still(target).await?;
        checks.extend(found);
        if let Verdict::Open(Some(backend)) = verdict {
            checks.push(backend::check(&target.0, &backend));
        }
    }
    if config.process.routing == Routing::Auto {
        checks.retain(|check| !matches!(check.id, "no-rule" | "one-family-missing"));
    }
    Ok(checks)
}

/// The whole examination, listener by listener; what is true of all is told once.
pub async fn examine_all(config: &Config, options: &Options) -> Result<Vec<Check>> {
    let mut found = Vec::new();
    for listener in &config.listeners {
        let checks = examine(config, listener, options).await?;
        found.push((listener.label.as_deref(), checks));
    }
    let of_engine = config.process.crowdsec.as_ref().map(engine::check);
    let of_engine = of_engine.unwrap_or_default();
    if let [(name, checks)] = &found[..] {
        let checks = checks.iter().map(|check| check.clone().of(*name));
        return Ok(checks.chain(of_engine).collect());
    }
    let of_all = |check| found.iter().all(|(_, checks)| checks.contains(check));
    let mut told: Vec<Check> = Vec::new();
    for (name, checks) in &found {
        for check in checks {
            match of_all(check) {
                true if told.contains(check) => {}
                true => told.push(check.clone()),
                false => told.push(check.clone().of(*name)),
            }
        }
    }
    told.extend(of_engine);
    Ok(told)
}

async fn examine(
    config: &Config,
    listener: &ListenerConfig,
    options: &Options,
) -> Result<Vec<Check>> {
    let targets = here(&listener.route_targets());
    let examination = Examination::new(config, listener, options, false, &targets).await?;
    let mut checks = examination.surroundings();
    let mut around = Vec::new();
    for addr in &listener.listen {
        around.extend(inbound::check(listener, *addr, options.from));
    }
    if let Some(running) = &examination.running {
        around.extend(running.checks(listener));
    }
    match &listener.target_netns {
        None => checks.extend(examine_targets(&examination, around).await?),
        Some(netns) => {
            checks.extend(around);
            checks.extend(examine_inside(netns, config, listener, options));
        }
    }
    Ok(checks)
}

/// The targets, from a thread in their network namespace.
fn examine_inside(
    netns: &TargetNetns,
    config: &Config,
    listener: &ListenerConfig,
    options: &Options,
) -> Vec<Check> {
    let examine = |runtime: &Runtime| {
        runtime.block_on(async {
            let targets = listener.route_targets();
            let examination = Examination::new(config, listener, options, false, &targets).await?;
            let mut checks = Vec::from_iter(loopback::lo(listener));
            checks.extend(examine_targets(&examination, Vec::new()).await?);
            Ok(checks)
        })
    };
    // A runtime runs on this thread already.
    let found = std::thread::scope(|scope| {
        let thread = scope.spawn(|| within(Some(netns), examine));
        thread
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    match found {
        Ok(checks) => checks.into_iter().map(|check| check.inside(netns)).collect(),
        Err(error) => vec![
            Check::wrong(
                "target-gone",
                true,
                format!("the targets cannot be reached: {error:#}"),
            )
            .advice("while that is so, realpeer refuses their clients; it follows at once when it changes"),
        ],
    }
}

/// `around` is told before the probes.
async fn examine_targets(examination: &Examination<'_>, around: Vec<Check>) -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    let mut open = Vec::new();
    for target in &examination.targets {
        let (found, verdict) = examination.still(target).await?;
        checks.extend(found);
        if let Verdict::Open(backend) = verdict {
            open.push((&target.0, backend));
        }
    }
    checks.extend(loopback::check());
    checks.extend(around);
    checks.extend(probing::probe(examination, open).await?);
    Ok(checks)
}
