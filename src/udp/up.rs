//! From load balancers to the backend.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::time::Instant;

use super::flows::Back;
use super::journal;
use super::listener::Listener;
use super::lru::Key;
use super::outbox::{Envelope, Trouble};
use crate::addr::TargetAddr;
use crate::config::UdpHeader;
use crate::refusal::Refusal;
use crate::stats::Count;
use crate::sys::datagram::{BATCH, LocalIp};

/// Connected sockets know where their datagrams go.
const CONNECTED: Envelope<'static> = Envelope {
    to: None,
    from: None,
    header: &[],
};

impl Listener {
    /// Takes a batch of datagrams and passes them on. Fails when the listening socket is broken.
    pub fn take_in(&mut self, now: Instant) -> io::Result<()> {
        self.batch.clear();
        match self.batch.receive(&self.socket, BATCH) {
            Ok(_) => {}
            Err(e) if is_passing(&e) => return Ok(()),
            Err(e) => return Err(e),
        }
        for at in 0..self.batch.received().len() {
            let message = self.batch.received()[at];
            let Some(peer) = message.from else { continue };
            if message.truncated {
                journal::truncated(&self.proxy, self.worker);
                continue;
            }
            for datagram in message.datagrams() {
                match self.place(datagram, peer, message.to, now) {
                    Ok(placed) => self.placed.push(placed),
                    Err((refusal, target)) => {
                        journal::refused(&self.proxy, self.worker, peer, target, &refusal);
                    }
                }
            }
        }
        self.forward();
        Ok(())
    }

    /// The flow that a datagram belongs to, and its payload; or why it has none, and where it was to
    /// go, if its header could be read.
    fn place(
        &mut self,
        datagram: Range<usize>,
        peer: SocketAddr,
        local: Option<LocalIp>,
        now: Instant,
    ) -> Result<(Key, Range<usize>), (Refusal, Option<TargetAddr>)> {
        let bytes = &self.batch.bytes()[datagram.clone()];
        let reading = self.reader.read(bytes, peer, now);
        let reading = reading.map_err(|refusal| (refusal, None))?;
        let refused = |refusal| (refusal, Some(reading.target));
        let spp = (self.style == UdpHeader::Spp).then(|| bytes.first_chunk().copied());
        let spp = spp.flatten();
        let back = Back { peer, local, spp };
        let known = self.flows.find(reading.client, reading.target);
        let key = match known {
            Some(key) if self.flows.judge(key).map_err(refused)? => key,
            // A new client, or one whose flow was killed.
            _ => {
                // What waits for a flow that ended, or makes room, must not reach its successor.
                self.forward();
                self.flows
                    .open(reading.client, reading.target, back, &self.poller, now)
                    .map_err(refused)?
            }
        };
        let payload = datagram.start + reading.header..datagram.end;
        if let Some(flow) = self.flows.touch(key, now) {
            flow.back = back;
            flow.up.add(payload.len());
        }
        Ok((key, payload))
    }

    /// Sends what is placed, flow by flow, in the order that it came.
    fn forward(&mut self) {
        let (proxy, worker) = (&*self.proxy, self.worker);
        self.placed
            .sort_unstable_by_key(|(flow, payload)| (*flow, payload.start));
        let (mut datagrams, mut bytes) = (0, 0);
        for run in self.placed.chunk_by(|a, b| a.0 == b.0) {
            let Some(flow) = self.flows.get(run[0].0) else {
                continue;
            };
            datagrams += run.len();
            for (key, payload) in run {
                bytes += payload.len() as u64;
                self.outbox
                    .push(*key, payload.clone(), 0, flow.up.uncut.get());
            }
            self.outbox.flush(
                flow.socket.as_fd(),
                self.batch.bytes(),
                |_| CONNECTED,
                |_, trouble| {
                    if let Trouble::Uncut(size) = trouble {
                        flow.up.uncut.set(size.min(flow.up.uncut.get()));
                    }
                    journal::trouble(proxy, worker, flow, &trouble);
                },
            );
        }
        self.carried += datagrams;
        let stats = &proxy.workers[worker].stats;
        stats.add(Count::DatagramsUp, datagrams as u64);
        stats.add(Count::BytesUp, bytes);
        self.placed.clear();
    }
}

/// Whether receiving may succeed later.
pub fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS)
    )
}
