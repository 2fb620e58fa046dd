//! From the backend to load balancers.

use std::os::fd::AsFd;
use std::time::Instant;

use super::flows::Flow;
use super::journal;
use super::listener::Listener;
use super::lru::Key;
use super::outbox::{Envelope, Trouble};
use super::up::is_passing;
use crate::stats::Count;

/// Messages that one flow is read in a turn, so that a busy one does not starve the others.
const SHARE: usize = 16;

/// Errors that one flow is asked for in a turn.
const ERRORS: usize = 3;

/// Goes nowhere: the flow has ended.
const NOBODY: Envelope<'static> = Envelope {
    to: None,
    from: None,
    header: &[],
};

impl Listener {
    /// Takes what the backend sent to these flows and passes it on.
    pub fn give_back(&mut self, flows: impl Iterator<Item = Key>, now: Instant) {
        self.batch.clear();
        for key in flows {
            if self.batch.room() < SHARE {
                self.answer();
            }
            self.collect(key, now);
        }
        self.answer();
    }

    fn collect(&mut self, key: Key, now: Instant) {
        if !matches!(self.flows.judge(key), Ok(true)) {
            return;
        }
        let before = self.batch.received().len();
        let Some(flow) = self.flows.get(key) else {
            return;
        };
        for _ in 0..ERRORS {
            match self.batch.receive(&flow.socket, SHARE) {
                Ok(_) => break,
                Err(e) if is_passing(&e) => return,
                // Told once; datagrams may wait behind it.
                Err(e) => journal::upstream_error(&self.service, self.worker, flow, &e),
            }
        }
        if self.batch.received().len() == before {
            return;
        }
        let Some(flow) = self.flows.touch(key, now) else {
            return;
        };
        self.reader.answered(flow.back.peer, now);
        let header = flow.envelope().header.len();
        for message in &self.batch.received()[before..] {
            if message.truncated {
                journal::truncated(&self.service, self.worker);
                continue;
            }
            for datagram in message.datagrams() {
                flow.down.add(datagram.len());
                self.returned.datagrams += 1;
                self.returned.bytes += datagram.len() as u64;
                self.outbox
                    .push(key, datagram, header, flow.down.uncut.get());
            }
        }
    }

    /// Sends what is collected.
    fn answer(&mut self) {
        let (service, worker, flows) = (&*self.service, self.worker, &self.flows);
        self.outbox.flush(
            self.socket.as_fd(),
            self.batch.bytes(),
            |key| flows.get(key).map_or(NOBODY, Flow::envelope),
            |key, trouble| {
                let Some(flow) = flows.get(key) else { return };
                if let Trouble::Uncut(size) = trouble {
                    flow.down.uncut.set(size.min(flow.down.uncut.get()));
                }
                journal::trouble(service, worker, flow, &trouble);
            },
        );
        self.batch.clear();
        let returned = std::mem::take(&mut self.returned);
        self.carried += returned.datagrams as usize;
        service.add(worker, Count::DatagramsDown, returned.datagrams);
        service.add(worker, Count::BytesDown, returned.bytes);
    }
}
