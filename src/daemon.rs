//! The running proxy: the order of start, signals, and the end.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::SigSet;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::addr::TargetAddr;
use crate::admission::{Admission, ClientRules};
use crate::bans::Bans;
use crate::config::{Protocol, Settings};
use crate::control;
use crate::destination::Destinations;
use crate::doctor;
use crate::limits;
use crate::networks::Networks;
use crate::proxy::{Proxy, Worker};
use crate::report::Reporter;
use crate::routing;
use crate::stats::Count;
use crate::sys;
use crate::tcp;
use crate::udp;
use crate::upstream;

/// Seconds between attempts to write bans to a disk that was full.
const MEND_BANS: u64 = 10;

/// Runs the proxy until a signal ends it.
pub async fn run(settings: Settings) -> Result<()> {
    // A signal that comes during the start is honoured when the start is done.
    let mut signals = Signals::new().context("cannot watch for signals")?;
    let hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    hangups().thread_unblock().context("cannot take SIGHUP")?;
    let mut admission = admission(&settings)?;
    let max_connections = limits::capacity(&settings);
    let workers = workers(settings.workers).context("cannot start the worker threads")?;
    // A second instance on the same port ends here, and has touched nothing. Whoever connects is
    // served when everything is ready.
    let (sockets, listen) = match settings.protocol {
        Protocol::Tcp => tcp::listener::bind(&settings)?,
        Protocol::Udp => udp::listener::bind(&settings)?,
    };
    let destinations = Destinations::new(&settings, listen);
    refuse_loops(&settings, &destinations)?;
    admission.bans = bans(&settings)?;
    let control = control::bind(&settings)?;
    let routing = routing::install(&settings).await?;
    doctor::warn_at_start(&settings).await;
    // Netlink connections of the start are closed by tasks of their own: no descriptor is missing
    // when connections come.
    tokio::task::yield_now().await;
    let upstream = upstream::Options {
        marks: routing.marks(),
        source_port: settings.source_port,
    };
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
    tokio::spawn(reload_at(hangup, Arc::clone(&proxy)));
    let result = serve(&proxy, sockets, listen, control, &mut signals).await;
    let restored = routing.restored();
    if restored > 0 {
        tracing::info!(restored, "routing was put back while the proxy ran");
    }
    routing.remove().await;
    result
}

/// Holds back SIGHUP, which would end the process, until `run` takes it. To be called before
/// anything that may last, such as the look-up of a name; SIGTERM may end that.
pub fn hold_hangups() -> Result<()> {
    hangups().thread_block().context("cannot hold back SIGHUP")
}

fn hangups() -> SigSet {
    SigSet::from_iter([nix::sys::signal::SIGHUP])
}

async fn serve(
    proxy: &Arc<Proxy>,
    sockets: Vec<OwnedFd>,
    listen: SocketAddr,
    control: Option<control::Place>,
    signals: &mut Signals,
) -> Result<()> {
    let mut administration = JoinSet::new();
    administration.spawn(end_bans(Arc::clone(proxy)));
    if let Some(place) = control {
        administration.spawn(administer(place, Arc::clone(proxy), listen));
    }
    let mut listeners = JoinSet::new();
    for (number, socket) in sockets.into_iter().enumerate() {
        let own = number % proxy.workers.len();
        let (shared, worker) = (Arc::clone(proxy), &proxy.workers[own].handle);
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
    // The next process gets the control socket and the bans at once, and serves who is told there.
    administration.shutdown().await;
    proxy.admission.bans.release();
    proxy.draining.store(true, Ordering::Relaxed);
    listeners.shutdown().await;
    tokio::select! {
        () = drain(proxy) => {}
        name = signals.next() => tracing::info!(signal = name, "stopping at once"),
    }
    farewell(proxy);
    Ok(())
}

/// Serves the control socket.
async fn administer(place: control::Place, proxy: Arc<Proxy>, listen: SocketAddr) {
    let office = control::Office {
        proxy,
        listen,
        started: std::time::Instant::now(),
    };
    if let Err(error) = control::serve(place, Arc::new(office)).await {
        tracing::warn!(%error, "the control socket broke");
    }
}

/// The lists of files. The bans come later: whoever opens their file also writes it.
fn admission(settings: &Settings) -> Result<Admission> {
    Ok(Admission {
        allowed_subnets: allowed_subnets(settings)?,
        clients: RwLock::new(client_rules(settings)?),
        bans: Bans::default(),
    })
}

fn bans(settings: &Settings) -> Result<Bans> {
    let file = settings.state_dir.as_ref().map(|directory| {
        let name = settings.name.as_deref().unwrap_or("realpeer");
        directory.join(format!("{name}.bans"))
    });
    Bans::open(settings.name.clone(), file.as_deref()).context("-state-dir")
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

/// Says when bans end. That they do needs nobody: each look-up compares the time. Also tries again
/// to write down what a full disk did not take.
async fn end_bans(proxy: Arc<Proxy>) {
    let bans = &proxy.admission.bans;
    let mut second = tokio::time::interval(Duration::from_secs(1));
    for seconds in 0u64.. {
        second.tick().await;
        for ban in bans.expire() {
            tracing::info!(network = %ban.network, reason = ban.reason, listener = ban.listener, "ban ended");
        }
        if seconds % MEND_BANS == MEND_BANS - 1 && bans.mend().is_ok_and(|mended| mended) {
            tracing::info!("the bans are written down again");
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
