//! A listener as its connections see it: its rules, and what it has counted.
//!
//! A connection keeps the service that admitted it. A reload puts another one in the listener's
//! place, for connections from then on.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

use crate::addr::{ClientAddr, PeerAddr, TargetAddr};
use crate::admission::Admission;
use crate::client_limits::{Clients, Limits, Permit};
use crate::config::{ListenerConfig, Protocol};
use crate::destination::Destinations;
use crate::events::Event;
use crate::histogram::{Histogram, Times};
use crate::proxy::{Proxy, Worker};
use crate::refusal::Refusal;
use crate::report::{Reporter, Subject};
use crate::sessions::{EndedBy, Route, SessionId};
use crate::stats::{Count, Stats};
use crate::upstream::{self, UpstreamError};

/// A listener's rules, and what belongs to it.
#[derive(Debug)]
pub struct Service {
    /// As asked for.
    pub config: Arc<ListenerConfig>,
    /// Who may speak, and for whom.
    pub admission: Admission,
    /// Where connections go.
    pub destinations: Destinations,
    /// For the sockets that claim addresses.
    pub upstream: upstream::Options,
    /// What outlives a reload.
    pub record: Arc<Record>,
    /// What all listeners share.
    pub proxy: Arc<Proxy>,
}

/// What is kept of a listener over reloads, by its name.
#[derive(Debug)]
pub struct Record {
    /// What it is called.
    pub name: Option<Arc<str>>,
    /// Its name in log lines.
    pub label: Option<Arc<str>>,
    /// What is said about refused connections.
    pub reporter: Reporter,
    /// What each client has open.
    pub clients: Arc<Clients>,
    /// What happened, by worker.
    pub tallies: Vec<Tally>,
    unreachable: Mutex<Option<Unreachable>>,
}

/// The last time that a listener's own target could not be reached.
#[derive(Clone, Copy, Debug)]
pub struct Unreachable {
    /// Where the connection was to go.
    pub target: TargetAddr,
    /// What the target did, as the end of a sentence that begins with it.
    pub why: &'static str,
    /// When it was.
    pub at: Instant,
    /// How often a target had answered by then.
    answered: u64,
}

/// What happened to a listener's connections on one worker, on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Tally {
    /// Counts.
    pub stats: Stats,
    /// How long peers took to send their headers.
    pub header: Histogram,
    /// How long backends took to answer.
    pub backend: Histogram,
    open: AtomicUsize,
}

impl Record {
    /// Nothing has happened yet.
    pub fn new(
        name: Option<&str>,
        label: Option<&str>,
        reporter: Reporter,
        workers: usize,
    ) -> Record {
        Record {
            name: name.map(Into::into),
            label: label.map(Into::into),
            reporter,
            clients: Arc::default(),
            tallies: (0..workers).map(|_| Tally::default()).collect(),
            unreachable: Mutex::default(),
        }
    }

    /// Connections and flows open now.
    pub fn open(&self) -> usize {
        self.tallies
            .iter()
            .map(|tally| tally.open.load(Ordering::Relaxed))
            .sum()
    }

    /// A count, summed over the workers.
    pub fn count(&self, count: Count) -> u64 {
        self.tallies
            .iter()
            .map(|tally| tally.stats.read(count))
            .sum()
    }

    /// Times, of all workers.
    pub fn times(&self, which: impl Fn(&Tally) -> &Histogram) -> Times {
        let mut times = Times::default();
        self.tallies
            .iter()
            .for_each(|tally| times.add(which(tally)));
        times
    }

    /// The last time that the target could not be reached, if none has answered since.
    pub fn unreachable(&self, protocol: Protocol) -> Option<Unreachable> {
        let last = *self.last_unreachable();
        last.filter(|last| last.answered == self.answered(protocol))
    }

    /// A UDP flow is served once it has a socket, which says nothing of the backend.
    fn answered(&self, protocol: Protocol) -> u64 {
        self.count(match protocol {
            Protocol::Tcp => Count::Served,
            Protocol::Udp => Count::DatagramsDown,
        })
    }

    fn last_unreachable(&self) -> std::sync::MutexGuard<'_, Option<Unreachable>> {
        let last = self.unreachable.lock();
        last.unwrap_or_else(PoisonError::into_inner)
    }
}

impl Service {
    /// Its name in log lines.
    pub fn label(&self) -> Option<&str> {
        self.record.label.as_deref()
    }

