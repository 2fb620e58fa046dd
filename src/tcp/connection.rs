//! One connection, from start to end: header, destination, upstream, relay.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use tokio::time::timeout;

use super::answer;
use super::pump;
use super::relay::{End, Relay, Side};
use super::stream::Stream;
use crate::addr::{ClientAddr, PeerAddr, TargetAddr};
use crate::admission::Trust;
use crate::client_limits::Permit;
use crate::events::Event;
use crate::header::{self, Claim, Progress, Transport};
use crate::namespaces::Inside;
use crate::refusal::Refusal;
use crate::report::Subject;
use crate::service::{Service, Slot};
use crate::sessions::{EndedBy, Route};
use crate::stats::Count;
use crate::sys::interfaces::is_local;
use crate::upstream::{self, Kind, UpstreamError};

/// Serves an accepted connection to its end.
pub async fn serve(slot: Slot, socket: OwnedFd, peer: PeerAddr, trust: Trust) {
    let near = match Stream::new(socket) {
        Ok(near) => near,
        Err(error) => {
            let refusal = Refusal::HeaderRead(error);
            return slot.report(peer, &refusal, None, None);
        }
    };
    let mut story = Story {
        near,
        peer,
        client: None,
        target: None,
        unique_id: None,
        permit: None,
        began: Instant::now(),
        opening: true,
        orderly: false,
        slot,
    };
    // Boxed, because it needs room that an open connection should not keep.
    let opened = Box::pin(story.open(trust)).await;
    story.opening = false;
    match opened {
        Ok(mut session) => story.orderly = story.carry(&mut session).await,
        Err(refusal) => {
            story.refused(&refusal);
            story.orderly = !refusal.resets();
        }
    }
}

/// A connection on its way through, and what is known of it. It may be dropped at any await: so
/// bans and administrators end sessions.
struct Story {
    /// It counts as its client's for as long as it is open. Dropped before `near`, whose end may
    /// bring the client back at once.
    permit: Option<Box<Permit>>,
    /// The client, by way of its load balancer.
    near: Stream,
    peer: PeerAddr,
    client: Option<ClientAddr>,
    target: Option<TargetAddr>,
    unique_id: Option<Box<[u8]>>,
    began: Instant,
    /// Neither refused nor carried yet.
    opening: bool,
    /// It came to its end by itself; what has not is reset.
    orderly: bool,
    slot: Slot,
}

impl Drop for Story {
    fn drop(&mut self) {
        if self.opening {
            self.closed(0, 0, None);
        }
        if !self.orderly {
            self.near.reset_on_close();
        }
    }
}

/// Both sides connected.
struct Session {
    backend: Stream,
    /// Bytes after the header that the backend has taken.
    sent: usize,
    /// Those that it has not taken yet.
    unsent: Vec<u8>,
    /// Others may wait to be read.
    more: bool,
    /// The error of a backend that has broken the connection already.
    gone: Option<io::Error>,
    /// The namespace that the backend is in, whose routing is kept for this connection.
    _inside: Option<Arc<Inside>>,
}

/// A backend that has taken the connection.
struct Reached {
    backend: Stream,
    /// Bytes that it has taken.
    sent: usize,
    /// The error by which it has broken the connection already. Bytes of it may wait to be read.
    gone: Option<io::Error>,
    inside: Option<Arc<Inside>>,
}

impl Story {
    async fn open(&mut self, trust: Trust) -> Result<Session, Refusal> {
        let patience = self.service().config.header_timeout;
        let Head {
            claim,
            unique_id,
            rest: mut unsent,
            more,
        } = match trust {
            Trust::Itself => Head::none(),
            Trust::Header => timeout(patience, read_header(&self.near))
                .await
                .unwrap_or(Err(Refusal::HeaderTimeout(patience)))?,
        };
        let heard = Instant::now();
        if trust == Trust::Header {
            let time = heard.saturating_duration_since(self.began);
            self.slot.observe(time, |tally| &tally.header);
        }
        let destinations = &self.service().destinations;
        let (claimed, target) = destinations.choose(claim, self.peer)?;
        destinations.refuse_loop(target, is_local)?;
        (self.client, self.target) = (Some(claimed), Some(target));
        self.unique_id = unique_id;
        // Listed first, judged then: a ban that comes in between finds the session in the list.
        self.slot.introduce(Route {
            client: claimed,
            target,
            named: matches!(claim, Claim::Client { .. }) || trust == Trust::Itself,
        });
        self.admit(claim, claimed, trust)?;
        let Reached {
            backend,
            sent,
            gone,
            inside,
        } = self.reach(claimed, target, &unsent).await?;
        self.slot.observe(heard.elapsed(), |tally| &tally.backend);
        unsent.drain(..sent);
        Ok(Session {
            backend,
            sent,
            unsent,
            more,
            gone,
            _inside: inside,
        })
    }

