//! The listeners of the running process, and what a reload changes about them. First everything is
//! prepared, which may fail and then leaves no trace; then it is put in place, which cannot fail.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use tokio::sync::{Mutex, mpsc};

use crate::addr::TargetAddr;
use crate::admission::Admission;
use crate::claims::Claims;
use crate::config::{
    self, Choice, Config, ListenerConfig, Process, Protocol, RouteTarget, Source, Verbosity,
};
use crate::destination::Destinations;
use crate::handover::message::{Activated, Place};
use crate::listening::{Bound, Broken, Listening, cannot_listen};
use crate::log;
use crate::namespaces::{Namespaces, here};
use crate::proxy::Proxy;
use crate::report::Reporter;
use crate::routing;
use crate::service::{Record, Service};
use crate::sockets::{self, Sockets};
use crate::udp::luggage::Luggage;
use crate::upstream;

/// An address and its protocol.
type Address = (Protocol, SocketAddr);

/// What is to be opened and closed. Addresses in neither list stay as they are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// With the number of the listener.
    pub open: Vec<(usize, SocketAddr)>,
    /// No listener has them any more.
    pub close: Vec<Address>,
}

/// Compares what is open with what is asked for.
pub fn plan(open: &[Address], config: &Config) -> Plan {
    let asked = |address: &Address| {
        let mut listeners = config.listeners.iter();
        listeners
            .any(|listener| listener.protocol == address.0 && listener.listen.contains(&address.1))
    };
    let mut plan = Plan::default();
    plan.close
        .extend(open.iter().filter(|address| !asked(address)));
    for (number, listener) in config.listeners.iter().enumerate() {
        let new = listener
            .listen
            .iter()
            .filter(|addr| !open.contains(&(listener.protocol, **addr)));
        plan.open.extend(new.map(|addr| (number, *addr)));
    }
    plan
}

/// A configuration that can be put in place: its lists are read, its sockets bound.
#[derive(Debug)]
pub struct Prepared {
    config: Config,
    admissions: Vec<Admission>,
    bound: Vec<(usize, Bound)>,
    close: Vec<Address>,
    inherited: Inherited,
}

/// What the listeners of a process before this one were at.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The flows of each socket of an address.
    pub luggage: Vec<(Place, Vec<Luggage>)>,
    /// The names of the listeners that were drained.
    pub drained: HashSet<Option<Arc<str>>>,
    /// What its sessions need.
    pub targets: Vec<RouteTarget>,
}

impl Prepared {
    /// Prepares the first configuration, with the sockets that there are.
    pub fn first(config: Config, proxy: &Proxy, sockets: &mut Sockets) -> Result<Prepared> {
        Prepared::beside(&[], config, proxy, sockets)
    }

    /// Takes over what the listeners of a process before this one were at.
    pub fn inherit(&mut self, inherited: Inherited) {
        self.inherited = inherited;
    }

    /// The addresses whose sockets were there before this process.
    pub fn given(&self) -> Vec<Place> {
        let given = self.bound.iter().filter(|(_, bound)| bound.is_given());
        given
            .map(|(_, bound)| Place::new(bound.protocol, bound.asked))
            .collect()
    }

    /// Reads the lists and binds what is not held yet. Fails without a trace.
    fn beside(
        held_by_us: &[&Listening],
        config: Config,
        proxy: &Proxy,
        sockets: &mut Sockets,
    ) -> Result<Prepared> {
        let loops = config::loops(&config);
        if !loops.is_empty() {
            return Err(config::told(&loops));
        }
        let admissions = config.listeners.iter().map(|listener| {
            let claims = Claims::new(&listener.allow_claims, Arc::clone(&proxy.host));
            let admission = Admission::load(listener, claims, Arc::clone(&proxy.bans));
            about(listener, admission)
        });
        let admissions = admissions.collect::<Result<_>>()?;
        let held: Vec<Address> = held_by_us.iter().map(|held| address(held)).collect();
        let Plan { open, close } = plan(&held, &config);
        let bound = bind(&open, &close, held_by_us, &config, sockets)?;
        Ok(Prepared {
            bound,
            config,
            admissions,
            close,
            inherited: Inherited::default(),
        })
    }
}

