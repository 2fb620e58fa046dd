//! Flows on their way from one process to the next: their sockets, and what is known of them.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::flows::Back;
use crate::addr::{ClientAddr, TargetAddr};
use crate::sys::datagram::LocalIp;

/// What is known of a flow. Ages are in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub struct Paper {
    pub client: SocketAddr,
    pub target: SocketAddr,
    pub named: bool,
    pub peer: SocketAddr,
    pub local: Option<(IpAddr, u32)>,
    pub spp: Option<Vec<u8>>,
    /// Datagrams and bytes from clients.
    pub up: (u64, u64),
    /// Datagrams and bytes from the backend.
    pub down: (u64, u64),
    pub age: u64,
    pub silent: u64,
}

/// Who speaks through a load balancer's socket, in style `first`: the socket, the client, the
/// target, and for how long there was silence.
pub type Binding = (SocketAddr, SocketAddr, SocketAddr, u64);

/// What belongs to one listening socket, those longest silent first.
#[derive(Debug, Default)]
pub struct Luggage {
    /// Flows with their sockets.
    pub flows: Vec<(Paper, OwnedFd)>,
    /// Bindings of style `first`.
    pub bindings: Vec<Binding>,
}

impl Paper {
    /// The way back.
    pub fn back(&self) -> Back {
        let spp = self.spp.as_deref().and_then(|bytes| bytes.try_into().ok());
        let local = self.local.map(|(ip, interface)| LocalIp { ip, interface });
        Back {
            peer: self.peer,
            local,
            spp,
        }
    }

    /// Whom it claims to be, and where it goes.
    pub fn ends(&self) -> (ClientAddr, TargetAddr) {
        (ClientAddr(self.client), TargetAddr(self.target))
    }
}

/// How long ago that was.
pub fn age(then: Instant, now: Instant) -> u64 {
    now.saturating_duration_since(then).as_millis() as u64
}

/// The time so long ago.
pub fn ago(milliseconds: u64, now: Instant) -> Instant {
    let then = now.checked_sub(Duration::from_millis(milliseconds));
    then.unwrap_or(now)
}
