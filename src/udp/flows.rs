//! Who belongs to which upstream socket: the flows of one listening socket. Silence ends a flow;
//! when there are too many, the one idle for longest makes room for a new one.

use std::cell::Cell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::sync::watch;

use super::journal::{self, Ending};
use super::lru::{Key, Lru};
use super::luggage::{self, Paper};
use super::outbox::Envelope;
use super::poller::Poller;
use super::reader::Reading;
use crate::addr::{ClientAddr, PeerAddr, TargetAddr, canonical};
use crate::client_limits::Permit;
use crate::header::spp;
use crate::namespaces::Inside;
use crate::refusal::Refusal;
use crate::service::{Current, Service};
use crate::sessions::{EndedBy, Route, SessionId, Sessions};
use crate::stats::Count;
use crate::sys::datagram::LocalIp;
use crate::sys::interfaces::is_local;
use crate::upstream::{self, Connecting, Kind, UpstreamError};

/// Flows that one call of `expire` or `sweep` ends, at most: closing a socket takes some
/// microseconds, and datagrams are waiting meanwhile.
const ENDED_AT_ONCE: usize = 64;

/// A client and a target.
#[derive(Debug)]
pub struct Flow {
    /// Connected to the target, in the client's name.
    pub socket: OwnedFd,
    /// Whom the socket claims to be.
    pub client: ClientAddr,
    /// Where it is connected to.
    pub target: TargetAddr,
    /// Where answers go: by the way that the newest datagram came.
    pub back: Back,
    /// Its client is no load balancer.
    named: bool,
    ends: Ends,
    /// From clients to the backend.
    pub up: Traffic,
    /// From the backend to clients.
    pub down: Traffic,
    /// When it began.
    pub began: Instant,
    /// Its entry among the worker's sessions.
    pub id: SessionId,
    /// `Flows::round` when the flow was last found to be wanted.
    judged: Cell<u64>,
    /// What admitted it.
    pub service: Arc<Service>,
    /// The namespace that its socket is in, if not this host's own.
    inside: Option<Arc<Inside>>,
    /// It counts as its client's for as long as it is open.
    _permit: Option<Permit>,
}

/// What tells flows apart: the client, and the target if clients choose among targets. A flow that
/// was begun before a reload so goes on to the target that it had.
type Ends = (ClientAddr, Option<TargetAddr>);

/// The way back of a datagram.
#[derive(Clone, Copy, Debug)]
pub struct Back {
    /// The load balancer's socket that sent it, perhaps IPv4-mapped.
    pub peer: SocketAddr,
    /// The address of ours that it was sent to, if we listen on several.
    pub local: Option<LocalIp>,
    /// Its Simple Proxy Protocol header, which answers carry.
    pub spp: Option<[u8; spp::LEN]>,
}

/// What went one way.
#[derive(Debug)]
pub struct Traffic {
    /// Datagrams.
    pub datagrams: u64,
    /// Bytes of payload.
    pub bytes: u64,
    /// The size from which on the kernel would not cut messages into datagrams.
    pub uncut: Cell<usize>,
}

/// The flows of one listening socket.
pub struct Flows {
    /// The rules, which a reload replaces.
    service: Arc<Service>,
    current: Arc<Current>,
    worker: usize,
    most: usize,
    by_ends: HashMap<Ends, Key>,
    /// Flows of a client, when clients choose among targets.
    by_client: HashMap<ClientAddr, usize>,
    table: Lru<Flow>,
    /// Tells when flows were killed or clients banned.
    kills: watch::Receiver<()>,
    /// How often it has told so.
    round: u64,
    /// The round that `unswept` belongs to.
    swept: u64,
    /// Places in the table where flows may still stand that were killed.
    unswept: Range<u64>,
}

