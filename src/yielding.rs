//! Leaving the core, for a moment, to those who fill the sockets that we read.
//!
//! Where sender and receiver run on the same host as the proxy, all of them share its cores. Who
//! reads as soon as there is anything reads little at a time, and each time costs the same: after
//! a sched_yield(2) more has come, and a byte or a datagram costs a third to a half less. Where
//! nobody waits for the core the call returns at once.

use std::thread;
use std::time::{Duration, Instant};

/// Those who fill sockets sleep sooner than that. A program that computes without end takes a
/// whole time slice, some milliseconds.
const LONG: Duration = Duration::from_micros(500);

/// Leaves a worker's core, in measure.
#[derive(Debug, Default)]
pub struct Yielding {
    due: Option<Instant>,
}

impl Yielding {
    /// Leaves the core to others, and tells for how long that was. After a long time we stay for
    /// as long: beside a program that computes without end, half of the time remains ours.
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
