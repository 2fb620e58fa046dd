//! The policy routing that brings a backend's replies back to the proxy.
//!
//! The backend answers to the client's address, which is not ours. `survey` looks where the
//! targets are, `plan` says what each needs so that the kernel delivers the answers here, `keeper`
//! puts in what is missing (through `kernel` and `nft`, by netlink), `watch` puts it back when
//! another program took it away. `owner` tells our rules from everybody else's.

pub(crate) mod bound;
mod command;
pub(crate) mod keeper;
pub(crate) mod kernel;
pub(crate) mod nft;
pub(crate) mod owner;
pub(crate) mod plan;
mod show;
pub(crate) mod survey;
mod watch;

use std::io;
use std::net::{IpAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::cli::{RoutingAction, ShowAs};
use crate::config::{Routing, Settings};
use keeper::{Keeper, Outcome};
use kernel::Kernel;
use owner::{INSTANCE_TABLES, SWITCH_TABLE};
use plan::{Family, Need, Way};

/// The routing of a running proxy; what it put in stays until `remove`.
#[must_use = "call remove() at exit"]
pub struct Installed {
    marks: Arc<Marks>,
    restored: Arc<AtomicU64>,
    watcher: Option<JoinHandle<()>>,
    stop: tokio::sync::oneshot::Sender<()>,
}

/// Puts in what is missing for the targets and says so in the log, then keeps watch over it.
/// With `-routing off` it only looks which marks are asked for.
///
/// What cannot be put in is a loud warning, not an error: the routing may come later, or by hand.
/// Fails when `-routing-mode` does not fit the targets.
pub async fn install(settings: &Settings) -> Result<Installed> {
    let (stop, stopped) = tokio::sync::oneshot::channel();
    let mut installed = Installed {
        marks: Arc::new(Marks::new(settings)),
        restored: Arc::default(),
        watcher: None,
        stop,
    };
    let kernel = match Kernel::connect() {
        Ok(kernel) => kernel,
        Err(e) => {
            warn!("routing: {e:#}; the proxy runs, but whether replies come back is unknown");
            return Ok(installed);
        }
    };
    let needs = survey::needs(&kernel, settings).await?;
    let mut keeper = Keeper {
        kernel,
        needs,
        lock: None,
    };
    if settings.routing == Routing::Off {
        installed.marks.look(&keeper).await;
        return Ok(installed);
    }
    clean_leftovers(&keeper.kernel).await;
    match keeper.ensure().await {
        Ok(outcomes) => {
            installed.marks.set(&keeper.needs, &outcomes);
            for (need, outcome) in keeper.needs.iter().zip(&outcomes) {
                say(need, outcome);
            }
        }
        Err(e) => warn!("routing: {e:#}"),
    }
    let (marks, restored) = (installed.marks.clone(), installed.restored.clone());
    installed.watcher = Some(tokio::spawn(async move {
        tokio::select! {
            () = watch::watch(&mut keeper, &marks, restored) => {}
            _ = stopped => {}
        }
        clear(keeper).await;
    }));
    Ok(installed)
}

impl Installed {
    /// The mark that an upstream socket to `target` must carry, when the user gave none.
    pub fn mark(&self, target: IpAddr) -> Option<u32> {
        self.marks.of(target)
    }

    /// As `mark`, to keep beside the connections.
    pub fn marks(&self) -> Arc<Marks> {
        self.marks.clone()
    }

    /// How often the way back of a target was put back after another program removed it.
    pub fn restored(&self) -> u64 {
        self.restored.load(Ordering::Relaxed)
    }

    /// Takes away what was put in, and nothing else.
    pub async fn remove(self) {
        drop(self.stop);
        if let Some(watcher) = self.watcher {
            _ = watcher.await;
        }
    }
}

async fn clear(keeper: Keeper) {
    let Some(lock) = &keeper.lock else { return };
    match keeper::clear(&keeper.kernel, lock.table).await {
        Ok(_) => debug!("routing: table {} is clean", lock.table),
        Err(e) => warn!("cannot take the rules of table {} away: {e}", lock.table),
    }
}

/// Which marks upstream sockets carry so that mark-accept brings their replies back.
#[derive(Debug)]
pub struct Marks {
    user: Option<u32>,
    /// The targets that are reached by mark-accept; an unspecified one stands for all of this host.
    targets: std::sync::RwLock<Vec<IpAddr>>,
    /// The mark for IPv4 and IPv6; 0 for none.
    marks: [AtomicU32; 2],
}

impl Marks {
    fn new(settings: &Settings) -> Marks {
        Marks {
            user: settings.mark,
            targets: std::sync::RwLock::default(),
            marks: [AtomicU32::new(0), AtomicU32::new(0)],
        }
    }

    /// The mark for a socket that goes to `target`: the user's, or that of mark-accept.
    pub fn of(&self, target: IpAddr) -> Option<u32> {
        if self.user.is_some() {
            return self.user;
        }
        let mark = self.marks[usize::from(target.is_ipv6())].load(Ordering::Relaxed);
        (mark != 0 && self.is_marked(target)).then_some(mark)
    }

    fn is_marked(&self, target: IpAddr) -> bool {
        let any = match target {
            IpAddr::V4(_) => IpAddr::from([0, 0, 0, 0]),
            IpAddr::V6(_) => IpAddr::from([0; 16]),
        };
        let Ok(targets) = self.targets.read() else {
            return false;
        };
        // Only an address of this host can be bound: elsewhere a mark would lead astray.
        targets.contains(&target)
            || (targets.contains(&any) && UdpSocket::bind((target, 0)).is_ok())
    }

    fn set(&self, needs: &[Need], outcomes: &[Outcome]) {
        let marked = needs
            .iter()
            .zip(outcomes)
            .filter(|(n, _)| n.way == Way::Mark);
        for (need, outcome) in marked {
            if let Outcome::InPlace(table) | Outcome::PutIn(table) = outcome {
                self.set_one(need, *table);
            }
        }
    }

    async fn look(&self, keeper: &Keeper) {
        for need in keeper.needs.iter().filter(|need| need.way == Way::Mark) {
            if let Ok(Some(table)) = keeper.serving(need).await {
                self.set_one(need, table);
            }
        }
    }

    fn set_one(&self, need: &Need, table: u32) {
        let slot = usize::from(need.family() == Family::V6);
        self.marks[slot].store(need.mark_in(table), Ordering::Relaxed);
        if let Ok(mut targets) = self.targets.write()
            && !targets.contains(&need.target.ip())
        {
            targets.push(need.target.ip());
        }
    }
}

/// `realpeer routing up|down|show`.
pub fn command(action: RoutingAction, show_as: ShowAs, settings: &Settings) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(action, show_as, settings))
}

