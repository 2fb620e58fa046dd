//! An address that is listened on: its sockets, and the tasks that take what comes.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, anyhow};
use socket2::{SockRef, Socket};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::addr::{PeerAddr, canonical};
use crate::config::{ListenerConfig, Protocol};
use crate::service::{Current, Service};
use crate::sys;
use crate::tcp;
use crate::udp;
use crate::udp::luggage::Luggage;

/// A listener broke: its address, and why.
pub type Broken = (SocketAddr, io::Error);

/// The sockets of an address, all bound to it by SO_REUSEPORT.
#[derive(Debug)]
pub struct Bound {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// The address as it was asked for.
    pub asked: SocketAddr,
    /// The address as the kernel knows it: with a port, if none was asked for.
    pub addr: SocketAddr,
    sockets: Vec<Arc<OwnedFd>>,
    /// They were there before this process.
    given: bool,
}

impl Bound {
    /// Opens `-listeners` sockets, and binds them. `shared`: a socket of ours that is about to close
    /// has an address that overlaps.
    pub fn open(asked: SocketAddr, config: &ListenerConfig, shared: bool) -> Result<Bound> {
        let protocol = config.protocol;
        let open = match protocol {
            Protocol::Tcp => tcp::listener::open,
            Protocol::Udp => udp::listener::open,
        };
        let mut addr = asked;
        let mut sockets = Vec::with_capacity(config.listeners);
        for _ in 0..config.listeners {
            let socket = open(addr, config, shared)
                .map_err(|error| anyhow!(cannot_listen("-l", addr, protocol, &error)))?;
            // Port 0 lets the kernel choose: the others share its choice.
            let bound = socket.local_addr().ok().and_then(|addr| addr.as_socket());
            addr = bound.context("the listener has no address")?;
            sockets.push(Arc::new(socket.into()));
        }
        if protocol == Protocol::Udp {
            udp::listener::prepare(&sockets, config);
        }
        Ok(Bound {
            protocol,
            asked,
            addr,
            sockets,
            given: false,
        })
    }

    /// Takes sockets that were there before this process.
    pub fn given(
        asked: SocketAddr,
        sockets: Vec<OwnedFd>,
        config: &ListenerConfig,
    ) -> Result<Bound> {
        let protocol = config.protocol;
        let mut addr = asked;
        let mut all = Vec::with_capacity(sockets.len());
        for socket in sockets.into_iter().map(Socket::from) {
            let set = match protocol {
                Protocol::Tcp => tcp::listener::set_up(&socket, config),
                Protocol::Udp => udp::listener::set_up(&socket, asked, config),
            };
            set.map_err(|error| anyhow!(cannot_listen("-l", addr, protocol, &error)))?;
            let bound = socket.local_addr().ok().and_then(|addr| addr.as_socket());
            addr = bound.context("the listener has no address")?;
            all.push(Arc::new(socket.into()));
        }
        if protocol == Protocol::Udp {
            udp::listener::prepare(&all, config);
        }
        Ok(Bound {
            protocol,
            asked,
            addr,
            sockets: all,
            given: true,
        })
    }

    /// The sockets, to be passed on.
    pub fn descriptors(&self) -> &[Arc<OwnedFd>] {
        &self.sockets
    }

    /// Whether the sockets were there before this process.
    pub fn is_given(&self) -> bool {
        self.given
    }

    /// How many sockets there are.
    pub fn sockets(&self) -> usize {
        self.sockets.len()
    }

    /// Takes over what a reload has changed about the sockets.
    pub fn follow(&self, config: &ListenerConfig) {
        if self.protocol == Protocol::Udp {
            return udp::listener::steer(&self.sockets, config);
        }
        for socket in &self.sockets {
            // The same call went well with another value when the socket was opened.
            let _ = sys::socket::set_keepalive(&SockRef::from(&**socket), config.keepalive);
        }
    }

    /// Lets TCP connections come. Fails if somebody else listens there since the sockets were bound.
    pub fn listen(&self) -> Result<()> {
        // Those that were given listen already, or are drained.
        if self.protocol == Protocol::Udp || self.given {
            return Ok(());
        }
        for socket in &self.sockets {
            SockRef::from(&**socket)
                .listen(tcp::listener::BACKLOG)
                .map_err(|error| anyhow!(cannot_listen("-l", self.addr, self.protocol, &error)))?;
        }
        Ok(())
    }

