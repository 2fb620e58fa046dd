//! The flags and subcommands themselves.

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ContextKind;
use clap::parser::ValueSource;
use clap::{CommandFactory, FromArgMatches, Parser};

use super::ban_relay::{self, BanRelayFlags};
use super::control::{self, CtlFlags};
use super::routing::{self, RoutingAction, ShowAs};
use super::value::{self, HostPort};
use super::{UsageError, doctor, go, suggest, usage};
use crate::config::{
    Control, LogFormat, Protocol, Routing, RoutingMode, SourcePort, UdpHeader, Verbosity,
};

/// What the user asked for.
#[derive(Debug)]
pub enum Command {
    /// Run the proxy.
    Proxy(ProxyFlags),
    /// `realpeer routing up|down|show` with the proxy's flags.
    Routing(RoutingAction, ShowAs, ProxyFlags),
    /// `realpeer ctl`.
    Ctl(CtlFlags),
    /// `realpeer doctor` with the proxy's flags.
    Doctor(crate::doctor::Options, ProxyFlags),
    /// `realpeer ban-relay`.
    BanRelay(BanRelayFlags),
    /// `realpeer demo`.
    Demo,
    /// Print this and exit 0: help or the version.
    Print(String),
}

/// The flags of the proxy, as typed and checked one by one.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "realpeer",
    disable_help_flag = true,
    disable_version_flag = true,
    args_override_self = true,
    about = "realpeer accepts PROXY-protocol connections from a load balancer and passes them on\n\
             from the client's own address and port, so that the backend sees the real client.",
    before_help = "  realpeer demo                         show it working, without root and without changing anything\n  \
                   realpeer routing up|down|show [FLAGS] manage the policy routing that brings replies back\n  \
                   realpeer ctl ACTION                   query a running proxy, end connections, ban clients\n  \
                   realpeer ban-relay [FLAGS]            accept bans from application servers, on the ingress host\n  \
                   realpeer doctor [FLAGS]               find out what is wrong and how to fix it\n  \
                   realpeer help [COMMAND]               print this help, or that of a command\n  \
                   realpeer version                      print the version",
    after_help = "Durations: 10s, 1m30s, 500ms; a bare number means seconds."
)]
pub struct ProxyFlags {
    /// Address to listen on; [::]:PORT accepts IPv4 as well
    #[arg(long = "l", visible_alias = "listen-addr", value_name = "ADDR", default_value = "0.0.0.0:8443", value_parser = value::host_port)]
    pub listen: HostPort,

    /// Backend for IPv4 clients
    #[arg(long = "4", visible_alias = "ipv4", value_name = "ADDR", default_value = "127.0.0.1:443", value_parser = value::target_v4)]
    pub target_v4: HostPort,

    /// Backend for IPv6 clients
    #[arg(long = "6", visible_alias = "ipv6", value_name = "ADDR", default_value = "[::1]:443", value_parser = value::target_v6)]
    pub target_v6: HostPort,

    /// Connect to the destination that the header names, not to -4 or -6
    #[arg(long = "dynamic-destination", value_name = go::BOOLEAN, action = clap::ArgAction::Set, default_value = "false", value_parser = value::boolean)]
    pub dynamic_destination: bool,

    /// Protocol: tcp or udp
    #[arg(long = "p", visible_alias = "protocol", value_name = "PROTO", default_value = "tcp", value_parser = protocol)]
    pub protocol: Protocol,

    /// Mark to set on connections to the backend (SO_MARK); 0 sets none
    #[arg(long = "mark", visible_alias = "m", value_name = "N", default_value = "0", value_parser = mark)]
    pub mark: u32,

    /// File of the load balancers that may connect, one address or CIDR per line
    #[arg(long = "allowed-subnets", visible_aliases = ["a", "allowed-networks"], value_name = "FILE")]
    pub allowed_subnets: Option<PathBuf>,

    /// File of the clients to refuse, one address or CIDR per line
    #[arg(long = "denied-clients", value_name = "FILE")]
    pub denied_clients: Option<PathBuf>,

    /// File of the only clients to serve, one address or CIDR per line
    #[arg(long = "allowed-clients", value_name = "FILE")]
    pub allowed_clients: Option<PathBuf>,

