//! What systemd hears of the running process: see sd_notify(3). Without its notify socket, nothing.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

use crate::listeners::Listeners;
use crate::proxy::Worker;
use crate::stats::Count;

/// How long systemd, which has a long queue, may keep us waiting.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the status is sent, if it has changed.
const STATUS: Duration = Duration::from_secs(2);

/// systemd, if it started us and wants to be notified.
#[derive(Debug, Default)]
pub struct Manager {
    address: Option<SocketAddr>,
    /// It listens to another process now.
    silent: AtomicBool,
}

impl Manager {
    /// Whoever listens on the socket that NOTIFY_SOCKET names: a path, or an abstract name behind `@`.
    pub fn at(socket: Option<&OsStr>) -> io::Result<Manager> {
        let address = socket.map(|name| match name.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name),
            _ => SocketAddr::from_pathname(name),
        });
        Ok(Manager {
            address: address.transpose()?,
            silent: AtomicBool::new(false),
        })
    }

    /// Everything is in place, after a start or a reload.
    pub fn ready(&self) {
        self.notify(&[NotifyState::Ready]);
    }

    /// A reload has begun. `ready` is to follow.
    pub fn reloading(&self) {
        // Since systemd 253 it tells this reload from one before.
        let now = NotifyState::monotonic_usec_now();
        let states = [Some(NotifyState::Reloading), now.ok()];
        self.notify(&states.into_iter().flatten().collect::<Vec<_>>());
    }

    /// Another process is the main one of the service from now on, and is listened to; this one is
    /// silent.
    pub fn succeeded_by(&self, pid: u32) {
        self.notify(&[NotifyState::MainPid(pid)]);
        self.silent.store(true, Ordering::Relaxed);
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.notify(&[NotifyState::Stopping]);
    }

    fn notify(&self, states: &[NotifyState<'_>]) {
        if let Err(error) = self.send(states) {
            tracing::warn!(%error, "cannot notify systemd");
        }
    }

    /// The crate's own function would look for the socket in the environment.
    fn send(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let Some(address) = &self.address else {
            return Ok(());
        };
        if self.silent.load(Ordering::Relaxed) {
            return Ok(());
        }
        let lines: String = states.iter().map(|state| format!("{state}\n")).collect();
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(PATIENCE))?;
        socket.send_to_addr(lines.as_bytes(), address).map(drop)
    }
}

/// Sends what `systemctl status` shows.
pub async fn show_status(listeners: &Listeners) {
    let manager = &listeners.proxy.manager;
    if manager.address.is_none() {
        return;
    }
    let mut tick = interval(STATUS);
    let mut shown = String::new();
    loop {
        tick.tick().await;
        let now = status(listeners).await;
        if now != shown && manager.send(&[NotifyState::Status(&now)]).is_ok() {
            shown = now;
        }
    }
}

async fn status(listeners: &Listeners) -> String {
    let services = listeners.services().await;
    let total = |counts: &[Count]| -> u64 {
        let records = services.iter().map(|(service, _)| &service.record);
        records
            .flat_map(|record| counts.iter().map(|count| record.count(*count)))
            .sum()
    };
    let proxy = &listeners.proxy;
    format!(
        "{} open, {} accepted, {} served, {} refused, {} banned",
        proxy.open(),
        total(&[Count::Accepted]),
        total(&[Count::Served]),
        total(Count::REFUSALS),
        proxy.bans.list().len()
    )
}

/// Tells systemd's watchdog that all threads turn: the calling one, for this runs on it, and the
/// workers, for each has to finish a task within half the watchdog's time.
pub async fn watch(manager: &Manager, workers: &[Worker], time: Duration) {
    // Half the time and a quarter: even a slow answer is told in time.
    let mut tick = interval(time / 4);
    let mut silent = false;
    loop {
        tick.tick().await;
        let answered = timeout(time / 2, all_turn(workers)).await.is_ok();
        if !answered && !silent {
            tracing::error!("a worker thread hangs: systemd's watchdog is no longer pinged");
        }
        silent = !answered;
        if answered {
            let _ = manager.send(&[NotifyState::Watchdog]);
        }
    }
}

async fn all_turn(workers: &[Worker]) {
    let mut tasks = JoinSet::new();
    for worker in workers {
        tasks.spawn_on(async {}, &worker.handle);
    }
    while tasks.join_next().await.is_some() {}
}
