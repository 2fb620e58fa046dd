//! What a setting may be, where that is not a number or a text.

use std::fmt;
use std::path::PathBuf;

use super::value::integer_in;

/// One of a few words.
pub trait Choice: Copy + PartialEq + 'static {
    /// The words, as flags and files spell them.
    const WORDS: &'static [(&'static str, Self)];

    /// Reads a word. The error lists what is allowed.
    fn read(text: &str) -> Result<Self, String> {
        let found = Self::WORDS.iter().find(|(word, _)| *word == text);
        found.map(|(_, choice)| *choice).ok_or_else(|| {
            let words: Vec<&str> = Self::WORDS.iter().map(|(word, _)| *word).collect();
            match words.split_last() {
                Some((last, rest)) => format!("write {} or {last}", rest.join(", ")),
                None => String::new(),
            }
        })
    }

    /// The word for it.
    fn word(self) -> &'static str {
        let mut words = Self::WORDS.iter();
        words
            .find(|(_, choice)| *choice == self)
            .map_or("", |(word, _)| word)
    }
}

/// The transport that is proxied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// A PROXY header at the start of each connection.
    Tcp,
    /// A PROXY header in the datagrams.
    Udp,
}

impl Choice for Protocol {
    const WORDS: &'static [(&'static str, Protocol)] =
        &[("tcp", Protocol::Tcp), ("udp", Protocol::Udp)];
}

/// Where a datagram's PROXY header stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpHeader {
    /// Version 2, in every datagram.
    Every,
    /// Version 2, in the first datagram that a load balancer's socket sends.
    First,
    /// Simple Proxy Protocol, in every datagram and every answer.
    Spp,
}

impl Choice for UdpHeader {
    const WORDS: &'static [(&'static str, UdpHeader)] = &[
        ("every", UdpHeader::Every),
        ("first", UdpHeader::First),
        ("spp", UdpHeader::Spp),
    ];
}

/// What to do about the source port that the header claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourcePort {
    /// The claimed port, or a free one of the same address when it is taken.
    Keep,
    /// Always a free port of the claimed address.
    Any,
    /// The claimed port or no connection.
    Strict,
}

impl Choice for SourcePort {
    const WORDS: &'static [(&'static str, SourcePort)] = &[
        ("keep", SourcePort::Keep),
        ("any", SourcePort::Any),
        ("strict", SourcePort::Strict),
    ];
}

/// Whether the proxy puts in the policy routing that its target needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Put in what is missing at start, take it away at exit.
    Auto,
    /// Touch nothing.
    Off,
}

impl Choice for Routing {
    const WORDS: &'static [(&'static str, Routing)] =
        &[("auto", Routing::Auto), ("off", Routing::Off)];
}

/// How replies are brought back (`-routing-mode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingMode {
    /// By where the target is.
    Auto,
    /// A rule for what is sent from loopback addresses.
    Loopback,
    /// A mark that accepted connections inherit.
    Mark,
    /// An nft rule for what arrives for the proxy's sockets.
    Socket,
    /// A rule for what is sent from the backend's UDP port.
    UdpPort,
}

impl Choice for RoutingMode {
    const WORDS: &'static [(&'static str, RoutingMode)] = &[
        ("auto", RoutingMode::Auto),
        ("loopback", RoutingMode::Loopback),
        ("mark", RoutingMode::Mark),
        ("socket", RoutingMode::Socket),
        ("udp-port", RoutingMode::UdpPort),
    ];
}

/// The shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A JSON object a line, with the keys of go-mmproxy's maintained fork.
    Json,
    /// A line for people.
    Text,
    /// Entries of the systemd journal, with a field for each key.
    Journal,
}

impl Choice for LogFormat {
    const WORDS: &'static [(&'static str, LogFormat)] = &[
        ("json", LogFormat::Json),
        ("text", LogFormat::Text),
        ("journal", LogFormat::Journal),
    ];
}

/// Where the control socket is (`-control`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// Below /run/realpeer, if that directory can be made.
    Usual,
    /// There, or the proxy does not start.
    At(PathBuf),
    /// Nowhere.
    Off,
}

impl Control {
    /// Reads a path, or `off`; nothing is the usual place.
    pub fn read(text: &str) -> Result<Control, String> {
        Ok(match text {
            "" => Control::Usual,
            "off" => Control::Off,
            path => Control::At(path.into()),
        })
    }
}

/// How much is logged: go-mmproxy's `-v 0|1|2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verbosity {
    /// Start, stop, and each reason of a refusal at most once a minute.
    Quiet,
    /// Each refused or failed connection too.
    Errors,
    /// Each connection's end too.
    All,
}

impl Verbosity {
    /// Reads 0, 1 or 2.
    pub fn read(text: &str) -> Result<Verbosity, String> {
        match integer_in(text, 0, 2)? {
            0 => Ok(Verbosity::Quiet),
            1 => Ok(Verbosity::Errors),
            _ => Ok(Verbosity::All),
        }
    }

    /// `-v` as a number.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// What becomes of peers outside `-allowed-subnets` (`-untrusted`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Untrusted {
    /// They are refused.
    #[default]
    Refuse,
    /// They are served from their own address; no header is looked for.
    Serve,
}

impl Choice for Untrusted {
    const WORDS: &'static [(&'static str, Untrusted)] =
        &[("refuse", Untrusted::Refuse), ("serve", Untrusted::Serve)];
}

/// Which parts of the sandbox are on (`-sandbox`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Capabilities are given up.
    pub capabilities: bool,
    /// System calls are filtered.
    pub seccomp: bool,
    /// The files that may be opened are limited.
    pub landlock: bool,
}

impl Parts {
    /// All of them.
    pub const ALL: Parts = Parts {
        capabilities: true,
        seccomp: true,
        landlock: true,
    };

    /// None of them.
    pub const NONE: Parts = Parts {
        capabilities: false,
        seccomp: false,
        landlock: false,
    };

    /// Reads `off`, or names separated by commas.
    pub fn read(text: &str) -> Result<Parts, String> {
        let mut parts = Parts::NONE;
        if text == "off" {
            return Ok(parts);
        }
        for word in text.split(',') {
            match word {
                "capabilities" => parts.capabilities = true,
                "seccomp" => parts.seccomp = true,
                "landlock" => parts.landlock = true,
                _ => {
                    return Err(format!(
                        "write off, or some of capabilities, seccomp and landlock, separated by commas (found {word:?})"
                    ));
                }
            }
        }
        Ok(parts)
    }

    /// Whether there is no sandbox.
    pub fn is_off(self) -> bool {
        self == Parts::NONE
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.capabilities, "capabilities"),
            (self.seccomp, "seccomp"),
            (self.landlock, "landlock"),
        ];
        let on = parts.iter().filter(|(on, _)| *on).map(|(_, word)| *word);
        match self.is_off() {
            true => f.write_str("off"),
            false => f.write_str(&on.collect::<Vec<_>>().join(",")),
        }
    }
}
