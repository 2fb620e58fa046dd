//! What somebody asked for, by flags or by a file, each word checked on its own. The definitions here
//! are the only schema: the flags, their help, the keys of a configuration file and what is
//! allowed in them all follow from it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::choice::{
    Choice, Control, LogFormat, Parts, Protocol, Routing, RoutingMode, SourcePort, UdpHeader,
    Untrusted, Verbosity,
};
use super::netns::TargetNetns;
use super::value::{self, Addresses, HostPort, Rate, Words};
use crate::networks::NetworkList;

/// The value name that marks a boolean flag, which may stand without a value.
pub const BOOLEAN: &str = "BOOL";

/// What belongs to the whole process.
#[derive(Clone, Debug, Args)]
pub struct ProcessDraft {
    /// Number of threads that carry connections (default: one per core)
    #[arg(long = "workers", value_name = "N", value_parser = value::workers)]
    pub workers: Option<usize>,

    /// How long open connections may continue after SIGTERM
    ///
    /// After it they are reset. A second signal ends them at once.
    #[arg(long = "drain-timeout", value_name = "TIME", default_value = "5s", value_parser = value::duration)]
    pub drain_timeout: Duration,

    /// How long the sessions of the old process may continue after an upgrade (default: no limit)
    ///
    /// UPGRADE in realpeer(8) has the details.
    #[arg(long = "upgrade-drain", value_name = "TIME", value_parser = value::duration)]
    pub upgrade_drain: Option<Duration>,

    /// Policy routing: auto (add what is missing, remove it at exit) or off
    ///
    /// A TCP target on another address of this host than a loopback one needs net.ipv4.tcp_fwmark_accept,
    /// which is on while a proxy or 'realpeer routing up' needs it, and then put back to what it was.
    /// Where other rules look at marks, the nft table realpeer_marks keeps the connections of other
    /// programs out of it.
    #[arg(long = "routing", value_name = "MODE", default_value = "auto", value_parser = Routing::read)]
    pub routing: Routing,

    /// Name of this instance, if several run; its control socket is then NAME.sock
    #[arg(long = "name", value_name = "NAME", value_parser = value::name)]
    pub name: Option<String>,

    /// Socket for 'realpeer ctl', or off (default: /run/realpeer/control.sock, if it can be created)
    ///
    /// With -name the default is NAME.sock. A socket that is in use by another process is taken over when
    /// that process ends; both are logged.
    #[arg(long = "control", value_name = "PATH", default_value = "", hide_default_value = true, value_parser = Control::read)]
    pub control: Control,

    /// Group that may use the control socket
    #[arg(long = "control-group", value_name = "GROUP")]
    pub control_group: Option<String>,

    /// Directory that keeps bans across restarts (default: $STATE_DIRECTORY, set by systemd)
    ///
    /// Instances may share it if each has its own -name. While it is full or read-only, the bans in it
    /// are in force, and changes are written once they can be; 'realpeer ctl' warns about each change
    /// that is not on disk.
    #[arg(long = "state-dir", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// What to log. 0: start and stop; 1: also refused connections; 2: every connection
    ///
    /// At 0 a refusal of the same reason and target is logged at most once a minute; LOG in realpeer(8)
    /// has the details. A slow reader of the log holds nothing up: up to 4 MiB of lines wait for it, and
    /// lines beyond that are counted in the next line that it gets.
    #[arg(long = "v", value_name = "N", default_value = "0", value_parser = Verbosity::read)]
    pub verbosity: Verbosity,

    /// Log format: json, text or journal (default: by where it goes)
    ///
    /// By default, entries of the systemd journal if standard error goes there (JOURNAL_STREAM), text if
    /// standard output is a terminal, and JSON elsewhere; LOG in realpeer(8) has the details.
    #[arg(long = "log-format", value_name = "FORMAT", value_parser = LogFormat::read)]
    pub log_format: Option<LogFormat>,

    /// Serve metrics and a status page over HTTP on this address, such as 127.0.0.1:9150
    ///
    /// Off by default. A change needs a restart. METRICS in realpeer(8) has the details.
    #[arg(long = "metrics", value_name = "ADDR", value_parser = value::socket_addr)]
    pub metrics: Option<SocketAddr>,

    /// User, by name or number, to become after a start as root
    ///
    /// PRIVILEGES in realpeer(8) has the details.
    #[arg(long = "user", value_name = "USER")]
    pub user: Option<String>,

