//! Bans in a jail of fail2ban on this host, by fail2ban-client.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::process::Command;
use tokio::time::timeout;

use super::backend::Banned;

/// How long fail2ban-client may take; Python takes a good part of a second to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bans an address; false if it was banned already.
pub async fn ban(jail: &str, target: IpAddr) -> Result<bool> {
    change(jail, "banip", target).await
}

/// Ends a ban; false if there was none.
pub async fn unban(jail: &str, target: IpAddr) -> Result<bool> {
    change(jail, "unbanip", target).await
}

/// Who is banned.
pub async fn list(jail: &str) -> Result<Vec<Banned>> {
    let listed = tell(&["get", jail, "banip"]).await?;
    let targets = listed
        .split_whitespace()
        .filter_map(|word| word.parse().ok());
    Ok(targets
        .map(|target| Banned {
            target,
            seconds: None,
        })
        .collect())
}

/// fail2ban prints how many addresses the command changed.
async fn change(jail: &str, action: &str, target: IpAddr) -> Result<bool> {
    let printed = tell(&["set", jail, action, &target.to_string()]).await?;
    Ok(printed.trim() != "0")
}

async fn tell(words: &[&str]) -> Result<String> {
    let name = || format!("fail2ban-client {}", words.join(" "));
    let running = Command::new("fail2ban-client")
        .args(words)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(PATIENCE, running)
        .await
        .with_context(|| format!("{} did not end within {PATIENCE:?}", name()))?
        .with_context(|| format!("cannot run {}: is fail2ban installed?", name()))?;
    if !output.status.success() {
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let last = said.trim().lines().last().unwrap_or_default().to_owned();
        bail!("{} failed ({}): {last}", name(), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
