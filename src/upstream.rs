//! Opens the socket that claims the client's address. Knows nothing of PROXY headers.
//!
//! ```
//! use std::sync::Arc;
//!
//! use realpeer::addr::{ClientAddr, TargetAddr};
//! use realpeer::routing::Marks;
//! use realpeer::upstream::{Asking, Kind, Options, SourcePort, UpstreamError, connect};
//!
//! let options = Options {
//!     marks: Arc::new(Marks::default()),
//!     mark: None,
//!     source_port: SourcePort::Keep,
//!     keepalive: None,
//!     asking: Arc::new(Asking::new()?),
//! };
//! let client = ClientAddr("203.0.113.9:51234".parse()?);
//! let target = TargetAddr("127.0.0.1:22".parse()?);
//! match connect(client, target, Kind::Datagram { shared: false }, &options) {
//!     Ok(connecting) => println!("{:?} sends as {client}", connecting.socket),
//!     // CAP_NET_ADMIN or CAP_NET_RAW is needed.
//!     Err(error) => assert!(matches!(error, UpstreamError::NotPermitted)),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use crate::addr::{ClientAddr, TargetAddr};
pub use crate::config::SourcePort;
use crate::routing::Marks;
use crate::sys;

/// SYNs that are sent again before the kernel gives up: go-mmproxy's TCP_SYNCNT.
const SYN_COUNT: i32 = 2;

/// What upstream sockets have in common.
#[derive(Clone, Debug)]
pub struct Options {
    /// SO_MARK by the target, where the routing needs one.
    pub marks: Arc<Marks>,
    /// SO_MARK of every socket (`-mark`).
    pub mark: Option<u32>,
    /// About the claimed source port.
    pub source_port: SourcePort,
    /// As `sys::socket::set_keepalive`.
    pub keepalive: Option<Duration>,
    /// Asks the kernel about addresses.
    pub asking: Arc<Asking>,
}

impl Options {
    fn mark(&self, target: TargetAddr) -> Option<u32> {
        self.mark.or_else(|| self.marks.of(target.ip()))
    }
}

/// Asks the kernel about addresses, by connect(2); it never sends. One for all, because a new one
/// takes as long as all else that a flow begins with.
#[derive(Debug)]
pub struct Asking(Socket);

impl Asking {
    /// Fails when there can be no socket.
    pub fn new() -> io::Result<Asking> {
        let asking = asking_socket()?;
        // It keeps the source address of its first question, which need not stay this host's. Who
        // may not claim addresses is told so by the first connection.
        let _ = asking.set_ip_transparent_v4(true);
        Ok(Asking(asking))
    }
}

/// The kind of socket that claims a client's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP.
    Stream,
    /// UDP.
    Datagram {
        /// A socket of ours already holds the client's port, for another target.
        shared: bool,
    },
}

/// A connection on its way.
#[derive(Debug)]
pub struct Connecting {
    /// Non-blocking; connected, or about to be.
    pub socket: OwnedFd,
    /// The claimed port was taken, so the kernel chose a free one.
    pub port_replaced: bool,
}

/// Why the backend could not be reached in the client's name.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// IP_TRANSPARENT or SO_MARK was refused.
    #[error(
        "cannot claim foreign addresses: realpeer lacks CAP_NET_ADMIN; run it as root, or give the unit \
         AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW"
    )]
    NotPermitted,
    /// The claimed port, or every port of the address, is in use.
    #[error(
        "the port of the client {0} is taken on this host (-source-port keep would use a free one)"
    )]
    PortTaken(ClientAddr),
    /// No answer in time.
    #[error(
        "no answer: a firewall may drop it (the backend {target} was silent for {after:?}); or the routing of its \
         replies is missing: realpeer doctor tells"
    )]
    Timeout {
        /// Where we connected to.
        target: TargetAddr,
        /// How long we waited.
        after: Duration,
    },
    /// The kernel gave the socket another address or port than the claimed one, as it does when
    /// the claim is a broadcast or multicast address.
    #[error("the kernel would not send from {0}, but from another address: no client has it")]
    NotAsClaimed(ClientAddr),
    /// A firewall answered with an ICMP message.
    #[error(
        "refused by a {} firewall, which rejects connections to the backend {target} by ICMP: is the client banned there?",
        if *here { "local" } else { "distant" }
    )]
    Rejected {
        /// Where we connected to.
        target: TargetAddr,
        /// It is on this host, and so is the firewall.
        here: bool,
    },
    /// The backend's host answered with a reset.
    #[error("the backend {0} refused the connection: is it running, and on that address?")]
    Refused(TargetAddr),
    /// Anything else.
    #[error("cannot connect to the backend {target} as {client}: {source}")]
    Failed {
        /// Whom we claimed to be.
        client: ClientAddr,
        /// Where we connected to.
        target: TargetAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Begins a connection to `target` that comes from `client`, address and port.
pub fn connect(
    client: ClientAddr,
    target: TargetAddr,
    kind: Kind,
    options: &Options,
) -> Result<Connecting, UpstreamError> {
    let any_port = ClientAddr((client.ip(), 0).into());
    let first = if options.source_port == SourcePort::Any {
        any_port
    } else {
        client
    };
    match attempt(first, target, kind, options) {
        Err(UpstreamError::PortTaken(_))
            if options.source_port == SourcePort::Keep && first.0.port() != 0 =>
        {
            let socket = attempt(any_port, target, kind, options)?;
            Ok(Connecting {
                socket,
                port_replaced: true,
            })
        }
        result => result.map(|socket| Connecting {
            socket,
            port_replaced: false,
        }),
    }
}

/// What an error of a connection on its way means.
pub fn failure(client: ClientAddr, target: TargetAddr, source: io::Error) -> UpstreamError {
    match source.raw_os_error() {
        Some(libc::ECONNREFUSED) => UpstreamError::Refused(target),
        // A port in use or in TIME_WAIT, told at bind or at connect; EACCES is a port below 1024
        // without CAP_NET_BIND_SERVICE.
        Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL | libc::EACCES) => {
            UpstreamError::PortTaken(client)
        }
        _ => UpstreamError::Failed {
            client,
            target,
            source,
        },
    }
}