    /// Whether other sockets of ours may be bound to an address that overlaps this one.
    pub fn share(&self, shared: bool) {
        let shared = shared || self.sockets.len() > 1;
        for socket in &self.sockets {
            let _ = SockRef::from(&**socket).set_reuse_port(shared);
        }
    }
}

/// An address that is served.
#[derive(Debug)]
pub struct Listening {
    /// Its sockets.
    pub bound: Bound,
    /// The service of its new connections.
    pub current: Arc<Current>,
    broken: mpsc::UnboundedSender<Broken>,
    tasks: Vec<Task>,
    /// UDP listeners that rest.
    resting: Mutex<Resting>,
}

type Resting = Vec<Box<udp::listener::Listener>>;

/// A UDP listener that has to leave gives back itself.
type Task = JoinHandle<Option<Box<udp::listener::Listener>>>;

impl Listening {
    /// Takes connections or datagrams from now on; `paused`: as after `pause`. `luggage` is what a
    /// process before this one had open, for each UDP socket.
    pub fn start(
        bound: Bound,
        service: Arc<Service>,
        broken: mpsc::UnboundedSender<Broken>,
        paused: bool,
        luggage: Vec<Luggage>,
    ) -> Listening {
        let mut listening = Listening {
            current: Arc::new(Current::new(service)),
            bound,
            broken,
            tasks: Vec::new(),
            resting: Mutex::default(),
        };
        listening.current.pause(paused);
        if !paused || listening.bound.protocol == Protocol::Udp {
            listening.spawn(luggage);
        } else {
            listening.take_waiting();
            for socket in &listening.bound.sockets {
                // It may be so already.
                let _ = sys::socket::stop_listening(&**socket);
            }
        }
        listening
    }

    fn spawn(&mut self, luggage: Vec<Luggage>) {
        let service = self.current.get();
        let workers = &service.proxy.workers;
        let mut luggage = luggage.into_iter();
        for (number, socket) in self.bound.sockets.iter().enumerate() {
            let own = number % workers.len();
            let (current, socket) = (Arc::clone(&self.current), Arc::clone(socket));
            let (broken, addr) = (self.broken.clone(), self.bound.addr);
            let task = match self.bound.protocol {
                Protocol::Tcp => workers[own].handle.spawn(async move {
                    let error = tcp::listener::run(current, socket, own).await;
                    let _ = broken.send((addr, error));
                    None
                }),
                Protocol::Udp => {
                    let luggage = luggage.next().unwrap_or_default();
                    workers[own].handle.spawn(async move {
                        let listener = udp::listener::Listener::new(current, socket, own, luggage);
                        carry(listener.map(Box::new), addr, broken).await
                    })
                }
            };
            self.tasks.push(task);
        }
    }

    /// Brings UDP to rest: datagrams wait in the socket from now on. What the flows are is then told
    /// by `resting`.
    pub async fn rest(&mut self) {
        if self.bound.protocol == Protocol::Tcp {
            return;
        }
        self.current.leave(true);
        let service = self.current.get();
        for worker in &service.proxy.workers {
            worker.sessions.wake_flows();
        }
        for task in std::mem::take(&mut self.tasks) {
            let listener = task.await.ok().flatten();
            self.resting().extend(listener);
        }
    }

