//! `realpeer doctor`.

use std::net::IpAddr;

use clap::{Arg, ArgAction, CommandFactory};

use super::UsageError;
use super::flags::{Command, Parsed, ProxyFlags, matches, refuse, source};
use crate::config::{self, BOOLEAN};
use crate::doctor::Options;

/// The flags of `realpeer doctor`.
pub fn definition() -> clap::Command {
    ProxyFlags::command()
        .name("realpeer doctor")
        .about("Examines this host, probes the way of the replies, and says what is wrong and what fixes it.")
        .before_help(None::<&str>)
        .arg(boolean("json", "Answer in JSON"))
        .arg(
            Arg::new("from")
                .long("from")
                .value_name("ADDR")
                .value_parser(address)
                .help("The load balancer: is it in the allowed-subnets file?"),
        )
        .arg(boolean("probe-remote", "Probe a target that is not on this host too"))
}

/// Reads what stands behind `realpeer doctor`.
pub fn parse(words: &[String]) -> Result<Command, UsageError> {
    let command = definition();
    match matches(&command, words, true)? {
        Parsed::Help(text) => Ok(Command::Print(text)),
        Parsed::Flags(_, rest) if !rest.is_empty() => Err(refuse(
            &command,
            format!("doctor: stray word {:?}", rest[0]),
        )),
        Parsed::Flags(mut matches, _) => {
            let options = Options {
                from: matches.remove_one("from"),
                json: matches.remove_one("json").unwrap_or(false),
                probe_remote: matches.remove_one("probe-remote").unwrap_or(false),
            };
            Ok(Command::Doctor(options, source(&command, &mut matches)?))
        }
    }
}

fn boolean(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .value_name(BOOLEAN)
        .action(ArgAction::Set)
        .default_value("false")
        .value_parser(config::boolean)
        .help(help)
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "write an IP address".into())
}
