//! `realpeer setup -undo`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::changes::Held;
use super::marked::{self, State, state};
use super::unit::{self, systemctl};
use super::{ask, plan};
use crate::control;
use crate::output::print;

/// What setup has written for an instance.
struct Written {
    name: String,
    files: Vec<(PathBuf, State)>,
}

/// Stops and removes what setup has written, for one instance or for all. Returns whether all is gone.
pub fn command(name: Option<&str>, yes: bool) -> Result<bool> {
    let mut found = written()?;
    found.retain(|instance| name.is_none_or(|name| instance.name == name));
    if found.is_empty() {
        let of = name.map(|name| format!(" for {name}")).unwrap_or_default();
        print(format_args!("setup has written nothing here{of}\n"))?;
        return Ok(true);
    }
    print(listed(&found))?;
    if !yes {
        ask::agreement("Stop them and remove these files?")?;
    } else if let Some((path, _)) = found
        .iter()
        .flat_map(|i| &i.files)
        .find(|(_, state)| *state == State::Edited)
    {
        bail!(
            "nothing was changed: {} was edited since setup wrote it; run without -yes, to be asked whether it may go",
            path.display()
        );
    }
    let _held = Held::new()?;
    let mut all_gone = true;
    for instance in &found {
        all_gone &= take_back(instance)?;
    }
    // One that anybody else uses is not empty.
    let _ = fs::remove_dir(plan::DIRECTORY);
    Ok(all_gone)
}

fn listed(found: &[Written]) -> String {
    let mut out = String::new();
    for (path, state) in found.iter().flat_map(|instance| &instance.files) {
        let note = match state {
            State::Edited => " (edited since)",
            _ => "",
        };
        out += &format!("{}{note}\n", path.display());
    }
    out
}

/// Every file that has the mark.
fn written() -> Result<Vec<Written>> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for (directory, prefix, suffix) in [
        (plan::DIRECTORY, "", ".toml"),
        (unit::DIRECTORY, "realpeer@", ".service"),
    ] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let name = name
                .to_str()
                .and_then(|name| name.strip_prefix(prefix)?.strip_suffix(suffix));
            names.extend(name.filter(|name| !name.is_empty()).map(str::to_owned));
        }
    }
    let mut found = Vec::new();
    for name in names {
        let mut files = Vec::new();
        for path in [
            Path::new(unit::DIRECTORY).join(unit::name(&name)),
            plan::path(&name),
        ] {
            let state =
                state(&path).with_context(|| format!("cannot look at {}", path.display()))?;
            if matches!(state, State::Ours | State::Edited) {
                files.push((path, state));
            }
        }
        if !files.is_empty() {
            found.push(Written { name, files });
        }
    }
    Ok(found)
}

/// The service first, which takes its routing away as it ends.
fn take_back(instance: &Written) -> Result<bool> {
    let unit = unit::name(&instance.name);
    if unit::is_systemd_here() {
        systemctl(&["disable", "--now", &unit]).context("nothing was removed")?;
        print(format_args!("{unit} is stopped and disabled.\n"))?;
    }
    for (path, _) in &instance.files {
        marked::remove(path).with_context(|| format!("cannot remove {}", path.display()))?;
        print(format_args!("{} is removed.\n", path.display()))?;
    }
    if unit::is_systemd_here() {
        systemctl(&["daemon-reload"])?;
        let _ = systemctl(&["reset-failed", &unit]);
    }
    match control::running(&instance.name) {
        None => Ok(true),
        Some(pid) => {
            print(format_args!(
                "realpeer still runs (process {pid}), started by hand: end it with kill {pid}\n"
            ))?;
            Ok(false)
        }
    }
}
