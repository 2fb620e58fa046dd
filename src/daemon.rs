//! The running process: the order of start, signals, and the end.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::SigSet;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::addr::TargetAddr;
use crate::bans::{self, Bans};
use crate::claims;
use crate::config::{self, Config, ListenerConfig, Process, Source};
use crate::control;
use crate::crowdsec;
use crate::doctor;
use crate::events::Events;
use crate::handover::channel::Channel;
use crate::handover::elders::Elders;
use crate::handover::heir::{Estate, Heir};
use crate::handover::message::{FromNew, FromOld};
use crate::handover::succession::{Order, Succession};
use crate::handover::upgrade::{Succeeded, Upgrade};
use crate::limits;
use crate::listeners::{Listeners, Prepared};
use crate::listening::Broken;
use crate::log;
use crate::metrics;
use crate::namespaces::{Gate, Namespaces, here};
use crate::proxy::{Proxy, Worker};
use crate::report::Volume;
use crate::routing;
use crate::sandbox::{self, Written};
use crate::sockets::Sockets;
use crate::starter::Starter;
use crate::stats::Count;
use crate::sys::systemd::Environment;
use crate::systemd::{self, Manager};
use crate::upstream::Asking;

/// Seconds between attempts to write bans to a disk that was full.
const MEND_BANS: u64 = 10;

/// Runs the proxy until a signal ends it. `environment` is what systemd passed on.
pub async fn run(source: Source, environment: Environment) -> Result<()> {
    // That of a process which takes over is a pipe until it serves.
    let own_stderr = io::stderr();
    let stderr = match &environment.predecessor {
        Some((_, stderr)) => stderr.as_fd(),
        None => own_stderr.as_fd(),
    };
    let mut config = match &source {
        // What is wrong with the rest then goes to the log.
        Source::Flags(drafts) => {
            let process = &config::process(drafts.0.clone());
            become_user(process, drafts.1.target_netns.is_some())?;
            start_log(process, stderr)?;
            source.read()?
        }
        Source::File { .. } => {
            let config = source.read()?;
            become_user(&config.process, config.enters_namespaces())?;
            start_log(&config.process, stderr)?;
            config
        }
    };
    // It keeps the capabilities by which namespaces are entered; the sandbox takes them from this thread.
    let gate = Gate::open(&config)?;
    // A signal that comes during the start is honoured when the start is done.
    let mut signals = Signals::new().context("cannot watch for signals")?;
    let hangup = signal(SignalKind::hangup()).context("cannot watch for SIGHUP")?;
    let upgrade = signal(SignalKind::user_defined2()).context("cannot watch for SIGUSR2")?;
    let held = held_back().thread_unblock();
    held.context("cannot take SIGHUP and SIGUSR2")?;
    let (mut heir, mut sockets) = predecessor(environment.predecessor).await?;
    if heir.is_none() {
        let given = Sockets::of_systemd(environment.sockets).context("socket activation")?;
        sockets = given;
    }
    for note in sockets.fit(&mut config).context("socket activation")? {
        tracing::warn!("{note}");
    }
    let capacity = limits::capacity(&config);
    let (workers, runtimes) = workers(config.process.workers).context("cannot make the workers")?;
    let events = Arc::<Events>::default();
    let proxy = Arc::new(Proxy {
        bans: Arc::new(Bans::new(Arc::clone(&events))),
        events,
        crowdsec: config.process.crowdsec.as_ref().map(crowdsec::State::of),
        host: claims::follow().await,
        asking: Arc::new(Asking::new().context("cannot open a UDP socket")?),
        workers,
        capacity,
        volume: Arc::new(Volume::new(config.process.verbosity)),
        manager: Manager::at(environment.notify.as_deref()).context("NOTIFY_SOCKET")?,
        draining: AtomicBool::new(false),
        elders: Elders::default(),
        ended: Notify::new(),
        sandbox: OnceLock::new(),
        started: SystemTime::now(),
    });
    // A second instance on the same port ends here, and has touched nothing. Whoever connects is
    // served when everything is ready.
    let mut prepared = Prepared::first(config.clone(), &proxy, &mut sockets)?;
    let metrics = metrics::bind(&config.process, &mut sockets).await?;
    sockets.refuse_rest().context("socket activation")?;
    let activated = sockets.into_activated();
    if heir.is_none() {
        open_bans(&config.process, &proxy.bans)?;
    }
    let inherited = heir.as_mut().and_then(|heir| heir.control.take());
    let control = control::bind(&config.process, inherited)?;
    let (routing, namespaces) = install_routing(&config, heir.as_mut(), gate, &proxy).await?;
    doctor::warn_at_start(&config).await;
    // Netlink connections of the start are closed by tasks of their own: no descriptor is missing
    // when connections come.
    tokio::task::yield_now().await;
    let sandbox = sandbox::enter(&config, &source, control.as_ref()).context("-sandbox")?;
    let _ = proxy.sandbox.set(sandbox);
    run_workers(runtimes).context("cannot start the worker threads")?;
    let mut links = Vec::new();
    if let Some(heir) = &mut heir {
        let control = matches!(&control, Some(control::Place::Ours(ours)) if ours.is_inherited());
        links = take_over(heir, &mut prepared, &config, &proxy, control).await?;
    }
    if let Some(control::Place::Ours(bound)) = &control {
        bound.own();
    }
    config
        .listeners
        .iter()
        .for_each(|listener| tell(listener, listener.label.as_deref()));
    let (listeners, breaks) = Listeners::start(
        source,
        prepared,
        Arc::clone(&proxy),
        routing.handle(),
        activated,
        Arc::clone(&namespaces),
    )
    .await;
    if let Some(heir) = heir {
        heir.settle(links, &proxy.elders).await;
    }
    proxy.manager.ready();
    let listeners = Arc::new(listeners);
    if let Some(engine) = config.process.crowdsec {
        crowdsec::start(engine, Arc::clone(&listeners)).context("cannot start a thread")?;
    }
    // Until the last connection has ended, and longer than the reloads.
    let mut reports = JoinSet::new();
    reports.spawn(report_to_systemd(
        Arc::clone(&listeners),
        environment.watchdog,
    ));
    let handle = routing.handle();
    let (succession, orders) = Succession::new();
    let mut process = Serving {
        office: Arc::new(control::Office {
            listeners: Arc::clone(&listeners),
            started: Instant::now(),
            succession,
        }),
        starter: environment.starter,
        routing: &handle,
        metrics,
        orders,
        breaks,
    };
    let result = process.serve(control, hangup, upgrade, &mut signals).await;
    reports.shutdown().await;
    let restored = routing.restored();
    if restored > 0 {
        tracing::info!(restored, "routing was put back while the proxy ran");
    }
    match &result {
        Ok(End::Succeeded) => {
            routing.leave().await;
            namespaces.leave().await;
        }
        _ => {
            routing.remove().await;
            namespaces.stop().await;
        }
    }
    result.map(|_| ())
}

