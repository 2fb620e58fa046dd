//! What all connections of a running process share, whichever listener they came by.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Instant, SystemTime};

use arc_swap::ArcSwap;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::addr::TargetAddr;
use crate::bans::Bans;
use crate::claims::Host;
use crate::crowdsec;
use crate::events::Events;
use crate::handover::elders::Elders;
use crate::report::Volume;
use crate::sandbox::Sandbox;
use crate::sessions::{EndedBy, Session, SessionId, Sessions};
use crate::systemd::Manager;
use crate::upstream::Asking;

/// The running process, as its listeners and connections see it.
#[derive(Debug)]
pub struct Proxy {
    /// The clients that are banned for now.
    pub bans: Arc<Bans>,
    /// What happens, for whoever watches.
    pub events: Arc<Events>,
    /// How decisions are read from a CrowdSec engine, if they are.
    pub crowdsec: Option<Arc<crowdsec::State>>,
    /// The addresses of this host, which not everybody may claim.
    pub host: Arc<ArcSwap<Host>>,
    /// For the sockets that claim addresses.
    pub asking: Arc<Asking>,
    /// The threads that carry connections.
    pub workers: Vec<Worker>,
    /// Connections and flows that the open-file limit carries.
    pub capacity: usize,
    /// How much is logged.
    pub volume: Arc<Volume>,
    /// Hears of start, reload and end.
    pub manager: Manager,
    /// No new connections are taken, and the end of each is told.
    pub draining: AtomicBool,
    /// Processes before this one that still carry sessions.
    pub elders: Elders,
    /// Told at each connection's end while draining.
    pub ended: Notify,
    /// Empty until the process has entered it.
    pub sandbox: OnceLock<Sandbox>,
    /// When the process began.
    pub started: SystemTime,
}

impl Proxy {
    /// Connections and flows open now.
    pub fn open(&self) -> usize {
        self.workers.iter().map(Worker::open).sum()
    }

    /// The worker that carries the fewest, `own` if it is one of them, and how many all carry.
    pub fn idlest(&self, own: usize) -> (usize, usize) {
        let mut total = 0;
        let (mut best, mut fewest) = (own, self.workers[own].open());
        for (index, worker) in self.workers.iter().enumerate() {
            let open = worker.open();
            total += open;
            if open < fewest {
                (best, fewest) = (index, open);
            }
        }
        (best, total)
    }

    /// The targets of the sessions that were open at `then`; `None` for one that may go to any of
    /// that time.
    pub fn targets_since(&self, then: Instant) -> HashSet<Option<TargetAddr>> {
        let workers = self.workers.iter();
        workers
            .flat_map(|worker| worker.sessions.targets_since(then))
            .collect()
    }

    /// Ends the sessions that `which` says, and tells how many.
    pub fn kill(&self, by: EndedBy, mut which: impl FnMut(SessionId, &Session) -> bool) -> usize {
        let workers = self.workers.iter();
        workers
            .map(|worker| worker.sessions.kill(by, &mut which))
            .sum()
    }
}

/// A thread with its own single-threaded runtime.
#[derive(Debug)]
pub struct Worker {
    /// Spawns tasks onto the thread.
    pub handle: Handle,
    /// The connections that it carries.
    pub sessions: Sessions,
    open: AtomicUsize,
}

impl Worker {
    /// A worker that carries nothing yet.
    /// It is number `number` of `workers`.
    pub fn new(handle: Handle, number: usize, workers: usize) -> Worker {
        Worker {
            handle,
            sessions: Sessions::new(number, workers),
            open: AtomicUsize::new(0),
        }
    }

    /// Connections and UDP flows it carries.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Notes that it carries one connection or UDP flow more.
    pub fn began(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that it carries one connection or UDP flow less.
    pub fn ended(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}
