//! `realpeer ban-relay`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};

use super::UsageError;
use super::flags::{Command, Parsed, matches, refuse};
use crate::ban_relay::Backend;
use crate::config::{HostPort, host_port, integer_in, timeout};

/// The flags of `realpeer ban-relay`.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "realpeer ban-relay",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    about = "Runs on the ingress host: takes bans from the application servers over HTTP and hands them\n\
             to fail2ban or to nft sets, so that a bot's packets stop where they arrive.",
    after_help = "POST / with {\"mode\":\"ban\"|\"unban\",\"target\":\"ADDRESS\"}, GET /bans; 'Authorization: Bearer TOKEN'."
)]
pub struct BanRelayFlags {
    /// Address to listen on; one that only the application servers reach
    #[arg(long = "l", visible_alias = "listen-addr", value_name = "ADDR", value_parser = host_port, default_value = "127.0.0.1:8000")]
    pub listen: HostPort,

    /// File of the token that callers must know (needed)
    #[arg(long = "token-file", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// File of the hosts that may call, an address or CIDR a line; they are never banned (needed)
    #[arg(long = "allowed-subnets", visible_alias = "a", value_name = "FILE")]
    pub allowed_subnets: Option<PathBuf>,

    /// Who bans: fail2ban:JAIL, or nft:FAMILY/TABLE/SET with SET for IPv4 and SET6 for IPv6
    #[arg(
        long = "exec",
        value_name = "BACKEND",
        default_value = "nft:inet/filter/banned"
    )]
    pub backend: Backend,

    /// Calls a second
    #[arg(long = "rate", value_name = "N", default_value = "100", value_parser = rate)]
    pub rate: u32,

    /// How long a ban lasts if the call does not say
    #[arg(long = "ban-time", value_name = "TIME", default_value = "1h", value_parser = timeout)]
    pub ban_time: Duration,

    /// Directory that keeps across restarts who asked for which ban (default: $STATE_DIRECTORY, set by systemd)
    #[arg(long = "state-dir", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Reads what stands behind `realpeer ban-relay`.
pub fn parse(words: &[String]) -> Result<Command, UsageError> {
    let command = BanRelayFlags::command();
    match matches(&command, words, true)? {
        Parsed::Help(text) => Ok(Command::Print(text)),
        Parsed::Flags(_, rest) if !rest.is_empty() => {
            let message = format!("ban-relay: stray word {:?}", rest[0]);
            Err(refuse(&command, message))
        }
        Parsed::Flags(mut matches, _) => {
            let flags = BanRelayFlags::from_arg_matches_mut(&mut matches)
                .map_err(|error| refuse(&command, error.to_string()))?;
            for (flag, file) in [
                ("token-file", &flags.token_file),
                ("allowed-subnets", &flags.allowed_subnets),
            ] {
                if file.is_none() {
                    return Err(refuse(&command, format!("ban-relay needs -{flag}")));
                }
            }
            Ok(Command::BanRelay(flags))
        }
    }
}

fn rate(text: &str) -> Result<u32, String> {
    let rate = integer_in(text, 1, 1_000_000)?;
    u32::try_from(rate).map_err(|_| "the number is too large".into())
}
