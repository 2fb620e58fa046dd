//! Making what was planned, and taking back what was made when something fails.

use std::fs::{self, DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::marked::{self, Marked};
use super::plan::{DIRECTORY, Plan, Start};
use super::unit::{self, systemctl};
use crate::control;

/// Writes the files and starts the service. After an error nothing of it is left, or the error says
/// what.
pub fn make(plan: &Plan) -> Result<()> {
    let held = Held::new()?;
    let mut made = Made::default();
    let result = steps(plan, &held, &mut made);
    let Err(error) = result else {
        return Ok(());
    };
    let left = made.take_back();
    match left.is_empty() {
        true => Err(error.context("nothing was changed")),
        false => {
            let undo = format!("realpeer setup -undo -name {}", plan.answers.name);
            Err(error.context(format!(
                "not all could be taken back ({}): run {undo}",
                left.join("; ")
            )))
        }
    }
}

fn steps(plan: &Plan, held: &Held, made: &mut Made) -> Result<()> {
    made.directory()?;
    let new_config = made.file(&plan.config)?;
    held.go_on()?;
    let Start::Systemd { unit, file, .. } = &plan.start else {
        return Ok(());
    };
    let new_unit = match file {
        Some(file) => made.file(file)?,
        None => false,
    };
    held.go_on()?;
    let ran = unit::is_active(unit);
    let enabled = systemctl(&["is-enabled", "--quiet", unit]).is_ok();
    if new_unit {
        made.reload = true;
        systemctl(&["daemon-reload"])?;
    }
    if !ran || !enabled {
        made.started = Some(unit.clone());
    }
    let started = || -> Result<()> {
        systemctl(&["enable", "--now", unit])?;
        if ran && new_unit {
            systemctl(&["restart", unit])?;
        } else if ran && new_config {
            control::reload(&plan.answers.name)?;
        }
        // Its condition may not hold.
        if !unit::is_active(unit) {
            bail!("systemd did not start {unit}");
        }
        Ok(())
    };
    started().with_context(|| {
        format!(
            "the service does not start; its log ends with{}",
            unit::log(unit)
        )
    })?;
    held.go_on()
}

/// What was done so far.
#[derive(Default)]
struct Made {
    /// It was not there.
    directory: bool,
    /// Files, and what was in them before.
    files: Vec<(PathBuf, Option<String>)>,
    /// systemd has read the unit's file.
    reload: bool,
    /// The unit, which did not run before.
    started: Option<String>,
}

impl Made {
    fn directory(&mut self) -> Result<()> {
        let directory = Path::new(DIRECTORY);
        if directory.exists() {
            return Ok(());
        }
        let made = DirBuilder::new().mode(0o755).create(directory);
        made.with_context(|| format!("cannot make {DIRECTORY}"))?;
        self.directory = true;
        // The service has a user of its own, whatever the umask is.
        fs::set_permissions(directory, Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// Writes a file, unless it is there already; returns whether it did.
    fn file(&mut self, file: &Marked) -> Result<bool> {
        let before = fs::read_to_string(&file.path).ok();
        if before.as_ref() == Some(&file.text) {
            return Ok(false);
        }
        // Before it is written: it may be there although this fails.
        self.files.push((file.path.clone(), before));
        file.write()
            .with_context(|| format!("cannot write {}", file.path.display()))?;
        Ok(true)
    }

    /// Puts back what was there. Returns what is left.
    fn take_back(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        let mut note = |what: String, result: Result<()>| {
            if let Err(error) = result {
                left.push(format!("{what}: {error:#}"));
            }
        };
        if let Some(unit) = &self.started {
            note(
                format!("{unit} may run"),
                systemctl(&["disable", "--now", unit]),
            );
        }
        for (path, before) in self.files.iter().rev() {
            let done = match before {
                Some(text) => Marked {
                    path: path.clone(),
                    text: text.clone(),
                }
                .write(),
                None if path.exists() => marked::remove(path),
                None => Ok(()),
            };
            note(
                format!("{} is there", path.display()),
                done.map_err(Into::into),
            );
        }
        if self.reload {
            note(
                "systemd knows the unit".into(),
                systemctl(&["daemon-reload"]),
            );
        }
        if let Some(unit) = &self.started {
            // It would be listed as failed otherwise. It is no error if it is not.
            let _ = systemctl(&["reset-failed", unit]);
        }
        if self.directory {
            note(
                format!("{DIRECTORY} is there"),
                fs::remove_dir(DIRECTORY).map_err(Into::into),
            );
        }
        left
    }
}

/// Keeps Ctrl-C and the like from ending the program between two steps.
pub struct Held {
    signals: SigSet,
    waiting: SignalFd,
}

impl Held {
    /// From now on.
    pub fn new() -> Result<Held> {
        let mut signals = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let waiting =
            SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        Ok(Held { signals, waiting })
    }

    /// Fails if a signal has come.
    pub fn go_on(&self) -> Result<()> {
        match self.waiting.read_signal()? {
            Some(_) => bail!("interrupted"),
            None => Ok(()),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let _ = self.signals.thread_unblock();
    }
}
