//! Puts back what another program removed, while the proxy runs.
//!
//! systemd-networkd removes rules it does not know whenever it restarts; `nft flush ruleset`
//! takes the socket match away.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rtnetlink::sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rtnetlink::sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, warn};

use super::keeper::Outcome;
use super::plan::Way;
use super::{Keeper, Marks, explain, put_in, say, survey};
use crate::config::RouteTarget;
use crate::handover::message::RoutingPaper;

/// Changes come in bursts; look once they are over, or almost.
const SETTLE: Duration = Duration::from_millis(20);
/// Sysctls change without a word, and messages can get lost.
const LOOK_ANYWAY: Duration = Duration::from_secs(30);
/// Between two repairs, doubled each time, so that two programs never fight in a tight loop.
const LEAST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Looks after the routing of the targets until it is dropped. `orders` brings other targets;
/// `restored` counts the repairs.
pub async fn watch(
    keeper: &mut Keeper,
    mut targets: Vec<RouteTarget>,
    orders: &mut mpsc::Receiver<Request>,
    marks: &Marks,
    restored: Arc<AtomicU64>,
) {
    let nft = keeper.needs.iter().any(|need| need.way == Way::Socket);
    let mut changes = Changes::open(nft || keeper.has_nft());
    let mut pause = Pause::new();
    loop {
        tokio::select! {
            () = async { changes.wait().await; pause.over().await } => {}
            Some(request) = orders.recv() => {
                let order = match request {
                    Request::Keep(order) => order,
                    Request::Describe(answer) => {
                        let _ = answer.send(keeper.paper());
                        continue;
                    }
                };
                targets = order.targets;
                follow(keeper, &targets, marks).await;
                changes.hear_nft(keeper.has_nft());
                let _ = order.done.send(());
                continue;
            }
        }
        // An address, a container or a UDP backend may have come since, and with it another way.
        let before: Vec<Way> = keeper.needs.iter().map(|need| need.way).collect();
        if let Ok(needs) = survey::needs(&keeper.kernel, &targets).await {
            keeper.needs = needs;
        }
        let outcomes = match keeper.ensure().await {
            Ok(outcomes) => outcomes,
            Err(e) => {
                pause.lengthen();
                marks.failed(format!("{e:#}"));
                debug!("routing: cannot look after the rules: {e:#}");
                continue;
            }
        };
        changes.hear_nft(keeper.has_nft());
        marks.set(&keeper.needs, &outcomes);
        for ((need, outcome), before) in keeper.needs.iter().zip(&outcomes).zip(before) {
            match outcome {
                Outcome::PutIn(table) if need.way == before => {
                    restored.fetch_add(1, Ordering::Relaxed);
                    warn!(
                        "routing: another program removed the way back from {}; it is in place \
                         again (table {table})",
                        need.name()
                    );
                }
                Outcome::PutIn(_) => say(need, outcome),
                Outcome::Failed(e) => debug!("{}", explain(need, e)),
                Outcome::InPlace(_) => {}
            }
        }
        if outcomes.iter().any(|o| matches!(o, Outcome::PutIn(_))) {
            pause.lengthen();
        }
    }
}

/// What is asked of who looks after the routing.
#[derive(Debug)]
pub enum Request {
    /// Other targets.
    Keep(Order),
    /// What is there to be passed on to another process, with the lock of the table.
    Describe(oneshot::Sender<Option<(RoutingPaper, OwnedFd)>>),
}

/// Other targets than before, after a reload.
#[derive(Debug)]
pub struct Order {
    /// All that there are from now on.
    pub targets: Vec<RouteTarget>,
    /// Told when the routing is as they need it.
    pub done: oneshot::Sender<()>,
}

/// Puts in what the new targets need, and takes away what none needs any more.
async fn follow(keeper: &mut Keeper, targets: &[RouteTarget], marks: &Marks) {
    match survey::needs(&keeper.kernel, targets).await {
        Ok(needs) => keeper.needs = needs,
        Err(e) => return warn!("routing: {e:#}"),
    }
    put_in(keeper, marks).await;
    if let Err(e) = keeper.take_away_unneeded().await {
        warn!("routing: cannot take away what no target needs any more: {e}");
    }
}

/// The time that must pass before the next repair.
struct Pause {
    length: Duration,
    until: Instant,
}

impl Pause {
    fn new() -> Pause {
        Pause {
            length: LEAST_PAUSE,
            until: Instant::now(),
        }
    }

    async fn over(&mut self) {
        // A minute of peace forgives all.
        if self.until.elapsed() > LONGEST_PAUSE {
            self.length = LEAST_PAUSE;
        }
        sleep_until(self.until).await;
    }

    fn lengthen(&mut self) {
        self.until = Instant::now() + self.length;
        self.length = (self.length * 2).min(LONGEST_PAUSE);
    }
}

/// The kernel's announcements. What they say does not matter: the state is looked at anew.
struct Changes {
    routes: Option<TokioSocket>,
    nft: Option<TokioSocket>,
}

impl Changes {
    fn open(with_nft: bool) -> Changes {
        // linux/rtnetlink.h: RTNLGRP_LINK, IPV4_IFADDR, IPV4_ROUTE, IPV4_RULE, IPV6_IFADDR,
        // IPV6_ROUTE, IPV6_RULE
        let routes = subscribe(NETLINK_ROUTE, &[1, 5, 7, 8, 9, 11, 19]);
        let mut changes = Changes {
            routes: or_told(routes),
            nft: None,
        };
        changes.hear_nft(with_nft);
        changes
    }

    /// Hears of changes in nftables from now on, if something of ours is there.
    fn hear_nft(&mut self, with_nft: bool) {
        if with_nft && self.nft.is_none() {
            // linux/netfilter/nfnetlink.h: NFNLGRP_NFTABLES; needs CAP_NET_ADMIN, and makes the
            // kernel load nf_tables, which a host without nft rules is spared.
            self.nft = or_told(subscribe(NETLINK_NETFILTER, &[7]));
        }
    }

    async fn wait(&mut self) {
        tokio::select! {
            () = heard(&mut self.routes) => {}
            () = heard(&mut self.nft) => {}
            () = sleep(LOOK_ANYWAY) => return,
        }
        let settled = Instant::now() + SETTLE;
        let drain = async {
            loop {
                tokio::select! {
                    () = heard(&mut self.routes) => {}
                    () = heard(&mut self.nft) => {}
                }
            }
        };
        _ = timeout(settled - Instant::now(), drain).await;
    }
}

/// A socket that hears what the kernel announces to these groups.
pub fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(protocol)?;
    let mask = groups.iter().fold(0, |mask, group| mask | 1 << (group - 1));
    socket.socket_mut().bind(&SocketAddr::new(0, mask))?;
    Ok(socket)
}

fn or_told(socket: io::Result<TokioSocket>) -> Option<TokioSocket> {
    if let Err(error) = &socket {
        debug!("routing: cannot hear of changes, looking twice a minute instead: {error}");
    }
    socket.ok()
}

async fn heard(socket: &mut Option<TokioSocket>) {
    match socket {
        // ENOBUFS, when too much happened at once, is a reason to look as well.
        Some(socket) => _ = socket.recv_from_full().await,
        None => std::future::pending().await,
    }
}
