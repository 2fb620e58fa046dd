//! One client's story, top to bottom: header, destination, upstream, relay.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::relay::{self, End, Relay, Side};
use super::stream::Stream;
use crate::addr::{ClientAddr, PeerAddr, TargetAddr};
use crate::header::{self, Header, Progress, Transport};
use crate::proxy::{Proxy, Slot};
use crate::refusal::Refusal;
use crate::stats::{Count, Stats};
use crate::sys::socket::is_local;
use crate::upstream::{self, Kind, UpstreamError};

/// Serves an accepted connection to its end.
pub async fn serve(slot: Slot, socket: OwnedFd, peer: PeerAddr) {
    let mut story = Story {
        slot,
        peer,
        client: None,
        target: None,
    };
    let began = Instant::now();
    // Boxed, because it needs room that an open connection should not keep.
    let session = match Box::pin(story.open(socket)).await {
        Ok(session) => session,
        Err(refusal) => return story.refused(&refusal),
    };
    story.stats(Count::Served, 1);
    let mut relay = Relay::new(
        &session.client,
        &session.backend,
        session.sent,
        session.unsent,
        session.more,
    );
    let end = (&mut relay).await;
    let (up, down) = relay.moved();
    if let End::Broken(..) = end {
        session.client.reset_on_close();
        session.backend.reset_on_close();
    }
    story.stats(Count::BytesUp, up);
    story.stats(Count::BytesDown, down);
    if story.slot.proxy.reporter.says_all() {
        story.closed(
            &end,
            (up, down),
            began.elapsed(),
            session.unique_id.as_deref(),
        );
    }
}

/// A connection on its way through, and what is known of it.
struct Story {
    slot: Slot,
    peer: PeerAddr,
    client: Option<ClientAddr>,
    target: Option<TargetAddr>,
}

/// Both sides connected.
struct Session {
    client: Stream,
    backend: Stream,
    /// Bytes behind the header that the backend has taken.
    sent: usize,
    /// Those that it has not taken yet.
    unsent: Vec<u8>,
    /// Others may wait to be read.
    more: bool,
    unique_id: Option<Box<[u8]>>,
}

impl Story {
    async fn open(&mut self, socket: OwnedFd) -> Result<Session, Refusal> {
        let client = Stream::new(socket).map_err(Refusal::HeaderRead)?;
        let patience = self.proxy().settings.header_timeout;
        let Head {
            header,
            rest: mut unsent,
            more,
        } = timeout(patience, read_header(&client))
            .await
            .unwrap_or(Err(Refusal::HeaderTimeout(patience)))?;
        let (claimed, target) =
            self.proxy()
                .destinations
                .choose(header.claim, self.peer, is_local)?;
        (self.client, self.target) = (Some(claimed), Some(target));
        if let header::Claim::Client { source, .. } = header.claim {
            self.proxy().admission.client(self.peer, source)?;
        }
        let reached = self.reach(claimed, target, &unsent).await;
        if reached.is_err() {
            // As a client is told that connects to a backend without a proxy between.
            client.reset_on_close();
        }
        let (backend, sent) = reached?;
        unsent.drain(..sent);
        Ok(Session {
            client,
            backend,
            sent,
            unsent,
            more,
            unique_id: header.unique_id,
        })
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
        match timeout(after, backend.connected()).await {
            Ok(result) => result.map_err(failure)?,
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
        if let Some(held_back) = self.proxy().reporter.due(Count::PortReplaced) {
            tracing::info!(clientAddr = %client, heldBack = held_back, "the client's port is taken on this host: using a free one");
        }
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

    fn closed(
        &self,
        end: &End,
        (up, down): (u64, u64),
        lasted: Duration,
        unique_id: Option<&[u8]>,
    ) {
        tracing::info!(
            clientAddr = self.client.map(tracing::field::display),
            frontendRemoteAddr = %self.peer,
            targetAddr = self.target.map(tracing::field::display),
            bytesUp = up,
            bytesDown = down,
            durationMs = lasted.as_millis() as u64,
            end = %words(end),
            uniqueId = unique_id.map(|id| id.escape_ascii().to_string()),
            "connection closed"
        );
    }
}

/// Counts a refused connection and logs it, if it is its turn.
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
    if let Some(held_back) = proxy.reporter.due(kind) {
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

/// A whole header, and what came with it.
struct Head {
    header: Header,
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
                    let rest = bytes.split_off(header.len);
                    return Ok(Head { header, rest, more });
                }
            }
            Err::<_, io::Error>(e) if e.kind() == io::ErrorKind::WouldBlock => {
                peer.readable().await.map_err(Refusal::HeaderRead)?;
            }
            Err(e) => return Err(Refusal::HeaderRead(e)),
        }
    }
}