    /// Asks the rules about the client.
    fn admit(&mut self, claim: Claim, client: ClientAddr, trust: Trust) -> Result<(), Refusal> {
        let admission = &self.service().admission;
        match (claim, trust) {
            (Claim::Client { source, .. }, _) => admission.client(self.peer, source)?,
            (Claim::RealEndpoints, Trust::Itself) => admission.wanted(client)?,
            // A load balancer's own health checks are not held to what one client may have.
            (Claim::RealEndpoints, Trust::Header) => return admission.peer_wanted(self.peer),
        }
        self.permit = self.service().admit(client)?.map(Box::new);
        Ok(())
    }

    /// Carries bytes both ways; true if both sides came to an orderly end.
    async fn carry(&self, session: &mut Session) -> bool {
        self.stats(Count::Served, 1);
        self.tell_opened();
        let backend = &session.backend;
        let mut carrying = Carrying {
            relay: Relay::new(
                &self.near,
                backend,
                session.sent,
                std::mem::take(&mut session.unsent),
                session.more,
                session.gone.take(),
            )
            .with_idle_timeout(self.service().config.idle_timeout),
            story: self,
            backend,
            end: None,
        };
        let end = (&mut carrying.relay).await;
        let orderly = end.is_orderly();
        carrying.end = Some(end);
        orderly
    }

    /// Connects to the backend and sends what it takes of `first` at once. Over loopback the
    /// handshake is over when connect(2) returns, so this mostly needs no waiting.
    async fn reach(
        &self,
        client: ClientAddr,
        target: TargetAddr,
        first: &[u8],
    ) -> Result<Reached, UpstreamError> {
        let connecting = upstream::connect(client, target, Kind::Stream, &self.service().upstream)?;
        if connecting.port_replaced {
            self.port_replaced(client);
        }
        let failure = |e| upstream::failure(client, target, e);
        let backend = Stream::new(connecting.socket).map_err(failure)?;
        let (sent, gone) = match backend.send(first) {
            Ok(sent) => (sent, None),
            Err(e) if upstream::had_answered(&e) => (0, Some(e)),
            Err(e) if e.kind() != io::ErrorKind::WouldBlock => return Err(failure(e)),
            Err(_) => {
                let after = self.service().config.connect_timeout;
                let waited = timeout(after, answer::wait(&backend, client, target)).await;
                let timed_out = |_| UpstreamError::Timeout { target, after };
                (0, waited.map_err(timed_out)??)
            }
        };
        Ok(Reached {
            backend,
            sent,
            gone,
            inside: connecting.inside,
        })
    }

    fn service(&self) -> &Service {
        &self.slot.service
    }

    fn stats(&self, count: Count, n: u64) {
        self.slot.add(count, n);
    }

    fn tell_opened(&self) {
        if let (Some(id), Some(client), Some(target)) = (self.slot.id(), self.client, self.target) {
            self.service().tell(|| Event::Opened {
                id,
                listener: self.service().name(),
                client: client.0,
                peer: self.peer.0,
                target: target.0,
            });
        }
    }

    fn port_replaced(&self, client: ClientAddr) {
        self.stats(Count::PortReplaced, 1);
        let subject = Subject {
            reason: None,
            target: self.target,
        };
        if let Some(held_back) = self
            .service()
            .record
            .reporter
            .due(Count::PortReplaced, subject)
        {
            tracing::info!(listener = self.service().label(), clientAddr = %client, heldBack = held_back, "the client's port is taken on this host: using a free one");
        }
    }

