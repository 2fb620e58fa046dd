//! Style `first`: which client speaks through which load-balancer socket. A binding outlives the
//! flow's own socket when that makes room for others: else a flood could unbind a client, and the
//! client's next datagram, all its own, would be taken for a header. For the same reason there are
//! never fewer bindings than load balancers have ports.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::lru::{Key, Lru};
use super::luggage::{self, Binding};
use crate::addr::{ClientAddr, TargetAddr};

/// Bindings in flows, at least: a binding is kept when its flow made room.
const BINDINGS_A_FLOW: usize = 4;

/// Ports of an address: a load balancer can have no more sockets towards a listener.
const PORTS: usize = 65_536;

/// Without `-allowed-subnets`, as many load balancers have all their bindings; others may be
/// strangers with forged addresses, who must not fill the memory.
const UNLISTED_PEERS: usize = 16;

/// How many bindings may be kept beside so many flows: all there can be, where peers are `listed`.
pub fn most(flows: usize, listed: bool) -> usize {
    match listed {
        true => usize::MAX,
        false => flows
            .saturating_mul(BINDINGS_A_FLOW)
            .max(UNLISTED_PEERS * PORTS),
    }
}

/// The bindings of a listening socket.
#[derive(Debug)]
pub struct Bindings {
    by_peer: HashMap<SocketAddr, Key>,
    bindings: Lru<(SocketAddr, ClientAddr, TargetAddr)>,
    most: usize,
    close_after: Option<Duration>,
}

impl Bindings {
    /// No binding yet; `most` at once.
    pub fn new(most: usize, close_after: Option<Duration>) -> Bindings {
        Bindings {
            by_peer: HashMap::new(),
            bindings: Lru::new(),
            most,
            close_after,
        }
    }

    /// Who speaks through this socket of a load balancer, if a first datagram has told and the
    /// silence since was not too long.
    pub fn speaker(&mut self, peer: SocketAddr, now: Instant) -> Option<(ClientAddr, TargetAddr)> {
        self.expire(now);
        let key = *self.by_peer.get(&peer)?;
        let (_, client, target) = self.bindings.touch(key, now)?;
        Some((*client, *target))
    }

    /// Binds a load balancer's socket to a client.
    pub fn bind(&mut self, peer: SocketAddr, client: ClientAddr, target: TargetAddr, now: Instant) {
        if self.bindings.len() >= self.most {
            self.remove_oldest();
        }
        let key = self.bindings.insert((peer, client, target), now);
        self.by_peer.insert(peer, key);
    }

    /// Notes that the backend has answered to this socket.
    pub fn answered(&mut self, peer: SocketAddr, now: Instant) {
        if let Some(key) = self.by_peer.get(&peer) {
            self.bindings.touch(*key, now);
        }
    }

    /// All of them, to be passed on.
    pub fn pack(&self, now: Instant) -> Vec<Binding> {
        let bindings = self.bindings.iter();
        bindings
            .map(|((peer, client, target), used)| {
                (*peer, client.0, target.0, luggage::age(used, now))
            })
            .collect()
    }

    /// Takes over those of another process.
    pub fn unpack(&mut self, bindings: Vec<Binding>, now: Instant) {
        for (peer, client, target, silent) in bindings {
            let (client, target) = (ClientAddr(client), TargetAddr(target));
            self.bind(peer, client, target, luggage::ago(silent, now));
        }
    }

    fn expire(&mut self, now: Instant) {
        let Some(close_after) = self.close_after else {
            return;
        };
        while let Some((_, used)) = self.bindings.oldest() {
            if now.saturating_duration_since(used) < close_after {
                return;
            }
            self.remove_oldest();
        }
    }

    fn remove_oldest(&mut self) {
        let oldest = self.bindings.oldest();
        if let Some((peer, ..)) = oldest.and_then(|(key, _)| self.bindings.remove(key)) {
            self.by_peer.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(port: u16) -> SocketAddr {
        ([192, 0, 2, 5], port).into()
    }

    fn bind(bindings: &mut Bindings, port: u16, now: Instant) {
        let client = ClientAddr(([203, 0, 113, 9], port).into());
        bindings.bind(
            peer(port),
            client,
            TargetAddr("127.0.0.1:53".parse().unwrap()),
            now,
        );
    }

    #[test]
    fn silence_both_ways_ends_a_binding() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut bindings = Bindings::new(9, Some(Duration::from_secs(10)));
        bind(&mut bindings, 1, at(0));
        assert!(bindings.speaker(peer(1), at(9)).is_some());
        assert!(bindings.speaker(peer(2), at(9)).is_none());
        assert!(bindings.speaker(peer(1), at(18)).is_some());
        bindings.answered(peer(1), at(27));
        assert!(bindings.speaker(peer(1), at(36)).is_some());
        assert!(bindings.speaker(peer(1), at(46)).is_none());
        assert!(bindings.by_peer.is_empty());
    }

    #[test]
    fn few_flows_do_not_make_few_bindings() {
        assert_eq!(most(1, true), usize::MAX);
        assert_eq!(most(1, false), 16 * 65_536);
        assert_eq!(most(1_000_000, false), 4_000_000);
    }

    #[test]
    fn the_oldest_makes_room() {
        let now = Instant::now();
        let mut bindings = Bindings::new(2, None);
        for port in 1..=3 {
            bind(&mut bindings, port, now);
        }
        let bound = |bindings: &mut Bindings, port| bindings.speaker(peer(port), now).is_some();
        assert_eq!(
            [1, 2, 3].map(|port| bound(&mut bindings, port)),
            [false, true, true]
        );
        assert_eq!(bindings.by_peer.len(), 2);
    }
}
