//! What the program was asked to do, checked once and then only read.
//!
//! ```text
//! flags (cli) ─┐
//!              ├─▶ draft (each word checked) ─▶ check (all of it together) ─▶ Config
//! file ────────┘
//! ```
//!
//! Nothing behind `Config` knows whether flags or a file asked for it.

mod check;
mod choice;
mod draft;
mod file;
mod keys;
mod netns;
mod text;
mod value;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use ipnet::IpNet;

pub use check::{Mistake, check, leads_to, loops, overlap, process, resolve, systemd_state_dir};
pub use choice::{
    Choice, Control, LogFormat, Parts, Protocol, Routing, RoutingMode, SourcePort, UdpHeader,
    Untrusted, Verbosity,
};
pub use draft::{BOOLEAN, CrowdsecDraft, ListenerDraft, ProcessDraft};
pub use file::{BadFile, load, understand};
pub use keys::{Kind, fits, key, kind};
pub use netns::{Engine, TargetNetns};
pub use text::{from_flags, good, in_force};
pub use value::{Addresses, HostPort, Rate};
pub(crate) use value::{
    addresses, boolean, duration, host_port, http_url, integer_in, name, target, timeout,
};

use crate::addr::TargetAddr;
pub use crate::networks::NetworkList;

/// Who asked, so that it can be read again.
#[derive(Clone, Debug)]
pub enum Source {
    /// The command line, for one listener.
    Flags(Box<(ProcessDraft, ListenerDraft)>),
    /// A file.
    File {
        /// Where it is.
        path: PathBuf,
        /// Flags of the process (`--workers=2`) that count more than its keys.
        over: Vec<String>,
    },
}

impl Source {
    /// The configuration file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Source::File { path, .. } => Some(path),
            Source::Flags(_) => None,
        }
    }

    /// Reads and checks what is asked for. The error tells every mistake, one a line.
    pub fn read(&self) -> Result<Config> {
        match self {
            Source::File { path, over } => Ok(load(path, over)?),
            Source::Flags(drafts) => {
                let (process, listener) = (**drafts).clone();
                check(process, vec![listener]).map_err(|mistakes| told(&mistakes))
            }
        }
    }
}

/// Mistakes in flags, one a line.
pub fn told(mistakes: &[Mistake]) -> anyhow::Error {
    let lines = mistakes
        .iter()
        .map(|m| format!("-{} {}", m.flag, m.message));
    anyhow!(lines.collect::<Vec<_>>().join("\n"))
}

/// The whole: a process and its listeners, of which there is one at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What all listeners share.
    pub process: Process,
    /// Their names differ, and their addresses.
    pub listeners: Vec<Arc<ListenerConfig>>,
}

/// What the process is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Threads that carry connections (`-workers`), at least 1.
    pub workers: usize,
    /// How long open connections may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// How long sessions may go on after a hand-over to a new process (`-upgrade-drain`); `None` for
    /// any time.
    pub upgrade_drain: Option<Duration>,
    /// About the policy routing.
    pub routing: Routing,
    /// What this instance is called (`-name`).
    pub name: Option<String>,
    /// The control socket.
    pub control: Control,
    /// The group that may use it (`-control-group`), a name or a number.
    pub control_group: Option<String>,
    /// Where bans are kept over a restart (`-state-dir`); `None` keeps them in memory only.
    pub state_dir: Option<PathBuf>,
    /// How much is logged.
    pub verbosity: Verbosity,
    /// How log lines look; `None` for the journal where standard error goes there, text on a terminal
    /// and JSON elsewhere.
    pub log_format: Option<LogFormat>,
    /// Where metrics and the status page are served (`-metrics`).
    pub metrics: Option<SocketAddr>,
    /// The user to become (`-user`), a name or a number.
    pub user: Option<String>,
    /// What is given up once everything is in place.
    pub sandbox: Parts,
    /// The CrowdSec engine that bans are taken from, if any.
    pub crowdsec: Option<Crowdsec>,
}

/// How bans are taken from a CrowdSec engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crowdsec {
    /// Its local API, without a slash at the end.
    pub url: String,
    /// Where the API key stands.
    pub api_key_file: PathBuf,
    /// Time from one question for changes to the next.
    pub update_frequency: Duration,
    /// Only decisions of these scopes; none means all.
    pub scopes: Vec<String>,
    /// Only decisions of these origins; none means all.
    pub origins: Vec<String>,
    /// Only decisions whose scenario contains one of these; none means all.
    pub scenarios_containing: Vec<String>,
    /// The certificates to trust instead of the system's.
    pub tls_ca_file: Option<PathBuf>,
}

