//! A listening socket and its flows, on one worker: waits, and lets datagrams through by the batch.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::epoll::EpollEvent;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::sleep_until;

use super::flows::{Flows, Traffic};
use super::lru::Key;
use super::outbox::Outbox;
use super::poller::Poller;
use super::reader::Reader;
use super::steering;
use crate::config::{Settings, UdpHeader};
use crate::listening;
use crate::proxy::Proxy;
use crate::sys::datagram::{Batch, LARGEST};
use crate::yielding::Yielding;

/// Bytes that may wait in the listening socket, each way: a burst of some thousand datagrams.
const BUFFER: usize = 8 << 20;

/// Sockets that one wait tells of, at most.
const EVENTS: usize = 256;

/// The number of the listening socket among the poller's.
const LISTENER: u64 = u64::MAX;

/// Descriptors that the kernel's table is made for at start, at most: 512 KiB of memory.
const WIDEST_TABLE: u64 = 65_535;

/// Bindings of style `first`, in flows: a binding is kept when its flow made room.
const BINDINGS_A_FLOW: usize = 4;

/// Datagrams in one turn that tell of a sender who has more of them.
const MANY: usize = 8;

/// A listening socket and everything that belongs to it.
pub struct Listener {
    pub(super) proxy: Arc<Proxy>,
    pub(super) worker: usize,
    pub(super) style: UdpHeader,
    pub(super) socket: OwnedFd,
    pub(super) poller: Poller,
    pub(super) reader: Reader,
    pub(super) flows: Flows,
    pub(super) batch: Batch,
    pub(super) outbox: Outbox,
    /// Payloads in the batch with their flows, not sent yet.
    pub(super) placed: Vec<(Key, Range<usize>)>,
    /// What came from backends and is not counted yet.
    pub(super) returned: Traffic,
    /// Datagrams of this turn, both ways.
    pub(super) carried: usize,
    yielding: Yielding,
}

/// Opens the listening sockets, all on one address, and returns that address.
pub fn bind(settings: &Settings) -> Result<(Vec<OwnedFd>, SocketAddr)> {
    widen_descriptor_table();
    let (sockets, listen) = listening::bind(settings, open)?;
    if sockets.len() > 1
        && let Err(error) = steering::by_client(&sockets, settings.udp_header)
    {
        tracing::warn!(%error, "the kernel rejects SO_ATTACH_REUSEPORT_CBPF: a client that arrives through several load-balancer sockets may get several ports");
    }
    Ok((sockets, listen))
}

/// The kernel's table of our descriptors doubles when it is full, and waits for all processors
/// each time (synchronize_rcu, up to some 100 ms on a busy machine): in the middle of a flood, no
/// flow would move meanwhile. So it gets its size before there are flows.
fn widen_descriptor_table() {
    let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    let highest = limit.saturating_sub(1).min(WIDEST_TABLE) as i32;
    // Only a help: a duplicate with a high number, closed at once.
    if let Ok(high) = fcntl(std::io::stdout(), FcntlArg::F_DUPFD_CLOEXEC(highest)) {
        let _ = nix::unistd::close(high);
    }
}

fn open(listen: SocketAddr, settings: &Settings) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::DGRAM.nonblocking(),
        Some(Protocol::UDP),
    )?;
    listening::prepare(&socket, listen, settings)?;
    // Answers come from the address that was asked, which several can be.
    if listen.ip().is_unspecified() || settings.listen_transparent {
        match listen.is_ipv6() {
            true => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            false => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
        }
    }
    hold_bursts(&socket);
    // Datagrams of several clients may come glued together, and the kernel gives all of them to
    // the listening socket of the first.
    if settings.listeners == 1 || settings.udp_header == UdpHeader::First {
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
    }
    socket.bind(&listen.into())?;
    Ok(socket)
}

/// Larger buffers than net.core.rmem_max and wmem_max allow need CAP_NET_ADMIN.
fn hold_bursts(socket: &Socket) {
    if setsockopt(socket, sockopt::RcvBufForce, &BUFFER).is_err() {
        let _ = socket.set_recv_buffer_size(BUFFER);
    }
    if setsockopt(socket, sockopt::SndBufForce, &BUFFER).is_err() {
        let _ = socket.set_send_buffer_size(BUFFER);
    }
}

/// Passes datagrams on, on that worker. Returns only when the listener is broken.
pub async fn run(proxy: Arc<Proxy>, socket: OwnedFd, worker: usize) -> io::Error {
    let mut listener = match Listener::new(proxy, socket, worker) {
        Ok(listener) => listener,
        Err(error) => return error,
    };
    let mut events = vec![EpollEvent::empty(); EVENTS];
    loop {
        if let Err(error) = listener.turn(&mut events).await {
            return error;
        }
    }
}

impl Listener {
    fn new(proxy: Arc<Proxy>, socket: OwnedFd, worker: usize) -> io::Result<Listener> {
        let most = (proxy.max_connections / proxy.settings.listeners).max(1);
        let poller = Poller::new()?;
        poller.add(&socket, LISTENER)?;
        Ok(Listener {
            worker,
            style: proxy.settings.udp_header,
            socket,
            poller,
            reader: Reader::new(Arc::clone(&proxy), most.saturating_mul(BINDINGS_A_FLOW)),
            flows: Flows::new(Arc::clone(&proxy), worker, most),
            batch: Batch::new(LARGEST),
            outbox: Outbox::default(),
            placed: Vec::new(),
            returned: Traffic::default(),
            carried: 0,
            yielding: Yielding::default(),
            proxy,
        })
    }

    /// Waits for datagrams and lets some of each socket's through, so that none starves another.
    async fn turn(&mut self, events: &mut [EpollEvent]) -> io::Result<()> {
        let expiry = self.flows.next_expiry();
        let ready = tokio::select! {
            biased;
            ready = self.poller.ready(events) => ready?,
            () = self.flows.unswept() => 0,
            () = until(expiry) => 0,
        };
        let now = Instant::now();
        let ready = &events[..ready];
        if ready.iter().any(|event| event.data() == LISTENER) {
            self.take_in(now)?;
        }
        let flows = ready.iter().map(EpollEvent::data);
        let flows = flows.filter(|number| *number != LISTENER);
        self.give_back(flows.map(Key::from_number), now);
        self.flows.sweep();
        self.flows.expire(now);
        // Whoever sends so much has more. After less it would only make datagrams late beside a
        // program that never sleeps.
        if std::mem::take(&mut self.carried) >= MANY {
            self.yielding.leave_core();
        }
        Ok(())
    }
}

async fn until(instant: Option<Instant>) {
    match instant {
        // A little later, so that flows that end together are told together.
        Some(instant) => sleep_until((instant + Duration::from_millis(1)).into()).await,
        None => pending().await,
    }
}
