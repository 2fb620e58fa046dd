//! A thread inside a namespace: it makes sockets there and keeps the routing, and does nothing else.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use socket2::{Domain, Type};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Inheritance, Inside, Pool, Stop, search};
use crate::claims;
use crate::config::{Parts, Protocol, RouteTarget, Routing, TargetNetns};
use crate::routing;
use crate::sandbox;
use crate::sys::netns::{self, Identity};
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
    /// What it gives up inside.
    pub sandbox: Parts,
    /// What processes before this one have put in.
    pub inherited: Arc<Mutex<Vec<Inheritance>>>,
    /// Hears how it went.
    pub reply: oneshot::Sender<Result<Arc<Inside>, String>>,
    /// Tells when the process stops.
    pub stop: watch::Receiver<Stop>,
    /// Held until the thread ends.
    pub open: mpsc::Sender<()>,
}

/// Enters a namespace and stays until nobody uses it any more.
pub fn reside(arrival: Arrival) {
    let Arrival {
        namespace,
        targets,
        routing,
        sandbox,
        inherited,
        reply,
        stop,
        open,
    } = arrival;
    let entered = enter(&namespace, sandbox);
    // It is no longer needed, nor shall it keep a process's number in use.
    drop(namespace);
    match entered {
        Ok((runtime, identity)) => {
            let mut all = inherited.lock().unwrap_or_else(PoisonError::into_inner);
            let here = all.iter().position(|(place, ..)| *place == identity);
            let inherited = here.map(|here| all.swap_remove(here));
            drop(all);
            let stay = Stay {
                identity,
                targets,
                inherited,
                routing,
                stop,
            };
            runtime.block_on(stay.live(reply));
        }
        Err(reason) => _ = reply.send(Err(reason)),
    }
    drop(open);
}

/// A thread's time in a namespace.
struct Stay {
    identity: Identity,
    targets: Vec<RouteTarget>,
    inherited: Option<Inheritance>,
    routing: Routing,
    stop: watch::Receiver<Stop>,
}

/// Moves the calling thread there, for good, and gives up what only that took.
fn enter(namespace: &OwnedFd, sandbox: Parts) -> Result<(Runtime, Identity), String> {
    let ours = netns::current().map_err(|e| format!("cannot tell where we are: {e}"))?;
    netns::enter(namespace).map_err(|error| cannot_enter(&error))?;
    let here = netns::current().map_err(|e| format!("cannot tell where we are: {e}"))?;
    if here == ours {
        return Err(
            "it is this host's own network, where targets need no -target-netns".to_owned(),
        );
    }
    sandbox::renounce_namespaces(sandbox)
        .map_err(|e| format!("cannot give up privileges: {e:#}"))?;
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| format!("cannot start a runtime in it: {e}"))?;
    Ok((runtime, here))
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

impl Stay {
    async fn live(mut self, reply: oneshot::Sender<Result<Arc<Inside>, String>>) {
        let asking = match Asking::new() {
            Ok(asking) => asking,
            Err(e) => {
                let _ = reply.send(Err(format!("cannot open a socket in it: {e}")));
                return;
            }
        };
        let inherited = self.inherited.take().map(|(_, paper, lock)| (paper, lock));
        let installed = match routing::install(&self.targets, self.routing, inherited).await {
            Ok(installed) => installed,
            Err(e) => {
                let _ = reply.send(Err(format!("{e:#}")));
                return;
            }
        };
        let sockets = Arc::new(Pool::default());
        for target in &self.targets {
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
            identity: self.identity,
            routing: installed.handle(),
            left: AtomicBool::new(false),
            _used: used,
        };
        // Whoever asked may be gone: then nobody holds it, and that is told at once.
        let _ = reply.send(Ok(Arc::new(inside)));
        let remove = tokio::select! {
            // What is told counts more than that nobody needs it any more.
            biased;
            how = self.stop.wait_for(|stop| *stop != Stop::Not) => {
                how.is_ok_and(|how| *how == Stop::Remove)
            }
            _ = unused => true,
            () = sockets.fill() => true,
        };
        match remove {
            true => installed.remove().await,
            false => installed.leave().await,
        }
    }
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
            let entered = enter(&found, Parts::NONE);
            let (runtime, _) = entered.map_err(|why| anyhow!("-target-netns {netns}: {why}"))?;
            action(&runtime)
        });
        inside
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