impl Flows {
    /// No flow yet, on that worker, and `most` at once.
    pub fn new(current: Arc<Current>, worker: usize, most: usize) -> Flows {
        let service = current.get();
        Flows {
            kills: service.proxy.workers[worker].sessions.kills(),
            round: 0,
            swept: 0,
            unswept: 0..0,
            service,
            current,
            worker,
            most,
            by_ends: HashMap::new(),
            by_client: HashMap::new(),
            table: Lru::new(),
        }
    }

    /// Takes over the rules that a reload has put in place.
    pub fn follow(&mut self, service: Arc<Service>) {
        self.most = service.most_flows();
        self.service = service;
    }

    /// The flow that a datagram belongs to.
    pub fn find(&self, reading: &Reading) -> Option<Key> {
        let ends = self.ends(reading.client, reading.target);
        self.by_ends.get(&ends).copied()
    }

    fn ends(&self, client: ClientAddr, target: TargetAddr) -> Ends {
        let dynamic = self.service.config.dynamic_destination;
        (client, dynamic.then_some(target))
    }

    /// A flow that may have ended.
    pub fn get(&self, key: Key) -> Option<&Flow> {
        self.table.get(key)
    }

    /// A flow that may have ended, which is used now.
    pub fn touch(&mut self, key: Key, now: Instant) -> Option<&mut Flow> {
        self.table.touch(key, now)
    }

    /// Whether a flow goes on. One that was killed, or whose client was banned, ends here, and for
    /// a banned client this fails. While nobody is, this costs a look at a number.
    pub fn judge(&mut self, key: Key) -> Result<bool, Refusal> {
        self.notice_kills();
        let Some(flow) = self.table.get(key) else {
            return Ok(false);
        };
        if flow.judged.replace(self.round) == self.round {
            return Ok(true);
        }
        let admission = &self.service.admission;
        let judgement = match flow.named {
            true => admission.free_of_bans(flow.client),
            false => admission.peer_free_of_bans(flow.back.from()),
        };
        if flow.inside.as_ref().is_some_and(|inside| inside.is_left()) {
            self.end(key, Ending::TargetGone);
            return Ok(false);
        }
        let why = match (self.sessions().ended_by(flow.id), &judgement) {
            (None, Ok(())) => return Ok(true),
            (Some(EndedBy::Kill), Ok(())) => Ending::Killed,
            _ => Ending::Banned,
        };
        self.count(Count::Killed);
        self.end(key, why);
        judgement.map(|()| false)
    }

    /// Waits until there is something to sweep.
    pub async fn unswept(&mut self) {
        if self.is_swept() {
            // It fails only when the sender is gone, which lives in the proxy.
            let _ = self.kills.changed().await;
            self.round += 1;
        } else {
            // Datagrams that came meanwhile go first.
            tokio::task::yield_now().await;
        }
    }

    /// Judges flows that nobody has judged since somebody was killed or banned, some of them at
    /// least: a flow without datagrams ends here.
    pub fn sweep(&mut self) {
        self.notice_kills();
        if self.unswept.is_empty() && self.swept != self.round {
            self.swept = self.round;
            self.unswept = self.table.places();
        }
        for _ in 0..ENDED_AT_ONCE {
            let Some(number) = self.unswept.next() else {
                return;
            };
            let _ = self.judge(Key::from_number(number));
        }
    }

    fn is_swept(&self) -> bool {
        self.unswept.is_empty() && self.swept == self.round
    }

    fn notice_kills(&mut self) {
        if self.kills.has_changed().unwrap_or(false) {
            self.kills.mark_unchanged();
            self.round += 1;
        }
    }

    fn sessions(&self) -> &Sessions {
        &self.service.proxy.workers[self.worker].sessions
    }

