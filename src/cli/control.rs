//! `realpeer ctl`, and the flags for the control socket.

use std::path::PathBuf;
use std::time::Duration;

use clap::{CommandFactory, FromArgMatches, Parser};
use ipnet::IpNet;

use super::UsageError;
use super::flags::{Command, Parsed, matches, refuse};
use crate::config::{BOOLEAN, boolean, name, timeout};
use crate::networks;
use crate::suggest;

/// The flags of `realpeer ctl`, and what to do.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "realpeer ctl",
    display_name = "realpeer ctl ACTION",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    about = "Queries and controls a running proxy.",
    before_help = "\nActions:\n  \
                   status              show what runs, and its counters\n  \
                   connections         list the open connections\n  \
                   kill ID|ADDR|CIDR   end one connection, or all of a client\n  \
                   ban ADDR|CIDR       refuse a client, and end its connections\n  \
                   unban ADDR|CIDR     lift a ban\n  \
                   bans                list the bans\n  \
                   drain [LISTENER]    stop accepting there; open sessions continue\n  \
                   resume [LISTENER]   accept connections there again\n  \
                   reload              reread the configuration and its lists\n  \
                   upgrade             have a new process of the program take over\n  \
                   log 0|1|2           change the verbosity until the next start\n  \
                   watch               print sessions, refusals and bans as they happen\n  \
                   top                 live screen: listeners, clients, refusals",
    after_help = "Exit code: 0 success; 1 refused, or not found; 2 wrong command line; 3 no proxy answers."
)]
pub struct CtlFlags {
    /// The proxy's control socket (default: /run/realpeer/control.sock)
    #[arg(long = "control", value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// The proxy's -name, if it has one
    #[arg(long = "name", value_name = "NAME", value_parser = name)]
    pub name: Option<String>,

    /// Print JSON, one object per line
    #[arg(long = "json", value_name = BOOLEAN, action = clap::ArgAction::Set, default_value = "false", value_parser = boolean)]
    pub json: bool,

    /// ban: for how long (default: until unbanned)
    #[arg(long = "for", value_name = "TIME", value_parser = timeout)]
    pub length: Option<Duration>,

    /// ban: the reason, for the log and the list
    #[arg(
        long = "reason",
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    pub reason: String,

    /// ban, unban, connections, watch: only at the listener of this name
    #[arg(long = "listener", value_name = "NAME", value_parser = name)]
    pub listener: Option<String>,

    /// bans: only those of this origin: local, crowdsec, or one of CrowdSec's such as crowdsec/CAPI
    #[arg(long = "origin", value_name = "NAME")]
    pub origin: Option<String>,

    /// ban: even this host's own addresses and trusted load balancers; unban: even a decision of
    /// CrowdSec, which the engine brings back
    #[arg(long = "force", value_name = BOOLEAN, action = clap::ArgAction::Set, default_value = "false", value_parser = boolean, verbatim_doc_comment)]
    pub force: bool,

    /// What to do.
    #[arg(skip)]
    pub action: CtlAction,
}

/// What `realpeer ctl` does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum CtlAction {
    /// Show what runs, and its counters.
    #[default]
    Status,
    /// List the open connections.
    Connections,
    /// End one by its id.
    KillId(u64),
    /// End all of a client.
    KillClient(IpNet),
    /// Ban a client.
    Ban(IpNet),
    /// Lift a ban.
    Unban(IpNet),
    /// List the bans.
    Bans,
    /// Take nothing new at a listener; `None` for the only one.
    Drain(Option<String>),
    /// Take connections again at a listener.
    Resume(Option<String>),
    /// Read the configuration again.
    Reload,
    /// Change how much is logged.
    Log(u8),
    /// Have a new process take over.
    Upgrade,
    /// Print what happens.
    Watch,
    /// Show what happens on a live screen.
    Top,
}

/// Parses what follows `realpeer ctl`.
pub fn parse(words: &[String]) -> Result<Command, UsageError> {
    let command = CtlFlags::command();
    match matches(&command, words, true)? {
        Parsed::Help(text) => Ok(Command::Print(text)),
        Parsed::Flags(mut matches, rest) => {
            let action = action(&rest).map_err(|message| refuse(&command, message))?;
            let flags = CtlFlags::from_arg_matches_mut(&mut matches)
                .map_err(|error| refuse(&command, error.to_string()))?;
            Ok(Command::Ctl(CtlFlags { action, ..flags }))
        }
    }
}

