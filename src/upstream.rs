//! Opens the socket that claims the client's address. Knows nothing of PROXY headers.
//!
//! ```
//! use std::sync::Arc;
//!
//! use realpeer::addr::{ClientAddr, TargetAddr};
//! use realpeer::routing::Marks;
//! use realpeer::upstream::{Asking, Kind, Options, Place, SourcePort, UpstreamError, connect};
//!
//! let options = Options {
//!     place: Place::here(Arc::new(Marks::default()), Arc::new(Asking::new()?)),
//!     mark: None,
//!     source_port: SourcePort::Keep,
//!     keepalive: None,
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
use crate::namespaces::{Inside, Namespace};
use crate::routing::Marks;
use crate::sys;

/// SYNs that are sent again before the kernel gives up: go-mmproxy's TCP_SYNCNT.
const SYN_COUNT: i32 = 2;

/// What upstream sockets have in common.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where targets are.
    pub place: Place,
    /// SO_MARK of every socket (`-mark`).
    pub mark: Option<u32>,
    /// About the claimed source port.
    pub source_port: SourcePort,
    /// As `sys::socket::set_keepalive`.
    pub keepalive: Option<Duration>,
}

/// The network that sockets are opened in.
#[derive(Clone, Debug)]
pub struct Place(Network);

#[derive(Clone, Debug)]
enum Network {
    /// This host's own.
    Here(Arc<Marks>, Arc<Asking>),
    /// Another namespace, while it is there.
    Inside(Arc<Namespace>),
}

/// A place that is there.
enum Open<'a> {
    Here(&'a Marks, &'a Asking),
    Inside(Arc<Inside>),
}

impl Place {
    /// This host's own network. `marks` has the SO_MARK of each target, where the routing needs one;
    /// `asking` asks the kernel about addresses.
    pub fn here(marks: Arc<Marks>, asking: Arc<Asking>) -> Place {
        Place(Network::Here(marks, asking))
    }

    /// Another network namespace.
    pub(crate) fn within(namespace: Arc<Namespace>) -> Place {
        Place(Network::Inside(namespace))
    }

    /// What holds the routing of another namespace in place, for a socket there. Fails while the
    /// namespace is gone.
    pub(crate) fn inside(&self) -> Result<Option<Arc<Inside>>, UpstreamError> {
        Ok(self.open()?.into_inside())
    }

    fn open(&self) -> Result<Open<'_>, UpstreamError> {
        match &self.0 {
            Network::Here(marks, asking) => Ok(Open::Here(marks, asking)),
            Network::Inside(namespace) => match namespace.inside() {
                Ok(inside) => Ok(Open::Inside(inside)),
                Err(reason) => Err(UpstreamError::TargetGone {
                    netns: namespace.netns.to_string(),
                    reason,
                }),
            },
        }
    }
}

impl Open<'_> {
    fn into_inside(self) -> Option<Arc<Inside>> {
        match self {
            Open::Here(..) => None,
            Open::Inside(inside) => Some(inside),
        }
    }

    /// A non-blocking socket there.
    fn socket(&self, domain: Domain, transport: Type) -> io::Result<Socket> {
        let protocol = match transport {
            Type::STREAM => Protocol::TCP,
            _ => Protocol::UDP,
        };
        match self {
            Open::Here(..) => Socket::new(domain, transport.nonblocking(), Some(protocol)),
            Open::Inside(inside) => inside.sockets.take(domain, transport),
        }
    }

    fn asking(&self) -> &Asking {
        match self {
            Open::Here(_, asking) => asking,
            Open::Inside(inside) => &inside.asking,
        }
    }

    fn mark(&self, target: TargetAddr) -> Option<u32> {
        let inside = match self {
            Open::Here(marks, _) => return marks.of(target.ip()),
            Open::Inside(inside) => inside,
        };
        inside.marks.of_place(target.ip(), || {
            let any_port = SocketAddr::new(target.ip(), 0);
            let socket = self.socket(Domain::for_address(any_port), Type::DGRAM);
            socket.is_ok_and(|socket| socket.bind(&any_port.into()).is_ok())
        })
    }
}

/// Asks the kernel about addresses, by connect(2); it never sends. One for all, because a new one
/// takes as long as all else that a flow begins with.
#[derive(Debug)]
pub struct Asking(Socket);

impl Asking {
    /// Fails when there can be no socket.
    pub fn new() -> io::Result<Asking> {
        let asking = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
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
    /// The namespace that it is in, if not this host's own: to be held as long as the socket.
    pub(crate) inside: Option<Arc<Inside>>,
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
    /// The network namespace of the targets is gone.
    #[error("the network namespace of the targets, {netns}, is gone: {reason}")]
    TargetGone {
        /// As it was asked for.
        netns: String,
        /// Why.
        reason: Arc<str>,
    },
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
    let place = options.place.open()?;
    let any_port = ClientAddr((client.ip(), 0).into());
    let first = if options.source_port == SourcePort::Any {
        any_port
    } else {
        client
    };
    let (socket, port_replaced) = match attempt(first, target, kind, options, &place) {
        Err(UpstreamError::PortTaken(_))
            if options.source_port == SourcePort::Keep && first.0.port() != 0 =>
        {
            (attempt(any_port, target, kind, options, &place)?, true)
        }
        result => (result?, false),
    };
    Ok(Connecting {
        socket,
        port_replaced,
        inside: place.into_inside(),
    })
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
    place: &Open<'_>,
) -> Result<OwnedFd, UpstreamError> {
    let claimed = claiming_socket(source, target, kind, options, place);
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
    match is_as_claimed(&socket, source, kind, place) {
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
    place: &Open<'_>,
) -> io::Result<bool> {
    let own = socket.local_addr()?.as_socket();
    let same = own.is_some_and(|own| {
        own.ip() == source.ip() && (source.0.port() == 0 || own.port() == source.0.port())
    });
    Ok(match kind {
        Kind::Stream => same,
        // A UDP socket tells what it was bound to, not what it sends from.
        Kind::Datagram { .. } => same && !is_group(source.ip(), place)?,
    })
}

/// Whether the kernel takes `ip` for more than one host.
fn is_group(ip: IpAddr, place: &Open<'_>) -> io::Result<bool> {
    let IpAddr::V4(v4) = ip else {
        return Ok(ip.is_multicast());
    };
    if v4.is_multicast() || v4.is_broadcast() {
        return Ok(true);
    }
    if !is_forbidden(&place.asking().0, v4) {
        return Ok(false);
    }
    // A route of the type prohibit answers the same, but with SO_BROADCAST, too.
    let asking = place.socket(Domain::IPV4, Type::DGRAM)?;
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

/// A socket that may bind to an address that is not this host's.
fn claiming_socket(
    source: ClientAddr,
    target: TargetAddr,
    kind: Kind,
    options: &Options,
    place: &Open<'_>,
) -> io::Result<Socket> {
    let transport = match kind {
        Kind::Stream => Type::STREAM,
        Kind::Datagram { .. } => Type::DGRAM,
    };
    let socket = place.socket(Domain::for_address(source.0), transport)?;
    if source.0.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    if let Some(mark) = options.mark.or_else(|| place.mark(target)) {
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