    /// Number of sockets that share the listen address (SO_REUSEPORT)
    #[arg(long = "listeners", value_name = "N", default_value = "1", value_parser = listeners)]
    pub listeners: usize,

    /// Accept connections to addresses that this host does not have (IP_TRANSPARENT)
    #[arg(long = "listen-transparent", value_name = go::BOOLEAN, action = clap::ArgAction::Set, default_value = "false", value_parser = value::boolean)]
    pub listen_transparent: bool,

    /// Number of threads that carry connections (default: one per core)
    #[arg(long = "workers", value_name = "N", value_parser = workers)]
    pub workers: Option<usize>,

    /// Maximum number of open connections (default: what the open-file limit allows)
    #[arg(long = "max-connections", value_name = "N", value_parser = max_connections)]
    pub max_connections: Option<usize>,

    /// If the client's port is in use here: keep (use a free one instead), any (always use a free
    /// one), strict (refuse the connection)
    #[arg(long = "source-port", value_name = "WHICH", default_value = "keep", value_parser = source_port, verbatim_doc_comment)]
    pub source_port: SourcePort,

    /// How long a load balancer may take to send the header
    #[arg(long = "header-timeout", value_name = "TIME", default_value = "10s", value_parser = value::timeout)]
    pub header_timeout: Duration,

    /// How long the backend may take to answer
    #[arg(long = "connect-timeout", value_name = "TIME", default_value = "5s", value_parser = value::timeout)]
    pub connect_timeout: Duration,

    /// How long open connections may continue after SIGTERM
    #[arg(long = "drain-timeout", value_name = "TIME", default_value = "5s", value_parser = value::duration)]
    pub drain_timeout: Duration,

    /// Close a UDP flow after this time without a datagram either way; 0: never (but see -max-flows)
    #[arg(long = "close-after", visible_alias = "c", value_name = "TIME", default_value = "60s", value_parser = value::duration)]
    pub close_after: Duration,

    /// Where UDP datagrams carry their header: every (PROXY v2 in each), spp (Simple Proxy Protocol
    /// in each), first (PROXY v2 in the first from each load-balancer socket; set -close-after
    /// longer than the load balancer keeps a silent socket)
    #[arg(long = "udp-header", value_name = "STYLE", default_value = "every", value_parser = udp_header, verbatim_doc_comment)]
    pub udp_header: UdpHeader,

    /// Maximum number of open UDP flows; a new one replaces the one that was idle the longest
    /// (default: what the open-file limit allows)
    #[arg(long = "max-flows", value_name = "N", value_parser = max_connections, verbatim_doc_comment)]
    pub max_flows: Option<usize>,

    /// Policy routing: auto (add what is missing, remove it at exit) or off
    #[arg(long = "routing", value_name = "MODE", default_value = "auto", value_parser = routing::switch)]
    pub routing: Routing,

    /// How replies are brought back: auto (depends on the target), loopback, mark, socket or udp-port
    #[arg(long = "routing-mode", value_name = "WAY", default_value = "auto", value_parser = routing::mode)]
    pub routing_mode: RoutingMode,

    /// Name of this instance, if several run; its control socket is then NAME.sock
    #[arg(long = "name", value_name = "NAME", value_parser = super::control::name)]
    pub name: Option<String>,

    /// Socket for 'realpeer ctl', or off (default: /run/realpeer/control.sock, if it can be created)
    #[arg(long = "control", value_name = "PATH", default_value = "", hide_default_value = true, value_parser = super::control::place)]
    pub control: Control,

    /// Group that may use the control socket
    #[arg(long = "control-group", value_name = "GROUP")]
    pub control_group: Option<String>,

    /// Directory that keeps bans across restarts (default: $STATE_DIRECTORY, set by systemd)
    #[arg(long = "state-dir", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// What to log. 0: start and stop; 1: also refused connections; 2: every connection
    #[arg(long = "v", value_name = "N", default_value = "0", value_parser = verbosity)]
    pub verbosity: Verbosity,

    /// Log format: json or text (default: text on a terminal)
    #[arg(long = "log-format", value_name = "FORMAT", value_parser = log_format)]
    pub log_format: Option<LogFormat>,

    /// Print the version
    #[arg(long = "version", value_name = go::BOOLEAN, action = clap::ArgAction::Set, default_value = "false", value_parser = value::boolean)]
    pub version: bool,

