//! What all connections of a running proxy share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::addr::PeerAddr;
use crate::admission::Admission;
use crate::config::Settings;
use crate::destination::Destinations;
use crate::report::Reporter;
use crate::sessions::{EndedBy, Route, Session, SessionId, Sessions};
use crate::stats::{Count, Stats};
use crate::upstream;

/// The running proxy, as its connections see it.
#[derive(Debug)]
pub struct Proxy {
    /// As asked for on the command line.
    pub settings: Settings,
    /// Who may speak.
    pub admission: Admission,
    /// Where connections go.
    pub destinations: Destinations,
    /// For the sockets that claim addresses.
    pub upstream: upstream::Options,
    /// The threads that carry connections.
    pub workers: Vec<Worker>,
    /// Connections, or UDP flows, open at once, at most.
    pub max_connections: usize,
    /// What is said about refused connections.
    pub reporter: Reporter,
    /// No new connections are taken, and the end of each is told.
    pub draining: AtomicBool,
    /// Told at each connection's end while draining.
    pub ended: Notify,
}

impl Proxy {
    /// Connections open now.
    pub fn open(&self) -> usize {
        self.workers.iter().map(Worker::open).sum()
    }

    /// A count, summed over the workers.
    pub fn count(&self, count: Count) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.stats.read(count))
            .sum()
    }

    /// A place for a new connection on the worker that carries the fewest, `own` if it is one of
    /// them; `None` when `max_connections` are open.
    pub fn place(self: &Arc<Proxy>, own: usize) -> Option<Slot> {
        let mut total = 0;
        let (mut best, mut fewest) = (own, self.workers[own].open());
        for (index, worker) in self.workers.iter().enumerate() {
            let open = worker.open();
            total += open;
            if open < fewest {
                (best, fewest) = (index, open);
            }
        }
        if total >= self.max_connections {
            return None;
        }
        self.workers[best].open.fetch_add(1, Ordering::Relaxed);
        Some(Slot {
            proxy: Arc::clone(self),
            worker: best,
            session: None,
        })
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
    /// What happened on it.
    pub stats: Stats,
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
            stats: Stats::default(),
            sessions: Sessions::new(number, workers),
            open: AtomicUsize::new(0),
        }
    }

    /// Connections and UDP flows it carries.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Notes that it carries one UDP flow more.
    pub fn flow_began(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that it carries one UDP flow less.
    pub fn flow_ended(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An open connection's place on its worker, given up when dropped.
#[derive(Debug)]
pub struct Slot {
    /// The proxy it belongs to.
    pub proxy: Arc<Proxy>,
    worker: usize,
    session: Option<SessionId>,
}

impl Slot {
    /// Runs a connection's task on the worker, listed among its sessions.
    pub fn start<F>(mut self, peer: PeerAddr, task: impl FnOnce(Slot) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (proxy, index) = (Arc::clone(&self.proxy), self.worker);
        let worker = &proxy.workers[index];
        worker.sessions.begin(peer, |id| {
            self.session = Some(id);
            worker.handle.spawn(task(self)).abort_handle()
        });
    }

    /// Tells the sessions' list whose connection it is.
    pub fn introduce(&self, route: Route) {
        if let Some(id) = self.session {
            self.worker().sessions.introduce(id, route);
        }
    }

    /// Whose will it is that the connection ends, if somebody's.
    pub fn ended_by(&self) -> Option<EndedBy> {
        self.worker().sessions.ended_by(self.session?)
    }

    /// The worker it is on.
    pub fn worker(&self) -> &Worker {
        &self.proxy.workers[self.worker]
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(id) = self.session {
            self.worker().sessions.end(id);
        }
        self.worker().open.fetch_sub(1, Ordering::Relaxed);
        if self.proxy.draining.load(Ordering::Relaxed) {
            self.proxy.ended.notify_waiters();
        }
    }
}
