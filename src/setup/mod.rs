//! `realpeer setup`: asks little, shows what it would write, and on yes writes it, starts the service
//! and runs the doctor. `-undo` takes that back.
//!
//! ```text
//! flags, guess ─▶ ask ─▶ plan (shown) ─▶ changes (made, or taken back) ─▶ doctor
//! ```
//!
//! Each backend is an instance of its own: /etc/realpeer/NAME.toml, run by realpeer@NAME.service. The
//! unit is the package's template, or a file in /etc/systemd/system where there is none. Both files
//! begin with a mark ([`marked`]), by which they are known again.

mod answers;
mod ask;
mod balancer;
mod changes;
mod guess;
mod marked;
mod plan;
mod undo;
mod unit;

use std::fmt::Write;

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;

use crate::cli::SetupFlags;
use crate::output::print;
use crate::{config, doctor};
pub use answers::{Backend, backend, balancers};
use plan::Plan;

/// Sets up, or takes back. Returns whether the doctor found nothing wrong.
pub fn command(flags: SetupFlags) -> Result<bool> {
    if !geteuid().is_root() {
        bail!("setup writes below /etc and starts a service: run it as root, as by sudo");
    }
    if flags.undo {
        return undo::command(flags.name.as_deref(), flags.yes);
    }
    let plan = Plan::new(ask::answers(&flags)?)?;
    if !flags.yes {
        print(plan.shown())?;
        ask::agreement(match plan.start {
            plan::Start::Systemd { .. } => "Write this, start it and run the doctor?",
            plan::Start::ByHand => "Write this?",
        })?;
    }
    changes::make(&plan)?;
    print(plan.done())?;
    let well = match plan.start {
        plan::Start::Systemd { .. } => examine(&plan)?,
        plan::Start::ByHand => true,
    };
    print(last_words(&plan, well))?;
    Ok(well)
}

/// Runs the doctor on what was started.
fn examine(plan: &Plan) -> Result<bool> {
    print("\nThe doctor:\n")?;
    let over = [format!("--name={}", plan.answers.name)];
    let config = config::load(&plan.config.path, &over)?;
    let options = doctor::Options {
        from: plan.answers.from.first().map(ipnet::IpNet::addr),
        ..doctor::Options::default()
    };
    doctor::command(&config, &options).context("the service runs, but the doctor cannot")
}

fn last_words(plan: &Plan, well: bool) -> String {
    let name = &plan.answers.name;
    let mut out = String::new();
    if !well {
        let _ = writeln!(
            out,
            "\nThe service runs, but something is in its way: see \"failed\" above, mend it, and look again with\n    \
             realpeer doctor -config {} -name {name}",
            plan.config.path.display(),
        );
    }
    let _ = write!(out, "\n{}", plan.at_balancer);
    let _ = writeln!(
        out,
        "\nLook at clients as they come: realpeer ctl -name {name} watch\n\
         Take it back: realpeer setup -undo -name {name}"
    );
    out
}