    /// Counts on a worker.
    pub fn add(&self, worker: usize, count: Count, n: u64) {
        self.record.tallies[worker].stats.add(count, n);
    }

    /// Counts a refused connection on a worker and logs it, if it is its turn.
    pub fn refused(
        &self,
        worker: usize,
        peer: PeerAddr,
        refusal: &Refusal,
        client: Option<ClientAddr>,
        target: Option<TargetAddr>,
    ) {
        let kind = refusal.count();
        self.add(worker, kind, 1);
        self.tell_refused(peer, refusal, client, target);
        let served = self.record.count(Count::Served);
        self.record.reporter.note(kind, Some(peer.ip()), served);
        self.note_unreachable(refusal);
        let subject = Subject {
            reason: Some(refusal.reason()),
            target,
        };
        if let Some(held_back) = self.record.reporter.due(kind, subject) {
            tracing::warn!(
                listener = self.label(),
                error = %self.destinations.explain(refusal),
                frontendRemoteAddr = %peer,
                clientAddr = client.map(tracing::field::display),
                targetAddr = target.map(tracing::field::display),
                heldBack = held_back,
                "dropping connection"
            );
        }
    }

    /// Notes that the target could not be reached, if that is why. Where headers name the targets,
    /// one of them says nothing of the others; and what is wrong with one client alone says nothing.
    pub fn note_unreachable(&self, refusal: &Refusal) {
        let (target, why) = match refusal {
            _ if self.config.dynamic_destination => return,
            Refusal::Upstream(UpstreamError::Refused(target)) => (*target, "refuses connections"),
            Refusal::Upstream(UpstreamError::Timeout { target, .. }) => {
                (*target, "does not answer")
            }
            _ => return,
        };
        *self.record.last_unreachable() = Some(Unreachable {
            target,
            why,
            at: Instant::now(),
            answered: self.record.answered(self.config.protocol),
        });
    }

    /// Tells those who watch that a connection or datagram was refused.
    pub fn tell_refused(
        &self,
        peer: PeerAddr,
        refusal: &Refusal,
        client: Option<ClientAddr>,
        target: Option<TargetAddr>,
    ) {
        self.tell(|| Event::Refused {
            listener: self.name(),
            reason: refusal.count().name().to_owned(),
            error: self.destinations.explain(refusal).to_string(),
            client: client.map(|client| client.0),
            peer: peer.0,
            target: target.map(|target| target.0),
        });
    }

    /// Tells those who watch what happens. While nobody does, `event` is not called.
    pub fn tell(&self, event: impl FnOnce() -> Event) {
        self.proxy.events.tell(event);
    }

    /// Its name, for an event.
    pub fn name(&self) -> Option<String> {
        self.record.name.as_deref().map(str::to_owned)
    }

    /// UDP flows that one socket may have open.
    pub fn most_flows(&self) -> usize {
        let sockets = self.config.listen.len() * self.config.listeners;
        let most = self.config.max_flows.unwrap_or(self.proxy.capacity);
        (most / sockets).max(1)
    }

    /// A place for a new connection, on the worker that carries the fewest, `own` if it is one of
    /// them. Fails with the limit when too many are open.
    pub fn place(self: &Arc<Service>, own: usize) -> Result<Slot, usize> {
        let (worker, total) = self.proxy.idlest(own);
        let (open, most) = match self.config.max_connections {
            Some(most) => (self.record.open(), most),
            None => (total, self.proxy.capacity),
        };
        if open >= most {
            return Err(most);
        }
        self.began(worker);
        Ok(Slot {
            service: Arc::clone(self),
            worker,
            session: None,
        })
    }

    /// Lets one more connection or flow of a client in.
    pub fn admit(&self, client: ClientAddr) -> Result<Option<Permit>, Refusal> {
        let limits = Limits {
            open: self.config.max_connections_per_client,
            rate: self.config.connection_rate_per_client,
        };
        match limits == Limits::default() {
            true => Ok(None),
            false => self.record.clients.admit(client, limits),
        }
    }

    /// Counts a flow that another process let in, whatever the limits say.
    pub fn adopt(&self, client: ClientAddr) -> Option<Permit> {
        let most = self.config.max_connections_per_client;
        most.and_then(|_| self.record.clients.adopt(client))
    }

