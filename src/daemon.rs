//! The running proxy: the order of start, signals, and the end.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use arc_swap::ArcSwap;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::addr::TargetAddr;
use crate::admission::{Admission, ClientRules};
use crate::bans::Bans;
use crate::claims::{self, Claims};
use crate::config::{Protocol, Settings};
use crate::control;
use crate::destination::Destinations;
use crate::doctor;
use crate::limits;
use crate::log;
use crate::networks::Networks;
use crate::proxy::{Proxy, Worker};
use crate::report::Reporter;
use crate::routing::{self, Marks};
use crate::stats::Count;
use crate::sys;
use crate::tcp;
use crate::udp;
use crate::upstream;

/// Runs the proxy until a signal ends it.
pub async fn run(settings: Settings) -> Result<()> {
    log::init(settings.verbosity, settings.log_format);
    let admission = admission(&settings, claims::follow().await)?;
    let max_connections = limits::capacity(&settings);
    let mut signals = Signals::new().context("cannot watch for signals")?;
    let workers = workers(settings.workers).context("cannot start the worker threads")?;
    let routing = routing::install(&settings).await?;
    doctor::warn_at_start(&settings).await;
    let result = serve(
        settings,
        admission,
        max_connections,
        workers,
        routing.marks(),
        &mut signals,
    )
    .await;
    let restored = routing.restored();
    if restored > 0 {
        tracing::info!(restored, "routing was put back while the proxy ran");
    }
    routing.remove().await;
    result
}

async fn serve(
    settings: Settings,
    admission: Admission,
    max_connections: usize,
    workers: Vec<Worker>,
    marks: Arc<Marks>,
    signals: &mut Signals,
) -> Result<()> {
    let hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    let control = control::bind(&settings)?;
    // The listener comes last: who is let in finds everything ready, and no descriptor is missing.
    let (sockets, listen) = match settings.protocol {
        Protocol::Tcp => tcp::listener::bind(&settings)?,
        Protocol::Udp => udp::listener::bind(&settings)?,
    };
    let destinations = Destinations::new(&settings, listen);
    refuse_loops(&settings, &destinations)?;
    tell_left_out(&settings);
    let upstream =
        upstream::Options::new(marks, settings.source_port).context("cannot open a UDP socket")?;
    let proxy = Arc::new(Proxy {
        admission,
        destinations,
        upstream,
        workers,
        max_connections,
        reporter: Reporter::new(settings.verbosity, settings.protocol),
        draining: AtomicBool::new(false),
        ended: Notify::new(),
        settings,
    });
    tokio::spawn(end_bans(Arc::clone(&proxy)));
    tokio::spawn(reload_at(hangup, Arc::clone(&proxy)));
    if let Some(bound) = control {
        let office = control::Office {
            proxy: Arc::clone(&proxy),
            listen,
            started: std::time::Instant::now(),
        };
        tracing::debug!(path = %bound.path.display(), "control socket");
        tokio::spawn(control::serve(bound, Arc::new(office)));
    }
    let mut listeners = JoinSet::new();
    for (number, socket) in sockets.into_iter().enumerate() {
        let own = number % proxy.workers.len();
        let (shared, worker) = (Arc::clone(&proxy), &proxy.workers[own].handle);
        let protocol = match proxy.settings.protocol {
            Protocol::Tcp => {
                listeners.spawn_on(tcp::listener::run(shared, socket, own), worker);
                "tcp"
            }
            Protocol::Udp => {
                listeners.spawn_on(udp::listener::run(shared, socket, own), worker);
                "udp"
            }
        };
        tracing::info!(listenerNum = number as u64, protocol, listenAdr = %listen, "listening");
    }
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, open = proxy.open() as u64, "stopping"),
        Some(ended) = listeners.join_next() => {
            let error = ended.unwrap_or_else(io::Error::other);
            return Err(error).context(format!("the listener on {listen} broke"));
        }
    }
    proxy.draining.store(true, Ordering::Relaxed);
    listeners.shutdown().await;
    tokio::select! {
        () = drain(&proxy) => {}
        name = signals.next() => tracing::info!(signal = name, "stopping at once"),
    }
    farewell(&proxy);
    Ok(())
}

