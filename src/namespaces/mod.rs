//! Network namespaces other than this host's own, in which targets are (`-target-netns`).
//!
//! ```text
//! search, engine ─▶ Namespace ◀─ gate ─▶ resident (a thread inside) ─▶ pool ─▶ upstream
//! (where it is       (what is    (has     (routing, addresses,         (sockets
//!  now)               there)      CAP_SYS_ADMIN) sockets)                made ahead)
//! ```
//!
//! A socket belongs to the namespace that it was made in, whoever binds and connects it. So only
//! threads of their own enter namespaces; they make sockets and keep the routing there. Workers take
//! the sockets and never leave this host's network.

mod engine;
mod pool;
mod resident;
mod search;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use tokio::sync::{mpsc as async_mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::claims::Host;
use crate::config::{Config, Parts, Process, RouteTarget, Routing, TargetNetns};
use crate::handover::message::RoutingPaper;
use crate::proxy::Proxy;
use crate::routing::{self, Marks};
use crate::sandbox;
use crate::sessions::EndedBy;
use crate::sys::netns::Identity;
use crate::upstream::Asking;
pub use pool::{DESCRIPTORS, Pool};
pub use resident::within;
use resident::{Arrival, reside};

/// How long the start waits for an engine's answer about where a container is.
const PATIENCE: Duration = Duration::from_secs(3);

/// Those of the targets that are in this host's own network.
pub fn here(targets: &[RouteTarget]) -> Vec<RouteTarget> {
    let here = targets.iter().filter(|target| target.netns.is_none());
    here.cloned().collect()
}

/// Why nobody can go there now.
pub type Reason = Arc<str>;

/// The thread that may enter namespaces, as long as this lives.
#[derive(Clone, Debug)]
pub struct Gate(mpsc::Sender<Arrival>);

impl Gate {
    /// Starts the thread, if a listener asks for it. To be called before the process enters the
    /// sandbox.
    pub fn open(config: &Config) -> Result<Option<Gate>> {
        if !config.enters_namespaces() {
            return Ok(None);
        }
        let (gate, arrivals) = mpsc::channel::<Arrival>();
        let (begun, wait) = mpsc::channel();
        let run = move || {
            sandbox::guard_namespaces();
            let _ = begun.send(());
            for arrival in arrivals {
                // Without a thread the reply is dropped, which tells.
                let thread = std::thread::Builder::new().name("namespace".into());
                let _ = thread.spawn(|| reside(arrival));
            }
        };
        let thread = std::thread::Builder::new().name("gate".into());
        thread
            .spawn(run)
            .context("cannot start the thread that enters namespaces")?;
        wait.recv()
            .context("the thread that enters namespaces has ended")?;
        Ok(Some(Gate(gate)))
    }
}

/// What a process before this one has put into a namespace, with the lock of its table there.
pub type Inheritance = (Identity, RoutingPaper, OwnedFd);

/// What becomes of the routing in namespaces when the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    /// It does not end.
    Not,
    /// It is taken away.
    Remove,
    /// Another process has it.
    Leave,
}

/// All namespaces that listeners have targets in.
#[derive(Debug)]
pub struct Namespaces {
    door: Mutex<Option<Door>>,
    known: Mutex<HashMap<TargetNetns, Known>>,
    stop: watch::Sender<Stop>,
    /// Ends when the last thread inside has.
    ended: tokio::sync::Mutex<async_mpsc::Receiver<()>>,
}

#[derive(Debug)]
struct Known {
    namespace: Arc<Namespace>,
    search: JoinHandle<()>,
}

impl Drop for Known {
    fn drop(&mut self) {
        self.search.abort();
    }
}

/// What a search needs to bring a thread into a namespace.
#[derive(Clone, Debug)]
struct Door {
    gate: Gate,
    routing: Routing,
    /// Of threads inside.
    sandbox: Parts,
    inherited: Arc<Mutex<Vec<Inheritance>>>,
    proxy: Arc<Proxy>,
    stop: watch::Receiver<Stop>,
    open: async_mpsc::Sender<()>,
}

impl Namespaces {
    /// None yet. Without a gate there will be none. Whoever enters a namespace of the `inherited`
    /// ones takes over the routing there.
    pub fn new(
        gate: Option<Gate>,
        process: &Process,
        proxy: &Arc<Proxy>,
        inherited: Vec<Inheritance>,
    ) -> Namespaces {
        let (stop, stopped) = watch::channel(Stop::Not);
        let (open, ended) = async_mpsc::channel(1);
        let door = gate.map(|gate| Door {
            gate,
            routing: process.routing,
            sandbox: process.sandbox,
            inherited: Arc::new(Mutex::new(inherited)),
            proxy: Arc::clone(proxy),
            stop: stopped,
            open,
        });
        Namespaces {
            door: Mutex::new(door),
            known: Mutex::default(),
            stop,
            ended: tokio::sync::Mutex::new(ended),
        }
    }