    /// Notes that a worker carries one connection or UDP flow more.
    pub fn began(&self, worker: usize) {
        self.proxy.workers[worker].began();
        self.record.tallies[worker]
            .open
            .fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that a worker carries one connection or UDP flow less.
    pub fn ended(&self, worker: usize) {
        self.record.tallies[worker]
            .open
            .fetch_sub(1, Ordering::Relaxed);
        self.proxy.workers[worker].ended();
    }
}

/// The service of a listening address now.
#[derive(Debug)]
pub struct Current {
    // Read for each connection: a lock would be shared by all workers.
    service: ArcSwap<Service>,
    paused: AtomicBool,
    /// Its tasks are to come to rest, for another process takes over.
    leaving: AtomicBool,
    /// UDP flows open.
    flows: AtomicUsize,
}

impl Current {
    /// Begins with that one.
    pub fn new(service: Arc<Service>) -> Current {
        Current {
            service: ArcSwap::new(service),
            paused: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            flows: AtomicUsize::new(0),
        }
    }

    /// The service for a new connection.
    pub fn get(&self) -> Arc<Service> {
        self.service.load_full()
    }

    /// The service now, if it is another one than that.
    pub fn newer_than(&self, service: &Arc<Service>) -> Option<Arc<Service>> {
        let now = self.service.load();
        (!Arc::ptr_eq(&now, service)).then(|| Arc::clone(&now))
    }

    /// Puts another one in its place.
    pub fn replace(&self, service: Arc<Service>) {
        self.service.store(service);
    }

    /// Whether nothing new is taken.
    pub fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    /// Whether its tasks are to come to rest.
    pub fn is_leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    /// Says whether its tasks are to come to rest; those of UDP are to be woken then.
    pub fn leave(&self, leaving: bool) {
        self.leaving.store(leaving, Ordering::Relaxed);
    }

    /// UDP flows open at the address.
    pub fn flows(&self) -> usize {
        self.flows.load(Ordering::Relaxed)
    }

    /// Notes that one UDP flow more is open.
    pub fn flow_began(&self) {
        self.flows.fetch_add(1, Ordering::Relaxed);
    }

    /// Notes that one UDP flow less is open.
    pub fn flow_ended(&self) {
        self.flows.fetch_sub(1, Ordering::Relaxed);
    }

    /// Says whether anything new is taken.
    pub fn pause(&self, paused: bool) {
        self.paused.store(paused, Ordering::Relaxed);
    }
}

/// An open connection's place on its worker, given up when dropped.
#[derive(Debug)]
pub struct Slot {
    /// What admitted it.
    pub service: Arc<Service>,
    worker: usize,
    session: Option<SessionId>,
}

impl Slot {
    /// Runs a connection's task on the worker, listed among its sessions.
    pub fn start<F>(mut self, peer: PeerAddr, task: impl FnOnce(Slot) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (service, index) = (Arc::clone(&self.service), self.worker);
        let worker = &service.proxy.workers[index];
        worker
            .sessions
            .begin(peer, service.record.name.clone(), |id| {
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

    /// Its number among the sessions.
    pub fn id(&self) -> Option<SessionId> {
        self.session
    }

    /// Counts a refused connection and logs it, if it is its turn.
    pub fn report(
        &self,
        peer: PeerAddr,
        refusal: &Refusal,
        client: Option<ClientAddr>,
        target: Option<TargetAddr>,
    ) {
        self.service
            .refused(self.worker, peer, refusal, client, target);
    }

    /// Whose will it is that the connection ends, if somebody's.
    pub fn ended_by(&self) -> Option<EndedBy> {
        self.worker().sessions.ended_by(self.session?)
    }

    /// Counts on its worker.
    pub fn add(&self, count: Count, n: u64) {
        self.service.add(self.worker, count, n);
    }

    /// Counts a time on its worker.
    pub fn observe(&self, time: Duration, which: impl Fn(&Tally) -> &Histogram) {
        which(&self.service.record.tallies[self.worker]).observe(time);
    }

    fn worker(&self) -> &Worker {
        &self.service.proxy.workers[self.worker]
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(id) = self.session {
            self.worker().sessions.end(id);
        }
        self.service.ended(self.worker);
        let proxy = &self.service.proxy;
        if proxy.draining.load(Ordering::Relaxed) {
            proxy.ended.notify_waiters();
        }
    }
}
