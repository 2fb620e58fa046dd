//! From drafts to a `Config`: names are resolved, and what no single word can tell is checked. Every
//! mistake is collected, so that an administrator mends a file once.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::Arc;

use super::choice::Untrusted;
use super::draft::{CrowdsecDraft, ListenerDraft, ProcessDraft};
use super::netns::TargetNetns;
use super::value::{HostPort, Words};
use super::{Config, Crowdsec, ListenerConfig, Process, Targets};
use crate::networks::NetworkList;
use crate::sys;

/// Something that cannot be as it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The number of the listener that it is about; `None` for the process.
    pub listener: Option<usize>,
    /// The flag that it is about, without its dash.
    pub flag: &'static str,
    /// What was found and what is allowed.
    pub message: String,
}

/// A listener that is right by itself, and its number.
pub type Checked = (usize, Arc<ListenerConfig>);

/// Checks the whole, but for loops.
pub fn check(process: ProcessDraft, drafts: Vec<ListenerDraft>) -> Result<Config, Vec<Mistake>> {
    match check_listeners(drafts) {
        (listeners, mistakes) if mistakes.is_empty() => Ok(whole(process, listeners)),
        (_, mistakes) => Err(mistakes),
    }
}

/// Checks each listener, and that no two are in each other's way.
pub fn check_listeners(drafts: Vec<ListenerDraft>) -> (Vec<Checked>, Vec<Mistake>) {
    let mut mistakes = Vec::new();
    let mut listeners = Vec::new();
    for (number, draft) in drafts.into_iter().enumerate() {
        let mut note = |flag, message| {
            mistakes.push(Mistake {
                listener: Some(number),
                flag,
                message,
            });
        };
        if let Some(listener) = listener(draft, &mut note) {
            listeners.push((number, Arc::new(listener)));
        }
    }
    for (place, (number, listener)) in listeners.iter().enumerate() {
        let before = &listeners[..place];
        let mut note = |flag, message| {
            mistakes.push(Mistake {
                listener: Some(*number),
                flag,
                message,
            });
        };
        refuse_twice(listener, before, &mut note);
    }
    (listeners, mistakes)
}

/// The configuration, once nothing is wrong with it.
pub fn whole(process: ProcessDraft, listeners: Vec<Checked>) -> Config {
    Config {
        process: self::process(process),
        listeners: listeners
            .into_iter()
            .map(|(_, listener)| listener)
            .collect(),
    }
}

/// The process by itself, of which nothing can be wrong that no word shows.
pub fn process(draft: ProcessDraft) -> Process {
    Process {
        workers: draft.workers.unwrap_or_else(cores),
        drain_timeout: draft.drain_timeout,
        upgrade_drain: draft.upgrade_drain,
        routing: draft.routing,
        name: draft.name,
        control: draft.control,
        control_group: draft.control_group,
        state_dir: draft.state_dir.or_else(systemd_state_dir),
        verbosity: draft.verbosity,
        log_format: draft.log_format,
        metrics: draft.metrics,
        user: draft.user,
        sandbox: draft.sandbox,
        crowdsec: draft.crowdsec.and_then(crowdsec),
    }
}

/// `None` if it lacks what it needs, which whoever made the draft has told.
fn crowdsec(draft: CrowdsecDraft) -> Option<Crowdsec> {
    let list = |words: Option<Words>| words.map_or_else(Vec::new, |words| words.0);
    Some(Crowdsec {
        url: draft.url?,
        api_key_file: draft.api_key_file?,
        update_frequency: draft.update_frequency,
        scopes: list(draft.scopes),
        origins: list(draft.origins),
        scenarios_containing: list(draft.scenarios_containing),
        tls_ca_file: draft.tls_ca_file,
    })
}

