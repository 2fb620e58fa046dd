//! A datagram and its sender → whom it comes from and where it goes, or why it is dropped. No I/O.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::bindings::{self, Bindings};
use crate::addr::{ClientAddr, PeerAddr, TargetAddr, canonical};
use crate::admission::Trust;
use crate::config::UdpHeader;
use crate::header::{self, Claim, Header, HeaderError, Progress, Transport};
use crate::refusal::Refusal;
use crate::service::Service;
use crate::sys::interfaces::is_local;

/// Reads the datagrams of one listening socket.
pub struct Reader {
    /// The rules, which a reload replaces.
    pub service: Arc<Service>,
    style: UdpHeader,
    /// Style `first` only.
    pub(super) bindings: Bindings,
}

/// What a datagram's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// Whom it comes from.
    pub client: ClientAddr,
    /// Where it goes.
    pub target: TargetAddr,
    /// The client is no load balancer: the rules for clients hold for it.
    pub named: bool,
    /// Bytes before the payload.
    pub header: usize,
}

impl Reader {
    /// Reads as the settings say; `flows` may be open at once.
    pub fn new(service: Arc<Service>, flows: usize) -> Reader {
        let most = bindings::most(flows, service.admission.lists_peers());
        Reader {
            style: service.config.udp_header,
            bindings: Bindings::new(most, service.config.close_after),
            service,
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
        if self.service.admission.peer(from)? == Trust::Itself {
            let (client, target) = self
                .service
                .destinations
                .choose(Claim::RealEndpoints, from)?;
            return Ok(Reading {
                client,
                target,
                named: true,
                header: 0,
            });
        }
        if self.style == UdpHeader::First
            && let Some((client, target)) = self.bindings.speaker(peer, now)
        {
            return Ok(Reading {
                client,
                // A binding may be older than a reload.
                target: self.service.destinations.anew(client, target),
                named: client.0 != from.0,
                header: 0,
            });
        }
        let Header { claim, len, .. } = header(datagram, self.style)?;
        let (client, target) = self.service.destinations.choose(claim, from)?;
        if let Claim::Client { source, .. } = claim {
            // Whether the client is wanted, and the target not ourselves, is asked once a flow.
            self.service.admission.plausible(from, source)?;
        }
        if self.style == UdpHeader::First {
            // All that follows goes the same way.
            self.service.destinations.refuse_loop(target, is_local)?;
            self.bindings.bind(peer, client, target, now);
        }
        Ok(Reading {
            client,
            target,
            named: matches!(claim, Claim::Client { .. }),
            header: len,
        })
    }

    /// Reads a datagram by the rules of `before`, an earlier time. It binds nobody: it is for flows
    /// that are open.
    pub fn recall(
        &mut self,
        before: &Service,
        datagram: &[u8],
        peer: SocketAddr,
        now: Instant,
    ) -> Option<Reading> {
        let from = PeerAddr(canonical(peer));
        let trust = before.admission.peer(from).ok()?;
        if trust == Trust::Header && self.style == UdpHeader::First {
            let (client, target) = self.bindings.speaker(peer, now)?;
            return Some(Reading {
                client,
                target,
                named: client.0 != from.0,
                header: 0,
            });
        }
        let (claim, header) = match trust {
            Trust::Itself => (Claim::RealEndpoints, 0),
            Trust::Header => {
                let Header { claim, len, .. } = header(datagram, self.style).ok()?;
                (claim, len)
            }
        };
        let (client, target) = before.destinations.choose(claim, from).ok()?;
        Some(Reading {
            client,
            target,
            named: trust == Trust::Itself || matches!(claim, Claim::Client { .. }),
            header,
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