    /// Fails if a listener asks for a namespace and nobody may enter one any more.
    pub fn admit(&self, config: &Config) -> Result<()> {
        if self.door().is_none() && config.enters_namespaces() {
            bail!(
                "target-netns needs a restart: no listener had one at the start, so realpeer gave up CAP_SYS_ADMIN, which entering a namespace takes"
            );
        }
        Ok(())
    }

    /// Keeps these targets within reach, their routing in place, and no other; returns when it is
    /// known of each namespace whether it is there.
    pub async fn keep(&self, targets: &[RouteTarget]) {
        let Some(door) = self.door().clone() else {
            return;
        };
        let mut by_netns: HashMap<&TargetNetns, Vec<RouteTarget>> = HashMap::new();
        for target in targets {
            if let Some(netns) = &target.netns {
                by_netns.entry(netns).or_default().push(target.clone());
            }
        }
        self.known().retain(|netns, _| by_netns.contains_key(netns));
        for (netns, targets) in by_netns {
            let namespace = self.find(netns);
            match namespace {
                Some(namespace) => namespace.keep(targets).await,
                None => self.begin(netns, targets, door.clone()).await,
            }
        }
    }

    async fn begin(&self, netns: &TargetNetns, targets: Vec<RouteTarget>, door: Door) {
        let namespace = Arc::new(Namespace::new(netns.clone(), targets));
        let mut settled = namespace.settled.subscribe();
        let search = tokio::spawn(search::follow(Arc::clone(&namespace), door));
        self.known()
            .insert(netns.clone(), Known { namespace, search });
        let _ = tokio::time::timeout(PATIENCE, settled.wait_for(|settled| *settled)).await;
    }

    /// The namespace of a target. One that is not kept is gone: nobody may end up in this host's own
    /// network in its place.
    pub fn get(&self, netns: &TargetNetns) -> Arc<Namespace> {
        let found = self.find(netns);
        found.unwrap_or_else(|| Arc::new(Namespace::new(netns.clone(), Vec::new())))
    }

    fn find(&self, netns: &TargetNetns) -> Option<Arc<Namespace>> {
        let known = self.known();
        known.get(netns).map(|known| Arc::clone(&known.namespace))
    }

    /// Why nobody can go to some of them now.
    pub fn missing(&self) -> Vec<String> {
        let known = self.known();
        let reason = |known: &Known| {
            let (namespace, reason) = (&known.namespace, known.namespace.inside().err()?);
            let netns = &namespace.netns;
            Some(format!(
                "the network namespace of the targets, {netns}, is gone: {reason}"
            ))
        };
        let mut missing: Vec<String> = known.values().filter_map(reason).collect();
        missing.sort_unstable();
        missing
    }

    /// What is in them, to be passed on to another process.
    pub async fn papers(&self) -> Vec<Inheritance> {
        let all: Vec<Arc<Inside>> = {
            let known = self.known();
            let inside = known
                .values()
                .filter_map(|known| known.namespace.inside().ok());
            inside.collect()
        };
        let mut papers = Vec::new();
        for inside in all {
            if let Some((paper, lock)) = inside.routing.paper().await {
                papers.push((inside.identity, paper, lock));
            }
        }
        papers
    }

    /// Follows them no longer: another process does.
    pub fn rest(&self) {
        self.door().take();
        for known in self.known().values() {
            known.search.abort();
        }
    }

    /// Takes the routing away and leaves all of them.
    pub async fn stop(&self) {
        self.end(Stop::Remove).await;
    }

    /// Leaves all of them, and the routing there to another process.
    pub async fn leave(&self) {
        self.end(Stop::Leave).await;
    }

    async fn end(&self, how: Stop) {
        self.stop.send_replace(how);
        self.door().take();
        // The searches have the door, too, which they may be about to use.
        let searches: Vec<_> = self.known().drain().map(|(_, known)| known).collect();
        for mut known in searches {
            known.search.abort();
            let _ = (&mut known.search).await;
        }
        let _ = self.ended.lock().await.recv().await;
    }

    fn door(&self) -> MutexGuard<'_, Option<Door>> {
        self.door.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> MutexGuard<'_, HashMap<TargetNetns, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Namespaces {
    /// A start that has failed leaves to others what may be theirs.
    fn drop(&mut self) {
        let not_told = |stop: &mut Stop| {
            let not_told = *stop == Stop::Not;
            if not_told {
                *stop = Stop::Leave;
            }
            not_told
        };
        self.stop.send_if_modified(not_told);
    }
}