/// An error that says which listener it is about.
fn about<T>(listener: &ListenerConfig, result: Result<T>) -> Result<T> {
    match listener.label.as_deref() {
        Some(name) => result.with_context(|| format!("listener {name}")),
        None => result,
    }
}

/// Binds all of `open`. An address among them may overlap one of `close`: the sockets of both are
/// then bound at the same time, and those that stay are alone again when the others have closed.
fn bind(
    open: &[(usize, SocketAddr)],
    close: &[Address],
    held: &[&Listening],
    config: &Config,
    sockets: &mut Sockets,
) -> Result<Vec<(usize, Bound)>> {
    let overlapped = |protocol: Protocol, addr: SocketAddr| {
        held.iter().filter(move |old| {
            close.contains(&address(old))
                && old.bound.protocol == protocol
                && config::overlap(old.bound.addr, addr)
        })
    };
    let share = |shared| {
        for (number, addr) in open {
            overlapped(config.listeners[*number].protocol, *addr)
                .for_each(|old| old.bound.share(shared));
        }
    };
    let mut bind = || {
        let bound = open.iter().map(|(number, addr)| {
            let listener = &config.listeners[*number];
            let shared = overlapped(listener.protocol, *addr).next().is_some();
            let bound = match sockets.take(listener.protocol, *addr) {
                Some(sockets) => Bound::given(*addr, sockets, listener),
                None => Bound::open(*addr, listener, shared),
            };
            Ok((*number, about(listener, bound)?))
        });
        let bound = bound.collect::<Result<Vec<_>>>()?;
        bound.iter().try_for_each(|(_, bound)| bound.listen())?;
        Ok(bound)
    };
    share(true);
    let bound = bind();
    if bound.is_err() {
        share(false);
    }
    bound
}

/// What a process that takes over has to know before it is ready.
#[derive(Debug)]
pub struct Legacy {
    /// The listening sockets.
    pub sockets: Vec<(Place, Vec<Arc<std::os::fd::OwnedFd>>)>,
    /// What needs its routing.
    pub targets: Vec<RouteTarget>,
    /// Addresses of a socket unit.
    pub activated: Vec<Activated>,
}

/// The listeners that run.
#[derive(Debug)]
pub struct Listeners {
    /// What they share.
    pub proxy: Arc<Proxy>,
    source: Source,
    routing: routing::Handle,
    activated: Vec<Activated>,
    namespaces: Arc<Namespaces>,
    broken: mpsc::UnboundedSender<Broken>,
    /// One reload at a time, so that what was read last is what is put in place last.
    reloading: Mutex<()>,
    reloads: Reloads,
    state: Mutex<State>,
}

/// How often the configuration was read again.
#[derive(Debug, Default)]
pub struct Reloads {
    /// And put in place.
    pub done: AtomicU64,
    /// And left as it was, because something was wrong.
    pub failed: AtomicU64,
}

#[derive(Debug)]
struct State {
    config: Config,
    /// In the order of the configuration.
    services: Vec<Arc<Service>>,
    open: Vec<Listening>,
    /// Targets that only sessions have that are older than a reload.
    stale: Vec<Stale>,
    /// Of UDP, closed but for the flows that they have.
    retiring: Vec<Listening>,
    records: HashMap<(Option<String>, Protocol), Arc<Record>>,
    stopped: bool,
}

/// A target that no listener has any more.
#[derive(Debug)]
struct Stale {
    target: RouteTarget,
    /// Connections from then on do not go there.
    until: Instant,
    /// Processes before this one have sessions that may go there.
    elders: bool,
}

impl Listeners {
    /// Puts the first configuration in place, which `source` gave. The receiver hears of listeners
    /// that break.
    pub async fn start(
        source: Source,
        prepared: Prepared,
        proxy: Arc<Proxy>,
        routing: routing::Handle,
        activated: Vec<Activated>,
        namespaces: Arc<Namespaces>,
    ) -> (Listeners, mpsc::UnboundedReceiver<Broken>) {
        let (broken, breaks) = mpsc::unbounded_channel();
        let listeners = Listeners {
            proxy,
            source,
            routing,
            activated,
            namespaces,
            broken,
            reloading: Mutex::default(),
            reloads: Reloads::default(),
            state: Mutex::new(State {
                config: prepared.config.clone(),
                services: Vec::new(),
                open: Vec::new(),
                stale: Vec::new(),
                retiring: Vec::new(),
                records: HashMap::new(),
                stopped: false,
            }),
        };
        listeners
            .put_in_place(&mut *listeners.state.lock().await, prepared)
            .await;
        (listeners, breaks)
    }