async fn run(action: RoutingAction, show_as: ShowAs, settings: &Settings) -> Result<()> {
    let kernel = Kernel::connect()?;
    match action {
        RoutingAction::Up => up(kernel, settings).await,
        RoutingAction::Down => down(&kernel).await,
        RoutingAction::Show => {
            let needs = survey::needs(&kernel, settings).await?;
            let keeper = Keeper {
                kernel,
                needs,
                lock: None,
            };
            let text = match show_as {
                ShowAs::Table => show::table(&keeper).await?,
                ShowAs::Commands => show::commands(&keeper).await?,
            };
            print!("{text}");
            Ok(())
        }
    }
}

async fn up(kernel: Kernel, settings: &Settings) -> Result<()> {
    let lock = owner::lock(SWITCH_TABLE).await?;
    if kernel.is_foreign(SWITCH_TABLE).await? {
        bail!(
            "another program uses routing table {SWITCH_TABLE}; see `ip route show table {SWITCH_TABLE}` and `ip rule`"
        );
    }
    let needs = survey::needs(&kernel, settings).await?;
    let mut keeper = Keeper {
        kernel,
        needs,
        lock: Some(lock),
    };
    let outcomes = keeper.ensure().await?;
    let mut failed = None;
    for (need, outcome) in keeper.needs.iter().zip(outcomes) {
        match outcome {
            Outcome::InPlace(_) => println!("{}: in place", need.target),
            Outcome::PutIn(table) => {
                println!("{}: put in ({} way, table {table})", need.target, need.way)
            }
            Outcome::Failed(e) if is_excused(need, &e) => {
                println!("{}: left out ({e})", need.target)
            }
            Outcome::Failed(e) => failed = Some(explain(need, &e)),
        }
        if let Some(caution) = caution(need) {
            eprintln!("warning: {caution}");
        }
    }
    failed.map_or(Ok(()), |message| bail!("{message}"))
}

async fn down(kernel: &Kernel) -> Result<()> {
    let _lock = owner::lock(SWITCH_TABLE).await?;
    let found = keeper::clear(kernel, SWITCH_TABLE).await.context(
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

/// Takes away what instances killed by SIGKILL left behind.
async fn clean_leftovers(kernel: &Kernel) {
    let mut tables = kernel.own_tables().await.unwrap_or_default();
    let named = |table: &u32| nft::has_table(&nft::table_name(*table)).unwrap_or(false);
    tables.extend(INSTANCE_TABLES.filter(named));
    tables.sort_unstable();
    tables.dedup();
    for table in tables.into_iter().filter(|t| INSTANCE_TABLES.contains(t)) {
        let Ok(Some(_lock)) = owner::try_lock(table) else {
            continue;
        };
        match keeper::clear(kernel, table).await {
            Ok(_) => info!("routing: cleaned table {table}, left behind by a killed instance"),
            Err(e) => debug!("cannot clean table {table}: {e}"),
        }
    }
}

fn say(need: &Need, outcome: &Outcome) {
    match outcome {
        Outcome::InPlace(table) => debug!("routing: {} is served already ({table})", need.target),
        Outcome::PutIn(table) => {
            info!(
                "routing: replies of {} come back by table {table} ({} way), until this exits",
                need.target, need.way
            );
            if let Some(caution) = caution(need) {
                warn!("routing: {caution}");
            }
        }
        Outcome::Failed(e) if is_excused(need, e) => {
            info!("routing: {} is left out: {e}", need.target);
        }
        Outcome::Failed(e) => warn!("{}", explain(need, e)),
    }
}

/// The price of the port rule.
fn caution(need: &Need) -> Option<String> {
    (need.way == Way::UdpPort).then(|| {
        format!(
            "who speaks to UDP port {} directly, not through the proxy, gets no reply now",
            need.target.port()
        )
    })
}

/// A host without IPv6 is no fault while nobody asked for an IPv6 target.
fn is_excused(need: &Need, error: &io::Error) -> bool {
    let capability = error.raw_os_error() == Some(libc::EPERM);
    need.family() == Family::V6 && !need.given && !capability
}

/// What is missing and how to mend it.
fn explain(need: &Need, error: &io::Error) -> String {
    let target = need.target;
    let what = format!(
        "replies of {target} will not come back: the {} way for {} is missing",
        need.way,
        need.family()
    );
    if error.raw_os_error() == Some(libc::EPERM) {
        format!(
            "{what}, and putting it in needs CAP_NET_ADMIN: give it by \
             AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in the unit, or run once as root: \
             realpeer routing up {} {target}",
            if need.family() == Family::V4 {
                "-4"
            } else {
                "-6"
            }
        )
    } else {
        format!("{what}, and cannot be put in: {error}")
    }
}
