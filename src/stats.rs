//! Counters, one set for each worker, summed when they are read.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counts {
    ($($(#[$doc:meta])* $variant:ident => $name:literal,)*) => {
        /// Something that is counted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Count { $($(#[$doc])* $variant,)* }

        impl Count {
            /// Every count, in order.
            pub const ALL: &[Count] = &[$(Count::$variant,)*];

            /// The name that logs and programs show.
            pub fn name(self) -> &'static str {
                match self { $(Count::$variant => $name,)* }
            }
        }
    };
}

counts! {
    /// Connections taken from the listener; UDP flows begun.
    Accepted => "accepted",
    /// Connections that reached the backend; UDP flows that have a socket.
    Served => "served",
    /// Bytes from clients to backends.
    BytesUp => "bytesUp",
    /// Bytes from backends to clients.
    BytesDown => "bytesDown",
    /// The claimed source port was taken and a free one was used.
    PortReplaced => "portReplaced",
    /// Peers outside the allowed-subnets file.
    PeerNotAllowed => "peerNotAllowed",
    /// Connections beyond the limit.
    TooManyConnections => "tooManyConnections",
    /// Peers that closed without a byte.
    Silent => "silent",
    /// Peers that went away in the middle of a header.
    HeaderCut => "headerCut",
    /// Peers that did not finish their header in time.
    HeaderTimeout => "headerTimeout",
    /// Peers that sent something other than a header.
    HeaderAbsent => "headerAbsent",
    /// Headers that break the protocol.
    HeaderBad => "headerBad",
    /// Headers that claim an address no client can have.
    BogusClient => "bogusClient",
    /// Headers that claim a banned client.
    Banned => "banned",
    /// Headers that claim a client of the denied-clients file.
    ClientDenied => "clientDenied",
    /// Headers that claim a client outside the allowed-clients file.
    ClientNotAllowed => "clientNotAllowed",
    /// Clients that have, or open, more connections than one may.
    TooManyOfClient => "tooManyOfClient",
    /// New UDP clients of a listener that is drained.
    Drained => "drained",
    /// Sessions that a ban or the administrator ended.
    Killed => "killed",
    /// TCP sessions that `-idle-timeout` ended.
    Idle => "idle",
    /// Connections that would have come back to the listener.
    TargetIsListener => "targetIsListener",
    /// Headers whose destination cannot be connected to.
    BadDestination => "badDestination",
    /// Backends that could not be reached.
    UpstreamFailed => "upstreamFailed",
    /// Datagrams from clients.
    DatagramsUp => "datagramsUp",
    /// Datagrams from backends.
    DatagramsDown => "datagramsDown",
    /// Datagrams that the kernel would not take from us.
    DatagramLost => "datagramLost",
    /// Datagrams longer than the largest possible one, dropped.
    DatagramTruncated => "datagramTruncated",
    /// UDP flows that made room for others.
    FlowEvicted => "flowEvicted",
    /// Times the listener had to wait for descriptors or memory.
    AcceptFailed => "acceptFailed",
    /// Connections and flows to a network namespace that is gone.
    TargetGone => "targetGone",
}

impl Count {
    /// Those of connections and datagrams that were refused.
    pub const REFUSALS: &[Count] = &[
        Count::PeerNotAllowed,
        Count::TooManyConnections,
        Count::Silent,
        Count::HeaderCut,
        Count::HeaderTimeout,
        Count::HeaderAbsent,
        Count::HeaderBad,
        Count::BogusClient,
        Count::Banned,
        Count::ClientDenied,
        Count::ClientNotAllowed,
        Count::TooManyOfClient,
        Count::Drained,
        Count::TargetIsListener,
        Count::BadDestination,
        Count::UpstreamFailed,
        Count::TargetGone,
    ];
}

/// One worker's counters, on cache lines of their own so that no two workers share one.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Stats([AtomicU64; Count::ALL.len()]);

impl Stats {
    /// Adds to a count.
    pub fn add(&self, count: Count, n: u64) {
        self.0[count as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// The count so far.
    pub fn read(&self, count: Count) -> u64 {
        self.0[count as usize].load(Ordering::Relaxed)
    }
}
