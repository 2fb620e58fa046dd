//! The flags and subcommands themselves.

use std::error::Error;
use std::path::PathBuf;

use clap::error::ContextKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser};

use super::ban_relay::{self, BanRelayFlags};
use super::config::{self, ConfigAction};
use super::control::{self, CtlFlags};
use super::routing::{self, RoutingAction, ShowAs};
use super::setup::{self, SetupFlags};
use super::topics::{self, TOPICS};
use super::{UsageError, doctor, go, usage};
use crate::config::{
    BOOLEAN, CrowdsecDraft, ListenerDraft, ProcessDraft, Source, boolean, http_url,
};
use crate::suggest;

/// What the user asked for.
#[derive(Debug)]
pub enum Command {
    /// Run the proxy.
    Proxy(Source),
    /// `realpeer routing up|down|show` with the proxy's flags.
    Routing(RoutingAction, ShowAs, Source),
    /// `realpeer ctl`.
    Ctl(CtlFlags),
    /// `realpeer doctor` with the proxy's flags.
    Doctor(crate::doctor::Options, Source),
    /// `realpeer ban-relay`.
    BanRelay(BanRelayFlags),
    /// `realpeer config`.
    Config(ConfigAction),
    /// `realpeer demo`.
    Demo,
    /// `realpeer setup`.
    Setup(SetupFlags),
    /// Print this and exit 0: help or the version.
    Print(String),
}

/// The flags of the proxy, as typed and checked one by one.
#[derive(Debug, Parser)]
#[command(
    name = "realpeer",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    about = "realpeer accepts PROXY-protocol connections from a load balancer and passes them on\n\
             from the client's own address and port, so that the backend sees the real client.",
    before_help = "  realpeer demo                         show it working, without root and without changing anything\n  \
                   realpeer setup [FLAGS]                set it up for a server on this host: asks, shows, writes, starts\n  \
                   realpeer routing up|down|show [FLAGS] manage the policy routing that brings replies back\n  \
                   realpeer ctl ACTION                   query a running proxy, end connections, ban clients\n  \
                   realpeer config ACTION                check a configuration file, or show what is in force\n  \
                   realpeer ban-relay [FLAGS]            accept bans from application servers, on the ingress host\n  \
                   realpeer doctor [FLAGS]               find out what is wrong and how to fix it\n  \
                   realpeer help [COMMAND]               print this help, or that of a command\n  \
                   realpeer help TOPIC                   explain routing, headers, containers, migrate or bans\n  \
                   realpeer version                      print the version",
    after_help = "Durations: 10s, 1m30s, 500ms; a bare number means seconds."
)]
pub struct ProxyFlags {
    /// What belongs to the listener.
    #[command(flatten)]
    pub listener: ListenerDraft,

    /// What belongs to the process.
    #[command(flatten)]
    pub process: ProcessDraft,

    /// Take bans from the CrowdSec engine whose local API has this URL; needs -crowdsec-key-file
    ///
    /// CROWDSEC in realpeer(8) has the details.
    #[arg(long = "crowdsec-url", value_name = "URL", value_parser = http_url)]
    pub crowdsec_url: Option<String>,

    /// File with the key for that API, as 'cscli bouncers add realpeer -o raw' prints it
    #[arg(long = "crowdsec-key-file", value_name = "PATH")]
    pub crowdsec_key_file: Option<PathBuf>,

    /// Configuration file, instead of the flags of a listener
    #[arg(long = "config", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print the version
    #[arg(long = "version", value_name = BOOLEAN, action = clap::ArgAction::Set, default_value = "false", value_parser = boolean)]
    pub version: bool,
}

const DEMO: (&str, &str) = (
    "realpeer demo",
    "Plays a load balancer and shows what the backend sees, without and with realpeer.",
);
const VERSION: (&str, &str) = ("realpeer version", "Prints the version.");

/// The words that may stand first.
const COMMANDS: [&str; 9] = [
    "setup",
    "config",
    "routing",
    "doctor",
    "ctl",
    "ban-relay",
    "demo",
    "help",
    "version",
];

/// Reads a command line, without the program's name.
pub fn parse(words: &[String]) -> Result<Command, UsageError> {
    match words.first().map(String::as_str) {
        Some("demo") => bare(DEMO, &words[1..], Command::Demo),
        Some("version") => bare(VERSION, &words[1..], version()),
        Some("help") => help(&words[1..]),
        Some("doctor") => doctor::parse(&words[1..]),
        Some("routing") => routing::parse(&words[1..]),
        Some("ban-relay") => ban_relay::parse(&words[1..]),
        Some("ctl") => control::parse(&words[1..]),
        Some("setup") => setup::parse(&words[1..]),
        Some("config") => config::parse(&words[1..]),
        _ => proxy(words),
    }
}

