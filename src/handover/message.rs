//! What the two processes of a hand-over say to each other. In this order:
//!
//! ```text
//! old                                   new
//! Offer, Inside..., Socket...,   ─▶
//! Offered                        ─▶     (makes everything ready)
//!                                ◀─     Prepared
//! (changes nothing any more)
//! Bans, Flows..., Link..., State ─▶     (takes it over)
//!                                ◀─     Ready
//! (accepts nothing any more)
//! Go                             ─▶
//!                                ◀─     Serving
//! (tells systemd)
//! Confirmed                      ─▶     (tells systemd that it is ready)
//! ```
//!
//! Until `Serving` the old process may kill the new one and go on. Whatever the new one has got by
//! the time that the old one is gone, it serves with. Afterwards the new process asks the old one
//! what `realpeer ctl` wants to know, over the same socket.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::bans::{Ban, UnixSeconds};
use crate::config::{Choice, Protocol, RouteTarget, RoutingMode, TargetNetns};
use crate::control::{Line, Request};
use crate::sys::netns::Identity;
use crate::udp::luggage::{Binding, Paper};

/// Of this language. Processes of different versions do not take over from each other.
pub const VERSION: u32 = 1;

/// An address that is listened on, as it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// UDP, not TCP.
    pub udp: bool,
    /// Where.
    pub asked: SocketAddr,
}

impl Place {
    /// As listeners name it.
    pub fn new(protocol: Protocol, asked: SocketAddr) -> Place {
        let udp = protocol == Protocol::Udp;
        Place { udp, asked }
    }

    /// TCP or UDP.
    pub fn protocol(self) -> Protocol {
        match self.udp {
            true => Protocol::Udp,
            false => Protocol::Tcp,
        }
    }
}

/// A target that the old process keeps the routing of.
#[derive(Debug, Serialize, Deserialize)]
pub struct Target {
    target: SocketAddr,
    given: bool,
    udp: bool,
    mark: Option<u32>,
    mode: String,
    netns: Option<TargetNetns>,
}

impl From<&RouteTarget> for Target {
    fn from(target: &RouteTarget) -> Target {
        Target {
            target: target.target,
            given: target.given,
            udp: target.protocol == Protocol::Udp,
            mark: target.mark,
            mode: target.mode.word().to_owned(),
            netns: target.netns.clone(),
        }
    }
}

impl Target {
    /// As routing takes it; `None` if it is of a kind unknown here.
    pub fn read(&self) -> Option<RouteTarget> {
        Some(RouteTarget {
            target: self.target,
            given: self.given,
            protocol: Place {
                udp: self.udp,
                asked: self.target,
            }
            .protocol(),
            mark: self.mark,
            mode: RoutingMode::read(&self.mode).ok()?,
            netns: self.netns.clone(),
        })
    }
}

/// The control socket, which comes with this.
#[derive(Debug, Serialize, Deserialize)]
pub struct ControlPaper {
    /// Where its file is.
    pub path: std::path::PathBuf,
    /// Of the file.
    pub inode: u64,
}

/// What the old process has put into the kernel; the lock of its table comes with this.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct RoutingPaper {
    /// Its table.
    pub table: u32,
    /// As in `Keeper`.
    pub nft: bool,
    /// As in `Keeper`.
    pub accept: bool,
    /// As in `Keeper`.
    pub guarded: bool,
}

/// Addresses of a socket unit, which stand in place of those that a listener's configuration names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Activated {
    /// The listener.
    pub name: String,
    /// UDP, not TCP.
    pub udp: bool,
    /// Where its sockets are bound.
    pub addresses: Vec<SocketAddr>,
}

/// What the old process says.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromOld {
    /// The beginning. With it come the control socket and the routing's lock, if there are any.
    Offer {
        version: u32,
        pid: u32,
        control: Option<ControlPaper>,
        routing: Option<RoutingPaper>,
        targets: Vec<Target>,
        activated: Vec<Activated>,
    },
    /// What is put into another network namespace; the lock of the table there comes with this.
    Inside(Identity, RoutingPaper),
    /// Sockets of an address come with this.
    Socket(Place),
    /// There are no more sockets.
    Offered,
    /// Some of the bans.
    Bans(Vec<Ban>),
    /// Flows of one listening socket, and their sockets.
    Flows {
        place: Place,
        socket: usize,
        papers: Vec<Paper>,
    },
    /// Bindings of style `first`, of one listening socket.
    Bindings {
        place: Place,
        socket: usize,
        bindings: Vec<Binding>,
    },
    /// The way to a process that is still older.
    Link { pid: u32, since: UnixSeconds },
    /// All has been said. Listeners that are drained, and how much is logged if it was changed.
    State {
        drained: Vec<Option<String>>,
        verbosity: Option<u8>,
    },
    /// Serve. Sessions get ids above this one.
    Go { above: u64 },
    /// systemd knows.
    Confirmed,
    /// Lines of an answer.
    Answer {
        number: u64,
        lines: Vec<Line>,
        last: bool,
    },
}

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromNew {
    /// All that can fail has gone well. What was taken of the offer.
    Prepared { taken: Vec<Place>, control: bool },
    /// Everything is in place.
    Ready,
    /// It serves.
    Serving,
    /// What `realpeer ctl` asks of the old process.
    Ask { number: u64, request: Request },
    /// Stop within `-drain-timeout`.
    Stop,
}
