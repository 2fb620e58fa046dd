//! What the proxy was asked to do, checked once and then only read.

use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, ToSocketAddrs};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::addr::TargetAddr;
use crate::cli::{HostPort, ProxyFlags};

/// The transport that is proxied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A PROXY header at the start of each connection.
    Tcp,
    /// A PROXY header in the datagrams.
    Udp,
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

/// Whether the proxy puts in the policy routing that its target needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// Put in what is missing at start, take it away at exit.
    Auto,
    /// Touch nothing.
    Off,
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

/// The shape of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// A JSON object a line, with the keys of go-mmproxy's maintained fork.
    Json,
    /// A line for people.
    Text,
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

/// Where connections go, by the family of the claimed client.
#[derive(Clone, Copy, Debug)]
pub struct Targets {
    /// For IPv4 clients (`-4`).
    pub v4: SocketAddrV4,
    /// For IPv6 clients (`-6`).
    pub v6: SocketAddrV6,
    /// `-4` stood on the command line.
    pub v4_given: bool,
    /// `-6` stood on the command line.
    pub v6_given: bool,
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
}

/// Everything the proxy needs to know to run.
#[derive(Clone, Debug)]
pub struct Settings {
    /// TCP or UDP (`-p`).
    pub protocol: Protocol,
    /// Where load balancers connect to (`-l`).
    pub listen: SocketAddr,
    /// Sockets that share `listen` by SO_REUSEPORT (`-listeners`), at least 1.
    pub listeners: usize,
    /// IP_TRANSPARENT on the listener: connections to foreign addresses are taken (`-listen-transparent`).
    pub listen_transparent: bool,
    /// Threads that carry connections (`-workers`), at least 1.
    pub workers: usize,
    /// The backends.
    pub targets: Targets,
    /// Go to the destination that the header names (`-dynamic-destination`).
    pub dynamic_destination: bool,
    /// SO_MARK of upstream sockets (`-mark`); `None` leaves them unmarked.
    pub mark: Option<u32>,
    /// File of the load balancers that may speak (`-allowed-subnets`); `None` lets everybody.
    pub allowed_subnets: Option<PathBuf>,
    /// File of the clients that are not served (`-denied-clients`).
    pub denied_clients: Option<PathBuf>,
    /// File of the only clients that are served (`-allowed-clients`).
    pub allowed_clients: Option<PathBuf>,
    /// What this instance is called (`-name`).
    pub name: Option<String>,
    /// The control socket.
    pub control: Control,
    /// The group that may use it (`-control-group`), a name or a number.
    pub control_group: Option<String>,
    /// Where bans are kept over a restart (`-state-dir`); `None` keeps them in memory only.
    pub state_dir: Option<PathBuf>,
    /// About the claimed source port (`-source-port`).
    pub source_port: SourcePort,
    /// How long a peer may take to send its header.
    pub header_timeout: Duration,
    /// How long the backend may take to answer.
    pub connect_timeout: Duration,
    /// How long open connections may go on after SIGTERM.
    pub drain_timeout: Duration,
    /// Silence that ends a UDP flow; `None` never does.
    pub close_after: Option<Duration>,
    /// Where a datagram's header stands (`-udp-header`).
    pub udp_header: UdpHeader,
    /// UDP flows open at once; `None` for what the open-file limit carries.
    pub max_flows: Option<usize>,
    /// Connections open at once; `None` for what the open-file limit carries.
    pub max_connections: Option<usize>,
    /// About the policy routing.
    pub routing: Routing,
    /// How replies are brought back.
    pub routing_mode: RoutingMode,
    /// How much is logged.
    pub verbosity: Verbosity,
    /// How log lines look; `None` for text on a terminal and JSON elsewhere.
    pub log_format: Option<LogFormat>,
}

impl Settings {
    /// Resolves host names and checks what a single flag cannot tell.
    /// Fails when a name has no address of the family its flag needs.
    pub fn resolve(flags: ProxyFlags) -> Result<Settings> {
        let targets = Targets {
            v4: resolve("-4", &flags.target_v4, |a| match a {
                SocketAddr::V4(a) => Some(a),
                SocketAddr::V6(_) => None,
            })?,
            v6: resolve("-6", &flags.target_v6, |a| match a {
                SocketAddr::V6(a) => Some(a),
                SocketAddr::V4(_) => None,
            })?,
            v4_given: flags.v4_given,
            v6_given: flags.v6_given,
        };
        Ok(Settings {
            protocol: flags.protocol,
            listen: resolve("-l", &flags.listen, Some)?,
            listeners: flags.listeners,
            listen_transparent: flags.listen_transparent,
            workers: flags.workers.unwrap_or_else(cores),
            targets,
            dynamic_destination: flags.dynamic_destination,
            mark: (flags.mark != 0).then_some(flags.mark),
            allowed_subnets: flags.allowed_subnets,
            denied_clients: flags.denied_clients,
            allowed_clients: flags.allowed_clients,
            name: flags.name,
            control: flags.control,
            control_group: flags.control_group,
            state_dir: flags.state_dir.or_else(systemd_state_dir),
            source_port: flags.source_port,
            header_timeout: flags.header_timeout,
            connect_timeout: flags.connect_timeout,
            drain_timeout: flags.drain_timeout,
            close_after: (!flags.close_after.is_zero()).then_some(flags.close_after),
            udp_header: flags.udp_header,
            max_flows: flags.max_flows,
            max_connections: flags.max_connections,
            routing: flags.routing,
            routing_mode: flags.routing_mode,
            verbosity: flags.verbosity,
            log_format: flags.log_format,
        })
    }
}

/// The directory that a unit's StateDirectory= made.
pub fn systemd_state_dir() -> Option<PathBuf> {
    let listed = std::env::var_os("STATE_DIRECTORY")?;
    std::env::split_paths(&listed).find(|path| path.is_absolute())
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The first address of `addr` that `keep` takes; `flag` is the one that named it.
pub fn resolve<A>(
    flag: &str,
    addr: &HostPort,
    keep: impl Fn(SocketAddr) -> Option<A>,
) -> Result<A> {
    let found = (addr.host.as_str(), addr.port)
        .to_socket_addrs()
        .with_context(|| format!("{flag} {addr}: cannot resolve the host name"))?
        .find_map(keep);
    match found {
        Some(addr) => Ok(addr),
        None => bail!("{flag} {addr}: the name has no address of that family"),
    }
}