/// One listener by itself; `None` after a mistake without which nothing can be said of it.
fn listener(
    draft: ListenerDraft,
    note: &mut impl FnMut(&'static str, String),
) -> Option<ListenerConfig> {
    let mut listen = Vec::new();
    for addr in &draft.listen.0 {
        match resolve(addr, Some) {
            Ok(addr) => listen.push(addr),
            Err(message) => note("l", message),
        }
    }
    let v4 = resolve(&draft.target_v4, |a| match a {
        SocketAddr::V4(a) => Some(a),
        SocketAddr::V6(_) => None,
    });
    let v6 = resolve(&draft.target_v6, |a| match a {
        SocketAddr::V6(a) => Some(a),
        SocketAddr::V4(_) => None,
    });
    let v4 = v4.map_err(|message| note("4", message)).ok();
    let v6 = v6.map_err(|message| note("6", message)).ok();
    if draft.untrusted == Untrusted::Serve && draft.allowed_subnets.is_none() {
        note(
            "untrusted",
            "serve needs allowed-subnets: without it every peer is trusted, and a header is expected of it".into(),
        );
    }
    let mut target_netns = draft.target_netns;
    if let Some(path) = draft.docker_socket {
        match &mut target_netns {
            Some(TargetNetns::Container { socket, .. }) => *socket = path,
            _ => note(
                "docker-socket",
                "it has a meaning only with target-netns docker:NAME or podman:NAME".into(),
            ),
        }
    }
    Some(ListenerConfig {
        name: draft.name,
        label: draft.label,
        protocol: draft.protocol,
        listen,
        listeners: draft.listeners,
        listen_transparent: draft.listen_transparent,
        targets: Targets {
            v4: v4?,
            v6: v6?,
            v4_given: draft.v4_given,
            v6_given: draft.v6_given,
        },
        target_netns,
        dynamic_destination: draft.dynamic_destination,
        mark: (draft.mark != 0).then_some(draft.mark),
        allowed_subnets: draft.allowed_subnets,
        allow_claims: match draft.allow_claims {
            Some(NetworkList::Here(list)) => list,
            _ => Vec::new(),
        },
        untrusted: draft.untrusted,
        denied_clients: draft.denied_clients,
        allowed_clients: draft.allowed_clients,
        source_port: draft.source_port,
        header_timeout: draft.header_timeout,
        connect_timeout: draft.connect_timeout,
        idle_timeout: (!draft.idle_timeout.is_zero()).then_some(draft.idle_timeout),
        keepalive: (!draft.keepalive.is_zero()).then_some(draft.keepalive),
        close_after: (!draft.close_after.is_zero()).then_some(draft.close_after),
        udp_header: draft.udp_header,
        max_flows: draft.max_flows,
        max_connections: draft.max_connections,
        max_connections_per_client: draft.max_connections_per_client,
        connection_rate_per_client: draft.connection_rate_per_client,
        routing_mode: draft.routing_mode,
    })
}

/// One name, or one address, of two listeners. A wildcard address covers the others of its port.
fn refuse_twice(
    listener: &ListenerConfig,
    before: &[Checked],
    note: &mut impl FnMut(&'static str, String),
) {
    for (at, addr) in listener.listen.iter().enumerate() {
        if let Some(other) = listener.listen[..at].iter().find(|a| overlap(**a, *addr)) {
            note("l", format!("{addr} is covered by {other} already"));
        }
    }
    if let Some(name) = &listener.name
        && before.iter().any(|(_, other)| other.name == listener.name)
    {
        note(
            "name",
            format!("another listener is called {name:?} already"),
        );
    }
    for (_, other) in before {
        if listener.protocol != other.protocol {
            continue;
        }
        for addr in &listener.listen {
            if let Some(theirs) = other.listen.iter().find(|a| overlap(**a, *addr)) {
                let name = other.name.as_deref().unwrap_or_default();
                note(
                    "l",
                    format!("{addr} is taken by {name:?}, which listens on {theirs}"),
                );
            }
        }
    }
}

/// Whether two sockets could not be bound to both.
pub fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    if a.port() != b.port() || a.port() == 0 {
        return false;
    }
    if let (SocketAddr::V6(a), SocketAddr::V6(b)) = (a, b)
        && a.ip() == b.ip()
    {
        // The same link-local address may be in use on several links.
        return a.scope_id() == b.scope_id();
    }
    let (x, y) = (a.ip().to_canonical(), b.ip().to_canonical());
    x == y || covers(x, y) || covers(y, x)
}

/// A socket on :: takes IPv4 too.
fn covers(wildcard: IpAddr, other: IpAddr) -> bool {
    wildcard.is_unspecified() && (wildcard.is_ipv6() || other.is_ipv4())
}

/// Targets that lead back to their own listener, perhaps by way of others.
pub fn loops(config: &Config) -> Vec<Mistake> {
    let numbered = config.listeners.iter().cloned().enumerate();
    loops_of(&numbered.collect::<Vec<_>>())
}

/// As `loops`, where listeners may be missing.
pub fn loops_of(listeners: &[Checked]) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for (number, listener) in listeners {
        refuse_loops(listener, listeners, &mut |flag, message| {
            mistakes.push(Mistake {
                listener: Some(*number),
                flag,
                message,
            });
        });
    }
    mistakes
}

