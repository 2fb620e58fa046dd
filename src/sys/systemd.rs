//! What systemd says by environment variables. They are taken out of the environment, so that no
//! child believes them to be its own.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::time::Duration;

/// What there was to take.
#[derive(Debug, Default)]
pub struct Environment {
    /// The address of the notify socket (NOTIFY_SOCKET).
    pub notify: Option<OsString>,
    /// How often systemd wants to hear of us at least (WATCHDOG_USEC, WATCHDOG_PID).
    pub watchdog: Option<Duration>,
}

const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Takes it. To be called before there are other threads; fails if there are.
pub fn take_environment() -> io::Result<Environment> {
    if VARIABLES.iter().all(|name| env::var_os(name).is_none()) {
        return Ok(Environment::default());
    }
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("there are other threads already"));
    }
    let environment = Environment {
        notify: env::var_os("NOTIFY_SOCKET"),
        watchdog: sd_notify::watchdog_enabled().filter(|time| !time.is_zero()),
    };
    for name in VARIABLES {
        // SAFETY: nobody reads the environment meanwhile, for this thread is the only one.
        unsafe { env::remove_var(name) };
    }
    Ok(environment)
}