/// A namespace, whether it is there or not.
#[derive(Debug)]
pub struct Namespace {
    /// What it is called.
    pub netns: TargetNetns,
    // Read for each connection: a lock would be shared by all workers.
    state: ArcSwap<State>,
    targets: Mutex<Vec<RouteTarget>>,
    settled: watch::Sender<bool>,
}

#[derive(Debug)]
enum State {
    There(Arc<Inside>),
    Gone(Reason),
}

impl Namespace {
    fn new(netns: TargetNetns, targets: Vec<RouteTarget>) -> Namespace {
        let unknown = "nobody has said yet where it is".into();
        Namespace {
            netns,
            state: ArcSwap::from_pointee(State::Gone(unknown)),
            targets: Mutex::new(targets),
            settled: watch::Sender::new(false),
        }
    }

    /// The way in, for one connection. Fails while the namespace is gone.
    pub fn inside(&self) -> Result<Arc<Inside>, Reason> {
        match &**self.state.load() {
            State::There(inside) => Ok(Arc::clone(inside)),
            State::Gone(reason) => Err(Arc::clone(reason)),
        }
    }

    /// Asks something of the addresses there; `None` while it is gone.
    pub fn addresses<T>(&self, ask: impl FnOnce(&Host) -> T) -> Option<T> {
        match &**self.state.load() {
            State::There(inside) => Some(ask(&inside.addresses.load())),
            State::Gone(_) => None,
        }
    }

    async fn keep(&self, targets: Vec<RouteTarget>) {
        self.lock_targets().clone_from(&targets);
        if let Ok(inside) = self.inside() {
            inside.routing.keep(targets).await;
        }
    }

    fn lock_targets(&self) -> MutexGuard<'_, Vec<RouteTarget>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of where the namespace is now: a file or process to enter it by, or why it is gone.
    async fn settle(&self, found: Result<OwnedFd, String>, door: &Door) {
        let state = match found {
            Ok(namespace) => self.enter(namespace, door).await,
            Err(reason) => Err(reason),
        };
        let error = state.as_ref().err().cloned();
        let state = state.map_or_else(|reason| State::Gone(reason.into()), State::There);
        let before = self.state.swap(Arc::new(state));
        self.tell(error, matches!(&*before, State::There(_)));
        if let State::There(inside) = &*before {
            inside.left.store(true, Ordering::Relaxed);
            // Has all UDP flows judged again.
            door.proxy.kill(EndedBy::Kill, |_, _| false);
        }
        self.settled.send_replace(true);
    }

    fn tell(&self, error: Option<String>, was_there: bool) {
        let netns = &self.netns;
        match error {
            None => tracing::info!(targetNetns = %netns, "the targets' network namespace is there"),
            // While a container is removed and made anew, the reason changes some times.
            Some(error) if was_there || !*self.settled.borrow() => {
                tracing::warn!(targetNetns = %netns, error, "the targets' network namespace is gone");
            }
            Some(error) => {
                tracing::debug!(targetNetns = %netns, error, "the targets' network namespace is still gone");
            }
        }
    }

    async fn enter(&self, namespace: OwnedFd, door: &Door) -> Result<Arc<Inside>, String> {
        let (reply, replied) = oneshot::channel();
        let arrival = Arrival {
            namespace,
            targets: self.lock_targets().clone(),
            routing: door.routing,
            sandbox: door.sandbox,
            inherited: Arc::clone(&door.inherited),
            reply,
            stop: door.stop.clone(),
            open: door.open.clone(),
        };
        let sent = door.gate.0.send(arrival).is_ok();
        match replied.await {
            Ok(entered) if sent => entered,
            _ => Err("no thread can be started that enters it".to_owned()),
        }
    }
}

/// A namespace while it is there. Who has a connection into it holds this: the routing there stays
/// until the last has let go.
#[derive(Debug)]
pub struct Inside {
    /// Sockets made there.
    pub sockets: Arc<Pool>,
    /// Asks the kernel about addresses there.
    pub asking: Asking,
    /// The marks that upstream sockets need there.
    pub marks: Arc<Marks>,
    addresses: Arc<ArcSwap<Host>>,
    identity: Identity,
    routing: routing::Handle,
    /// The namespace is gone, or another one in its place.
    left: AtomicBool,
    _used: oneshot::Sender<()>,
}

impl Inside {
    /// Whether new connections go elsewhere by now.
    pub fn is_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_that_is_not_kept_is_gone() {
        let (stop, _) = watch::channel(Stop::Not);
        let (_, ended) = async_mpsc::channel(1);
        let namespaces = Namespaces {
            door: Mutex::default(),
            known: Mutex::default(),
            stop,
            ended: tokio::sync::Mutex::new(ended),
        };
        let netns = TargetNetns::Path("/run/netns/a".into());
        assert!(namespaces.get(&netns).inside().is_err());
    }
}