const ACTIONS: [&str; 13] = [
    "status",
    "connections",
    "kill",
    "ban",
    "unban",
    "bans",
    "drain",
    "resume",
    "reload",
    "log",
    "upgrade",
    "watch",
    "top",
];

fn action(words: &[String]) -> Result<CtlAction, String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["status"] => Ok(CtlAction::Status),
        ["connections"] => Ok(CtlAction::Connections),
        ["bans"] => Ok(CtlAction::Bans),
        ["reload"] => Ok(CtlAction::Reload),
        ["upgrade"] => Ok(CtlAction::Upgrade),
        ["watch"] => Ok(CtlAction::Watch),
        ["top"] => Ok(CtlAction::Top),
        ["drain"] => Ok(CtlAction::Drain(None)),
        ["drain", listener] => Ok(CtlAction::Drain(Some(listener.to_owned()))),
        ["resume"] => Ok(CtlAction::Resume(None)),
        ["resume", listener] => Ok(CtlAction::Resume(Some(listener.to_owned()))),
        ["log", level @ ("0" | "1" | "2")] => Ok(CtlAction::Log(level.as_bytes()[0] - b'0')),
        ["log", ..] => Err("ctl log: give 0, 1 or 2".into()),
        ["ban", client] => network(client).map(CtlAction::Ban),
        ["unban", client] => network(client).map(CtlAction::Unban),
        ["kill", which] => match which.parse() {
            Ok(id) => Ok(CtlAction::KillId(id)),
            Err(_) => network(which).map(CtlAction::KillClient),
        },
        ["ban" | "unban"] => Err(format!("ctl {}: name an address or a CIDR", words[0])),
        ["kill"] => Err("ctl kill: name an id of 'ctl connections', an address or a CIDR".into()),
        [] => Err(format!(
            "ctl: the action is missing: {}",
            ACTIONS.join(", ")
        )),
        [action, .., stray] if ACTIONS.contains(&action) => {
            Err(format!("ctl {action}: stray word {stray:?}"))
        }
        [word, ..] => Err(format!(
            "ctl: {}",
            suggest::unknown("action", word, &ACTIONS)
        )),
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    networks::parse(text).ok_or_else(|| {
        format!("{text:?} is neither an address nor a network such as 203.0.113.0/24")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<CtlFlags, String> {
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        match parse(&words) {
            Ok(Command::Ctl(flags)) => Ok(flags),
            Ok(other) => panic!("{other:?}"),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn flags_may_stand_anywhere() {
        let flags = parse_line("-json ban 203.0.113.9/24 -for 1h -reason x -force").unwrap();
        let network = "203.0.113.0/24".parse().unwrap();
        assert_eq!(flags.action, CtlAction::Ban(network));
        assert_eq!(flags.length, Some(Duration::from_secs(3600)));
        assert!(flags.json && flags.force);
    }

    #[test]
    fn kill_takes_an_id_or_a_client() {
        let action = |line| parse_line(line).unwrap().action;
        assert_eq!(action("kill 17"), CtlAction::KillId(17));
        let one = "2001:db8::7/128".parse().unwrap();
        assert_eq!(action("kill 2001:db8::7"), CtlAction::KillClient(one));
    }

    #[test]
    fn errors_name_what_was_wrong() {
        for (line, expected) in [
            ("ban", "name an address"),
            ("ban nonsense", "\"nonsense\""),
            ("bans 1", "stray word \"1\""),
            (
                "halt",
                "\"halt\"; actions: status, connections, kill, ban, unban, bans",
            ),
            ("statsu", "(did you mean status?)"),
            ("ban 203.0.113.9 -for x", "-for"),
            ("bans -name a/b", "-name"),
        ] {
            let error = parse_line(line).unwrap_err();
            assert!(error.lines().last().unwrap().contains(expected), "{error}");
        }
    }
}