fn proxy(words: &[String]) -> Result<Command, UsageError> {
    let command = ProxyFlags::command();
    match matches(&command, words, false)? {
        Parsed::Help(text) => Ok(Command::Print(text)),
        Parsed::Flags(_, rest) if !rest.is_empty() => {
            let is_first = words[0] == rest[0];
            Err(refuse(&command, stray(&rest[0], is_first)))
        }
        Parsed::Flags(matches, _) if matches.get_one("version") == Some(&true) => Ok(version()),
        Parsed::Flags(mut matches, _) => Ok(Command::Proxy(source(&command, &mut matches)?)),
    }
}

/// A subcommand without flags of its own.
fn bare(
    (name, about): (&'static str, &'static str),
    words: &[String],
    command: Command,
) -> Result<Command, UsageError> {
    let definition = clap::Command::new(name).about(about);
    match matches(&definition, words, true)? {
        Parsed::Help(text) => Ok(Command::Print(text)),
        Parsed::Flags(_, rest) => match rest.first() {
            None => Ok(command),
            Some(stray) => Err(refuse(&definition, format!("stray word {stray:?}"))),
        },
    }
}

/// Every command and its flags; the first is the proxy, which has no word of its own.
pub fn definitions() -> Vec<clap::Command> {
    let bare = |(name, about)| clap::Command::new(name).about(about);
    vec![
        ProxyFlags::command(),
        routing::definition(),
        doctor::definition(),
        CtlFlags::command(),
        config::definition(),
        SetupFlags::command(),
        BanRelayFlags::command(),
        bare(DEMO),
        bare(VERSION),
    ]
}

/// `realpeer help [COMMAND|TOPIC]`: what `-h` prints, or the text about a topic.
fn help(words: &[String]) -> Result<Command, UsageError> {
    let flag = "-h".to_owned();
    match words {
        [] => parse(&[flag]),
        [topic] if topics::text(topic).is_some() => Ok(Command::Print(
            topics::text(topic).unwrap_or_default().into(),
        )),
        [command] if COMMANDS.contains(&command.as_str()) => parse(&[command.clone(), flag]),
        [word] if matches!(word.as_str(), "-h" | "-help" | "--help") => parse(&[flag]),
        [word, rest @ ..] => {
            let message = match rest {
                [] => unknown_help(word),
                [stray, ..] => format!("help: stray word {stray:?}"),
            };
            Err(refuse(&ProxyFlags::command(), message))
        }
    }
}

/// What is wrong with a word that is neither a command nor a topic.
fn unknown_help(word: &str) -> String {
    let topics = TOPICS.map(|(name, _)| name);
    let known = COMMANDS.into_iter().chain(topics);
    format!(
        "unknown command or topic {word:?}{}; commands: {}; topics: {}",
        suggest::did_you_mean(word, "", known),
        COMMANDS.join(", "),
        topics.join(", ")
    )
}

fn version() -> Command {
    Command::Print(concat!("realpeer ", env!("CARGO_PKG_VERSION"), "\n").into())
}

/// What is wrong with a word that is no flag.
fn stray(word: &str, is_first: bool) -> String {
    match suggest::nearest(word, COMMANDS) {
        _ if is_first && !word.starts_with('-') => suggest::unknown("command", word, &COMMANDS),
        Some(command) => {
            format!("stray word {word:?}: a command comes first, as in 'realpeer {command}'")
        }
        None => format!("stray word {word:?}: flags begin with a dash"),
    }
}

/// A command line parsed by clap.
pub(super) enum Parsed {
    /// The flags, and the words that are not flags.
    Flags(Box<clap::ArgMatches>, Vec<String>),
    /// Help was asked for; this is it.
    Help(String),
}

