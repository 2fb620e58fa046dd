//! Who carries a ban out: fail2ban, which then follows the jail's own rules, or an nft set.

use std::fmt;
use std::net::IpAddr;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use tokio::process::Command;
use tokio::time::timeout;

use super::nft_set::NftSet;

/// How long fail2ban-client may take; Python takes a good part of a second to start.
const PATIENCE: Duration = Duration::from_secs(10);

/// The value of `-exec`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// `fail2ban-client set JAIL banip`.
    Fail2ban {
        /// The jail's name: letters, digits, `-`, `_`, `.`.
        jail: String,
    },
    /// Sets of a table, one for each address family.
    Nft(NftSet),
}

/// Someone who is banned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Banned {
    /// Who.
    pub target: IpAddr,
    /// Seconds until the ban ends, if the backend tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<u64>,
}

impl FromStr for Backend {
    type Err = String;

    fn from_str(text: &str) -> Result<Backend, String> {
        const HELP: &str = "write fail2ban:JAIL or nft:FAMILY/TABLE/SET";
        match text.split_once(':') {
            Some(("fail2ban", jail)) if is_name(jail) => Ok(Backend::Fail2ban {
                jail: jail.to_owned(),
            }),
            Some(("nft", place)) => {
                let parts: Vec<&str> = place.split('/').collect();
                let [family, table, set] = parts[..] else {
                    return Err(HELP.into());
                };
                if !is_name(table) || !is_name(set) {
                    return Err(HELP.into());
                }
                NftSet::new(family, table, set).map(Backend::Nft)
            }
            _ => Err(HELP.into()),
        }
    }
}

/// What may stand as a word of a command line, or as the name of a set.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain)
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Backend::Fail2ban { jail } => write!(f, "fail2ban:{jail}"),
            Backend::Nft(set) => write!(f, "nft:{set}"),
        }
    }
}

impl Backend {
    /// Bans an address; false if it was banned already.
    pub async fn ban(&self, target: IpAddr, time: Duration) -> Result<bool> {
        match self {
            Backend::Fail2ban { jail } => change(jail, "banip", target).await,
            Backend::Nft(set) => set.add(target, time),
        }
    }

    /// Ends a ban; false if there was none.
    pub async fn unban(&self, target: IpAddr) -> Result<bool> {
        match self {
            Backend::Fail2ban { jail } => change(jail, "unbanip", target).await,
            Backend::Nft(set) => set.remove(target),
        }
    }

    /// Who is banned.
    pub async fn list(&self) -> Result<Vec<Banned>> {
        let jail = match self {
            Backend::Fail2ban { jail } => jail,
            Backend::Nft(set) => return set.list(),
        };
        let listed = fail2ban(&["get", jail, "banip"]).await?;
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
}

/// fail2ban prints how many addresses the command changed.
async fn change(jail: &str, action: &str, target: IpAddr) -> Result<bool> {
    let printed = fail2ban(&["set", jail, action, &target.to_string()]).await?;
    Ok(printed.trim() != "0")
}

async fn fail2ban(words: &[&str]) -> Result<String> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_names_a_jail_or_a_set() {
        for text in [
            "fail2ban:sshd",
            "nft:inet/filter/banned",
            "nft:ip6/my-table/s_1",
        ] {
            assert_eq!(text.parse::<Backend>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "sshd",
            "fail2ban:",
            "fail2ban:-h",
            "fail2ban:a b",
            "fail2ban:$(x)",
            "nft:inet/filter",
            "nft:inet/a/b/c",
            "nft:bridge/a/b",
            "nft:inet/a/",
        ] {
            assert!(text.parse::<Backend>().is_err(), "{text}");
        }
    }
}
