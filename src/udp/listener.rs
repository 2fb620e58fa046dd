//! A listening socket and its flows, on one worker: waits, and lets datagrams through by the batch.

use std::fmt;
use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::epoll::EpollEvent;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::sleep_until;

use super::flows::{Flows, Traffic};
use super::lru::Key;
use super::luggage::{Binding, Luggage, Paper};
use super::outbox::Outbox;
use super::poller::Poller;
use super::reader::Reader;
use super::steering;
use crate::config::{ListenerConfig, UdpHeader};
use crate::service::{Current, Service};
use crate::sys;
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

/// Datagrams in one turn that tell of a sender who has more of them.
const MANY: usize = 8;

/// A listening socket and everything that belongs to it.
pub struct Listener {
    pub(super) current: Arc<Current>,
    pub(super) service: Arc<Service>,
    /// Rules of before, which flows still have.
    pub(super) earlier: Vec<Weak<Service>>,
    pub(super) worker: usize,
    pub(super) style: UdpHeader,
    pub(super) socket: Arc<OwnedFd>,
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

/// What is to be done once the sockets of an address are bound.
pub fn prepare(sockets: &[Arc<OwnedFd>], config: &ListenerConfig) {
    widen_descriptor_table();
    steer(sockets, config);
}

/// Tells the kernel which of several sockets gets a datagram.
pub fn steer(sockets: &[Arc<OwnedFd>], config: &ListenerConfig) {
    if sockets.len() > 1
        && let Err(error) = steering::by_client(sockets, config)
    {
        tracing::warn!(%error, "the kernel rejects SO_ATTACH_REUSEPORT_CBPF: a client that arrives through several load-balancer sockets may get several ports");
    }
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

/// Opens a listening socket.
pub fn open(listen: SocketAddr, config: &ListenerConfig, shared: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(listen),
        Type::DGRAM.nonblocking(),
        Some(Protocol::UDP),
    )?;
    let shared = shared || config.listeners > 1;
    sys::socket::prepare_listener(&socket, listen, shared, config.listen_transparent)?;
    set_up(&socket, listen, config)?;
    socket.bind(&listen.into())?;
    Ok(socket)
}

/// Sets what a listening socket needs, bound or not.
pub fn set_up(socket: &Socket, listen: SocketAddr, config: &ListenerConfig) -> io::Result<()> {
    // Answers come from the address that was asked, which several can be.
    if listen.ip().is_unspecified() || config.listen_transparent {
        match listen.is_ipv6() {
            true => setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            false => setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?,
        }
    }
    hold_bursts(socket);
    // Datagrams of several clients may come glued together, and the kernel gives all of them to
    // the listening socket of the first.
    if config.listeners == 1 || config.udp_header == UdpHeader::First {
        let _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
    }
    Ok(())
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

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").finish_non_exhaustive()
    }
}

impl Listener {
    /// Lets datagrams through until it is dropped, or has to leave, and then gives back itself.
    /// Fails when the listener is broken.
    pub async fn run(mut self: Box<Listener>) -> io::Result<Box<Listener>> {
        let mut events = vec![EpollEvent::empty(); EVENTS];
        while !self.current.is_leaving() {
            self.turn(&mut events).await?;
        }
        Ok(self)
    }
}

impl Listener {
    /// With the flows of a process before this one, on that worker, in whose runtime it is called.
    pub fn new(
        current: Arc<Current>,
        socket: Arc<OwnedFd>,
        worker: usize,
        luggage: Luggage,
    ) -> io::Result<Listener> {
        let mut listener = Listener::empty(current, socket, worker)?;
        let now = Instant::now();
        listener.reader.bindings.unpack(luggage.bindings, now);
        for (paper, socket) in luggage.flows {
            listener.flows.unpack(&paper, socket, &listener.poller, now);
        }
        Ok(listener)
    }

    fn empty(current: Arc<Current>, socket: Arc<OwnedFd>, worker: usize) -> io::Result<Listener> {
        let service = current.get();
        let most = service.most_flows();
        let poller = Poller::new()?;
        poller.add(&socket, LISTENER)?;
        Ok(Listener {
            worker,
            style: service.config.udp_header,
            socket,
            poller,
            reader: Reader::new(Arc::clone(&service), most),
            flows: Flows::new(Arc::clone(&current), worker, most),
            batch: Batch::new(LARGEST),
            outbox: Outbox::default(),
            placed: Vec::new(),
            returned: Traffic::default(),
            carried: 0,
            yielding: Yielding::default(),
            current,
            service,
            earlier: Vec::new(),
        })
    }

    /// Where it runs.
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// What is open, to be passed on.
    pub fn flows(&self) -> impl Iterator<Item = (Paper, &OwnedFd)> {
        self.flows.pack(Instant::now())
    }

    /// Who speaks through which socket of a load balancer, in style `first`.
    pub fn bindings(&self) -> Vec<Binding> {
        self.reader.bindings.pack(Instant::now())
    }

    /// Lets the flows go to the process that has them now.
    pub fn let_go(&mut self) {
        self.flows.let_go();
    }

    /// Takes over the rules that a reload has put in place, for new flows.
    fn follow_reload(&mut self) {
        if let Some(service) = self.current.newer_than(&self.service) {
            self.reader.service = Arc::clone(&service);
            self.flows.follow(Arc::clone(&service));
            let before = std::mem::replace(&mut self.service, service);
            self.earlier.push(Arc::downgrade(&before));
            drop(before);
            self.earlier.retain(|rules| rules.strong_count() > 0);
        }
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
        self.follow_reload();
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