    /// Parts of the sandbox to use: off, or some of capabilities, seccomp and landlock
    ///
    /// They are separated by commas. Once everything is in place, realpeer gives up what it does not need:
    /// PRIVILEGES in realpeer(8) has the details.
    #[arg(long = "sandbox", value_name = "PARTS", default_value = "capabilities,seccomp,landlock", value_parser = Parts::read)]
    pub sandbox: Parts,

    /// The CrowdSec engine to take bans from.
    #[arg(skip)]
    pub crowdsec: Option<CrowdsecDraft>,
}

/// The table `[crowdsec]` of a file. On a command line there are `-crowdsec-url` and
/// `-crowdsec-key-file`; the rest has its defaults then.
#[derive(Clone, Debug, Args)]
pub struct CrowdsecDraft {
    /// URL of the CrowdSec engine's local API
    ///
    /// That of an engine on this host is http://127.0.0.1:8080.
    #[arg(long = "url", value_name = "URL", value_parser = value::http_url)]
    pub url: Option<String>,

    /// File with the API key, as 'cscli bouncers add realpeer -o raw' prints it
    ///
    /// It is read again for each question.
    #[arg(long = "api-key-file", value_name = "PATH")]
    pub api_key_file: Option<PathBuf>,

    /// How often to ask for changes
    #[arg(long = "update-frequency", value_name = "TIME", default_value = "10s", value_parser = value::timeout)]
    pub update_frequency: Duration,

    /// Take only decisions of these scopes: ip, range (default: both)
    #[arg(long = "scopes", value_name = "WORDS", value_parser = value::scopes)]
    pub scopes: Option<Words>,

    /// Take only decisions of these origins, such as crowdsec, cscli, CAPI, lists (default: all)
    #[arg(long = "origins", value_name = "WORDS", value_parser = value::words)]
    pub origins: Option<Words>,

    /// Take only decisions whose scenario contains one of these (default: all)
    #[arg(long = "scenarios-containing", value_name = "WORDS", value_parser = value::words)]
    pub scenarios_containing: Option<Words>,

    /// File with the certificates to trust instead of the system's, in PEM
    #[arg(long = "tls-ca-file", value_name = "PATH")]
    pub tls_ca_file: Option<PathBuf>,
}