fn admission(settings: &Settings, host: Arc<ArcSwap<claims::Host>>) -> Result<Admission> {
    let file = settings.state_dir.as_ref().map(|directory| {
        let name = settings.name.as_deref().unwrap_or("realpeer");
        directory.join(format!("{name}.bans"))
    });
    Ok(Admission {
        allowed_subnets: allowed_subnets(settings)?,
        claims: Claims::new(settings.allow_claims.clone(), host),
        clients: RwLock::new(client_rules(settings)?),
        bans: Bans::open(settings.name.clone(), file.as_deref()).context("-state-dir")?,
    })
}

fn client_rules(settings: &Settings) -> Result<ClientRules> {
    ClientRules::load(
        settings.denied_clients.as_deref(),
        settings.allowed_clients.as_deref(),
    )
}

/// Reads the lists of clients again at each SIGHUP. A bad file changes nothing.
async fn reload_at(mut hangup: Signal, proxy: Arc<Proxy>) {
    while hangup.recv().await.is_some() {
        match client_rules(&proxy.settings) {
            Ok(rules) => {
                proxy.admission.replace_rules(rules);
                tracing::info!("the lists of clients were read again");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the lists of clients stay as they were");
            }
        }
    }
}

/// Says when bans end. That they do needs nobody: each look-up compares the time.
async fn end_bans(proxy: Arc<Proxy>) {
    let mut second = tokio::time::interval(Duration::from_secs(1));
    loop {
        second.tick().await;
        for ban in proxy.admission.bans.expire() {
            tracing::info!(network = %ban.network, reason = ban.reason, listener = ban.listener, "ban ended");
        }
    }
}

fn allowed_subnets(settings: &Settings) -> Result<Option<Networks>> {
    let Some(path) = &settings.allowed_subnets else {
        tracing::warn!(
            "no -allowed-subnets: whoever reaches the listener can claim to be any client; list your load balancers in a file"
        );
        return Ok(None);
    };
    Networks::load(path).context("-allowed-subnets").map(Some)
}

/// Threads that each run the connections given to them.
fn workers(count: usize) -> io::Result<Vec<Worker>> {
    (0..count)
        .map(|number| {
            let runtime = Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()?;
            let worker = Worker::new(runtime.handle().clone(), number, count);
            std::thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || forever(&runtime))?;
            Ok(worker)
        })
        .collect()
}

fn forever(runtime: &Runtime) {
    runtime.block_on(std::future::pending())
}

/// A target that was asked for and is the listener would loop at the first connection.
fn refuse_loops(settings: &Settings, destinations: &Destinations) -> Result<()> {
    let targets = settings.targets;
    for (flag, given, target) in [
        ("-4", targets.v4_given, targets.v4.into()),
        ("-6", targets.v6_given, targets.v6.into()),
    ] {
        if given && destinations.is_listener(TargetAddr(target), sys::interfaces::is_local) {
            bail!(
                "{flag} {target} is the address realpeer itself listens on (-l {}): connections would loop",
                settings.listen
            );
        }
    }
    Ok(())
}

/// Who gives one target only may not know that the other family has a default.
fn tell_left_out(settings: &Settings) {
    let targets = settings.targets;
    let (flag, clients, default) = match (targets.v4_given, targets.v6_given) {
        (true, false) => ("-6", "IPv6", TargetAddr(targets.v6.into())),
        (false, true) => ("-4", "IPv4", TargetAddr(targets.v4.into())),
        _ => return,
    };
    if !settings.dynamic_destination {
        tracing::info!("{flag} was not given: {clients} clients go to its default, {default}");
    }
}

/// Waits for the open connections to end, for as long as `-drain-timeout` says.
async fn drain(proxy: &Proxy) {
    let deadline = Instant::now() + proxy.settings.drain_timeout;
    loop {
        let ended = proxy.ended.notified();
        if proxy.open() == 0 || timeout_at(deadline, ended).await.is_err() {
            return;
        }
    }
}

fn farewell(proxy: &Proxy) {
    let total = |count| proxy.count(count);
    tracing::info!(
        cut = proxy.open() as u64,
        accepted = total(Count::Accepted),
        served = total(Count::Served),
        bytesUp = total(Count::BytesUp),
        bytesDown = total(Count::BytesDown),
        "stopped"
    );
}

/// The signals that end the proxy.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