    /// Counts, tells and logs a connection that was not refused. Without an `end` of its own, a ban or an
    /// administrator ended it.
    fn closed(&self, up: u64, down: u64, end: Option<&End>) {
        self.stats(Count::BytesUp, up);
        self.stats(Count::BytesDown, down);
        if end.is_none() {
            self.stats(Count::Killed, 1);
        }
        if let Some(End::Idle { .. }) = end {
            self.stats(Count::Idle, 1);
        }
        let end = || match end {
            Some(end) => words(end),
            None => killed(self.slot.ended_by()).to_owned(),
        };
        self.service().tell(|| Event::Closed {
            id: self.slot.id(),
            listener: self.service().name(),
            client: self.client.map(|client| client.0),
            peer: self.peer.0,
            target: self.target.map(|target| target.0),
            bytes_up: up,
            bytes_down: down,
            age: self.began.elapsed().as_secs_f64(),
            end: end(),
        });
        if !self.service().record.reporter.says_all() {
            return;
        }
        tracing::info!(
            listener = self.service().label(),
            clientAddr = self.client.map(tracing::field::display),
            frontendRemoteAddr = %self.peer,
            targetAddr = self.target.map(tracing::field::display),
            bytesUp = up,
            bytesDown = down,
            durationMs = self.began.elapsed().as_millis() as u64,
            end = end(),
            uniqueId = self.unique_id.as_deref().map(|id| id.escape_ascii().to_string()),
            "connection closed"
        );
    }

    fn refused(&self, refusal: &Refusal) {
        self.slot
            .report(self.peer, refusal, self.client, self.target);
    }
}

/// A relay at work. When it is dropped, at its end or because it was made to end, the session is
/// counted and logged.
struct Carrying<'a> {
    relay: Relay<'a>,
    story: &'a Story,
    backend: &'a Stream,
    /// Why it ended; `None` if it was made to.
    end: Option<End>,
}

impl Drop for Carrying<'_> {
    fn drop(&mut self) {
        if !self.end.as_ref().is_some_and(End::is_orderly) {
            self.backend.reset_on_close();
        }
        let (up, down) = self.relay.moved();
        self.story.closed(up, down, self.end.as_ref());
    }
}

fn killed(by: Option<EndedBy>) -> &'static str {
    match by {
        Some(EndedBy::Ban) => "client banned",
        Some(EndedBy::Kill) | None => "ended by realpeer ctl kill",
    }
}

fn words(end: &End) -> String {
    let name = |side: &Side| match side {
        Side::Client => "client",
        Side::Backend => "backend",
    };
    match end {
        End::Closed(side) => format!("{} closed", name(side)),
        End::Cut(side, e) | End::Broken(side, e) if e.raw_os_error() == Some(libc::ETIMEDOUT) => {
            format!("{} gone: no answer to keep-alive", name(side))
        }
        End::Cut(side, e) | End::Broken(side, e) => format!("{} reset: {e}", name(side)),
        End::Idle { delivered: true } => "idle for -idle-timeout".to_owned(),
        End::Idle { delivered: false } => {
            "idle for -idle-timeout: one side did not take all bytes".to_owned()
        }
    }
}

/// What a header said, and what came with it.
struct Head {
    claim: Claim,
    unique_id: Option<Box<[u8]>>,
    /// Bytes that followed it.
    rest: Vec<u8>,
    /// Others may wait to be read.
    more: bool,
}

impl Head {
    /// Of a peer that is its own client: whatever it sends is for the backend.
    fn none() -> Head {
        Head {
            claim: Claim::RealEndpoints,
            unique_id: None,
            rest: Vec::new(),
            more: true,
        }
    }
}

/// Reads a header in however many pieces it comes. A peer that is silent holds no memory for it,
/// one that is slow only what it sent.
async fn read_header(peer: &Stream) -> Result<Head, Refusal> {
    let mut bytes = Vec::new();
    loop {
        let read = pump::with_buffer(|buffer| {
            let n = peer.recv(buffer)?;
            bytes.extend_from_slice(&buffer[..n]);
            Ok((n, n == buffer.len() || peer.has_urgent()))
        });
        match read {
            Ok((0, _)) if bytes.is_empty() => return Err(Refusal::Silent),
            Ok((0, _)) => return Err(Refusal::HeaderCut),
            Ok((_, more)) => {
                if let Progress::Complete(header) = header::parse(&bytes, Transport::Stream)? {
                    return Ok(Head {
                        claim: header.claim,
                        unique_id: header.unique_id.map(|at| bytes[at].into()),
                        rest: bytes.split_off(header.len),
                        more,
                    });
                }
            }
            Err::<_, io::Error>(e) if e.kind() == io::ErrorKind::WouldBlock => {
                peer.readable().await.map_err(Refusal::HeaderRead)?;
            }
            Err(e) => return Err(Refusal::HeaderRead(e)),
        }
    }
}