/// What belongs to one listener.
#[derive(Clone, Debug, Args)]
pub struct ListenerDraft {
    /// Where load balancers connect. The help is apart, because rustdoc takes its `[::]` for a link.
    #[arg(
        help = "Address to listen on, or several separated by commas; [::]:PORT accepts IPv4 as well"
    )]
    #[arg(long = "l", visible_alias = "listen-addr", value_name = "ADDR", default_value = "0.0.0.0:8443", value_parser = value::addresses)]
    pub listen: Addresses,

    /// Backend for IPv4 clients
    #[arg(long = "4", visible_alias = "ipv4", value_name = "ADDR", default_value = "127.0.0.1:443", value_parser = value::target_v4)]
    pub target_v4: HostPort,

    /// Backend for IPv6 clients
    #[arg(long = "6", visible_alias = "ipv6", value_name = "ADDR", default_value = "[::1]:443", value_parser = value::target_v6)]
    pub target_v6: HostPort,

    /// Connect to the destination that the header names, not to -4 or -6
    ///
    /// Connections whose header names none go to the targets of -4 and -6 all the same.
    #[arg(long = "dynamic-destination", value_name = BOOLEAN, action = clap::ArgAction::Set, default_value = "false", value_parser = value::boolean)]
    pub dynamic_destination: bool,

    /// Protocol: tcp or udp
    #[arg(long = "p", visible_alias = "protocol", value_name = "PROTO", default_value = "tcp", value_parser = Protocol::read)]
    pub protocol: Protocol,

    /// Mark to set on connections to the backend (SO_MARK); 0 sets none
    #[arg(long = "mark", visible_alias = "m", value_name = "N", default_value = "0", value_parser = value::mark)]
    pub mark: u32,

    /// File of the load balancers that may connect, one address or CIDR per line
    ///
    /// A # begins a comment. Without this list any host may connect and claim to be any client. List only
    /// addresses from which nobody but a load balancer sends.
    #[arg(long = "allowed-subnets", visible_aliases = ["a", "allowed-networks"], value_name = "FILE", value_parser = NetworkList::file)]
    pub allowed_subnets: Option<NetworkList>,

    /// Addresses and networks, separated by commas, that clients have although they look wrong
    /// (link-local, reserved, of this host's own, a network's first); never loopback, broadcast or
    /// multicast
    ///
    /// CLAIMS in realpeer(8) has the table of what is refused without it.
    #[arg(long = "allow-claims", value_name = "NETWORKS", value_parser = value::allow_claims, verbatim_doc_comment)]
    pub allow_claims: Option<NetworkList>,

    /// Peers outside -allowed-subnets: refuse them, or serve them from their own address, without a header
    ///
    /// A peer that is served is its own client: the backend sees it by its own address, no header is
    /// looked for, and every byte is passed on, also one that looks like a header. The peer's address
    /// alone decides. Bans, client lists and limits apply to it. The value serve needs -allowed-subnets.
    ///
    /// With UDP and several -listeners, the kernel then distributes datagrams by their sender: a client
    /// that arrives through several load-balancer sockets may get several ports.
    #[arg(long = "untrusted", value_name = "WHAT", default_value = "refuse", value_parser = Untrusted::read)]
    pub untrusted: Untrusted,

    /// File of the clients to refuse, one address or CIDR per line
    ///
    /// A header that names no client (LOCAL and UNKNOWN, as health checks send it) is judged by the
    /// peer's own address, by bans and client lists alike, with two exceptions: loopback peers, and peers
    /// that -allowed-subnets names at least as narrowly as the ban or the entry does. If it names
    /// 192.0.2.0/24, a ban of 192.0.2.7 still applies to that address, and a ban of 192.0.0.0/16 does not
    /// stop the health checks from 192.0.2.7. 0.0.0.0/0 and ::/0 name nobody. A peer that is excepted
    /// need not be an allowed client.
    #[arg(long = "denied-clients", value_name = "FILE", value_parser = NetworkList::file)]
    pub denied_clients: Option<NetworkList>,

    /// File of the only clients to serve, one address or CIDR per line
    ///
    /// Bans take precedence over the denied clients, and those over the allowed ones.
    #[arg(long = "allowed-clients", value_name = "FILE", value_parser = NetworkList::file)]
    pub allowed_clients: Option<NetworkList>,

    /// Number of sockets that share the listen address (SO_REUSEPORT)
    #[arg(long = "listeners", value_name = "N", default_value = "1", value_parser = value::sockets)]
    pub listeners: usize,

    /// Accept connections to addresses that this host does not have (IP_TRANSPARENT)
    #[arg(long = "listen-transparent", value_name = BOOLEAN, action = clap::ArgAction::Set, default_value = "false", value_parser = value::boolean)]
    pub listen_transparent: bool,

    /// Maximum number of open connections (default: what the open-file limit allows)
    #[arg(long = "max-connections", value_name = "N", value_parser = value::at_least_one)]
    pub max_connections: Option<usize>,

    /// Maximum number of open connections or UDP flows per client; an IPv6 client is its /64
    /// (default: no limit)
    ///
    /// Connections count by the claimed address. A client over its limit is reset, its datagrams are
    /// dropped, and it is counted as tooManyOfClient. A connection counts until both sides have ended,
    /// also while the backend is being connected to. Connections whose header names no client (LOCAL and
    /// UNKNOWN, as health checks send it) do not count.
    #[arg(long = "max-connections-per-client", value_name = "N", value_parser = value::per_client, verbatim_doc_comment)]
    pub max_connections_per_client: Option<u32>,

    /// Maximum rate of new connections per client, such as 10/s or 100/m (default: no limit)
    ///
    /// UDP flows and LOCAL headers are treated as -max-connections-per-client treats them. The rate is a
    /// token bucket of that size: 100/m allows 100 at once, and then one every 0.6 seconds. The rates of
    /// 32,768 clients are remembered at a time, in 1 MiB; of more, the least active ones are forgotten.
    #[arg(long = "connection-rate-per-client", value_name = "N/TIME", value_parser = value::rate)]
    pub connection_rate_per_client: Option<Rate>,

    /// If the client's port is in use here: keep (use a free one instead), any (always use a free
    /// one), strict (refuse the connection)
    #[arg(long = "source-port", value_name = "WHICH", default_value = "keep", value_parser = SourcePort::read, verbatim_doc_comment)]
    pub source_port: SourcePort,

    /// How long a load balancer may take to send the header
    #[arg(long = "header-timeout", value_name = "TIME", default_value = "10s", value_parser = value::timeout)]
    pub header_timeout: Duration,

    /// How long the backend may take to answer
    #[arg(long = "connect-timeout", value_name = "TIME", default_value = "5s", value_parser = value::timeout)]
    pub connect_timeout: Duration,

    /// Close a TCP session after this time without a byte either way; 0: never
    ///
    /// The end may come up to an eighth of that time later. Keep-alive probes are not bytes; what a slow
    /// reader still takes counts. ENDS OF CONNECTIONS in realpeer(8) has the details.
    #[arg(long = "idle-timeout", value_name = "TIME", default_value = "0", value_parser = value::duration)]
    pub idle_timeout: Duration,

    /// Probe a silent TCP peer after this time, and again as often; gone after 9 probes without an
    /// answer (net.ipv4.tcp_keepalive_probes); 0: no probes
    ///
    /// Load balancer and backend are probed alike. A reload changes this and -idle-timeout for new
    /// connections.
    #[arg(long = "keepalive", value_name = "TIME", default_value = "15s", value_parser = value::keepalive, verbatim_doc_comment)]
    pub keepalive: Duration,

    /// Close a UDP flow after this time without a datagram either way; 0: never (but see -max-flows)
    #[arg(long = "close-after", visible_alias = "c", value_name = "TIME", default_value = "60s", value_parser = value::duration)]
    pub close_after: Duration,

    /// Where UDP datagrams carry their header: every (PROXY v2 in each), spp (Simple Proxy Protocol
    /// in each), first (PROXY v2 in the first from each load-balancer socket; set -close-after
    /// longer than the load balancer keeps a silent socket)
    #[arg(long = "udp-header", value_name = "STYLE", default_value = "every", value_parser = UdpHeader::read, verbatim_doc_comment)]
    pub udp_header: UdpHeader,

    /// Maximum number of open UDP flows; a new one replaces the one that was idle the longest
    /// (default: what the open-file limit allows)
    #[arg(long = "max-flows", value_name = "N", value_parser = value::at_least_one, verbatim_doc_comment)]
    pub max_flows: Option<usize>,

    /// How replies are brought back: auto (depends on the target), loopback, mark, socket or udp-port
    #[arg(long = "routing-mode", value_name = "WAY", default_value = "auto", value_parser = RoutingMode::read)]
    pub routing_mode: RoutingMode,

    /// Network namespace that -4 and -6 are addresses in: PATH of a namespace file, pid:N,
    /// docker:NAME or podman:NAME (default: this host's own)
    ///
    /// Sockets are opened there and the routing is kept there, by threads of their own; this host's routing
    /// is left alone. A container is followed by the engine's events when it is restarted or created again,
    /// a process until it ends. Symbolic links in PATH are not followed, and this host's own namespace is
    /// refused. While the namespace is gone, clients are refused with the reason and counted as targetGone.
    ///
    /// It takes CAP_SYS_ADMIN and, but for PATH, CAP_SYS_PTRACE, which only the thread that enters keeps:
    /// realpeer.service.d/containers.conf is the drop-in for the unit. A reload cannot add the first
    /// namespace, for without one these are given up at the start.
    ///
    /// A rootless engine works if realpeer runs as root and -docker-socket names the engine's socket.
    #[arg(long = "target-netns", value_name = "NETNS", value_parser = TargetNetns::read, verbatim_doc_comment)]
    pub target_netns: Option<TargetNetns>,

    /// Socket of the engine's API for docker:NAME and podman:NAME (default: /run/docker.sock,
    /// /run/podman/podman.sock)
    #[arg(long = "docker-socket", value_name = "PATH", verbatim_doc_comment)]
    pub docker_socket: Option<PathBuf>,

    /// What it is called.
    #[arg(skip)]
    pub name: Option<String>,
    /// Its name in log lines.
    #[arg(skip)]
    pub label: Option<String>,
    /// `-4` was given.
    #[arg(skip)]
    pub v4_given: bool,
    /// `-6` was given.
    #[arg(skip)]
    pub v6_given: bool,
}

impl Default for CrowdsecDraft {
    /// Nothing written.
    fn default() -> CrowdsecDraft {
        CrowdsecDraft {
            url: None,
            api_key_file: None,
            update_frequency: Duration::from_secs(10),
            scopes: None,
            origins: None,
            scenarios_containing: None,
            tls_ca_file: None,
        }
    }
}