/// A target that was asked for and leads back to the listener, perhaps by way of others, would make
/// the first connection go round until the descriptors are used up.
fn refuse_loops(
    listener: &ListenerConfig,
    all: &[Checked],
    note: &mut impl FnMut(&'static str, String),
) {
    // Its targets are elsewhere; a namespace that is this host's own is refused when it is entered.
    if listener.target_netns.is_some() {
        return;
    }
    let flags = ["4", "6"];
    for ((target, given), flag) in listener.targets.each().into_iter().zip(flags) {
        if !given {
            continue;
        }
        if reaches(target, listener) {
            let own = listener
                .listen
                .iter()
                .find(|own| own.port() == target.port());
            let own = own.map(ToString::to_string).unwrap_or_default();
            note(
                flag,
                format!(
                    "{target} is the address realpeer itself listens on (-l {own}): connections would loop"
                ),
            );
        } else if let Some(by) = way_back(target, listener, all) {
            note(
                flag,
                format!(
                    "{target} is the listener {by:?}, which leads back here: connections would loop"
                ),
            );
        }
    }
}

/// The other listener that `target` is, if one can get from there to `listener`.
fn way_back(target: SocketAddr, listener: &ListenerConfig, all: &[Checked]) -> Option<String> {
    let mut seen: Vec<&ListenerConfig> = Vec::new();
    let reached = |target| {
        let mut all = all.iter().map(|(_, other)| other.as_ref());
        all.find(|other| other.protocol == listener.protocol && reaches(target, other))
    };
    let first = reached(target)?;
    let mut ahead = vec![first];
    while let Some(next) = ahead.pop() {
        if std::ptr::eq(next, listener) {
            return first.name.clone();
        }
        if seen.iter().any(|other| std::ptr::eq(*other, next)) {
            continue;
        }
        seen.push(next);
        if next.target_netns.is_some() {
            continue;
        }
        let targets = next.targets.each().into_iter();
        ahead.extend(targets.filter_map(|(target, _)| reached(target)));
    }
    None
}

/// Whether a connection to `target` arrives at `listener`.
fn reaches(target: SocketAddr, listener: &ListenerConfig) -> bool {
    let mut listen = listener.listen.iter();
    listen.any(|addr| leads_to(target, *addr, sys::interfaces::is_local))
}

/// Whether a connection to `target` arrives at a socket bound to `listen`. `is_local` tells whether
/// an address is one of this host's; it is asked only when the ports make it possible.
pub fn leads_to(target: SocketAddr, listen: SocketAddr, is_local: impl Fn(IpAddr) -> bool) -> bool {
    let (ours, theirs) = (listen.ip().to_canonical(), target.ip().to_canonical());
    if target.port() != listen.port() {
        return false;
    }
    // A connection to 0.0.0.0 or :: goes to this host.
    ours == theirs
        || (covers(ours, theirs)
            && (theirs.is_loopback() || theirs.is_unspecified() || is_local(theirs)))
}

/// The first address of `addr` that `keep` takes. The error names `addr`.
pub fn resolve<A>(addr: &HostPort, keep: impl Fn(SocketAddr) -> Option<A>) -> Result<A, String> {
    let mut found = (addr.host.as_str(), addr.port)
        .to_socket_addrs()
        .map_err(|error| format!("{addr}: cannot resolve the host name: {error}"))?;
    found
        .find_map(keep)
        .ok_or_else(|| format!("{addr}: the name has no address of that family"))
}

/// The directory that a unit's StateDirectory= made.
pub fn systemd_state_dir() -> Option<PathBuf> {
    let listed = std::env::var_os("STATE_DIRECTORY")?;
    std::env::split_paths(&listed).find(|path| path.is_absolute())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
