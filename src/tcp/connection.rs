//! One connection, from start to end: header, destination, upstream, relay.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use tokio::time::timeout;

use super::answer;
use super::relay::{self, End, Relay, Side};
use super::stream::Stream;
use crate::addr::{ClientAddr, PeerAddr, TargetAddr};
use crate::header::{self, Claim, Progress, Transport};
use crate::proxy::{Proxy, Slot};
use crate::refusal::Refusal;
use crate::report::Subject;
use crate::sessions::{EndedBy, Route};
use crate::stats::{Count, Stats};
use crate::sys::interfaces::is_local;
use crate::upstream::{self, Kind, UpstreamError};

/// Serves an accepted connection to its end.
pub async fn serve(slot: Slot, socket: OwnedFd, peer: PeerAddr) {
    let near = match Stream::new(socket) {
        Ok(near) => near,
        Err(error) => {
            let refusal = Refusal::HeaderRead(error);
            return report(
                &slot.proxy,
                &slot.worker().stats,
                peer,
                &refusal,
                None,
                None,
            );
        }
    };
    let mut story = Story {
        near,
        peer,
        client: None,
        target: None,
        unique_id: None,
        began: Instant::now(),
        opening: true,
        orderly: false,
        slot,
    };
    // Boxed, because it needs room that an open connection should not keep.
    let opened = Box::pin(story.open()).await;
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
}

impl Story {
    async fn open(&mut self) -> Result<Session, Refusal> {
        let patience = self.proxy().settings.header_timeout;
        let Head {
            claim,
            unique_id,
            rest: mut unsent,
            more,
        } = timeout(patience, read_header(&self.near))
            .await
            .unwrap_or(Err(Refusal::HeaderTimeout(patience)))?;
        let destinations = &self.proxy().destinations;
        let (claimed, target) = destinations.choose(claim, self.peer)?;
        destinations.refuse_loop(target, is_local)?;
        (self.client, self.target) = (Some(claimed), Some(target));
        self.unique_id = unique_id;
        // Listed first, judged then: a ban that comes in between finds the session in the list.
        self.slot.introduce(Route {
            client: claimed,
            target,
            named: matches!(claim, Claim::Client { .. }),
        });
        if let Claim::Client { source, .. } = claim {
            self.proxy().admission.client(self.peer, source)?;
        }
        let (backend, sent) = self.reach(claimed, target, &unsent).await?;
        unsent.drain(..sent);
        Ok(Session {
            backend,
            sent,
            unsent,
            more,
        })
    }

    /// Carries bytes both ways; true if both sides came to an orderly end.
    async fn carry(&self, session: &mut Session) -> bool {
        self.stats(Count::Served, 1);
        let backend = &session.backend;
        let mut carrying = Carrying {
            relay: Relay::new(
                &self.near,
                backend,
                session.sent,
                std::mem::take(&mut session.unsent),
                session.more,
            ),
            story: self,
            backend,
            end: None,
        };
        let end = (&mut carrying.relay).await;
        let orderly = matches!(end, End::Closed(_));
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
    ) -> Result<(Stream, usize), UpstreamError> {
        let connecting = upstream::connect(client, target, Kind::Stream, &self.proxy().upstream)?;
        if connecting.port_replaced {
            self.port_replaced(client);
        }
        let failure = |e| upstream::failure(client, target, e);
        let backend = Stream::new(connecting.socket).map_err(failure)?;
        match backend.send(first) {
            Ok(sent) => return Ok((backend, sent)),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(failure(e)),
        }
        let after = self.proxy().settings.connect_timeout;
        match timeout(after, answer::wait(&backend, client, target)).await {
            Ok(result) => result?,
            Err(_) => return Err(UpstreamError::Timeout { target, after }),
        }
        Ok((backend, 0))
    }

    fn proxy(&self) -> &Proxy {
        &self.slot.proxy
    }

    fn stats(&self, count: Count, n: u64) {
        self.slot.worker().stats.add(count, n);
    }

    fn port_replaced(&self, client: ClientAddr) {
        self.stats(Count::PortReplaced, 1);
        let subject = Subject {
            reason: None,
            target: self.target,
        };
        if let Some(held_back) = self.proxy().reporter.due(Count::PortReplaced, subject) {
            tracing::info!(clientAddr = %client, heldBack = held_back, "the client's port is taken on this host: using a free one");
        }
    }

    /// Counts and logs a connection that was not refused. Without an `end` of its own, a ban or an
    /// administrator ended it.
    fn closed(&self, up: u64, down: u64, end: Option<&End>) {
        self.stats(Count::BytesUp, up);
        self.stats(Count::BytesDown, down);
        if end.is_none() {
            self.stats(Count::Killed, 1);
        }
        if !self.proxy().reporter.says_all() {
            return;
        }
        let end = match end {
            Some(end) => words(end),
            None => killed(self.slot.ended_by()).to_owned(),
        };
        tracing::info!(
            clientAddr = self.client.map(tracing::field::display),
            frontendRemoteAddr = %self.peer,
            targetAddr = self.target.map(tracing::field::display),
            bytesUp = up,
            bytesDown = down,
            durationMs = self.began.elapsed().as_millis() as u64,
            %end,
            uniqueId = self.unique_id.as_deref().map(|id| id.escape_ascii().to_string()),
            "connection closed"
        );
    }

    fn refused(&self, refusal: &Refusal) {
        report(
            self.proxy(),
            &self.slot.worker().stats,
            self.peer,
            refusal,
            self.client,
            self.target,
        );
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
        if !matches!(self.end, Some(End::Closed(_))) {
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

/// Counts a refused connection, and logs it unless it is held back.
pub fn report(
    proxy: &Proxy,
    stats: &Stats,
    peer: PeerAddr,
    refusal: &Refusal,
    client: Option<ClientAddr>,
    target: Option<TargetAddr>,
) {
    let kind = refusal.count();
    stats.add(kind, 1);
    let subject = Subject {
        reason: Some(refusal.reason()),
        target,
    };
    if let Some(held_back) = proxy.reporter.due(kind, subject) {
        tracing::warn!(
            error = %refusal,
            frontendRemoteAddr = %peer,
            clientAddr = client.map(tracing::field::display),
            targetAddr = target.map(tracing::field::display),
            heldBack = held_back,
            "dropping connection"
        );
    }
}

fn words(end: &End) -> String {
    let name = |side: &Side| match side {
        Side::Client => "client",
        Side::Backend => "backend",
    };
    match end {
        End::Closed(side) => format!("{} closed", name(side)),
        End::Broken(side, e) if e.raw_os_error() == Some(libc::ETIMEDOUT) => {
            format!("{} gone: no answer to keep-alive", name(side))
        }
        End::Broken(side, e) => format!("{} reset: {e}", name(side)),
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

/// Reads a header in however many pieces it comes. A peer that is silent holds no memory for it,
/// one that is slow only what it sent.
async fn read_header(peer: &Stream) -> Result<Head, Refusal> {
    let mut bytes = Vec::new();
    loop {
        let read = relay::with_buffer(|buffer| {
            let n = peer.recv(buffer)?;
            bytes.extend_from_slice(&buffer[..n]);
            Ok((n, n == buffer.len()))
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
