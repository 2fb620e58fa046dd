//! The running process: the order of start, signals, and the end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::SigSet;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

use crate::addr::TargetAddr;
use crate::bans::Bans;
use crate::claims;
use crate::config::{ListenerConfig, LogFormat, Process, Source, Verbosity};
use crate::control;
use crate::doctor;
use crate::limits;
use crate::listeners::{Listeners, Prepared};
use crate::listening::Broken;
use crate::log;
use crate::namespaces::{Gate, Namespaces, here};
use crate::proxy::{Proxy, Worker};
use crate::report::Volume;
use crate::routing;
use crate::stats::Count;
use crate::sys::capabilities::{self, SYS_ADMIN, SYS_PTRACE};
use crate::sys::systemd::Environment;
use crate::systemd::{self, Manager};
use crate::upstream::Asking;

/// Seconds between attempts to write bans to a disk that was full.
const MEND_BANS: u64 = 10;

/// Runs the proxy until a signal ends it. `environment` is what systemd passed on.
pub async fn run(source: Source, environment: Environment) -> Result<()> {
    let config = match &source {
        // What is wrong with the rest then goes to the log.
        Source::Flags(drafts) => {
            start_log(drafts.0.verbosity, drafts.0.log_format)?;
            source.read()?
        }
        Source::File { .. } => {
            let config = source.read()?;
            start_log(config.process.verbosity, config.process.log_format)?;
            config
        }
    };
    // Only that thread, and those that it starts, may enter namespaces.
    let gate = Gate::open(&config)?;
    capabilities::give_up(&[SYS_ADMIN]).context("cannot give up CAP_SYS_ADMIN")?;
    // A signal that comes during the start is honoured when the start is done.
    let mut signals = Signals::new().context("cannot watch for signals")?;
    let hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    hangups().thread_unblock().context("cannot take SIGHUP")?;
    let capacity = limits::capacity(&config);
    let workers = workers(config.process.workers).context("cannot start the worker threads")?;
    let proxy = Arc::new(Proxy {
        bans: Arc::new(Bans::default()),
        host: claims::follow().await,
        asking: Arc::new(Asking::new().context("cannot open a UDP socket")?),
        workers,
        capacity,
        volume: Arc::new(Volume::new(config.process.verbosity)),
        manager: Manager::at(environment.notify.as_deref()).context("NOTIFY_SOCKET")?,
        draining: AtomicBool::new(false),
        ended: Notify::new(),
    });
    // A second instance on the same port ends here, and has touched nothing. Whoever connects is
    // served when everything is ready.
    let prepared = Prepared::first(config.clone(), &proxy)?;
    open_bans(&config.process, &proxy.bans)?;
    let control = control::bind(&config.process)?;
    let targets = config.route_targets();
    let routing = routing::install(&here(&targets), config.process.routing).await?;
    let namespaces = Namespaces::new(gate, config.process.routing, &proxy);
    let namespaces = Arc::new(namespaces);
    namespaces.keep(&targets).await;
    doctor::warn_at_start(&config).await;
    // Netlink connections of the start are closed by tasks of their own: no descriptor is missing
    // when connections come.
    tokio::task::yield_now().await;
    config
        .listeners
        .iter()
        .for_each(|listener| tell(listener, listener.label.as_deref()));
    let (listeners, breaks) = Listeners::start(
        source,
        prepared,
        Arc::clone(&proxy),
        routing.handle(),
        Arc::clone(&namespaces),
    )
    .await;
    proxy.manager.ready();
    let listeners = Arc::new(listeners);
    // Until the last connection has ended, and longer than the reloads.
    let mut reports = JoinSet::new();
    reports.spawn(report_to_systemd(
        Arc::clone(&listeners),
        environment.watchdog,
    ));
    let result = serve(&listeners, control, hangup, breaks, &mut signals).await;
    reports.shutdown().await;
    let restored = routing.restored();
    if restored > 0 {
        tracing::info!(restored, "routing was put back while the proxy ran");
    }
    routing.remove().await;
    namespaces.stop().await;
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

fn start_log(verbosity: Verbosity, format: Option<LogFormat>) -> Result<()> {
    log::init(verbosity, format).context("cannot start the log")
}

async fn serve(
    listeners: &Arc<Listeners>,
    control: Option<control::Place>,
    hangup: Signal,
    mut breaks: mpsc::UnboundedReceiver<Broken>,
    signals: &mut Signals,
) -> Result<()> {
    let proxy = &listeners.proxy;
    let mut administration = JoinSet::new();
    administration.spawn(look_after(Arc::clone(listeners)));
    administration.spawn(reload_at(hangup, Arc::clone(listeners)));
    if let Some(place) = control {
        administration.spawn(administer(place, Arc::clone(listeners)));
    }
    tokio::select! {
        name = signals.next() => tracing::info!(signal = name, open = proxy.open() as u64, "stopping"),
        Some((addr, error)) = breaks.recv() => {
            return Err(error).context(format!("the listener on {addr} broke"));
        }
    }
    proxy.manager.stopping();
    // The one that is started next gets them at once, and with them the bans that come from now on.
    administration.shutdown().await;
    proxy.bans.release();
    proxy.draining.store(true, Ordering::Relaxed);
    listeners.stop().await;
    let patience = listeners.config().await.process.drain_timeout;
    tokio::select! {
        () = drain(proxy, patience) => {}
        name = signals.next() => tracing::info!(signal = name, "stopping at once"),
    }
    farewell(listeners).await;
    Ok(())
}

/// Tells systemd the counts, and that the workers turn.
async fn report_to_systemd(listeners: Arc<Listeners>, watchdog: Option<Duration>) {
    let watch = async {
        if let Some(time) = watchdog {
            systemd::watch(&listeners.proxy.manager, &listeners.proxy.workers, time).await;
        }
    };
    tokio::join!(systemd::show_status(&listeners), watch);
}

/// Serves the control socket.
async fn administer(place: control::Place, listeners: Arc<Listeners>) {
    let office = control::Office {
        listeners,
        started: Instant::now(),
    };
    if let Err(error) = control::serve(place, Arc::new(office)).await {
        tracing::warn!(%error, "the control socket broke");
    }
}

fn open_bans(process: &Process, bans: &Bans) -> Result<()> {
    let Some(directory) = &process.state_dir else {
        return Ok(());
    };
    let name = process.name.as_deref().unwrap_or("realpeer");
    bans.open(&directory.join(format!("{name}.bans")))
        .context("-state-dir")
}

/// Reads the configuration again at each SIGHUP. The log tells what came of it.
async fn reload_at(mut hangup: Signal, listeners: Arc<Listeners>) {
    while hangup.recv().await.is_some() {
        let _ = listeners.reload().await;
    }
}

/// Once a second: says when bans end, which needs nobody, for each look-up compares the time; tries
/// again to write down what a full disk did not take; and lets go what a reload left behind.
async fn look_after(listeners: Arc<Listeners>) {
    let bans = &listeners.proxy.bans;
    let mut second = tokio::time::interval(Duration::from_secs(1));
    for seconds in 0u64.. {
        second.tick().await;
        for ban in bans.expire() {
            tracing::info!(network = %ban.network, reason = ban.reason, listener = ban.listener, "ban ended");
        }
        if seconds % MEND_BANS == MEND_BANS - 1 && bans.mend().is_ok_and(|mended| mended) {
            tracing::info!("the bans are written down again");
        }
        listeners.tidy().await;
    }
}

/// What an administrator may not know of a listener.
fn tell(config: &ListenerConfig, name: Option<&str>) {
    if config.allowed_subnets.is_none() {
        tracing::warn!(
            listener = name,
            "no -allowed-subnets: whoever reaches the listener can claim to be any client; list your load balancers in a file"
        );
    }
    // Who gives one target only may not know that the other family has a default.
    let targets = config.targets;
    let (flag, clients, default) = match (targets.v4_given, targets.v6_given) {
        (true, false) => ("-6", "IPv6", TargetAddr(targets.v6.into())),
        (false, true) => ("-4", "IPv4", TargetAddr(targets.v4.into())),
        _ => return,
    };
    if !config.dynamic_destination {
        tracing::info!(
            listener = name,
            "{flag} was not given: {clients} clients go to its default, {default}"
        );
    }
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
                .spawn(move || {
                    // Entering a container's namespace takes it, which no worker does.
                    let _ = capabilities::give_up(&[SYS_PTRACE]);
                    forever(&runtime);
                })?;
            Ok(worker)
        })
        .collect()
}

fn forever(runtime: &Runtime) {
    runtime.block_on(std::future::pending())
}

/// Waits for the open connections to end, for as long as `-drain-timeout` says.
async fn drain(proxy: &Proxy, patience: Duration) {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let ended = proxy.ended.notified();
        if proxy.open() == 0 || timeout_at(deadline, ended).await.is_err() {
            return;
        }
    }
}

async fn farewell(listeners: &Listeners) {
    let services = listeners.services().await;
    let total = |count| {
        services
            .iter()
            .map(|(service, _)| service.record.count(count))
            .sum::<u64>()
    };
    tracing::info!(
        cut = listeners.proxy.open() as u64,
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
    quit: Signal,
}

impl Signals {
    fn new() -> io::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            // By default it would dump core and leave the routing behind.
            quit: signal(SignalKind::quit())?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            _ = self.quit.recv() => "SIGQUIT",
        }
    }
}