/// What one listener is asked to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// What it is called: by the file, or by `-name`.
    pub name: Option<String>,
    /// Its name in log lines; `-name` is the process's, whose lines never had one.
    pub label: Option<String>,
    /// TCP or UDP (`-p`).
    pub protocol: Protocol,
    /// Where load balancers connect to (`-l`), one address at least.
    pub listen: Vec<SocketAddr>,
    /// Sockets that share each address by SO_REUSEPORT (`-listeners`), at least 1.
    pub listeners: usize,
    /// IP_TRANSPARENT on the listener: connections to foreign addresses are taken (`-listen-transparent`).
    pub listen_transparent: bool,
    /// The backends.
    pub targets: Targets,
    /// Where they are (`-target-netns`); `None` for this host's own network.
    pub target_netns: Option<TargetNetns>,
    /// Go to the destination that the header names (`-dynamic-destination`).
    pub dynamic_destination: bool,
    /// SO_MARK of upstream sockets (`-mark`); `None` leaves them unmarked.
    pub mark: Option<u32>,
    /// The load balancers that may connect (`-allowed-subnets`); `None` lets everybody.
    pub allowed_subnets: Option<NetworkList>,
    /// Odd addresses that clients have here all the same (`-allow-claims`).
    pub allow_claims: Vec<IpNet>,
    /// What becomes of other peers.
    pub untrusted: Untrusted,
    /// The clients that are not served (`-denied-clients`).
    pub denied_clients: Option<NetworkList>,
    /// The only clients that are served (`-allowed-clients`).
    pub allowed_clients: Option<NetworkList>,
    /// About the claimed source port (`-source-port`).
    pub source_port: SourcePort,
    /// How long a peer may take to send its header.
    pub header_timeout: Duration,
    /// How long the backend may take to answer.
    pub connect_timeout: Duration,
    /// Silence both ways that ends a TCP session (`-idle-timeout`); `None` never does.
    pub idle_timeout: Option<Duration>,
    /// When and how often a silent TCP peer is probed (`-keepalive`), in whole seconds; `None` for
    /// never.
    pub keepalive: Option<Duration>,
    /// Silence that ends a UDP flow; `None` never does.
    pub close_after: Option<Duration>,
    /// Where a datagram's header stands (`-udp-header`).
    pub udp_header: UdpHeader,
    /// UDP flows open at once; `None` for what the open-file limit carries.
    pub max_flows: Option<usize>,
    /// Connections open at once; `None` for what the open-file limit carries.
    pub max_connections: Option<usize>,
    /// Connections or flows of one client open at once; `None` for any number.
    pub max_connections_per_client: Option<u32>,
    /// Connections or flows that one client may open in a time; `None` for any number.
    pub connection_rate_per_client: Option<Rate>,
    /// How replies are brought back.
    pub routing_mode: RoutingMode,
}

/// Where connections go, by the family of the claimed client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Targets {
    /// For IPv4 clients (`-4`).
    pub v4: SocketAddrV4,
    /// For IPv6 clients (`-6`).
    pub v6: SocketAddrV6,
    /// `-4` was given.
    pub v4_given: bool,
    /// `-6` was given.
    pub v6_given: bool,
}

/// A target as the routing of its replies sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteTarget {
    /// Where connections go; with address and port 0, any address of this host.
    pub target: SocketAddr,
    /// Somebody named the target, rather than a default.
    pub given: bool,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// `-mark`: the mark that the upstream sockets carry anyway.
    pub mark: Option<u32>,
    /// How its replies shall come back.
    pub mode: RoutingMode,
    /// Where it is; `None` for this host's own network.
    pub netns: Option<TargetNetns>,
}

impl Config {
    /// Whether targets are in network namespaces that are not this host's own.
    pub fn enters_namespaces(&self) -> bool {
        let mut listeners = self.listeners.iter();
        listeners.any(|listener| listener.target_netns.is_some())
    }

    /// The files that it names: a reload reads them again.
    pub fn lists(&self) -> impl Iterator<Item = &Path> {
        let lists = self.listeners.iter().flat_map(|listener| {
            [
                &listener.allowed_subnets,
                &listener.denied_clients,
                &listener.allowed_clients,
            ]
        });
        let lists = lists.filter_map(|list| match list {
            Some(NetworkList::File(path)) => Some(path.as_path()),
            _ => None,
        });
        let engine = self.process.crowdsec.iter();
        let engine = engine.flat_map(|engine| {
            let key = Some(&engine.api_key_file);
            key.into_iter().chain(&engine.tls_ca_file)
        });
        lists.chain(engine.map(PathBuf::as_path))
    }

    /// The targets of all listeners, each once.
    pub fn route_targets(&self) -> Vec<RouteTarget> {
        let mut all: Vec<RouteTarget> = Vec::new();
        for new in self
            .listeners
            .iter()
            .flat_map(|listener| listener.route_targets())
        {
            let same = |old: &&mut RouteTarget| {
                RouteTarget {
                    given: new.given,
                    ..(**old).clone()
                } == new
            };
            match all.iter_mut().find(same) {
                Some(old) => old.given |= new.given,
                None => all.push(new),
            }
        }
        all
    }
}

impl ListenerConfig {
    /// Its targets.
    pub fn route_targets(&self) -> Vec<RouteTarget> {
        let route = |target, given| RouteTarget {
            target,
            given,
            protocol: self.protocol,
            mark: self.mark,
            mode: self.routing_mode,
            netns: self.target_netns.clone(),
        };
        let mut all: Vec<RouteTarget> = Vec::new();
        all.extend(
            self.targets
                .each()
                .map(|(target, given)| route(target, given)),
        );
        // The header may name any address of this host.
        if self.dynamic_destination && self.protocol == Protocol::Tcp {
            all.push(route((Ipv4Addr::UNSPECIFIED, 0).into(), false));
            all.push(route((Ipv6Addr::UNSPECIFIED, 0).into(), false));
        }
        all
    }
}

impl Targets {
    /// The target for clients of `client`'s family.
    pub fn for_client(&self, client: SocketAddr) -> TargetAddr {
        TargetAddr(if client.is_ipv4() {
            self.v4.into()
        } else {
            self.v6.into()
        })
    }

    /// The flag that was not given and has `target` as its default.
    pub fn flag_left_out(&self, target: TargetAddr) -> Option<&'static str> {
        let mut flags = ["-4", "-6"].into_iter().zip(self.each());
        let left_out = flags.find(|(_, (default, given))| !given && *default == target.0);
        left_out.map(|(flag, _)| flag)
    }

    /// The targets, and whether each was given.
    pub fn each(&self) -> [(SocketAddr, bool); 2] {
        [
            (self.v4.into(), self.v4_given),
            (self.v6.into(), self.v6_given),
        ]
    }
}
