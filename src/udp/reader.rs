//! A datagram and its sender → whom it comes from and where it goes, or why it is dropped. No I/O.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::bindings::Bindings;
use crate::addr::{ClientAddr, PeerAddr, TargetAddr, canonical};
use crate::config::UdpHeader;
use crate::header::{self, Claim, Header, HeaderError, Progress, Transport};
use crate::proxy::Proxy;
use crate::refusal::Refusal;
use crate::sys::interfaces::is_local;

/// Reads the datagrams of one listening socket.
pub struct Reader {
    proxy: Arc<Proxy>,
    style: UdpHeader,
    /// Style `first` only.
    bindings: Bindings,
}

/// What a datagram's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Whom it comes from.
    pub client: ClientAddr,
    /// Where it goes.
    pub target: TargetAddr,
    /// Bytes before the payload.
    pub header: usize,
}

impl Reader {
    /// Reads as the settings say, with at most this many bindings.
    pub fn new(proxy: Arc<Proxy>, bindings: usize) -> Reader {
        Reader {
            style: proxy.settings.udp_header,
            bindings: Bindings::new(bindings, proxy.settings.close_after),
            proxy,
        }
    }

    /// Reads a datagram. `peer` is as received, perhaps IPv4-mapped.
    pub fn read(
        &mut self,
        datagram: &[u8],
        peer: SocketAddr,
        now: Instant,
    ) -> Result<Reading, Refusal> {
        let from = PeerAddr(canonical(peer));
        self.proxy.admission.peer(from)?;
        if self.style == UdpHeader::First
            && let Some((client, target)) = self.bindings.speaker(peer, now)
        {
            return Ok(Reading {
                client,
                target,
                header: 0,
            });
        }
        let Header { claim, len, .. } = header(datagram, self.style)?;
        let (client, target) = self.proxy.destinations.choose(claim, from)?;
        if let Claim::Client { source, .. } = claim {
            // Whether the client is wanted, and the target not ourselves, is asked once a flow.
            self.proxy.admission.plausible(from, source)?;
        }
        if self.style == UdpHeader::First {
            // All that follows goes the same way.
            self.proxy.destinations.refuse_loop(target, is_local)?;
            self.bindings.bind(peer, client, target, now);
        }
        Ok(Reading {
            client,
            target,
            header: len,
        })
    }

    /// Notes that the backend has answered to this socket of a load balancer.
    pub fn answered(&mut self, peer: SocketAddr, now: Instant) {
        if self.style == UdpHeader::First {
            self.bindings.answered(peer, now);
        }
    }
}

fn header(datagram: &[u8], style: UdpHeader) -> Result<Header, HeaderError> {
    if style == UdpHeader::Spp {
        return header::spp::parse(datagram);
    }
    match header::parse(datagram, Transport::Datagram)? {
        Progress::Complete(header) => Ok(header),
        Progress::NeedMore(_) => Err(HeaderError::Malformed(
            "the datagram ends before its header does".into(),
        )),
    }
}
