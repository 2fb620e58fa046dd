//! `realpeer routing show`: the plan, and what of it is in place.

use std::fmt::Write;

use anyhow::Result;

use super::accept;
use super::keeper::Keeper;
use super::nft;
use super::owner::SWITCH_TABLE;
use super::plan::{Need, Step};

/// A line for each step of each need: whether it is in place, and the command that puts it in.
pub async fn table(keeper: &Keeper) -> Result<String> {
    let mut text = String::new();
    for need in &keeper.needs {
        let (state, table) = state(keeper, need).await?;
        writeln!(
            text,
            "{}: {} way, {}",
            name(need),
            need.way,
            state.as_deref().unwrap_or("missing")
        )?;
        for step in steps(keeper, need, table).await? {
            let mark = if is_there(keeper, &step).await? {
                "ok"
            } else {
                "-"
            };
            writeln!(text, "  {mark:<3} {step}")?;
        }
    }
    Ok(text)
}

/// The commands that put the plan in place; those that would fail because it is there already
/// are commented out.
pub async fn commands(keeper: &Keeper) -> Result<String> {
    let mut text = String::new();
    for need in &keeper.needs {
        let (state, table) = state(keeper, need).await?;
        let served = state.is_some();
        let state = state.map_or_else(String::new, |state| format!(" ({state})"));
        writeln!(text, "# replies of {}{state}", name(need))?;
        for step in steps(keeper, need, table).await? {
            let hash =
                if served || is_there(keeper, &step).await? || text.contains(&step.to_string()) {
                    "# "
                } else {
                    ""
                };
            writeln!(text, "{hash}{step}")?;
        }
    }
    Ok(text)
}

/// How the need is met, if it is, and the table for it.
async fn state(keeper: &Keeper, need: &Need) -> Result<(Option<String>, u32)> {
    if keeper.serving(need).await?.is_some() {
        return Ok((Some("in place".into()), SWITCH_TABLE));
    }
    Ok(match keeper.served_by(need).await? {
        Some((table, pid)) => {
            let state = format!("in place by table {table} until realpeer (process {pid}) ends");
            (Some(state), table)
        }
        None => (None, SWITCH_TABLE),
    })
}

/// The steps of a need as they are taken on this host: the sysctl comes behind the guard where
/// other rules look at marks, and leaves a marker where it was off.
async fn steps(keeper: &Keeper, need: &Need, table: u32) -> Result<Vec<Step>> {
    let kernel = &keeper.kernel;
    let ours = !accept::is_on() || kernel.is_accept_ours().await?;
    let guarded = ours && !kernel.foreign_mark_rules().await?.is_empty();
    let mut steps = Vec::new();
    for step in need.steps(table) {
        if step == Step::FwmarkAccept {
            steps.extend(ours.then(|| Step::Route(accept::marker(table))));
            steps.extend(guarded.then_some(Step::MarkGuard));
        }
        steps.push(step);
    }
    Ok(steps)
}

fn name(need: &Need) -> String {
    if need.target.ip().is_unspecified() {
        let place = match &need.netns {
            Some(netns) => netns.clone(),
            None => "this host".to_owned(),
        };
        format!("any {} address of {place}", need.family())
    } else {
        need.name()
    }
}

async fn is_there(keeper: &Keeper, step: &Step) -> Result<bool> {
    Ok(match step {
        Step::Rule(rule) => keeper.kernel.find_rule(rule).await?.is_some(),
        Step::Route(route) => keeper.kernel.has_route(route).await?,
        Step::FwmarkAccept => accept::is_on(),
        Step::MarkGuard => nft::has_table(nft::GUARD)?,
        Step::SocketMatch { table, .. } => nft::has_table(&nft::table_name(*table))?,
    })
}