    /// The UDP listeners that rest, one for each socket.
    pub fn resting(&mut self) -> &mut Resting {
        let resting = self.resting.get_mut();
        resting.unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no connections for now; the kernel keeps them.
    pub async fn hush(&mut self) {
        if self.bound.protocol == Protocol::Tcp {
            self.stop().await;
        }
    }

    /// Goes on after `rest` and `hush`.
    pub fn go_on(&mut self) {
        self.current.leave(false);
        let is_tcp = self.bound.protocol == Protocol::Tcp;
        if is_tcp && self.tasks.is_empty() && !self.current.is_paused() {
            self.spawn(Vec::new());
        }
        let service = self.current.get();
        let resting = std::mem::take(self.resting());
        for listener in resting {
            let (broken, addr) = (self.broken.clone(), self.bound.addr);
            let worker = &service.proxy.workers[listener.worker()];
            let task = worker.handle.spawn(carry(Ok(listener), addr, broken));
            self.tasks.push(task);
        }
    }

    /// Leaves the sockets and the flows to another process, which has them, too.
    pub async fn leave(mut self) {
        self.stop().await;
        for listener in self.resting() {
            listener.let_go();
        }
    }

    /// Takes nothing new until `resume`; what is open goes on. New TCP connections are refused by
    /// the kernel, datagrams of new clients are dropped.
    pub async fn pause(&mut self) -> io::Result<()> {
        if self.current.is_paused() {
            return Ok(());
        }
        self.current.pause(true);
        if self.bound.protocol == Protocol::Tcp {
            self.stop().await;
            self.take_waiting();
            for socket in &self.bound.sockets {
                sys::socket::stop_listening(&**socket)?;
            }
        }
        Ok(())
    }

    /// Takes connections again.
    pub fn resume(&mut self) -> io::Result<()> {
        if !self.current.is_paused() {
            return Ok(());
        }
        if self.bound.protocol == Protocol::Tcp {
            for socket in &self.bound.sockets {
                SockRef::from(&**socket).listen(tcp::listener::BACKLOG)?;
            }
            self.spawn(Vec::new());
        }
        self.current.pause(false);
        Ok(())
    }

    /// Closes. TCP connections that the kernel has taken already are served. UDP flows live on, and
    /// the socket with them: it is to be closed again when the last has ended.
    pub async fn close(mut self) -> Option<Listening> {
        self.current.pause(true);
        if self.current.flows() > 0 {
            return Some(self);
        }
        self.stop().await;
        if self.bound.protocol == Protocol::Tcp {
            self.take_waiting();
        }
        None
    }

    /// Ends its tasks, and with them the flows of UDP.
    pub async fn stop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        for task in self.tasks.drain(..) {
            let _ = task.await;
        }
    }

    /// Serves the connections that wait to be taken, which the end of the socket would reset.
    fn take_waiting(&self) {
        for (number, socket) in self.bound.sockets.iter().enumerate() {
            let service = self.current.get();
            let own = number % service.proxy.workers.len();
            while let Ok((socket, peer)) = sys::socket::accept(&**socket) {
                tcp::listener::take(&service, socket, PeerAddr(canonical(peer)), own);
            }
        }
    }
}

async fn carry(
    listener: io::Result<Box<udp::listener::Listener>>,
    addr: SocketAddr,
    broken: mpsc::UnboundedSender<Broken>,
) -> Option<Box<udp::listener::Listener>> {
    let ended = match listener {
        Ok(listener) => listener.run().await,
        Err(error) => Err(error),
    };
    ended.map_err(|error| broken.send((addr, error))).ok()
}

/// What the kernel's refusal of a listening socket means, and what to do (ip(7), tcp(7)). `flag`
/// is where the address comes from.
pub fn cannot_listen(
    flag: &str,
    listen: SocketAddr,
    protocol: Protocol,
    error: &io::Error,
) -> String {
    let port = listen.port();
    let cure = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => {
            let list = match protocol {
                Protocol::Tcp => "ss -ltnp",
                Protocol::Udp => "ss -lunp",
            };
            format!(
                "another program has the port: `{list} 'sport = {port}'` shows which; stop it, or choose another port with {flag}"
            )
        }
        Some(libc::EADDRNOTAVAIL) => {
            let has = "no interface of this host has the address: `ip address` lists those it has";
            match flag {
                "-l" => format!("{has}; for others there is -listen-transparent"),
                _ => has.to_owned(),
            }
        }
        Some(libc::EACCES) => {
            "a port below 1024 needs CAP_NET_BIND_SERVICE: be root, or put AmbientCapabilities=CAP_NET_BIND_SERVICE into the unit".to_owned()
        }
        Some(libc::EPERM) => {
            "-listen-transparent needs CAP_NET_ADMIN or CAP_NET_RAW: be root, or put AmbientCapabilities=CAP_NET_ADMIN into the unit".to_owned()
        }
        Some(libc::EAFNOSUPPORT) => "this host has no IPv6: listen on an IPv4 address".to_owned(),
        _ => return format!("cannot listen on {listen}: {error}"),
    };
    format!("cannot listen on {listen}: {error}: {cure}")
}
