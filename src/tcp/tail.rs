//! The rest of a relay once one side is gone: reset, or silent to keep-alive.
//!
//! What it sent before goes on to the other side, in order, and then its end if that came too. A
//! socket that is closed with bytes unread resets its peer, and a reset overtakes bytes: so the
//! other side is read, for nothing, and closed once it has acknowledged all.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use super::pump::{Broken, Pump, Shared, TURN, Turn};
use super::relay::{End, Side};
use super::stream::Stream;

/// The kernel does not tell when all is acknowledged: it is asked so often, at first and at least.
const PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A side that broke without an end is known to have been cut off, so the other need not be kept
/// for long when it takes nothing. Without a proxy it would be reset at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// The last bytes of a side that is gone.
#[derive(Debug)]
pub struct Tail {
    /// Whose they are.
    pub gone: Side,
    /// Why it is gone, as soon as somebody has asked its socket, which tells only once.
    error: Option<io::Error>,
    /// Its end came before it was gone; `None` while that is not known.
    complete: Option<bool>,
    /// It was told the end of the other side, or could have been.
    heard_all: bool,
    /// Bytes for it came to nothing.
    lost: bool,
    /// All of its bytes have been given to the other side's socket.
    passed_on: bool,
    /// The other side has ended too.
    both_ended: bool,
    /// Bytes moved and bytes not acknowledged, when either last changed.
    progress: (u64, usize),
    since: Instant,
    pause: Duration,
    alarm: Pin<Box<Sleep>>,
}

impl Tail {
    /// `from` carried its bytes, `towards` those for it. `error` is what its socket has told.
    pub(super) fn new(
        gone: Side,
        error: Option<io::Error>,
        from: &mut Pump,
        towards: &Pump,
    ) -> Tail {
        // The reactor need not tell: what is there is read at once.
        from.readable = true;
        let mut tail = Tail {
            gone,
            complete: from.ended.then_some(true),
            heard_all: towards.end_passed_on,
            lost: error.is_some() || towards.holds_bytes(),
            error: None,
            passed_on: false,
            both_ended: towards.ended,
            progress: (from.moved, 0),
            since: Instant::now(),
            pause: PAUSE,
            alarm: Box::pin(sleep(PAUSE)),
        };
        if let Some(error) = error {
            tail.learn(error);
        }
        tail
    }

    /// Ready when the other side has all, or is gone too, or takes nothing.
    pub(super) fn poll(
        &mut self,
        pump: &mut Pump,
        from: &Stream,
        to: &Stream,
        shared: &mut Shared,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if !self.passed_on && self.pass_on(pump, from, to, shared, cx).is_err() {
                return Poll::Ready(());
            }
            if self.discard(to, shared, cx).is_err() {
                return Poll::Ready(());
            }
            let left = if to.is_closed() {
                0
            } else {
                to.unacknowledged()
            };
            let closes_by_itself = self.complete == Some(true) && self.both_ended;
            if self.passed_on && (left == 0 || closes_by_itself) || self.is_stuck(pump, from, left)
            {
                return Poll::Ready(());
            }
            ready!(self.alarm.as_mut().poll(cx));
            self.pause = (self.pause * 2).min(LONGEST_PAUSE);
            self.alarm.as_mut().reset(Instant::now() + self.pause);
        }
    }

    /// Why the relay ended, if `first` was the first side to end.
    pub(super) fn end(&mut self, from: &Stream, first: Side) -> End {
        let error = self.error.take().or_else(|| from.take_error().err());
        let lost = self.lost || from.unacknowledged() > 0;
        match (self.complete, error) {
            (Some(true), Some(error)) if lost => End::Cut(self.gone, error),
            (Some(true), _) => End::Closed(first),
            (_, error) => {
                let error = error.unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
                End::Broken(self.gone, error)
            }
        }
    }

    /// Moves bytes to the other side; fails if that is gone too.
    fn pass_on(
        &mut self,
        pump: &mut Pump,
        from: &Stream,
        to: &Stream,
        shared: &mut Shared,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        match pump.run(from, to, shared, cx) {
            Ok(Turn::Blocked) => {}
            Ok(Turn::Over) => cx.waker().wake_by_ref(),
            Ok(Turn::Done) => {
                self.passed_on = true;
                // A socket that has told its error shows an end after it, come or not.
                if *self.complete.get_or_insert(self.error.is_none()) {
                    pump.pass_on_end(to)?;
                }
            }
            // The connection was broken by an error that did not end it.
            Ok(Turn::Waiting) => (self.passed_on, self.complete) = (true, Some(false)),
            Err(Broken::Source(error)) => {
                (self.passed_on, self.complete) = (true, Some(false));
                self.error.get_or_insert(error);
            }
            Err(Broken::Sink(error)) => return Err(error),
        }
        Ok(())
    }

    /// Reads what nobody can get any more; fails if that side is gone too.
    fn discard(
        &mut self,
        to: &Stream,
        shared: &mut Shared,
        cx: &mut Context<'_>,
    ) -> io::Result<()> {
        let mut turn = TURN;
        while !self.both_ended {
            match to.recv(&mut shared.buffer) {
                Ok(0) => self.both_ended = true,
                Ok(n) => {
                    self.lost = true;
                    turn = turn.saturating_sub(n);
                    if turn == 0 {
                        cx.waker().wake_by_ref();
                        break;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if to.poll_readable(cx)?.is_pending() {
                        break;
                    }
                }
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// Whether the other side takes nothing of what was cut off anyway.
    fn is_stuck(&mut self, pump: &Pump, from: &Stream, left: usize) -> bool {
        let progress = (pump.moved, left);
        if progress != self.progress {
            (self.progress, self.since, self.pause) = (progress, Instant::now(), PAUSE);
        }
        if self.since.elapsed() < PATIENCE {
            return false;
        }
        if self.complete.is_none()
            && let Err(error) = from.take_error()
        {
            self.learn(error);
        }
        self.complete == Some(false)
    }

    /// Learns from the error of a socket whether an end had come: the kernel tells EPIPE if so, as
    /// long as we have not ended it ourselves (tcp_reset in net/ipv4/tcp_input.c).
    fn learn(&mut self, error: io::Error) {
        let learnt = match error.raw_os_error() {
            Some(libc::EPIPE) => Some(true),
            Some(libc::ECONNRESET) if !self.heard_all => Some(false),
            _ => None,
        };
        self.complete = self.complete.or(learnt);
        self.error.get_or_insert(error);
    }
}