/// The process to take over from, if there is one and it has not ended, and its sockets.
async fn predecessor(given: Option<(OwnedFd, OwnedFd)>) -> Result<(Option<Heir>, Sockets)> {
    let Some((socket, error)) = given else {
        return Ok((None, Sockets::default()));
    };
    match Heir::greet(socket, error).await? {
        Some((heir, sockets)) => Ok((Some(heir), sockets)),
        None => Ok((None, Sockets::default())),
    }
}

/// Puts in the routing of all targets, on this host and in the namespaces of others.
async fn install_routing(
    config: &Config,
    heir: Option<&mut Heir>,
    gate: Option<Gate>,
    proxy: &Arc<Proxy>,
) -> Result<(routing::Installed, Arc<Namespaces>)> {
    let mut targets = config.route_targets();
    let (mut inherited, mut inside) = (None, Vec::new());
    if let Some(heir) = heir {
        let old = heir.targets.iter().filter(|old| !targets.contains(old));
        let old: Vec<_> = old.cloned().collect();
        targets.extend(old);
        inherited = heir.routing.take();
        inside = std::mem::take(&mut heir.inside);
    }
    let routing = config.process.routing;
    let installed = routing::install(&here(&targets), routing, inherited).await?;
    let namespaces = Namespaces::new(gate, &config.process, proxy, inside);
    namespaces.keep(&targets).await;
    Ok((installed, Arc::new(namespaces)))
}

/// Takes over what the old process had until now, and serves when this returns. Tells the ways to
/// processes that are still older.
async fn take_over(
    heir: &mut Heir,
    prepared: &mut Prepared,
    config: &Config,
    proxy: &Proxy,
    control: bool,
) -> Result<Vec<(u32, bans::UnixSeconds, Channel)>> {
    let mut estate = heir.take_over(prepared.given(), control).await?;
    open_bans(&config.process, &proxy.bans)?;
    let links = estate.links();
    let Estate {
        bans,
        mut listeners,
        verbosity,
        is_whole,
        ..
    } = estate;
    if is_whole {
        proxy.bans.take_over(bans);
    }
    if let Some(verbosity) = verbosity {
        proxy.volume.set(verbosity);
        log::set_verbosity(verbosity);
    }
    listeners.targets.clone_from(&heir.targets);
    prepared.inherit(listeners);
    let above = heir.wait().await?;
    for worker in &proxy.workers {
        worker.sessions.begin_above(above);
    }
    Ok(links)
}

/// Why the process ends.
enum End {
    /// It was told to stop.
    Stopped,
    /// Another one serves.
    Succeeded,
}

