//! Who carries a ban out: a jail of fail2ban, or an nft set.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use anyhow::Result;
use serde::Serialize;

use super::fail2ban;
use super::nft_set::NftSet;

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
    /// Whether an address is banned, by whomever.
    pub async fn holds(&self, target: IpAddr) -> Result<bool> {
        match self {
            Backend::Fail2ban { jail } => {
                let banned = fail2ban::list(jail).await?;
                Ok(banned.iter().any(|banned| banned.target == target))
            }
            Backend::Nft(set) => Ok(set.held(target)?.is_some()),
        }
    }

    /// Who is banned.
    pub async fn list(&self) -> Result<Vec<Banned>> {
        match self {
            Backend::Fail2ban { jail } => fail2ban::list(jail).await,
            Backend::Nft(set) => set.list(),
        }
    }
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
