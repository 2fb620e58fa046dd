//! Notices that a session is silent both ways (`-idle-timeout`).
//!
//! Nothing is noted when bytes move: a coarse timer looks now and then whether any have.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Looks in a time-out. The first of them may come just after the last byte, so that many more in a
/// row are never too early, and late by one of them at most. Elapsed time would not do: a process
/// that was stopped finds the time gone and the bytes unread.
const LOOKS: u32 = 8;

/// What changes while a session is not idle.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Activity {
    /// Bytes moved, from the client and from the backend.
    pub(super) moved: [u64; 2],
    /// Which of them has ended.
    pub(super) ended: [bool; 2],
    /// Bytes that their kernels have yet to acknowledge: a slow reader still takes what we have
    /// passed on long before.
    pub(super) unacknowledged: [usize; 2],
}

/// Looks at a session.
#[derive(Debug)]
pub(super) struct Idle {
    pause: Duration,
    seen: Activity,
    /// Looks in a row that saw no change.
    unchanged: u32,
    alarm: Pin<Box<Sleep>>,
}

impl Idle {
    /// Silence begins to count now.
    pub(super) fn new(after: Duration) -> Idle {
        let pause = after / LOOKS;
        Idle {
            pause,
            seen: Activity::default(),
            unchanged: 0,
            alarm: Box::pin(sleep(pause)),
        }
    }

    /// Ready once nothing has changed for the time-out.
    pub(super) fn poll(
        &mut self,
        activity: impl Fn() -> Activity,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        while self.unchanged < LOOKS {
            ready!(self.alarm.as_mut().poll(cx));
            let now = activity();
            self.unchanged = if now == self.seen {
                self.unchanged + 1
            } else {
                0
            };
            self.seen = now;
            self.alarm.as_mut().reset(Instant::now() + self.pause);
        }
        Poll::Ready(())
    }
}
