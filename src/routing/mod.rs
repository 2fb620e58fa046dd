//! The policy routing that brings a backend's replies back to the proxy.
//!
//! The backend answers to the client's address, which is not ours. `survey` looks where the
//! targets are, `plan` says what each needs so that the kernel delivers the answers here, `keeper`
//! puts in what is missing (through `kernel` and `nft`, by netlink), `watch` puts it back when
//! another program took it away. `owner` tells our rules from everybody else's. `accept` sees to
//! the one sysctl, and to other programs' connections while it is on.
//!
//! ```text
//! targets ──▶ survey ─▶ plan (data) ─▶ keeper ─▶ kernel, message        rules and routes
//!                                      │  ▲   └▶ nft, nfnetlink          the socket match
//!                                      ▼  └─ watch                       puts it back
//!                                    marks ─▶ whoever opens upstream sockets
//! ```
//!
//! An upstream socket carries the mark that is asked for here, if any:
//!
//! ```
//! let marks = realpeer::routing::Marks::default();
//! assert_eq!(marks.of([127, 0, 0, 1].into()), None);
//! ```

pub(crate) mod accept;
pub(crate) mod bound;
mod command;
pub(crate) mod family;
pub(crate) mod keeper;
pub(crate) mod kernel;
mod marks;
pub(crate) mod message;
pub(crate) mod nfnetlink;
pub(crate) mod nft;
pub(crate) mod owner;
pub mod plan;
mod show;
pub(crate) mod stranger;
pub(crate) mod survey;
mod switch;
mod unix_diag;
pub(crate) mod watch;

pub use accept::FILE as TCP_FWMARK_ACCEPT;
pub use marks::Marks;
pub(crate) use switch::command;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::config::{RouteTarget, Routing};
use crate::handover::message::RoutingPaper;
use family::Family;
use keeper::{Keeper, Outcome};
use kernel::Kernel;
use owner::INSTANCE_TABLES;
use plan::{Need, Way};

/// The routing of a running proxy; what it put in stays until `remove`.
#[must_use = "call remove() at exit"]
pub(crate) struct Installed {
    restored: Arc<AtomicU64>,
    watcher: Option<JoinHandle<()>>,
    handle: Handle,
    stop: oneshot::Sender<()>,
}

/// What a reload asks of the routing.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    marks: Arc<Marks>,
    restored: Arc<AtomicU64>,
    /// `None` where nobody keeps the routing.
    orders: Option<mpsc::Sender<watch::Request>>,
}

/// Puts in what is missing for the targets and says so in the log, then keeps watch over it.
/// With [`Routing::Off`] it only looks which marks are asked for.
///
/// What cannot be put in is a loud warning, not an error: the routing may come later, or by hand.
///
/// `inherited` is what a process before this one has put in, and the lock of its table: that is kept
/// whatever `routing` says, for sessions of that process need it.
/// Fails when `-routing-mode` does not fit the targets.
pub(crate) async fn install(
    targets: &[RouteTarget],
    routing: Routing,
    inherited: Option<(RoutingPaper, OwnedFd)>,
) -> Result<Installed> {
    let (stop, stopped) = oneshot::channel();
    let marks = Arc::new(Marks::default());
    let restored = Arc::<AtomicU64>::default();
    let mut installed = Installed {
        restored: Arc::clone(&restored),
        watcher: None,
        handle: Handle {
            marks: Arc::clone(&marks),
            restored: Arc::clone(&restored),
            orders: None,
        },
        stop,
    };
    let kernel = match Kernel::connect() {
        Ok(kernel) => kernel,
        Err(e) => {
            warn!("routing: {e:#}; the proxy runs, but whether replies come back is unknown");
            return Ok(installed);
        }
    };
    let needs = survey::needs(&kernel, targets).await?;
    let mut keeper = Keeper::new(kernel, needs, None);
    if let Some((paper, lock)) = inherited {
        keeper.inherit(paper, owner::succeed(paper.table, lock)?);
    }
    if routing == Routing::Off && keeper.lock.is_none() {
        marks.look(&keeper).await;
        return Ok(installed);
    }
    clean_leftovers(&keeper.kernel).await;
    put_in(&mut keeper, &marks).await;
    let targets = targets.to_vec();
    let (sender, mut orders) = mpsc::channel(1);
    installed.handle.orders = Some(sender);
    installed.watcher = Some(tokio::spawn(async move {
        tokio::select! {
            () = watch::watch(&mut keeper, targets, &mut orders, &marks, restored) => {}
            // Without a word, what was put in is another process's.
            stopped = stopped => if stopped.is_err() { return },
        }
        if let Err(e) = keeper.clear().await {
            warn!("routing: cannot take away what was put in: {e}");
        }
    }));
    Ok(installed)
}

impl Installed {
    /// For those who open sockets, and for reloads.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// How often the way back of a target was put back after another program removed it.
    pub fn restored(&self) -> u64 {
        self.restored.load(Ordering::Relaxed)
    }

    /// Leaves what was put in to another process.
    pub async fn leave(self) {
        if let Some(watcher) = self.watcher {
            watcher.abort();
            _ = watcher.await;
        }
    }