/// Parses the words by the flags that `command` defines.
pub(super) fn matches(
    command: &clap::Command,
    words: &[String],
    anywhere: bool,
) -> Result<Parsed, UsageError> {
    let words = go::split(command, words, anywhere).map_err(|message| refuse(command, message))?;
    // `realpeer ctl help` is as good as `realpeer ctl -h`.
    let asks = anywhere && words.rest.first().is_some_and(|word| word == "help");
    if words.help || asks {
        return Ok(Parsed::Help(usage::help(command)));
    }
    let args = std::iter::once("realpeer".to_owned()).chain(words.flags);
    match command.clone().try_get_matches_from(args) {
        Ok(matches) => Ok(Parsed::Flags(Box::new(matches), words.rest)),
        Err(error) => Err(refuse(command, bad_value(&error))),
    }
}

/// What the proxy's flags among `matches` ask for.
pub(super) fn source(
    command: &clap::Command,
    matches: &mut clap::ArgMatches,
) -> Result<Source, UsageError> {
    let typed = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    let (v4_given, v6_given) = (typed("target_v4"), typed("target_v6"));
    let of_listener = ListenerDraft::augment_args(clap::Command::new("listener"));
    let stray = of_listener
        .get_arguments()
        .find(|flag| typed(flag.get_id().as_str()));
    let stray = stray.and_then(|flag| flag.get_long().map(str::to_owned));
    let of_engine = ["crowdsec_url", "crowdsec_key_file"].map(typed);
    let over = over(matches);
    let mut flags = ProxyFlags::from_arg_matches_mut(matches)
        .map_err(|error| refuse(command, bad_value(&error)))?;
    match (flags.config, stray) {
        (Some(_), Some(flag)) => Err(refuse(
            command,
            format!("-{flag} belongs to a listener: with -config it stands in the file"),
        )),
        (Some(_), None) if of_engine.contains(&true) => Err(refuse(
            command,
            "-crowdsec-url and -crowdsec-key-file are for a start without -config: write [crowdsec] in the file".into(),
        )),
        (None, _) if of_engine[0] != of_engine[1] => Err(refuse(
            command,
            "-crowdsec-url and -crowdsec-key-file belong together: give both".into(),
        )),
        (Some(path), None) => Ok(Source::File { path, over }),
        (None, _) => {
            flags.listener.name.clone_from(&flags.process.name);
            flags.process.crowdsec = flags.crowdsec_url.map(|url| CrowdsecDraft {
                url: Some(url),
                api_key_file: flags.crowdsec_key_file,
                ..CrowdsecDraft::default()
            });
            (flags.listener.v4_given, flags.listener.v6_given) = (v4_given, v6_given);
            Ok(Source::Flags(Box::new((flags.process, flags.listener))))
        }
    }
}

/// The flags of the process that were typed, which count more than the keys of a file.
fn over(matches: &clap::ArgMatches) -> Vec<String> {
    let of_process = ProcessDraft::augment_args(clap::Command::new("process"));
    let typed = typed_flags(&of_process, matches).into_iter();
    typed
        .map(|(flag, value)| format!("--{flag}={value}"))
        .collect()
}

/// Those flags of `command` that were typed, by their long names, with their last values.
pub(super) fn typed_flags(
    command: &clap::Command,
    matches: &clap::ArgMatches,
) -> Vec<(String, String)> {
    let typed = command.get_arguments().filter_map(|flag| {
        let id = flag.get_id().as_str();
        if matches.value_source(id) != Some(ValueSource::CommandLine) {
            return None;
        }
        let value = matches.get_raw(id)?.next_back()?.to_str()?;
        Some((flag.get_long()?.to_owned(), value.to_owned()))
    });
    typed.collect()
}

/// One line that names the flag, the value and what is wrong with it.
fn bad_value(error: &clap::Error) -> String {
    let part = |kind| error.get(kind).map(ToString::to_string).unwrap_or_default();
    let flag = part(ContextKind::InvalidArg);
    let flag = flag
        .split(' ')
        .next()
        .unwrap_or_default()
        .trim_start_matches('-');
    let reason = error
        .source()
        .map_or_else(|| "a value is missing".to_owned(), ToString::to_string);
    format!(
        "invalid value {:?} for flag -{flag}: {reason}",
        part(ContextKind::InvalidValue)
    )
}

pub(super) fn refuse(command: &clap::Command, message: String) -> UsageError {
    UsageError {
        message,
        usage: usage::short(command),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The manual and the completions are made of the definitions.
    #[test]
    fn every_command_is_among_the_definitions() {
        let definitions = definitions();
        for command in COMMANDS.iter().filter(|command| **command != "help") {
            let name = format!("realpeer {command}");
            let is_there = definitions.iter().any(|one| one.get_name() == name);
            assert!(is_there, "{name}");
        }
    }
}
