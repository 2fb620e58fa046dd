//! Bytes both ways between a client and its backend until both have ended, or one is gone.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use super::idle::{Activity, Idle};
use super::pump::{Broken, Pump, SHARED, Shared, Turn};
use super::stream::Stream;
use super::tail::Tail;

/// One of the two sides of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The client, by way of its load balancer.
    Client,
    /// The backend.
    Backend,
}

/// Why a relay ended.
#[derive(Debug)]
pub enum End {
    /// Both sides ended in order; this one first.
    Closed(Side),
    /// This side ended in order and broke later, so that bytes for it were lost. The other one got
    /// all that it had sent.
    Cut(Side, io::Error),
    /// This side broke before its end, and the other is to be reset.
    Broken(Side, io::Error),
    /// Nothing moved for the idle time-out. Not all is `delivered` if a side would not take it:
    /// both are to be reset then, as an orderly end would pass for the end of the stream.
    Idle {
        /// All that has come from either side has reached the other.
        delivered: bool,
    },
}

impl End {
    /// Whether both sides are closed in order. What is not is reset.
    pub fn is_orderly(&self) -> bool {
        !matches!(self, End::Broken(..) | End::Idle { delivered: false })
    }
}

/// A side whose connection is over, both ways.
struct Gone {
    side: Side,
    /// What a call has told of it; `None` if the socket still holds the error.
    error: Option<io::Error>,
}

impl Gone {
    fn new(side: Side, error: io::Error) -> Gone {
        Gone {
            side,
            error: Some(error),
        }
    }
}

/// A relay in progress. Its output is why it ended; `moved` then holds the final figures.
#[derive(Debug)]
pub struct Relay<'a> {
    client: &'a Stream,
    backend: &'a Stream,
    up: Pump,
    down: Pump,
    first_end: Option<Side>,
    /// The rest, once a side is gone.
    tail: Option<Box<Tail>>,
    /// Ends it when nothing moves, if that was asked for.
    idle: Option<Box<Idle>>,
}

impl<'a> Relay<'a> {
    /// Both sides are connected. What the client sent before goes first: `sent` bytes have reached
    /// the backend already, `unsent` have not, and `more` tells that others may wait to be read.
    /// `gone` is the error of a backend that has broken the connection already.
    pub fn new(
        client: &'a Stream,
        backend: &'a Stream,
        sent: usize,
        unsent: Vec<u8>,
        more: bool,
        gone: Option<io::Error>,
    ) -> Relay<'a> {
        let mut relay = Relay {
            client,
            backend,
            up: Pump::begun(sent, unsent, more),
            down: Pump::default(),
            first_end: None,
            tail: None,
            idle: None,
        };
        if let Some(error) = gone {
            relay.lose(Gone::new(Side::Backend, error));
        }
        relay
    }

    /// Lets it end once nothing has moved for this time, or up to an eighth longer.
    pub fn with_idle_timeout(mut self, after: Option<Duration>) -> Self {
        self.idle = after.map(|after| Box::new(Idle::new(after)));
        self
    }

    /// Bytes moved so far, from the client and from the backend.
    pub fn moved(&self) -> (u64, u64) {
        (self.up.moved, self.down.moved)
    }

    /// From here on only what the side that is gone has sent goes on to the other.
    fn lose(&mut self, gone: Gone) {
        let (from, to) = match gone.side {
            Side::Client => (&mut self.up, &self.down),
            Side::Backend => (&mut self.down, &self.up),
        };
        self.tail = Some(Box::new(Tail::new(gone.side, gone.error, from, to)));
    }
}

impl Future for Relay<'_> {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let carried = SHARED.with_borrow_mut(|shared| {
            if self.tail.is_none() {
                match self.turns(shared, cx) {
                    Ok((Turn::Done, Turn::Done)) => {
                        let first = self.first_end.unwrap_or(Side::Client);
                        return Poll::Ready(End::Closed(first));
                    }
                    Ok((Turn::Over, _) | (_, Turn::Over)) => cx.waker().wake_by_ref(),
                    Ok(_) => {}
                    Err(gone) => self.lose(gone),
                }
            }
            self.last_turn(shared, cx)
        });
        if carried.is_ready() {
            return carried;
        }
        self.poll_idle(cx)
    }
}

impl Relay<'_> {
    /// A turn for each direction that has not ended.
    fn turns(&mut self, shared: &mut Shared, cx: &mut Context<'_>) -> Result<(Turn, Turn), Gone> {
        let (client, backend) = (self.client, self.backend);
        let (near, far) = (Side::Client, Side::Backend);
        let up = self.up.run(client, backend, shared, cx);
        let up = up.map_err(|broken| broken.by(near, far))?;
        if self.up.ended {
            self.first_end.get_or_insert(near);
        }
        let down = self.down.run(backend, client, shared, cx);
        let down = down.map_err(|broken| broken.by(far, near))?;
        if self.down.ended {
            self.first_end.get_or_insert(far);
        }
        // Once both are over, close(2) says the rest.
        if (up, down) != (Turn::Done, Turn::Done) {
            pass_on_end(&mut self.up, up, (near, client), (far, backend), cx)?;
            pass_on_end(&mut self.down, down, (far, backend), (near, client), cx)?;
        }
        Ok((up, down))
    }

    /// What is left to do once a side is gone, if one is.
    fn last_turn(&mut self, shared: &mut Shared, cx: &mut Context<'_>) -> Poll<End> {
        let Some(tail) = &mut self.tail else {
            return Poll::Pending;
        };
        let (from, to, pump) = match tail.gone {
            Side::Client => (self.client, self.backend, &mut self.up),
            Side::Backend => (self.backend, self.client, &mut self.down),
        };
        ready!(tail.poll(pump, from, to, shared, cx));
        let first = self.first_end.unwrap_or(tail.gone);
        Poll::Ready(tail.end(from, first))
    }

    /// Ready once nothing has moved for the idle time-out.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let Some(idle) = &mut self.idle else {
            return Poll::Pending;
        };
        let unacknowledged = || [&self.client, &self.backend].map(|side| side.unacknowledged());
        let activity = || Activity {
            moved: [self.up.moved, self.down.moved],
            ended: [self.up.ended, self.down.ended],
            unacknowledged: unacknowledged(),
        };
        ready!(idle.poll(activity, cx));
        let held = self.up.holds_bytes() || self.down.holds_bytes() || self.tail.is_some();
        Poll::Ready(End::Idle {
            delivered: !held && unacknowledged() == [0, 0],
        })
    }
}

/// Passes on the end of a direction that is done, and looks whether its source is gone where it is
/// not read: nobody else would notice.
fn pass_on_end(
    pump: &mut Pump,
    turn: Turn,
    (side, source): (Side, &Stream),
    (other, sink): (Side, &Stream),
    cx: &mut Context<'_>,
) -> Result<(), Gone> {
    match turn {
        Turn::Waiting | Turn::Over => return Ok(()),
        Turn::Blocked => {}
        // It fails where the connection is over, and leaves the error to others.
        Turn::Done => pump.pass_on_end(sink).map_err(|_| Gone {
            side: other,
            error: None,
        })?,
    }
    if source.is_gone(cx).map_err(|e| Gone::new(side, e))? {
        return Err(Gone { side, error: None });
    }
    Ok(())
}

impl Broken {
    fn by(self, source: Side, sink: Side) -> Gone {
        match self {
            Broken::Source(error) => Gone::new(source, error),
            Broken::Sink(error) => Gone::new(sink, error),
        }
    }
}
