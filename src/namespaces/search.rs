//! Where a namespace is now, and when that changes: without polling.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{Door, Namespace, engine};
use crate::config::TargetNetns;
use crate::sys;
use crate::sys::netns::{self, Identity};

/// Tells the namespace where it is, for as long as it is asked for.
pub async fn follow(namespace: Arc<Namespace>, door: Door) {
    match &namespace.netns {
        TargetNetns::Path(path) => follow_path(path, &namespace, &door).await,
        TargetNetns::Process(pid) => follow_process(*pid, &namespace, &door).await,
        TargetNetns::Container {
            engine,
            name,
            socket,
        } => engine::follow(*engine, name, socket, &namespace, &door).await,
    }
}

/// Where it is now, or why it is not.
pub async fn find(netns: &TargetNetns) -> Result<OwnedFd, String> {
    match netns {
        TargetNetns::Path(path) => netns::open(path).map_err(|e| no_file(&e)),
        TargetNetns::Process(pid) => netns::process(*pid).map_err(|e| no_process(*pid, &e)),
        TargetNetns::Container {
            engine,
            name,
            socket,
        } => engine::find(*engine, name, socket).await,
    }
}

/// A namespace file is a mount: it comes and goes with one, which the kernel announces.
async fn follow_path(path: &Path, namespace: &Namespace, door: &Door) {
    let mounts = Mounts::open();
    let mut told: Option<Option<Identity>> = None;
    loop {
        let found = netns::open(path);
        // While we are in a namespace, no other one gets its inode.
        let is = found.as_ref().ok().and_then(|file| identity(file).ok());
        if told != Some(is) {
            told = Some(is);
            let found = found.map_err(|error| no_file(&error));
            namespace.settle(found, door).await;
        }
        mounts.change().await;
    }
}

fn identity(file: &OwnedFd) -> io::Result<Identity> {
    netns::identity(&File::from(file.try_clone()?))
}

fn no_file(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ELOOP) => {
            "its path leads over a symbolic link, which is not followed: write the path without links, and pid:N for a process".to_owned()
        }
        _ => format!("cannot open it: {error}"),
    }
}

async fn follow_process(pid: u32, namespace: &Namespace, door: &Door) {
    let found = netns::process(pid).map_err(|error| no_process(pid, &error));
    let process = found.as_ref().ok().and_then(|fd| fd.try_clone().ok());
    namespace.settle(found, door).await;
    if let Some(process) = process {
        end_of(process).await;
        let ended = Err(format!("the process {pid} has ended"));
        namespace.settle(ended, door).await;
    }
    // Who gets the number next is somebody else.
    std::future::pending().await
}

fn no_process(pid: u32, error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(libc::ESRCH) => format!("there is no process {pid}"),
        _ => format!("cannot open the process {pid}: {error}"),
    }
}

/// Waits until the process of a pidfd has ended.
pub async fn end_of(process: OwnedFd) {
    match sys::socket::register_for(process, Interest::READABLE) {
        Ok(process) => _ = process.readable().await,
        Err(error) => {
            tracing::debug!(%error, "cannot watch a process");
            std::future::pending().await
        }
    }
}

/// Tells when something is mounted or unmounted (proc_pid_mountinfo(5)).
struct Mounts(Option<AsyncFd<OwnedFd>>);

impl Mounts {
    fn open() -> Mounts {
        let file = File::open("/proc/self/mountinfo");
        let file = file.and_then(|file| sys::socket::register_for(file.into(), Interest::PRIORITY));
        if let Err(error) = &file {
            tracing::warn!(%error, "cannot hear of mounts: a namespace file that is replaced will not be followed");
        }
        Mounts(file.ok())
    }

    async fn change(&self) {
        let Some(file) = &self.0 else {
            return std::future::pending().await;
        };
        match file.ready(Interest::PRIORITY).await {
            Ok(mut ready) => ready.clear_ready(),
            Err(_) => std::future::pending().await,
        }
    }
}
