//! The load: clients that keep the proxy busy in one way for some seconds, and count.

mod bulk;
mod churn;
mod datagrams;
mod idle;
mod ping;

pub use bulk::{Direction, bulk};
pub use churn::churn;
pub use datagrams::{Flows, datagrams};
pub use idle::open;
pub use ping::ping;

use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

/// What came of a load.
#[derive(Debug, Default)]
pub struct Done {
    /// Messages, connections, datagrams or bytes that made it there and back.
    pub units: u64,
    /// Those that were begun and came to nothing.
    pub lost: u64,
    /// How long the load went on.
    pub seconds: f64,
    /// How long each took, in nanoseconds; empty where that means nothing.
    pub latencies: Vec<u32>,
}

impl Done {
    /// Units a second.
    pub fn rate(&self) -> f64 {
        self.units as f64 / self.seconds
    }

    /// The latency in µs that `share` of all stay below.
    pub fn percentile(&mut self, share: f64) -> f64 {
        if self.latencies.is_empty() {
            return f64::NAN;
        }
        let at = ((self.latencies.len() - 1) as f64 * share) as usize;
        let (_, latency, _) = self.latencies.select_nth_unstable(at);
        f64::from(*latency) / 1e3
    }
}

/// Wakes the epoll when the socket is ready; the event carries the descriptor's number.
pub fn watch(epoll: &Epoll, socket: impl AsFd, wanted: EpollFlags) {
    let number = socket.as_fd().as_raw_fd() as u64;
    let event = EpollEvent::new(wanted, number);
    epoll.add(socket, event).expect("watch a socket");
}

fn nanoseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_nanos()).unwrap_or(u32::MAX)
}