/// The process while it serves.
struct Serving<'a> {
    office: Arc<control::Office>,
    starter: Option<Starter>,
    routing: &'a routing::Handle,
    metrics: Option<metrics::Bound>,
    orders: mpsc::Receiver<Order>,
    breaks: mpsc::UnboundedReceiver<Broken>,
}

impl Serving<'_> {
    async fn serve(
        &mut self,
        control: Option<control::Place>,
        hangup: Signal,
        upgrade: Signal,
        signals: &mut Signals,
    ) -> Result<End> {
        let listeners = Arc::clone(&self.office.listeners);
        let proxy = &listeners.proxy;
        let mut administration = JoinSet::new();
        administration.spawn(look_after(Arc::clone(&listeners)));
        administration.spawn(reload_at(hangup, Arc::clone(&listeners)));
        administration.spawn(upgrade_at(upgrade, Arc::clone(&self.office)));
        let mut clients = JoinSet::new();
        // While sessions end, too.
        let mut pages = JoinSet::new();
        if let Some(bound) = &self.metrics {
            pages.spawn(metrics::serve(bound.listener()?, Arc::clone(&self.office)));
        }
        if let Some(place) = control {
            clients.spawn(administer(place, Arc::clone(&self.office)));
        }
        let succeeded = tokio::select! {
            name = signals.next() => {
                tracing::info!(signal = name, open = proxy.open() as u64, "stopping");
                None
            }
            Some((addr, error)) = self.breaks.recv() => {
                return Err(error).context(format!("the listener on {addr} broke"));
            }
            succeeded = succeeded(&mut self.orders, self.starter.as_ref(), &self.office, self.routing, self.metrics.as_ref()) => {
                Some(succeeded)
            }
        };
        administration.shutdown().await;
        proxy.draining.store(true, Ordering::Relaxed);
        if let Some(succeeded) = succeeded {
            self.starter = None;
            self.metrics = None;
            listeners.namespaces().rest();
            finish(succeeded, &self.office, signals).await;
            // Those who ask for metrics at this moment have their answer, or run out of time.
            while pages.join_next().await.is_some() {}
            return Ok(End::Succeeded);
        }
        proxy.manager.stopping();
        // The one that is started next gets them at once, and with them the bans that come from now on.
        clients.shutdown().await;
        self.office.succession.close_control();
        proxy.bans.release();
        listeners.stop().await;
        proxy.elders.stop().await;
        let patience = listeners.config().await.process.drain_timeout;
        tokio::select! {
            () = drain(proxy, Some(patience)) => {}
            name = signals.next() => tracing::info!(signal = name, "stopping at once"),
        }
        farewell(&listeners).await;
        Ok(End::Stopped)
    }
}

/// Waits until another process serves, which is tried whenever somebody orders it.
async fn succeeded(
    orders: &mut mpsc::Receiver<Order>,
    starter: Option<&Starter>,
    office: &control::Office,
    routing: &routing::Handle,
    metrics: Option<&metrics::Bound>,
) -> Succeeded {
    while let Some(order) = orders.recv().await {
        let upgraded = match starter {
            Some(starter) => {
                let upgrade = Upgrade {
                    starter,
                    listeners: &office.listeners,
                    succession: &office.succession,
                    routing,
                    metrics,
                };
                upgrade.run().await
            }
            None => Err(anyhow!("nobody is here to start another process")),
        };
        match upgraded {
            Ok(succeeded) => {
                tracing::info!(pid = succeeded.pid, "another process serves now");
                let _ = order.send(Ok(succeeded.pid));
                return succeeded;
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "the upgrade failed: this process goes on");
                let _ = order.send(Err(error));
            }
        }
    }
    std::future::pending().await
}

/// Carries the sessions that are left to their end, and answers what the new process asks of them.
async fn finish(succeeded: Succeeded, office: &control::Office, signals: &mut Signals) {
    let proxy = &office.listeners.proxy;
    let process = office.listeners.config().await.process;
    let told = async {
        tokio::select! {
            () = answer(&succeeded.channel, office) => "the new process",
            name = signals.next() => name,
        }
    };
    let told = tokio::select! {
        () = drain(proxy, process.upgrade_drain) => None,
        by = told => Some(by),
    };
    if let Some(by) = told {
        tracing::info!(by, open = proxy.open() as u64, "stopping");
        tokio::select! {
            () = drain(proxy, Some(process.drain_timeout)) => {}
            name = signals.next() => tracing::info!(signal = name, "stopping at once"),
        }
    }
    farewell(&office.listeners).await;
}

