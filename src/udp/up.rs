//! From load balancers to the backend.

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::flows::{Back, Flows};
use super::journal;
use super::listener::Listener;
use super::lru::Key;
use super::outbox::{Envelope, Trouble};
use super::reader::{Reader, Reading};
use crate::addr::{TargetAddr, canonical};
use crate::config::UdpHeader;
use crate::refusal::Refusal;
use crate::service::Service;
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
                journal::truncated(&self.service, self.worker);
                continue;
            }
            for datagram in message.datagrams() {
                match self.place(datagram, peer, message.to, now) {
                    Ok(placed) => self.placed.push(placed),
                    Err((refusal, target)) => {
                        journal::refused(&self.service, self.worker, peer, target, &refusal);
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
        let earlier = recall(
            &self.earlier,
            &mut self.reader,
            &mut self.flows,
            (bytes, peer),
            now,
        );
        let reading = match earlier {
            Some(reading) => reading,
            None => {
                let reading = self.reader.read(bytes, peer, now);
                reading.map_err(|refusal| (refusal, None))?
            }
        };
        let refused = |refusal| (refusal, Some(reading.target));
        // A peer that is served as itself sent no header, and gets none.
        let has_spp = self.style == UdpHeader::Spp && reading.header > 0;
        let spp = has_spp.then(|| bytes.first_chunk().copied()).flatten();
        let back = Back { peer, local, spp };
        let known = self.flows.find(&reading);
        let key = match known {
            Some(key) if self.flows.judge(key).map_err(refused)? => key,
            // A new client, or one whose flow was killed.
            _ if self.current.is_paused() => return Err(refused(Refusal::Drained)),
            _ => {
                // What waits for a flow that ended, or makes room, must not reach its successor.
                self.forward();
                self.flows
                    .open(&reading, back, &self.poller, now)
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
        let (service, worker) = (&*self.service, self.worker);
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
                    journal::trouble(service, worker, flow, &trouble);
                },
            );
        }
        self.carried += datagrams;
        service.add(worker, Count::DatagramsUp, datagrams as u64);
        service.add(worker, Count::BytesUp, bytes);
        self.placed.clear();
    }
}

/// The reading of a datagram for a flow that goes on under rules that a reload has replaced since:
/// from the load balancer that it came by before.
fn recall(
    earlier: &[Weak<Service>],
    reader: &mut Reader,
    flows: &mut Flows,
    (datagram, peer): (&[u8], SocketAddr),
    now: Instant,
) -> Option<Reading> {
    earlier.iter().filter_map(Weak::upgrade).find_map(|before| {
        let reading = reader.recall(&before, datagram, peer, now)?;
        let key = flows.find(&reading)?;
        let flow = flows.get(key)?;
        let its_own = Arc::ptr_eq(&flow.service, &before)
            && canonical(flow.back.peer).ip() == canonical(peer).ip();
        (its_own && flows.judge(key).is_ok_and(|goes_on| goes_on)).then_some(reading)
    })
}

/// Whether receiving may succeed later.
pub fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EAGAIN | libc::ENOMEM | libc::ENOBUFS)
    )
}
