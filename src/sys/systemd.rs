//! What systemd, or a process before this one, says by environment variables. They are taken out of
//! the environment, so that no child believes them to be its own.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::passing;
use crate::starter::{self, Starter};

/// What there was to take.
#[derive(Debug, Default)]
pub struct Environment {
    /// The address of the notify socket (NOTIFY_SOCKET).
    pub notify: Option<OsString>,
    /// How often systemd wants to hear of us at least (WATCHDOG_USEC, WATCHDOG_PID).
    pub watchdog: Option<Duration>,
    /// The sockets of a socket unit, with their names (LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID).
    pub sockets: Vec<(OwnedFd, String)>,
    /// Of a process that this one is to take over from: the hand-over socket, and what is to be
    /// standard error once this one serves.
    pub predecessor: Option<(OwnedFd, OwnedFd)>,
    /// Starts the program anew; without it there is no hand-over.
    pub starter: Option<Starter>,
}

const VARIABLES: [&str; 7] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    starter::VARIABLE,
];

/// The first number of a passed descriptor (sd_listen_fds(3)).
const FIRST: i32 = 3;

/// Takes it. To be called before there are other threads; fails if there are.
pub fn take_environment() -> io::Result<Environment> {
    if VARIABLES.iter().all(|name| env::var_os(name).is_none()) {
        return Ok(Environment::default());
    }
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("there are other threads already"));
    }
    let predecessor = match starter::numbers() {
        Some((socket, error)) => Some((passing::inherit(socket)?, passing::inherit(error)?)),
        None => None,
    };
    let environment = Environment {
        notify: env::var_os("NOTIFY_SOCKET"),
        watchdog: sd_notify::watchdog_enabled().filter(|time| !time.is_zero()),
        sockets: sockets()?,
        predecessor,
        starter: None,
    };
    for name in VARIABLES {
        // SAFETY: nobody reads the environment meanwhile, for this thread is the only one.
        unsafe { env::remove_var(name) };
    }
    Ok(environment)
}

/// The sockets that are passed to this process, and not to one before it.
fn sockets() -> io::Result<Vec<(OwnedFd, String)>> {
    let number = |name| env::var(name).ok()?.parse::<i32>().ok();
    let is_ours = number("LISTEN_PID").is_some_and(|pid| pid == nix::unistd::getpid().as_raw());
    let count = number("LISTEN_FDS").filter(|_| is_ours).unwrap_or(0);
    let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':');
    let sockets = (FIRST..FIRST.saturating_add(count)).map(|number| {
        let name = names.next().unwrap_or_default().to_owned();
        let socket = passing::inherit(number).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("LISTEN_FDS: descriptor {number}: {error}"),
            )
        })?;
        Ok((socket, name))
    });
    sockets.collect()
}
