//! Why a client was not served, in words for the administrator.

use std::mem::{Discriminant, discriminant};
use std::time::Duration;

use crate::addr::{ClientAddr, TargetAddr};
use crate::bans::Banned;
use crate::claims::Oddity;
use crate::config::Rate;
use crate::header::HeaderError;
use crate::stats::Count;
use crate::upstream::UpstreamError;

/// Why a connection was dropped before it could be relayed.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The peer may not speak.
    #[error("the peer is not in the allowed-subnets file")]
    PeerNotAllowed,
    /// `-max-connections` are open.
    #[error("{0} connections are open, the maximum: see -max-connections and LimitNOFILE")]
    TooManyConnections(usize),
    /// The peer closed without a byte, as a health check does.
    #[error("the peer closed without sending anything, as a TCP health check does")]
    Silent,
    /// The peer closed in the middle of its header.
    #[error("the peer closed before its PROXY header was complete")]
    HeaderCut,
    /// The peer did not finish its header in time.
    #[error(
        "no header within {0:?}: send-proxy may be off; or the load balancer withholds the header until the \
         client's first byte (AWS NLB does), and the client waits for the server to speak first"
    )]
    HeaderTimeout(Duration),
    /// Reading the header failed.
    #[error("the peer's connection broke while its header was read: {0}")]
    HeaderRead(std::io::Error),
    /// What arrived is not a header, or an invalid one.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The header names an address that this peer may not claim.
    #[error("the header claims the client {0}, {1}, {who}", who = .1.claimants())]
    BogusClient(ClientAddr, Oddity),
    /// The client is banned.
    #[error("the client {0} is banned: {1}")]
    Banned(ClientAddr, Banned),
    /// A rule names the client.
    #[error("the client {0} is in the denied-clients file")]
    ClientDenied(ClientAddr),
    /// No rule names the client.
    #[error("the client {0} is not in the allowed-clients file")]
    ClientNotAllowed(ClientAddr),
    /// The client has as many connections open as one may.
    #[error("the client {0} has {1} connections open: see -max-connections-per-client")]
    TooManyOpen(ClientAddr, u32),
    /// The client opens connections faster than one may.
    #[error("the client {0} opens more connections than {1}: see -connection-rate-per-client")]
    TooFast(ClientAddr, Rate),
    /// An administrator drains the listener.
    #[error("the listener is drained: 'realpeer ctl resume' lets new clients in")]
    Drained,
    /// The target is our own listener.
    #[error("the target {0} is realpeer's own listener: the connection would loop")]
    TargetIsListener(TargetAddr),
    /// The header's destination cannot be connected to from its client.
    #[error(
        "the header's destination {0} cannot be reached from its client: port 0, not a host address, or the other address family"
    )]
    BadDestination(TargetAddr),
    /// The backend could not be reached.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// Which refusal it is, without what differs from client to client. Finer than [`Count`], so that
/// a line about one reason holds back no line about another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// One that needs no more detail.
    Plain(Discriminant<Refusal>),
    /// What is wrong with the header.
    Header(Discriminant<HeaderError>),
    /// What the backend, or what stands before it, did.
    Upstream(Discriminant<UpstreamError>),
    /// The errno of a connection that failed otherwise.
    Kernel(Option<i32>),
}

impl Refusal {
    /// Which refusal it is.
    pub fn reason(&self) -> Reason {
        match self {
            Refusal::Header(error) => Reason::Header(discriminant(error)),
            Refusal::Upstream(UpstreamError::Failed { source, .. }) => {
                Reason::Kernel(source.raw_os_error())
            }
            Refusal::Upstream(error) => Reason::Upstream(discriminant(error)),
            other => Reason::Plain(discriminant(other)),
        }
    }

    /// Whether the client is reset: as a backend's host would do it without a proxy between.
    pub fn resets(&self) -> bool {
        matches!(
            self,
            Refusal::Banned(..)
                | Refusal::ClientDenied(_)
                | Refusal::ClientNotAllowed(_)
                | Refusal::TooManyOpen(..)
                | Refusal::TooFast(..)
                | Refusal::Upstream(_)
        )
    }

    /// The target that could not be reached, if the refusal is about one.
    pub fn target(&self) -> Option<TargetAddr> {
        match self {
            Refusal::TargetIsListener(target) => Some(*target),
            Refusal::Upstream(
                UpstreamError::Refused(target)
                | UpstreamError::Timeout { target, .. }
                | UpstreamError::Rejected { target, .. }
                | UpstreamError::Failed { target, .. },
            ) => Some(*target),
            _ => None,
        }
    }

    /// The counter that this refusal adds to.
    pub fn count(&self) -> Count {
        match self {
            Refusal::PeerNotAllowed => Count::PeerNotAllowed,
            Refusal::TooManyConnections(_) => Count::TooManyConnections,
            Refusal::Silent => Count::Silent,
            Refusal::HeaderCut | Refusal::HeaderRead(_) => Count::HeaderCut,
            Refusal::HeaderTimeout(_) => Count::HeaderTimeout,
            Refusal::Header(HeaderError::Absent(_)) => Count::HeaderAbsent,
            Refusal::Header(_) => Count::HeaderBad,
            Refusal::BogusClient(..) => Count::BogusClient,
            Refusal::Banned(..) => Count::Banned,
            Refusal::ClientDenied(_) => Count::ClientDenied,
            Refusal::ClientNotAllowed(_) => Count::ClientNotAllowed,
            Refusal::TooManyOpen(..) | Refusal::TooFast(..) => Count::TooManyOfClient,
            Refusal::Drained => Count::Drained,
            Refusal::TargetIsListener(_) => Count::TargetIsListener,
            Refusal::BadDestination(_) => Count::BadDestination,
            Refusal::Upstream(UpstreamError::TargetGone { .. }) => Count::TargetGone,
            Refusal::Upstream(_) => Count::UpstreamFailed,
        }
    }
}
