//! Least privilege: once everything is in place, and before a stranger's first byte is read, the
//! process gives up what its configuration does not need. Every thread that comes later inherits it.
//!
//! ```text
//! user ─▶ (everything is bound) ─▶ landlock ─▶ capabilities ─▶ seccomp ─▶ workers
//! ```
//!
//! exec is forbidden: a sandbox is inherited by what a process executes. A hand-over starts the new
//! program from a process that was forked before all this, and that parses nothing.

mod capabilities;
mod landlock;
mod seccomp;
mod user;

use std::fmt;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::LazyLock;

use anyhow::{Context, Result, bail};
use caps::{Capability, CapsHashSet, errors::CapsError};
use nix::unistd::{AccessFlags, User, access, geteuid};
use serde::{Deserialize, Serialize};

use crate::config::{Config, Parts, Source};
use crate::control::Place;
use crate::sys;

pub use capabilities::take_up;
pub use landlock::hint;
pub use user::{Written, become_user};

/// Whether this process would be ended for the calls that Landlock and seccomp need.
static DEADLY: LazyLock<[bool; 2]> = LazyLock::new(sys::seccomp::are_deadly);

/// How a part of the sandbox stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// It is in force.
    On,
    /// It is in force as far as this kernel knows it.
    Partial,
    /// It is not wanted.
    Off,
    /// This system lacks it.
    Unavailable,
}

impl Part {
    fn word(self) -> &'static str {
        match self {
            Part::On => "on",
            Part::Partial => "partial",
            Part::Off => "off",
            Part::Unavailable => "unavailable",
        }
    }
}

/// What `realpeer ctl status` says of the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The user that the process runs as.
    pub user: String,
    /// Whether capabilities were given up.
    pub capabilities: Part,
    /// The capabilities that the process has.
    pub kept: Vec<String>,
    /// Whether no program that it might execute can gain privileges.
    pub no_new_privs: bool,
    /// Whether system calls are filtered.
    pub seccomp: Part,
    /// Whether the files that it may open are limited.
    pub landlock: Part,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {}", self.user)?;
        match self.capabilities {
            Part::Off => write!(f, "; capabilities off")?,
            _ if self.kept.is_empty() => write!(f, "; no capabilities")?,
            _ => write!(f, "; {}", self.kept.join(" "))?,
        }
        for (name, part) in [("seccomp", self.seccomp), ("landlock", self.landlock)] {
            write!(f, "; {name} {}", part.word())?;
        }
        match self.no_new_privs {
            true => f.write_str("; no_new_privs"),
            false => Ok(()),
        }
    }
}

/// The sandbox of the running process.
#[derive(Debug)]
pub struct Sandbox {
    /// For people.
    pub state: State,
    gave_up_low_ports: bool,
    _pins: Vec<::landlock::PathFd>,
}

/// Enters the sandbox, for good. What this system lacks is a warning each.
pub fn enter(config: &Config, source: &Source, control: Option<&Place>) -> Result<Sandbox> {
    let parts = config.process.sandbox;
    let before = capabilities::permitted();
    let mut pins = Vec::new();
    let mut state = State {
        user: user_name(),
        capabilities: Part::Off,
        kept: Vec::new(),
        no_new_privs: false,
        seccomp: Part::Off,
        landlock: Part::Off,
    };
    if !parts.is_off() {
        warn_of_strangers();
        nix::sys::prctl::set_no_new_privs().context("cannot set no_new_privs")?;
    }
    if parts.landlock {
        state.landlock = match DEADLY[0] {
            true => Part::Unavailable,
            false => landlock::enter(config, source, control)?,
        };
        pins = landlock::pins();
        warn_if_missing(
            state.landlock,
            "landlock",
            "every file that the user may open can be opened",
        );
    }
    if parts.capabilities {
        capabilities::keep_only(&capabilities::needed(config, &before))
            .context("cannot give up capabilities")?;
        state.capabilities = Part::On;
    }
    if parts.seccomp {
        state.seccomp = match DEADLY[1] {
            true => Part::Unavailable,
            false => seccomp::filter()?,
        };
        warn_if_missing(state.seccomp, "seccomp", "every system call can be made");
    }
    if !parts.is_off() {
        warn_of_unreadable(config, source);
    }
    let kept = capabilities::permitted();
    state.kept = capabilities::names(&kept);
    state.no_new_privs = nix::sys::prctl::get_no_new_privs().unwrap_or(false);
    let low_ports = Capability::CAP_NET_BIND_SERVICE;
    Ok(Sandbox {
        state,
        gave_up_low_ports: before.contains(&low_ports) && !kept.contains(&low_ports),
        _pins: pins,
    })
}

impl Sandbox {
    /// Fails if a reload to `config` needs a capability that was given up at the start. One that the
    /// process never had was never needed.
    pub fn check(&self, config: &Config) -> Result<()> {
        if self.gave_up_low_ports && capabilities::uses_low_ports(config) {
            bail!(
                "a port below 1024, a client's or a listener's, needs CAP_NET_BIND_SERVICE, which was given up at the start, because nothing needed it then: restart realpeer"
            );
        }
        Ok(())
    }
}

/// For a thread that needs nothing but the descriptors that it has: gives up everything.
pub fn renounce(parts: Parts) {
    if !parts.is_off() {
        let _ = nix::sys::prctl::set_no_new_privs();
    }
    // The same calls, with more to lose, are checked when the process enters the sandbox.
    if parts.landlock && !DEADLY[0] {
        let _ = landlock::forbid_all();
    }
    if parts.capabilities {
        let _: Result<(), CapsError> = capabilities::keep_only(&CapsHashSet::new());
    }
}

/// Landlock and capabilities hold for a thread and those that it starts. There are two by now: this
/// one, and the log's, which needs nothing.
fn warn_of_strangers() {
    let threads = fs::read_dir("/proc/self/task").map_or(0, Iterator::count);
    if threads > 2 {
        tracing::warn!(
            threads = threads as u64,
            "threads that a library has started stay outside of the sandbox"
        );
    }
}

fn warn_if_missing(state: Part, part: &'static str, consequence: &str) {
    if state == Part::Unavailable {
        tracing::warn!(
            part,
            "this system lacks a part of the sandbox, so {consequence}; if it is the SystemCallFilter= of the unit that forbids it, take over that of the shipped unit; -sandbox with the other parts only does without this warning"
        );
    }
}

/// What a reload could not read again is told at the start, when somebody looks.
fn warn_of_unreadable(config: &Config, source: &Source) {
    for file in source.file().into_iter().chain(config.lists()) {
        // No pipe's writer is waited for.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(file);
        if let Err(error) = opened {
            tracing::warn!(file = %file.display(), %error, user = user_name(), "a reload cannot read this file again: give it to the user, or let everybody read it");
        }
    }
    if let Some(directory) = &config.process.state_dir
        && directory.is_dir()
        && access(directory, AccessFlags::W_OK | AccessFlags::X_OK).is_err()
    {
        tracing::warn!(directory = %directory.display(), user = user_name(), "bans can no longer be written down (-state-dir): give the directory to the user by chown -R");
    }
}

fn user_name() -> String {
    let uid = geteuid();
    let user = User::from_uid(uid).ok().flatten();
    user.map_or_else(|| uid.to_string(), |user| user.name)
}