/// Whether an error tells of a connection that was there before it broke: a reset in answer to a SYN
/// is ECONNREFUSED (tcp_reset in net/ipv4/tcp_input.c).
pub fn had_answered(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ECONNRESET | libc::EPIPE))
}

fn attempt(
    source: ClientAddr,
    target: TargetAddr,
    kind: Kind,
    options: &Options,
) -> Result<OwnedFd, UpstreamError> {
    let claimed = claiming_socket(source, target, kind, options);
    let socket = claimed.map_err(|e| match e.raw_os_error() {
        Some(libc::EPERM) => UpstreamError::NotPermitted,
        _ => failure(source, target, e),
    })?;
    let begun = socket
        .bind(&source.0.into())
        .and_then(|()| match kind {
            Kind::Stream => Ok(()),
            // The port is ours alone now; other sockets of ours may join it from here on.
            Kind::Datagram { .. } => socket.set_reuse_address(true),
        })
        .and_then(|()| socket.connect(&target.0.into()));
    match begun {
        Err(e) if e.raw_os_error() != Some(libc::EINPROGRESS) => {
            return Err(failure(source, target, e));
        }
        _ => {}
    }
    match is_as_claimed(&socket, source, kind, options) {
        Ok(true) => Ok(socket.into()),
        Ok(false) => Err(UpstreamError::NotAsClaimed(source)),
        Err(e) => Err(failure(source, target, e)),
    }
}

/// Whether a connected socket sends from the claimed address, and port if one is claimed.
///
/// bind(2) takes a broadcast or multicast address, and connect(2) then chooses another: 127.0.0.1
/// towards loopback (inet_bind in the kernel's net/ipv4/af_inet.c clears inet_saddr).
fn is_as_claimed(
    socket: &Socket,
    source: ClientAddr,
    kind: Kind,
    options: &Options,
) -> io::Result<bool> {
    let own = socket.local_addr()?.as_socket();
    let same = own.is_some_and(|own| {
        own.ip() == source.ip() && (source.0.port() == 0 || own.port() == source.0.port())
    });
    Ok(match kind {
        Kind::Stream => same,
        // A UDP socket tells what it was bound to, not what it sends from.
        Kind::Datagram { .. } => same && !is_group(source.ip(), &options.asking.0)?,
    })
}

/// Whether the kernel takes `ip` for more than one host.
fn is_group(ip: IpAddr, asking: &Socket) -> io::Result<bool> {
    let IpAddr::V4(v4) = ip else {
        return Ok(ip.is_multicast());
    };
    if v4.is_multicast() || v4.is_broadcast() {
        return Ok(true);
    }
    if !is_forbidden(asking, v4) {
        return Ok(false);
    }
    // A route of the type prohibit answers the same, but with SO_BROADCAST, too.
    let asking = asking_socket()?;
    if !is_forbidden(&asking, v4) {
        return Ok(false);
    }
    asking.set_broadcast(true)?;
    Ok(!is_forbidden(&asking, v4))
}

/// connect(2) to a broadcast address fails with EACCES without SO_BROADCAST.
fn is_forbidden(asking: &Socket, ip: Ipv4Addr) -> bool {
    let any_port = SocketAddr::new(ip.into(), 9);
    let result = asking.connect(&any_port.into());
    result.is_err_and(|e| e.raw_os_error() == Some(libc::EACCES))
}

fn asking_socket() -> io::Result<Socket> {
    Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))
}

/// A socket that may bind to an address that is not this host's.
fn claiming_socket(
    source: ClientAddr,
    target: TargetAddr,
    kind: Kind,
    options: &Options,
) -> io::Result<Socket> {
    let (transport, protocol) = match kind {
        Kind::Stream => (Type::STREAM, Protocol::TCP),
        Kind::Datagram { .. } => (Type::DGRAM, Protocol::UDP),
    };
    let domain = Domain::for_address(source.0);
    let socket = Socket::new(domain, transport.nonblocking(), Some(protocol))?;
    if source.0.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    if let Some(mark) = options.mark(target) {
        socket.set_mark(mark)?;
    }
    match kind {
        Kind::Stream => stream_options(&socket, source, options.keepalive)?,
        // Two UDP sockets of one address and port tell their datagrams apart only by the target:
        // with the same one, all answers would go to the one of them.
        Kind::Datagram { shared: true } => socket.set_reuse_address(true)?,
        Kind::Datagram { shared: false } => {}
    }
    Ok(socket)
}

fn stream_options(
    socket: &Socket,
    source: ClientAddr,
    keepalive: Option<Duration>,
) -> io::Result<()> {
    if source.0.port() == 0 {
        // The kernel chooses the port at connect(2), where only the whole 4-tuple must be free.
        setsockopt(socket, sockopt::IpBindAddressNoPort, &true)?;
    } else {
        socket.set_reuse_address(true)?;
    }
    sys::socket::set_option(socket, libc::IPPROTO_TCP, libc::TCP_SYNCNT, SYN_COUNT)?;
    socket.set_tcp_nodelay(true)?;
    socket.set_out_of_band_inline(true)?;
    sys::socket::set_keepalive(socket, keepalive)
}
