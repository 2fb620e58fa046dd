//! A key of the file is its flag's long name, but for a few that are short on the command line.

use clap::{Arg, Command};

use super::choice::Protocol;
use super::draft::BOOLEAN;

/// Flags whose keys have another name.
const RENAMED: &[(&str, &str)] = &[
    ("l", "listen"),
    ("4", "ipv4"),
    ("6", "ipv6"),
    ("p", "protocol"),
    ("v", "verbosity"),
];

/// Flags that mean nothing for the other protocol.
const TCP_ONLY: &[&str] = &[
    "header-timeout",
    "connect-timeout",
    "idle-timeout",
    "keepalive",
    "max-connections",
];
const UDP_ONLY: &[&str] = &["udp-header", "close-after", "max-flows"];

/// What a key's value is in TOML.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// true or false.
    Boolean,
    /// A whole number.
    Integer,
    /// A string such as "10s", or whole seconds.
    Time,
    /// A string.
    Text,
    /// An address, or a list of them.
    Addresses,
    /// A network, or a list of them.
    Claims,
    /// The name of a file, or a list of networks.
    Networks,
    /// A word, or a list of them.
    Words,
}

impl Kind {
    /// What is allowed, in words.
    pub fn words(self) -> &'static str {
        match self {
            Kind::Boolean => "true or false",
            Kind::Integer => "a whole number",
            Kind::Time => "a time such as \"10s\", or whole seconds",
            Kind::Text => "a string",
            Kind::Addresses => "an address in quotes, or a list of them",
            Kind::Claims => "an address or CIDR in quotes, or a list of them",
            Kind::Words => "a word in quotes, or a list of them",
            Kind::Networks => "the name of a file, or a list of addresses and CIDRs",
        }
    }
}

/// The key of a flag.
pub fn key(flag: &str) -> &str {
    let renamed = RENAMED.iter().find(|(name, _)| *name == flag);
    renamed.map_or(flag, |(_, key)| key)
}

/// The flag that `command` defines for a key.
pub fn flag_of<'a>(command: &'a Command, wanted: &str) -> Option<&'a Arg> {
    command
        .get_arguments()
        .find(|arg| arg.get_long().is_some_and(|flag| key(flag) == wanted))
}

/// The keys of the flags that `command` defines.
pub fn keys_of(command: &Command) -> impl Iterator<Item = &str> {
    command
        .get_arguments()
        .filter_map(|arg| arg.get_long().map(key))
}

/// What the value of a flag is in TOML.
pub fn kind(flag: &Arg) -> Kind {
    let name = flag.get_value_names().and_then(|names| names.first());
    match (flag.get_long(), name.map(|name| name.as_str())) {
        (Some("l"), _) => Kind::Addresses,
        (_, Some(BOOLEAN)) => Kind::Boolean,
        (_, Some("N")) => Kind::Integer,
        (_, Some("TIME")) => Kind::Time,
        (_, Some("NETWORKS")) => Kind::Claims,
        (_, Some("FILE")) => Kind::Networks,
        (_, Some("WORDS")) => Kind::Words,
        _ => Kind::Text,
    }
}

/// Whether a flag means anything for that protocol.
pub fn fits(flag: &str, protocol: Protocol) -> bool {
    !match protocol {
        Protocol::Tcp => UDP_ONLY,
        Protocol::Udp => TCP_ONLY,
    }
    .contains(&flag)
}
