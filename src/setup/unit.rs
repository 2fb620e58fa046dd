//! The unit of an instance, and systemd.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::sys::process::unblock_signals;

/// Where administrators put units.
pub const DIRECTORY: &str = "/etc/systemd/system";

/// Where packages and administrators put them, the first counting most.
const DIRECTORIES: [&str; 5] = [
    DIRECTORY,
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];

const SHIPPED: &str = include_str!("../../packaging/systemd/realpeer.service");

/// Whether systemd runs this host (sd_booted(3)).
pub fn is_systemd_here() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// The unit of an instance.
pub fn name(instance: &str) -> String {
    format!("realpeer@{instance}.service")
}

/// The package's template, if it is there and reads /etc/realpeer/NAME.toml.
pub fn template() -> Option<PathBuf> {
    let paths = DIRECTORIES.map(|directory| Path::new(directory).join("realpeer@.service"));
    let found = paths.into_iter().find(|path| path.exists())?;
    let text = fs::read_to_string(&found).ok()?;
    text.contains("/etc/realpeer/%i.toml").then_some(found)
}

/// The shipped unit, for an instance and its file. The comment on its ExecStart is about flags.
pub fn text(instance: &str, config: &Path, program: &str) -> String {
    let (mut out, mut comment) = (String::new(), String::new());
    for line in SHIPPED.lines() {
        if line.starts_with('#') {
            let _ = writeln!(comment, "{line}");
            continue;
        }
        if line.starts_with("ExecStart=") {
            let config = config.display();
            let _ = writeln!(out, "ExecStart={program} -config {config} -name {instance}");
        } else {
            let line = line.replace(
                "Description=realpeer:",
                &format!("Description=realpeer {instance}:"),
            );
            let _ = writeln!(out, "{comment}{line}");
        }
        comment.clear();
    }
    out
}

/// The path of this program, if a unit may run it from there.
pub fn program() -> Result<String> {
    let path = std::env::current_exe().context("where is this program?")?;
    let path = path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._+-".contains(c);
    // ProtectHome= and PrivateTmp= hide these.
    let hidden = ["/home/", "/root/", "/run/", "/tmp/", "/var/tmp/"];
    if hidden.iter().any(|place| path.starts_with(place)) || !path.chars().all(plain) {
        bail!(
            "a service cannot run {path}: install the program first, as by: install {path} /usr/local/bin/realpeer"
        );
    }
    Ok(path.into_owned())
}

/// Runs systemctl. The error has what it said.
pub fn systemctl(words: &[&str]) -> Result<()> {
    let mut command = Command::new("systemctl");
    command.args(words);
    // Ctrl-C ends it, though setup itself waits for a good moment.
    unblock_signals(&mut command);
    let line = format!("systemctl {}", words.join(" "));
    let output = command
        .output()
        .with_context(|| format!("cannot run {line}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{line} failed ({}): {}", output.status, said.trim());
    }
    Ok(())
}

/// Whether the unit runs.
pub fn is_active(unit: &str) -> bool {
    systemctl(&["is-active", "--quiet", unit]).is_ok()
}

/// The last lines of its log, each indented; nothing where there is no journal.
pub fn log(unit: &str) -> String {
    let words = [
        "--unit",
        unit,
        "--lines",
        "10",
        "--output",
        "cat",
        "--no-pager",
    ];
    let output = Command::new("journalctl").args(words).output();
    let lines = output.map(|output| output.stdout).unwrap_or_default();
    let lines = String::from_utf8_lossy(&lines).into_owned();
    lines.lines().map(|line| format!("\n    {line}")).collect()
}
