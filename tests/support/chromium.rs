//! A real browser.

use std::process::Command;

use super::{Host, TempDir};

/// A browser on that host, which ends by itself and keeps its files in that directory.
pub fn chromium(host: &Host, files: &TempDir, flags: &[&str]) -> Command {
    let mut command = host.command("chromium");
    command.args([
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]);
    command.arg(format!(
        "--user-data-dir={}",
        files.path("profile").display()
    ));
    command.env("HOME", files.path(""));
    command.args(flags);
    command
}