/// Answers the new process until that wants this one to stop.
async fn answer(channel: &Channel, office: &control::Office) {
    /// Lines in one message.
    const LINES: usize = 100;
    loop {
        let (number, request) = match channel.receive().await {
            Ok((FromNew::Ask { number, request }, _)) => (number, request),
            Ok((FromNew::Stop, _)) => return,
            Ok(_) => continue,
            // It was killed: nobody could see or end these sessions any more.
            Err(_) => return,
        };
        let mut lines = office.answer_alone(request).await;
        while !lines.is_empty() {
            let rest = lines.split_off(lines.len().min(LINES));
            let last = rest.is_empty();
            let message = FromOld::Answer {
                number,
                lines: std::mem::replace(&mut lines, rest),
                last,
            };
            if channel.send(&message, &[]).await.is_err() {
                break;
            }
        }
    }
}

/// Has a new process take over at each SIGUSR2. The log tells what came of it.
async fn upgrade_at(mut order: Signal, office: Arc<control::Office>) {
    while order.recv().await.is_some() {
        if let Err(error) = office.succession.order().await {
            tracing::warn!(error, "SIGUSR2: not upgraded");
        }
    }
}

/// Holds back SIGHUP and SIGUSR2, which would end the process, until `run` takes them. To be called before
/// anything that may last, such as the look-up of a name; SIGTERM may end that.
pub fn hold_hangups() -> Result<()> {
    held_back()
        .thread_block()
        .context("cannot hold back SIGHUP and SIGUSR2")
}

fn held_back() -> SigSet {
    SigSet::from_iter([nix::sys::signal::SIGHUP, nix::sys::signal::SIGUSR2])
}

fn start_log(process: &Process, stderr: BorrowedFd<'_>) -> Result<()> {
    let parts = process.sandbox;
    let begin = move || sandbox::renounce(parts);
    log::init(process.verbosity, process.log_format, stderr, begin).context("cannot start the log")
}

/// As `-user` says. What is written then belongs to that user.
fn become_user(process: &Process, enters_namespaces: bool) -> Result<()> {
    let Some(user) = &process.user else {
        return Ok(());
    };
    let control = control::path(&process.control, process.name.as_deref());
    let lock = control.map(|path| Written {
        file: control::lock_path(&path),
        mode: 0o755,
    });
    let bans = bans_file(process).map(|file| Written { file, mode: 0o700 });
    let writes: Vec<_> = lock.into_iter().chain(bans).collect();
    sandbox::become_user(user, &writes, enters_namespaces).context("-user")
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
async fn administer(place: control::Place, office: Arc<control::Office>) {
    if let Err(error) = control::serve(place, office).await {
        tracing::warn!(%error, "the control socket broke");
    }
}

fn open_bans(process: &Process, bans: &Bans) -> Result<()> {
    match bans_file(process) {
        Some(file) => bans.open(&file).context("-state-dir"),
        None => Ok(()),
    }
}

fn bans_file(process: &Process) -> Option<PathBuf> {
    let name = process.name.as_deref().unwrap_or("realpeer");
    let directory = process.state_dir.as_ref()?;
    Some(directory.join(format!("{name}.bans")))
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
        listeners.proxy.elders.forget_ended();
        listeners.tidy().await;
    }
}

/// What an administrator may not know of a listener.
fn tell(config: &ListenerConfig, name: Option<&str>) {
    if config.allowed_subnets.is_none() {
        tracing::warn!(listener = name, "{}", doctor::ANYBODY);
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

/// Workers, and what their threads are to run: the connections given to them.
fn workers(count: usize) -> io::Result<(Vec<Worker>, Vec<&'static Runtime>)> {
    (0..count)
        .map(|number| {
            let runtime = Builder::new_current_thread()
                .enable_io()
                .enable_time()
                .build()?;
            // They run until the process ends.
            let runtime: &Runtime = Box::leak(Box::new(runtime));
            let worker = Worker::new(runtime.handle().clone(), number, count);
            Ok((worker, runtime))
        })
        .collect()
}

/// Starts the threads of the workers, which inherit the sandbox.
fn run_workers(runtimes: Vec<&'static Runtime>) -> io::Result<()> {
    for (number, runtime) in runtimes.into_iter().enumerate() {
        std::thread::Builder::new()
            .name(format!("worker-{number}"))
            .spawn(|| forever(runtime))?;
    }
    Ok(())
}

fn forever(runtime: &Runtime) {
    runtime.block_on(std::future::pending())
}

/// Waits for the open connections to end, and for those of processes before this one; `None` for
/// any time.
async fn drain(proxy: &Proxy, patience: Option<Duration>) {
    /// How often the others are looked at.
    const LOOK: Duration = Duration::from_millis(50);
    let all = async {
        loop {
            let ended = proxy.ended.notified();
            if proxy.open() > 0 {
                ended.await;
                continue;
            }
            proxy.elders.forget_ended();
            if proxy.elders.are_gone() {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    match patience {
        Some(patience) => _ = tokio::time::timeout(patience, all).await,
        None => all.await,
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