    /// Reads the configuration again and puts it in place, all of it or nothing, and tells what of
    /// it needs a restart. Sessions go on under the rules that they were admitted by.
    pub async fn reload(self: &Arc<Self>) -> Result<Vec<String>> {
        let _turn = self.reloading.lock().await;
        self.proxy.manager.reloading();
        let reloaded = self.read_and_put_in_place().await;
        let counter = match reloaded {
            Ok(_) => &self.reloads.done,
            Err(_) => &self.reloads.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        match &reloaded {
            Ok(later) => {
                match &self.source {
                    Source::Flags(_) => tracing::info!("the lists of clients were read again"),
                    Source::File { .. } => tracing::info!("the configuration was read again"),
                }
                for key in later {
                    tracing::warn!("reload: {key}");
                }
            }
            Err(error) => {
                let error = format!("{error:#}");
                match &self.source {
                    Source::Flags(_) => {
                        tracing::error!(error, "the lists of clients stay as they were")
                    }
                    Source::File { .. } => {
                        tracing::error!(error, "the configuration stays as it was")
                    }
                }
            }
        }
        self.proxy.manager.ready();
        reloaded
    }

    async fn read_and_put_in_place(self: &Arc<Self>) -> Result<Vec<String>> {
        // It may ask for the addresses of names, which can last.
        let source = self.source.clone();
        let config = tokio::task::spawn_blocking(move || source.read()).await??;
        // Whoever asked may go away meanwhile: what has begun is brought to its end.
        let listeners = Arc::clone(self);
        let placing = async move { listeners.put_in_place_of_the_old(config).await };
        tokio::spawn(placing).await?
    }

    async fn put_in_place_of_the_old(&self, mut config: Config) -> Result<Vec<String>> {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        if state.stopped {
            bail!("realpeer stops");
        }
        let held: Vec<&Listening> = state.open.iter().chain(&state.retiring).collect();
        sockets::activate(&self.activated, &mut config);
        let later = keep_what_needs_a_restart(&state.config.process, &held, &mut config);
        if let Some(sandbox) = self.proxy.sandbox.get() {
            sandbox.check(&config)?;
        }
        let new = config.route_targets();
        self.namespaces.admit(&config)?;
        self.routing.check(&here(&new)).await?;
        let mut none = Sockets::default();
        let prepared = Prepared::beside(&held, config, &self.proxy, &mut none)?;
        state.outdate(&new);
        self.keep(state.needed(new)).await;
        if state.config.process.verbosity != prepared.config.process.verbosity {
            self.set_verbosity(prepared.config.process.verbosity);
        }
        self.put_in_place(state, prepared).await;
        Ok(later)
    }

    /// Changes how much is logged.
    pub fn set_verbosity(&self, verbosity: Verbosity) {
        self.proxy.volume.set(verbosity);
        log::set_verbosity(verbosity);
    }

    /// Lets go what only old sessions needed, once they have ended.
    pub async fn tidy(&self) {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        state.close_retired().await;
        let count = state.stale.len();
        state.stale.retain(|stale| {
            (stale.elders && !self.proxy.elders.are_gone())
                || stale.until > Instant::now()
                || stale.is_used(&self.proxy.targets_since(stale.until))
        });
        if state.stale.len() < count {
            let needed = state.needed(state.config.route_targets());
            self.keep(needed).await;
        }
    }

    /// Keeps the routing of these targets, wherever they are.
    async fn keep(&self, targets: Vec<RouteTarget>) {
        self.namespaces.keep(&targets).await;
        self.routing.keep(here(&targets)).await;
    }

    async fn put_in_place(&self, state: &mut State, prepared: Prepared) {
        let Prepared {
            config,
            admissions,
            bound,
            close,
            inherited,
        } = prepared;
        let mut drained = state.drained();
        drained.extend(inherited.drained);
        let new = config.route_targets();
        let old = inherited.targets.into_iter();
        let old = old.filter(|old| !new.contains(old));
        state.stale.extend(old.map(|target| Stale {
            target,
            until: Instant::now(),
            elders: true,
        }));
        let mut luggage = inherited.luggage;
        let back = state.close(&close, &bound).await;
        let services = config.listeners.iter().zip(admissions).enumerate();
        let services = services.map(|(number, (listener, admission))| {
            let here = |listening: &&Listening| listener.listen.contains(&listening.bound.asked);
            let open = state
                .open
                .iter()
                .filter(here)
                .map(|listening| &listening.bound);
            let new = bound
                .iter()
                .filter(|(of, _)| *of == number)
                .map(|(_, bound)| bound);
            let ours = open
                .chain(new)
                .filter(|bound| bound.protocol == listener.protocol);
            let listen = ours.map(|bound| bound.addr).collect();
            let record = self.record(&mut state.records, listener);
            let netns = listener.target_netns.as_ref();
            let namespace = netns.map(|netns| self.namespaces.get(netns));
            Arc::new(Service {
                destinations: Destinations::new(listener, listen),
                upstream: upstream::Options {
                    place: match namespace.clone() {
                        Some(namespace) => upstream::Place::within(namespace),
                        None => upstream::Place::here(
                            self.routing.marks(),
                            Arc::clone(&self.proxy.asking),
                        ),
                    },
                    mark: listener.mark,
                    source_port: listener.source_port,
                    keepalive: listener.keepalive,
                },
                config: Arc::clone(listener),
                admission: admission.inside(namespace),
                record,
                proxy: Arc::clone(&self.proxy),
            })
        });
        state.services = services.collect();
        for listening in &state.open {
            if let Some(service) = state
                .services
                .iter()
                .find(|service| serves(service, listening))
            {
                listening.bound.follow(&service.config);
                listening.current.replace(Arc::clone(service));
                if back.contains(&address(listening)) {
                    listening
                        .current
                        .pause(drained.contains(&service.record.name));
                }
            }
        }
        let mut numbers = vec![0; state.services.len()];
        for (number, bound) in bound {
            let service = Arc::clone(&state.services[number]);
            let record = Arc::clone(&service.record);
            let (protocol, addr, sockets) = (bound.protocol.word(), bound.addr, bound.sockets());
            let place = Place::new(bound.protocol, bound.asked);
            let ours = luggage.iter().position(|(of, _)| *of == place);
            let flows = ours.map(|at| luggage.swap_remove(at).1).unwrap_or_default();
            let (broken, paused) = (self.broken.clone(), drained.contains(&record.name));
            let listening = Listening::start(bound, service, broken, paused, flows);
            state.open.push(listening);
            for _ in 0..sockets {
                tracing::info!(listener = record.label.as_deref(), listenerNum = numbers[number], protocol, listenAdr = %addr, "listening");
                numbers[number] += 1;
            }
        }
        state.records.retain(|(name, protocol), record| {
            let mut listeners = config.listeners.iter();
            record.open() > 0 || listeners.any(|l| l.name == *name && l.protocol == *protocol)
        });
        state.config = config;
    }

    fn record(
        &self,
        records: &mut HashMap<(Option<String>, Protocol), Arc<Record>>,
        listener: &ListenerConfig,
    ) -> Arc<Record> {
        let key = (listener.name.clone(), listener.protocol);
        let record = records.entry(key).or_insert_with(|| {
            let reporter = Reporter::new(Arc::clone(&self.proxy.volume), listener.protocol);
            let (name, label) = (listener.name.as_deref(), listener.label.as_deref());
            Arc::new(Record::new(name, label, reporter, self.proxy.workers.len()))
        });
        Arc::clone(record)
    }

    /// How often the configuration was read again.
    pub fn reloads(&self) -> &Reloads {
        &self.reloads
    }

    /// The other network namespaces that targets are in.
    pub fn namespaces(&self) -> &Namespaces {
        &self.namespaces
    }

    /// The policy routing of the targets.
    pub fn routing(&self) -> &routing::Handle {
        &self.routing
    }

    /// What is in force.
    pub async fn config(&self) -> Config {
        self.state.lock().await.config.clone()
    }

    /// Every listener, and whether it takes anything new.
    pub async fn services(&self) -> Vec<(Arc<Service>, bool)> {
        let state = self.state.lock().await;
        let services = state.services.iter().map(|service| {
            let mut of = state
                .open
                .iter()
                .filter(|listening| serves(service, listening));
            (
                Arc::clone(service),
                !of.any(|listening| listening.current.is_paused()),
            )
        });
        services.collect()
    }

    /// The listener of that name; without one, the only one there is.
    pub async fn named(&self, name: Option<&str>) -> Result<Arc<Service>> {
        self.state.lock().await.named(name)
    }

    /// Takes nothing new at a listener until `resume`, whatever is reloaded meanwhile. Without a
    /// name it is the only one there is. Fails if there is none of that name.
    pub async fn drain(&self, name: Option<&str>) -> Result<()> {
        let mut state = self.state.lock().await;
        let service = state.named(name)?;
        for listening in state.open.iter_mut().filter(|l| serves(&service, l)) {
            listening
                .pause()
                .await
                .with_context(|| format!("cannot drain {}", listening.bound.addr))?;
        }
        tracing::info!(
            listener = service.label(),
            "drained: nothing new is accepted"
        );
        Ok(())
    }

    /// Takes connections again at a listener. Fails if there is none of that name.
    pub async fn resume(&self, name: Option<&str>) -> Result<()> {
        let mut state = self.state.lock().await;
        let service = state.named(name)?;
        for listening in state.open.iter_mut().filter(|l| serves(&service, l)) {
            let (protocol, addr) = (listening.bound.protocol, listening.bound.addr);
            listening
                .resume()
                .map_err(|error| anyhow!(cannot_listen("-l", addr, protocol, &error)))?;
        }
        tracing::info!(listener = service.label(), "resumed");
        Ok(())
    }

    /// Keeps reloads away for as long as it lives, once the one that is under way has ended.
    pub async fn no_reloads(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.reloading.lock().await
    }

    /// What another process that takes over has to know before it is ready.
    pub async fn legacy(&self) -> Legacy {
        let state = self.state.lock().await;
        let sockets = state.open.iter().map(|listening| {
            let place = Place::new(listening.bound.protocol, listening.bound.asked);
            (place, listening.bound.descriptors().to_vec())
        });
        Legacy {
            sockets: sockets.collect(),
            targets: state.needed(state.config.route_targets()),
            activated: self.activated.clone(),
        }
    }

    /// Brings UDP to rest at these addresses, and passes on what is open there and which listeners
    /// are drained.
    pub async fn rest<E>(
        &self,
        taken: &[Place],
        mut pass_on: impl AsyncFnMut(Place, usize, &crate::udp::listener::Listener) -> Result<(), E>,
    ) -> Result<Vec<Option<String>>, E> {
        let mut state = self.state.lock().await;
        for listening in state.open.iter_mut() {
            let place = Place::new(listening.bound.protocol, listening.bound.asked);
            if taken.contains(&place) {
                listening.rest().await;
                for (number, listener) in listening.resting().iter().enumerate() {
                    pass_on(place, number, listener).await?;
                }
            }
        }
        let drained = state.drained().into_iter();
        Ok(drained
            .map(|name| name.as_deref().map(str::to_owned))
            .collect())
    }

    /// Goes on after `rest` and `hush`.
    pub async fn go_on(&self) {
        for listening in &mut self.state.lock().await.open {
            listening.go_on();
        }
    }

    /// Takes no connections for now; the kernel keeps them.
    pub async fn hush(&self) {
        for listening in &mut self.state.lock().await.open {
            listening.hush().await;
        }
    }

    /// Leaves these addresses to another process, and closes the others.
    pub async fn leave(&self, taken: &[Place]) {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        state.stopped = true;
        for listening in std::mem::take(&mut state.open) {
            let place = Place::new(listening.bound.protocol, listening.bound.asked);
            match taken.contains(&place) {
                true => listening.leave().await,
                false => state.retiring.extend(listening.close().await),
            }
        }
    }

    /// Closes all of them, and ends the UDP flows.
    pub async fn stop(&self) {
        let mut state = self.state.lock().await;
        let state = &mut *state;
        state.stopped = true;
        for mut listening in state.open.drain(..).chain(state.retiring.drain(..)) {
            listening.stop().await;
        }
    }
}

impl State {
    /// The listener of that name; without one, the only one.
    fn named(&self, name: Option<&str>) -> Result<Arc<Service>> {
        let found = match (name, &self.services[..]) {
            (None, [only]) => Some(only),
            (None, _) => None,
            (Some(_), all) => all.iter().find(|s| s.record.name.as_deref() == name),
        };
        let Some(found) = found else {
            let names = self.services.iter();
            let names = names.map(|service| service.record.name.as_deref().unwrap_or("(no name)"));
            let names = names.collect::<Vec<_>>().join(", ");
            match name {
                Some(name) => bail!("no listener is called {name:?}; there are: {names}"),
                None => bail!("name one of the listeners: {names}"),
            }
        };
        Ok(Arc::clone(found))
    }