    /// Begins a flow. Fails if its client is not wanted, if it would lead back to our listener, or
    /// if no socket can claim the client.
    pub fn open(
        &mut self,
        reading: &Reading,
        back: Back,
        poller: &Poller,
        now: Instant,
    ) -> Result<Key, Refusal> {
        self.notice_kills();
        let judged = Cell::new(self.round);
        let Reading {
            client,
            target,
            named,
            ..
        } = *reading;
        match named {
            // A binding of style first may be older than what makes the claim odd.
            true => self.service.admission.client(back.from(), client)?,
            false => self.service.admission.peer_wanted(back.from())?,
        }
        self.service.destinations.refuse_loop(target, is_local)?;
        let permit = match named {
            true => self.service.admit(client)?,
            false => None,
        };
        self.count(Count::Accepted);
        if self.table.len() >= self.most {
            self.evict();
        }
        let Connecting {
            socket,
            port_replaced,
            inside,
        } = self.connect(client, target)?;
        if port_replaced {
            journal::port_replaced(&self.service, self.worker, client, target);
        }
        // Worth a try: a backend that sends runs of datagrams at once is then read at once.
        let _ = setsockopt(&socket, sockopt::UdpGroSegment, &true);
        let route = Route {
            client,
            target,
            named,
        };
        let id = self.list(back.from(), route);
        let ends = self.ends(client, target);
        let flow = Flow {
            socket,
            client,
            target,
            back,
            named,
            ends,
            up: Traffic::default(),
            down: Traffic::default(),
            began: now,
            id,
            judged,
            service: Arc::clone(&self.service),
            inside,
            _permit: permit,
        };
        let key = self.insert(flow, now);
        let watched = match self.get(key) {
            Some(flow) => poller.add(&flow.socket, key.number()),
            None => Ok(()),
        };
        if let Err(e) = watched {
            self.end(key, Ending::Unwatched);
            return Err(upstream::failure(client, target, e).into());
        }
        self.count(Count::Served);
        if let Some(flow) = self.get(key) {
            journal::opened(&self.service, flow);
        }
        Ok(key)
    }

    /// Ends flows that were silent for `-close-after`, some of them at least.
    pub fn expire(&mut self, now: Instant) {
        for _ in 0..ENDED_AT_ONCE {
            match (self.table.oldest(), self.next_expiry()) {
                (Some((key, _)), Some(due)) if due <= now => self.end(key, Ending::Silent),
                _ => return,
            }
        }
    }

    /// When the next flow ends if it stays silent.
    pub fn next_expiry(&self) -> Option<Instant> {
        let (_, used) = self.table.oldest()?;
        used.checked_add(self.service.config.close_after?)
    }

    fn connect(
        &mut self,
        client: ClientAddr,
        target: TargetAddr,
    ) -> Result<Connecting, UpstreamError> {
        let shared = self.by_client.contains_key(&client);
        let kind = Kind::Datagram { shared };
        let service = Arc::clone(&self.service);
        match upstream::connect(client, target, kind, &service.upstream) {
            // The limit is lower than it was at start, or others on this host hold too much.
            Err(e) if is_shortage(&e) && self.evict() => {
                upstream::connect(client, target, kind, &service.upstream)
            }
            result => result,
        }
    }

    fn evict(&mut self) -> bool {
        let Some((key, _)) = self.table.oldest() else {
            return false;
        };
        journal::evicted(&self.service, self.worker, self.table.len());
        self.end(key, Ending::Evicted);
        true
    }

    fn end(&mut self, key: Key, why: Ending) {
        let Some(flow) = self.table.remove(key) else {
            return;
        };
        self.sessions().end(flow.id);
        self.by_ends.remove(&flow.ends);
        if let Some(count) = self.by_client.get_mut(&flow.client) {
            *count -= 1;
            if *count == 0 {
                self.by_client.remove(&flow.client);
            }
        }
        self.current.flow_ended();
        flow.service.ended(self.worker);
        journal::ended(&flow.service, &flow, why);
    }

