//! `realpeer routing up|down|show`: a switch, not a counter. No proxy's exit touches it.

use anyhow::{Context, Result, bail};

use super::keeper::{self, Keeper, Outcome};
use super::kernel::Kernel;
use super::owner::{self, INSTANCE_TABLES, SWITCH_TABLE};
use super::{caution, explain, is_excused, show, survey};
use crate::cli::{RoutingAction, ShowAs};
use crate::config::{Config, RouteTarget};
use crate::namespaces::within;
use crate::output::{complain, print};

/// `realpeer routing up|down|show`.
pub fn command(action: RoutingAction, show_as: ShowAs, config: &Config) -> Result<()> {
    let targets = config.route_targets();
    let mut places: Vec<_> = targets.iter().map(|target| &target.netns).collect();
    places.dedup();
    for place in places {
        let here = targets.iter().filter(|target| target.netns == *place);
        let here: Vec<RouteTarget> = here.cloned().collect();
        within(place.as_ref(), |runtime| {
            runtime.block_on(run(action, show_as, &here))
        })?;
    }
    Ok(())
}

async fn run(action: RoutingAction, show_as: ShowAs, targets: &[RouteTarget]) -> Result<()> {
    let kernel = Kernel::connect()?;
    match action {
        RoutingAction::Up => up(kernel, targets).await,
        RoutingAction::Down => down(&kernel).await,
        RoutingAction::Show => {
            let needs = survey::needs(&kernel, targets).await?;
            let keeper = Keeper::new(kernel, needs, None);
            let text = match show_as {
                ShowAs::Table => show::table(&keeper).await?,
                ShowAs::Commands => show::commands(&keeper).await?,
            };
            Ok(print(text)?)
        }
    }
}

async fn up(kernel: Kernel, targets: &[RouteTarget]) -> Result<()> {
    let lock = owner::lock(SWITCH_TABLE).await?;
    if kernel.foreigner(SWITCH_TABLE).await?.is_some() {
        bail!(
            "another program uses routing table {SWITCH_TABLE}; see `ip route show table {SWITCH_TABLE}` and `ip rule`"
        );
    }
    let needs = survey::needs(&kernel, targets).await?;
    if needs.iter().any(|need| need.collides(SWITCH_TABLE)) {
        bail!(
            "-mark {SWITCH_TABLE} is the mark that `routing up` gives to replies: choose another"
        );
    }
    let mut keeper = Keeper::new(kernel, needs, Some(lock));
    let outcomes = keeper.ensure().await?;
    let mut failed = None;
    for (need, outcome) in keeper.needs.iter().zip(outcomes) {
        match outcome {
            Outcome::InPlace(_) => print(format_args!("{}: in place\n", need.name()))?,
            Outcome::PutIn(table) => print(format_args!(
                "{}: put in ({} way, table {table})\n",
                need.name(),
                need.way
            ))?,
            Outcome::Failed(e) if is_excused(need, &e) => {
                print(format_args!("{}: left out ({e})\n", need.name()))?;
            }
            Outcome::Failed(e) => failed = Some(explain(need, &e)),
        }
        if let Some(caution) = caution(need) {
            complain(format_args!("warning: {caution}"));
        }
    }
    failed.map_or(Ok(()), |message| bail!("{message}"))
}

async fn down(kernel: &Kernel) -> Result<()> {
    let _lock = owner::lock(SWITCH_TABLE).await?;
    let found = keeper::clear(kernel, SWITCH_TABLE, true).await.context(
        "cannot take the rules of `realpeer routing up` away (it needs CAP_NET_ADMIN: run it as root)",
    )?;
    let mut said = String::from(match found {
        true => "taken away\n",
        false => "nothing of `realpeer routing up` was in place\n",
    });
    let tables = kernel.own_tables().await?;
    for table in tables.into_iter().filter(|t| INSTANCE_TABLES.contains(t)) {
        said += &match owner::holder(table) {
            Some(pid) => {
                format!("table {table} stays until realpeer (process {pid}), which uses it, ends\n")
            }
            None => format!(
                "table {table} was left behind by a killed realpeer; the next start takes it away\n"
            ),
        };
    }
    Ok(print(said)?)
}
