//! `realpeer setup`.

use clap::{ArgAction, CommandFactory, FromArgMatches, Parser};
use ipnet::IpNet;

use super::UsageError;
use super::flags::{Command, Parsed, matches, refuse};
use crate::config::{Addresses, BOOLEAN, Choice, Protocol, UdpHeader, addresses, boolean, name};
use crate::setup::{Backend, backend, balancers};

/// The flags of `realpeer setup`: answers that it need not ask for.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "realpeer setup",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    about = "Sets realpeer up for a server on this host: asks for what the flags leave open, shows the file, the unit\n\
             and the load balancer's lines, and on yes writes them, starts the service and runs the doctor.",
    after_help = "For scripts: realpeer setup -yes -backend 127.0.0.1:22 -from 192.0.2.5 -listen :2222\n\
                  Exit code: 0 success, and the doctor found nothing wrong; 1 nothing was written, or something is wrong."
)]
pub struct SetupFlags {
    /// Server that is to see the real clients, such as 127.0.0.1:22 or [::1]:22; one address of each
    /// family, separated by a comma, if they differ in more than that
    ///
    /// If it listens on the other family's loopback address too, that is taken for clients of that
    /// family. Otherwise they are refused.
    #[arg(long = "backend", value_name = "ADDR", value_parser = backend, verbatim_doc_comment)]
    pub backend: Option<Backend>,

    /// Load balancer: addresses and networks, separated by commas, from which only load balancers send
    ///
    /// They may claim to be any client, so 0.0.0.0/0 and ::/0 are refused.
    #[arg(long = "from", value_name = "NETWORKS", value_parser = balancers)]
    pub from: Option<Balancers>,

    /// Address to listen on, as -l of realpeer; by default a free port, on every address
    #[arg(long = "listen", visible_alias = "l", value_name = "ADDR", value_parser = addresses)]
    pub listen: Option<Addresses>,

    /// Protocol: tcp or udp
    #[arg(long = "p", visible_alias = "protocol", value_name = "PROTO", default_value = "tcp", value_parser = Protocol::read)]
    pub protocol: Protocol,

    /// Where UDP datagrams carry their header, as -udp-header of realpeer
    #[arg(long = "udp-header", value_name = "STYLE", default_value = "every", value_parser = UdpHeader::read)]
    pub udp_header: UdpHeader,

    /// Name of the instance: /etc/realpeer/NAME.toml, realpeer@NAME.service (default: by the server);
    /// with -undo the one to remove
    #[arg(long = "name", value_name = "NAME", value_parser = name, verbatim_doc_comment)]
    pub name: Option<String>,

    /// Ask nothing; needs -backend and -from, or -undo
    #[arg(long = "yes", value_name = BOOLEAN, action = ArgAction::Set, default_value = "false", value_parser = boolean)]
    pub yes: bool,

    /// Stop and remove what setup has written: all of it, or that of -name
    ///
    /// The units are stopped and disabled, which takes their routing away, and the files are removed.
    #[arg(long = "undo", value_name = BOOLEAN, action = ArgAction::Set, default_value = "false", value_parser = boolean)]
    pub undo: bool,
}

/// Addresses and networks, at least one.
pub type Balancers = Vec<IpNet>;

/// Reads what stands behind `realpeer setup`.
pub fn parse(words: &[String]) -> Result<Command, UsageError> {
    let command = SetupFlags::command();
    match matches(&command, words, true)? {
        Parsed::Help(text) => Ok(Command::Print(text)),
        Parsed::Flags(_, rest) if !rest.is_empty() => {
            let message = format!("setup: stray word {:?}", rest[0]);
            Err(refuse(&command, message))
        }
        Parsed::Flags(mut matches, _) => {
            let flags = SetupFlags::from_arg_matches_mut(&mut matches)
                .map_err(|error| refuse(&command, error.to_string()))?;
            let missing = flags.backend.is_none() || flags.from.is_none();
            if flags.yes && !flags.undo && missing {
                let message = "setup: -yes asks nothing: give -backend and -from".into();
                return Err(refuse(&command, message));
            }
            Ok(Command::Setup(flags))
        }
    }
}