    /// What is known of the flows and their sockets, to be passed on.
    pub fn pack(&self, now: Instant) -> impl Iterator<Item = (Paper, &OwnedFd)> {
        self.table.iter().map(move |(flow, used)| {
            let Back { peer, local, spp } = flow.back;
            let paper = Paper {
                client: flow.client.0,
                target: flow.target.0,
                named: flow.named,
                peer,
                local: local.map(|local| (local.ip, local.interface)),
                spp: spp.map(Vec::from),
                up: (flow.up.datagrams, flow.up.bytes),
                down: (flow.down.datagrams, flow.down.bytes),
                age: luggage::age(flow.began, now),
                silent: luggage::age(used, now),
            };
            (paper, &flow.socket)
        })
    }

    /// Takes over a flow of another process. Flows are to come in the order of their last use.
    pub fn unpack(&mut self, paper: &Paper, socket: OwnedFd, poller: &Poller, now: Instant) {
        let (client, target) = paper.ends();
        let (back, named) = (paper.back(), paper.named);
        let permit = named.then(|| self.service.adopt(client)).flatten();
        let route = Route {
            client,
            target,
            named,
        };
        let traffic = |(datagrams, bytes)| Traffic {
            datagrams,
            bytes,
            ..Traffic::default()
        };
        let Ok(inside) = self.service.upstream.place.inside() else {
            // What it was connected to is gone.
            return;
        };
        let ends = self.ends(client, target);
        let flow = Flow {
            socket,
            client,
            target,
            back,
            named,
            ends,
            up: traffic(paper.up),
            down: traffic(paper.down),
            began: luggage::ago(paper.age, now),
            id: self.list(back.from(), route),
            judged: Cell::new(self.round),
            service: Arc::clone(&self.service),
            inside,
            _permit: permit,
        };
        let key = self.insert(flow, luggage::ago(paper.silent, now));
        if !self.is_watched(key, poller) {
            self.end(key, Ending::Unwatched);
        }
    }

    /// Lets all of them go to the process that has them now.
    pub fn let_go(&mut self) {
        while let Some((key, _)) = self.table.oldest() {
            self.end(key, Ending::HandedOver);
        }
    }

    fn list(&self, peer: PeerAddr, route: Route) -> SessionId {
        let name = self.service.record.name.clone();
        self.sessions().begin_flow(peer, name, route)
    }

    fn insert(&mut self, flow: Flow, used: Instant) -> Key {
        let (ends, client) = (flow.ends, flow.client);
        let key = self.table.insert(flow, used);
        self.by_ends.insert(ends, key);
        if ends.1.is_some() {
            *self.by_client.entry(client).or_default() += 1;
        }
        self.current.flow_began();
        self.service.began(self.worker);
        key
    }

    fn is_watched(&self, key: Key, poller: &Poller) -> bool {
        let flow = self.get(key);
        flow.is_some_and(|flow| poller.add(&flow.socket, key.number()).is_ok())
    }

    fn count(&self, count: Count) {
        self.service.add(self.worker, count, 1);
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        while let Some((key, _)) = self.table.oldest() {
            self.end(key, Ending::Stopped);
        }
    }
}

impl Back {
    fn from(&self) -> PeerAddr {
        PeerAddr(canonical(self.peer))
    }
}

impl Flow {
    /// How answers leave through the listening socket.
    pub fn envelope(&self) -> Envelope<'_> {
        Envelope {
            to: Some(self.back.peer),
            from: self.back.local,
            header: self.back.spp.as_ref().map_or(&[], |header| &header[..]),
        }
    }
}

impl Traffic {
    /// Counts a datagram.
    pub fn add(&mut self, bytes: usize) {
        self.datagrams += 1;
        self.bytes += bytes as u64;
    }
}

impl Default for Traffic {
    fn default() -> Traffic {
        Traffic {
            datagrams: 0,
            bytes: 0,
            uncut: Cell::new(usize::MAX),
        }
    }
}

fn is_shortage(error: &UpstreamError) -> bool {
    let UpstreamError::Failed { source, .. } = error else {
        return false;
    };
    matches!(
        source.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}
