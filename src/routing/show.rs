//! `realpeer routing show`: the plan, and what of it is in place.

use std::fmt::Write;

use anyhow::Result;

use super::keeper::{self, Keeper};
use super::nft;
use super::owner::SWITCH_TABLE;
use super::plan::{Need, Step};

/// A line for each step of each need: whether it is in place, and the command that puts it in.
pub async fn table(keeper: &Keeper) -> Result<String> {
    let mut text = String::new();
    for need in &keeper.needs {
        let state = match keeper.serving(need).await? {
            Some(_) => "in place",
            None => "missing",
        };
        writeln!(text, "{}: {} way, {state}", name(need), need.way)?;
        for step in need.steps(SWITCH_TABLE) {
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
        let served = keeper.serving(need).await?.is_some();
        let state = if served { " (in place)" } else { "" };
        writeln!(text, "# replies of {}{state}", name(need))?;
        for step in need.steps(SWITCH_TABLE) {
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

fn name(need: &Need) -> String {
    if need.target.ip().is_unspecified() {
        format!("any {} address of this host", need.family())
    } else {
        need.target.to_string()
    }
}

async fn is_there(keeper: &Keeper, step: &Step) -> Result<bool> {
    Ok(match step {
        Step::Rule(rule) => keeper.kernel.find_rule(rule).await?.is_some(),
        Step::Route(route) => keeper.kernel.has_route(route).await?,
        Step::FwmarkAccept => keeper::fwmark_accept(),
        Step::SocketMatch { table, .. } => nft::has_table(&nft::table_name(*table))?,
    })
}