    /// Takes away what was put in, and nothing else.
    pub async fn remove(self) {
        let _ = self.stop.send(());
        if let Some(watcher) = self.watcher {
            _ = watcher.await;
        }
    }
}

impl Handle {
    /// The marks of upstream sockets.
    pub fn marks(&self) -> Arc<Marks> {
        Arc::clone(&self.marks)
    }

    /// How often the way back of a target was put back after another program removed it.
    pub fn restored(&self) -> u64 {
        self.restored.load(Ordering::Relaxed)
    }

    /// Why replies of these targets will not come back, as far as is known. Where nobody keeps the
    /// routing, it may have changed since: it is looked at anew.
    pub async fn missing(&self, targets: &[RouteTarget]) -> Vec<String> {
        if self.orders.is_none() {
            self.look(targets).await;
        }
        self.marks.missing()
    }

    /// Whether there is a way for each of these targets. Fails when a `-routing-mode` does not fit.
    pub async fn check(&self, targets: &[RouteTarget]) -> Result<()> {
        let Ok(kernel) = Kernel::connect() else {
            return Ok(());
        };
        survey::needs(&kernel, targets).await.map(|_| ())
    }

    /// Keeps the routing of these targets from now on, and no other; returns when it is in place.
    /// What cannot be put in is a warning, as at start.
    pub async fn keep(&self, targets: Vec<RouteTarget>) {
        let Some(orders) = &self.orders else {
            return self.look(&targets).await;
        };
        let (done, is_done) = oneshot::channel();
        let order = watch::Request::Keep(watch::Order { targets, done });
        if orders.send(order).await.is_ok() {
            let _ = is_done.await;
        }
    }

    /// What is there to be passed on to another process, with the lock of the table.
    pub async fn paper(&self) -> Option<(RoutingPaper, OwnedFd)> {
        let (answer, paper) = oneshot::channel();
        let order = watch::Request::Describe(answer);
        self.orders.as_ref()?.send(order).await.ok()?;
        paper.await.ok()?
    }

    /// Only looks which marks these targets need, as with [`Routing::Off`] at start.
    async fn look(&self, targets: &[RouteTarget]) {
        let Ok(kernel) = Kernel::connect() else {
            return;
        };
        if let Ok(needs) = survey::needs(&kernel, targets).await {
            self.marks.look(&Keeper::new(kernel, needs, None)).await;
        }
    }
}

/// Takes away what instances killed by SIGKILL left behind.
async fn clean_leftovers(kernel: &Kernel) {
    let tables = kernel.own_tables().await.unwrap_or_default();
    for table in tables.into_iter().filter(|t| INSTANCE_TABLES.contains(t)) {
        let Ok(Some(_lock)) = owner::try_lock(table).await else {
            continue;
        };
        let with_nft = kernel.has_mark_rule(table).await.unwrap_or(false);
        match keeper::clear(kernel, table, with_nft).await {
            Ok(_) => info!("routing: cleaned table {table}, left behind by a killed instance"),
            Err(e) => debug!("cannot clean table {table}: {e}"),
        }
    }
}

/// Puts in what the targets need and lack, and says so in the log.
async fn put_in(keeper: &mut Keeper, marks: &Marks) {
    match keeper.ensure().await {
        Ok(outcomes) => {
            marks.set(&keeper.needs, &outcomes);
            for (need, outcome) in keeper.needs.iter().zip(&outcomes) {
                say(need, outcome);
            }
        }
        Err(e) => {
            warn!("routing: {e:#}");
            marks.failed(format!("{e:#}"));
        }
    }
}

fn say(need: &Need, outcome: &Outcome) {
    match outcome {
        Outcome::InPlace(table) => debug!("routing: {} is served already ({table})", need.name()),
        Outcome::PutIn(table) => {
            info!(
                "routing: replies of {} come back by table {table} ({} way), until this exits",
                need.name(),
                need.way
            );
            if let Some(caution) = caution(need) {
                warn!("routing: {caution}");
            }
        }
        Outcome::Failed(e) if is_excused(need, e) => {
            info!("routing: {} is left out: {e}", need.name());
        }
        Outcome::Failed(e) => warn!("{}", explain(need, e)),
    }
}

/// The price of the port rule.
fn caution(need: &Need) -> Option<String> {
    (need.way == Way::UdpPort).then(|| {
        format!(
            "clients that use UDP port {} directly, not through the proxy, now get no replies",
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
    let what = format!(
        "replies of {} will not come back: the {} way for {} is missing",
        need.name(),
        need.way,
        need.family()
    );
    if error.raw_os_error() == Some(libc::EPERM) {
        format!(
            "{what}, and putting it in needs CAP_NET_ADMIN: give it by \
             AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW in the unit, or run once as root: \
             realpeer routing up {}",
            flags(need)
        )
    } else {
        format!("{what}, and cannot be put in: {error}")
    }
}

/// The flags that name the target.
pub(crate) fn flags(need: &Need) -> String {
    let flag = match need.family() {
        Family::V4 => "-4",
        Family::V6 => "-6",
    };
    match &need.netns {
        Some(netns) => format!("{flag} {} -target-netns {netns}", need.target),
        None => format!("{flag} {}", need.target),
    }
}