    /// The names of listeners that are drained.
    fn drained(&self) -> HashSet<Option<Arc<str>>> {
        let paused = self.open.iter().filter(|l| l.current.is_paused());
        paused
            .map(|listening| listening.current.get().record.name.clone())
            .collect()
    }

    /// Closes these addresses, and takes back and tells those that were closed before and are asked
    /// for again: all that is not in `close`. What overlaps an address that was opened ends with its
    /// UDP flows: the kernel gives each datagram to one of the two only.
    async fn close(&mut self, close: &[Address], opened: &[(usize, Bound)]) -> Vec<Address> {
        let (held, retiring) = (std::mem::take(&mut self.open), &mut self.retiring);
        let back = retiring.extract_if(.., |listening| !close.contains(&address(listening)));
        let mut back: Vec<Listening> = back.collect();
        let again = back.iter().map(address).collect();
        for listening in held {
            if !close.contains(&address(&listening)) {
                self.open.push(listening);
                continue;
            }
            tracing::info!(listener = listening.current.get().label(), listenAdr = %listening.bound.addr, "listening no more");
            self.retiring.extend(listening.close().await);
        }
        self.open.append(&mut back);
        let overlapped = |old: &mut Listening| {
            let mut opened = opened.iter().map(|(_, bound)| bound);
            opened.any(|new| {
                new.protocol == old.bound.protocol && config::overlap(new.addr, old.bound.addr)
            })
        };
        for mut listening in self.retiring.extract_if(.., overlapped) {
            listening.stop().await;
        }
        for (_, bound) in opened {
            bound.share(false);
        }
        again
    }