    /// `-4` was given.
    #[arg(skip)]
    pub v4_given: bool,
    /// `-6` was given.
    #[arg(skip)]
    pub v6_given: bool,
}

/// The words that may stand first.
const COMMANDS: [&str; 7] = [
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
        Some("demo") => bare(
            "realpeer demo",
            "Plays a load balancer and shows what the backend sees, without and with realpeer.",
            &words[1..],
            Command::Demo,
        ),
        Some("version") => bare(
            "realpeer version",
            "Prints the version.",
            &words[1..],
            version(),
        ),
        Some("help") => help(&words[1..]),
        Some("doctor") => doctor::parse(&words[1..]),
        Some("routing") => routing::parse(&words[1..]),
        Some("ban-relay") => ban_relay::parse(&words[1..]),
        Some("ctl") => control::parse(&words[1..]),
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
        Parsed::Flags(mut matches, _) => match proxy_flags(&command, &mut matches)? {
            flags if flags.version => Ok(version()),
            flags => Ok(Command::Proxy(flags)),
        },
    }
}

/// A subcommand without flags of its own.
fn bare(
    name: &'static str,
    about: &'static str,
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

/// `realpeer help [COMMAND]`: what `-h` prints.
fn help(words: &[String]) -> Result<Command, UsageError> {
    let flag = "-h".to_owned();
    match words {
        [] => parse(&[flag]),
        [command] if COMMANDS.contains(&command.as_str()) => parse(&[command.clone(), flag]),
        [word] if matches!(word.as_str(), "-h" | "-help" | "--help") => parse(&[flag]),
        [word, rest @ ..] => {
            let message = match rest {
                [] => suggest::unknown("command", word, &COMMANDS),
                [stray, ..] => format!("help: stray word {stray:?}"),
            };
            Err(refuse(&ProxyFlags::command(), message))
        }
    }
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

/// The proxy's flags among `matches`.
pub(super) fn proxy_flags(
    command: &clap::Command,
    matches: &mut clap::ArgMatches,
) -> Result<ProxyFlags, UsageError> {
    let typed = |id| matches.value_source(id) == Some(ValueSource::CommandLine);
    let (v4_given, v6_given) = (typed("target_v4"), typed("target_v6"));
    let flags = ProxyFlags::from_arg_matches_mut(matches)
        .map_err(|error| refuse(command, bad_value(&error)))?;
    Ok(ProxyFlags {
        v4_given,
        v6_given,
        ..flags
    })
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

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "tcp" => Ok(Protocol::Tcp),
        "udp" => Ok(Protocol::Udp),
        _ => Err("write tcp or udp".into()),
    }
}

fn source_port(text: &str) -> Result<SourcePort, String> {
    match text {
        "keep" => Ok(SourcePort::Keep),
        "any" => Ok(SourcePort::Any),
        "strict" => Ok(SourcePort::Strict),
        _ => Err("write keep, any or strict".into()),
    }
}

fn udp_header(text: &str) -> Result<UdpHeader, String> {
    match text {
        "every" => Ok(UdpHeader::Every),
        "first" => Ok(UdpHeader::First),
        "spp" => Ok(UdpHeader::Spp),
        _ => Err("write every, first or spp".into()),
    }
}

fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "json" => Ok(LogFormat::Json),
        "text" => Ok(LogFormat::Text),
        _ => Err("write json or text".into()),
    }
}

fn verbosity(text: &str) -> Result<Verbosity, String> {
    match value::integer_in(text, 0, 2)? {
        0 => Ok(Verbosity::Quiet),
        1 => Ok(Verbosity::Errors),
        _ => Ok(Verbosity::All),
    }
}

fn mark(text: &str) -> Result<u32, String> {
    count(text, 0, i64::from(u32::MAX))
}

fn listeners(text: &str) -> Result<usize, String> {
    count(text, 1, 1024)
}

fn workers(text: &str) -> Result<usize, String> {
    count(text, 1, 1024)
}

fn max_connections(text: &str) -> Result<usize, String> {
    count(text, 1, i64::MAX)
}

fn count<N: TryFrom<i64>>(text: &str, least: i64, most: i64) -> Result<N, String> {
    N::try_from(value::integer_in(text, least, most)?).map_err(|_| "the number is too large".into())
}
