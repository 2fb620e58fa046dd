//! A thread inside a namespace: it makes sockets there and keeps the routing, and does nothing else.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Type};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Inside, Pool, search};
use crate::claims;
use crate::config::{Protocol, RouteTarget, Routing, TargetNetns};
use crate::routing;
use crate::sys::capabilities::{NET_ADMIN, NET_RAW, keep_only};
use crate::sys::netns;
use crate::upstream::Asking;

/// A thread's way into a namespace.
#[derive(Debug)]
pub struct Arrival {
    /// A namespace file, or a process in it.
    pub namespace: OwnedFd,
    /// The targets there.
    pub targets: Vec<RouteTarget>,
    /// About their routing.
    pub routing: Routing,
    /// Hears how it went.
    pub reply: oneshot::Sender<Result<Arc<Inside>, String>>,
    /// Tells when the process stops.
    pub stop: watch::Receiver<bool>,
    /// Held until the thread ends.
    pub open: mpsc::Sender<()>,
}

/// Enters a namespace and stays until nobody uses it any more.
pub fn reside(arrival: Arrival) {
    let entered = enter(&arrival.namespace);
    // It is no longer needed, nor shall it keep a process's number in use.
    let Arrival {
        targets,
        routing,
        reply,
        stop,
        open,
        ..
    } = arrival;
    match entered {
        Ok(runtime) => runtime.block_on(live(&targets, routing, reply, stop)),
        Err(reason) => _ = reply.send(Err(reason)),
    }
    drop(open);
}

/// Moves the calling thread there, for good, and gives up what only that took.
fn enter(namespace: &OwnedFd) -> Result<Runtime, String> {
    let ours = netns::current().map_err(|e| format!("cannot tell where we are: {e}"))?;
    netns::enter(namespace).map_err(|error| cannot_enter(&error))?;
    if netns::current().is_ok_and(|now| now == ours) {
        return Err(
            "it is this host's own network, where targets need no -target-netns".to_owned(),
        );
    }
    keep_only(&[NET_ADMIN, NET_RAW]).map_err(|e| format!("cannot give up capabilities: {e}"))?;
    let runtime = Builder::new_current_thread().enable_all().build();
    runtime.map_err(|e| format!("cannot start a runtime in it: {e}"))
}

fn cannot_enter(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "entering it takes CAP_SYS_ADMIN, and by a process or container CAP_SYS_PTRACE: run realpeer as root, or install the drop-in containers.conf for its unit".to_owned()
        }
        Some(libc::ESRCH) => "its process has ended".to_owned(),
        _ => format!("cannot enter it: {error}"),
    }
}

async fn live(
    targets: &[RouteTarget],
    routing: Routing,
    reply: oneshot::Sender<Result<Arc<Inside>, String>>,
    mut stop: watch::Receiver<bool>,
) {
    let asking = match Asking::new() {
        Ok(asking) => asking,
        Err(e) => {
            let _ = reply.send(Err(format!("cannot open a socket in it: {e}")));
            return;
        }
    };
    let installed = match routing::install(targets, routing).await {
        Ok(installed) => installed,
        Err(e) => {
            let _ = reply.send(Err(format!("{e:#}")));
            return;
        }
    };
    let sockets = Arc::new(Pool::default());
    for target in targets {
        let transport = match target.protocol {
            Protocol::Tcp => Type::STREAM,
            Protocol::Udp => Type::DGRAM,
        };
        sockets.prepare(Domain::for_address(target.target), transport);
    }
    let (used, unused) = oneshot::channel();
    let inside = Inside {
        sockets: Arc::clone(&sockets),
        asking,
        marks: installed.handle().marks(),
        addresses: claims::follow().await,
        routing: installed.handle(),
        left: AtomicBool::new(false),
        _used: used,
    };
    // Whoever asked may be gone: then nobody holds it, and that is told at once.
    let _ = reply.send(Ok(Arc::new(inside)));
    tokio::select! {
        () = sockets.fill() => {}
        _ = unused => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
    installed.remove().await;
}

/// Runs `action` on a thread inside a namespace, for commands. Fails if it is not there.
pub fn within<T: Send>(
    netns: Option<&TargetNetns>,
    action: impl FnOnce(&Runtime) -> Result<T> + Send,
) -> Result<T> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let Some(netns) = netns else {
        return action(&runtime);
    };
    let found = runtime.block_on(search::find(netns));
    let found = found.map_err(|reason| anyhow!("-target-netns {netns}: {reason}"))?;
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let runtime = enter(&found).map_err(|why| anyhow!("-target-netns {netns}: {why}"))?;
            action(&runtime)
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
