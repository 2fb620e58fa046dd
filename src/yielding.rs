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
    /// Leaves the core to others, unless that took long lately. For as long as it took we stay,
    /// so that never more than half of the time is lost.
    pub fn leave_core(&mut self) {
        let left = Instant::now();
        if self.due.is_none_or(|due| left >= due) {
            thread::yield_now();
            let back = Instant::now();
            self.due = Some(back - left)
                .filter(|away| *away > LONG)
                .and_then(|away| back.checked_add(away));
        }
    }
}