    /// Closes what was left open for flows that have ended.
    async fn close_retired(&mut self) {
        for listening in std::mem::take(&mut self.retiring) {
            self.retiring.extend(listening.close().await);
        }
    }

    /// Notes which targets of now are not among the new ones: what is open still needs their ways.
    fn outdate(&mut self, new: &[RouteTarget]) {
        // A connection is listed a moment after it got the rules of before.
        let until = Instant::now() + Duration::from_secs(1);
        let old = self.config.route_targets().into_iter();
        let elders = false;
        let old = old.map(|target| Stale {
            target,
            until,
            elders,
        });
        self.stale
            .retain(|stale| stale.elders || !new.contains(&stale.target));
        self.stale
            .extend(old.filter(|old| !new.contains(&old.target)));
    }

    /// `targets` and those that old sessions need.
    fn needed(&self, mut targets: Vec<RouteTarget>) -> Vec<RouteTarget> {
        targets.extend(self.stale.iter().map(|stale| stale.target.clone()));
        targets
    }
}

impl Stale {
    fn is_used(&self, targets: &HashSet<Option<TargetAddr>>) -> bool {
        let any = self.target.target.ip().is_unspecified();
        let is_it = |target: &TargetAddr| any || target.ip() == self.target.target.ip();
        targets
            .iter()
            .any(|target| target.as_ref().is_none_or(is_it))
    }
}

fn address(listening: &Listening) -> Address {
    (listening.bound.protocol, listening.bound.asked)
}

fn serves(service: &Service, listening: &Listening) -> bool {
    let (protocol, asked) = address(listening);
    service.config.protocol == protocol && service.config.listen.contains(&asked)
}

/// What was made at start stays as it was: the new configuration gets the old values, and this
/// tells which they are.
fn keep_what_needs_a_restart(was: &Process, held: &[&Listening], new: &mut Config) -> Vec<String> {
    let mut later = Vec::new();
    let is = &mut new.process;
    let mut keep = |changed: bool, key: &str| {
        if changed {
            later.push(format!("{key} needs a restart"));
        }
    };
    keep(was.workers != is.workers, "workers");
    keep(was.routing != is.routing, "routing");
    keep(was.name != is.name, "name");
    keep(was.control != is.control, "control");
    keep(was.control_group != is.control_group, "control-group");
    keep(was.state_dir != is.state_dir, "state-dir");
    keep(was.log_format != is.log_format, "log-format");
    keep(was.metrics != is.metrics, "metrics");
    keep(was.user != is.user, "user");
    keep(was.sandbox != is.sandbox, "sandbox");
    keep(was.crowdsec != is.crowdsec, "[crowdsec]");
    *is = Process {
        drain_timeout: is.drain_timeout,
        upgrade_drain: is.upgrade_drain,
        verbosity: is.verbosity,
        ..was.clone()
    };
    for listener in &mut new.listeners {
        let stays = |old: &&&Listening| {
            let (protocol, addr) = address(old);
            protocol == listener.protocol && listener.listen.contains(&addr)
        };
        let Some(old) = held.iter().find(stays) else {
            continue;
        };
        let old = Arc::clone(&old.current.get().config);
        let name = listener.name.as_deref().unwrap_or_default();
        let mut keep = |changed: bool, key: &str| {
            if changed {
                later.push(format!("{key} of {name:?} needs a restart"));
            }
        };
        keep(old.listeners != listener.listeners, "listeners");
        keep(
            old.listen_transparent != listener.listen_transparent,
            "listen-transparent",
        );
        keep(old.udp_header != listener.udp_header, "udp-header");
        // Flows are told apart by it.
        let dynamic = old.dynamic_destination != listener.dynamic_destination;
        let is_udp = listener.protocol == Protocol::Udp;
        keep(is_udp && dynamic, "dynamic-destination");
        let listener = Arc::make_mut(listener);
        if is_udp {
            listener.dynamic_destination = old.dynamic_destination;
        }
        listener.listeners = old.listeners;
        listener.listen_transparent = old.listen_transparent;
        listener.udp_header = old.udp_header;
    }
    later
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{self, Command};
    use crate::config::Protocol::{Tcp, Udp};

    /// One listener for each line of flags.
    fn config(lines: &[&str]) -> Config {
        let read = |line: &&str| {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let Ok(Command::Proxy(source)) = cli::parse(&words) else {
                panic!("{line} starts the proxy");
            };
            source.read().expect("it is good")
        };
        let mut all = lines.iter().map(read);
        let mut first = all.next().expect("a listener");
        first
            .listeners
            .extend(all.flat_map(|config| config.listeners));
        first
    }

    fn at(port: u16) -> SocketAddr {
        ([0, 0, 0, 0], port).into()
    }

    #[test]
    fn what_is_asked_for_and_open_stays() {
        let config = config(&[
            "-l 0.0.0.0:1,0.0.0.0:2",
            "-l 0.0.0.0:1 -p udp",
            "-l 0.0.0.0:3",
        ]);
        let open = [(Tcp, at(1)), (Tcp, at(3)), (Udp, at(1))];
        let expected = Plan {
            open: vec![(0, at(2))],
            close: vec![],
        };
        assert_eq!(plan(&open, &config), expected);
        let all = plan(&[], &config).open;
        assert_eq!(all, [(0, at(1)), (0, at(2)), (1, at(1)), (2, at(3))]);
    }

    #[test]
    fn another_protocol_or_address_is_another_socket() {
        let config = config(&["-l 192.0.2.10:1", "-l 0.0.0.0:2 -p udp"]);
        let open = [(Tcp, at(1)), (Tcp, at(2)), (Tcp, at(3))];
        let moved = ([192, 0, 2, 10], 1).into();
        let expected = Plan {
            open: vec![(0, moved), (1, at(2))],
            close: open.to_vec(),
        };
        assert_eq!(plan(&open, &config), expected);
    }

    /// Sockets go by address, not by name.
    #[test]
    fn an_address_may_pass_from_one_listener_to_another() {
        let open = [(Tcp, at(1)), (Tcp, at(2))];
        let config = config(&["-name b -l 0.0.0.0:2", "-name a -l 0.0.0.0:1"]);
        assert_eq!(plan(&open, &config), Plan::default());
    }
}
