//! Yields the core for a moment to the processes that fill the sockets we read.
//!
//! Where sender and receiver run on the proxy's own host, they share its cores. A reader that
//! wakes up for every bit of data reads little each time, at the same cost per read: after a
//! sched_yield(2) more has arrived, and a byte or a datagram costs a third to a half less. Where
//! no process waits for the core, the call returns at once.

use std::thread;
use std::time::{Duration, Instant};

/// Processes that fill sockets go to sleep sooner than that. One that only computes uses up its
/// time slice, some milliseconds.
const LONG: Duration = Duration::from_micros(500);

/// Yields a worker's core, but not too often.
#[derive(Debug, Default)]
pub struct Yielding {
    due: Option<Instant>,
}

impl Yielding {
    /// Yields the core and returns for how long. After a long time we keep it for as long: beside
    /// a program that only computes, half of the time remains ours.
    pub fn leave_core(&mut self) -> Duration {
        let left = Instant::now();
        if self.due.is_some_and(|due| left < due) {
            return Duration::ZERO;
        }
        thread::yield_now();
        let back = Instant::now();
        let away = back - left;
        self.due = (away > LONG).then(|| back + away);
        away
    }
}
