//! Bytes both ways between a client and its backend until both have ended.
//!
//! Small messages go through one buffer that the worker's connections share; bulk goes by
//! splice(2) through a leased pipe. A connection that waits holds neither.

use std::cell::RefCell;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use super::pipes::{Pipe, Pipes};
use super::stream::Stream;
use crate::yielding::Yielding;

/// The worker's buffer. Below this size reading and writing cost less than splicing.
const BUFFER: usize = 64 << 10;

/// Reads in a row that fill the buffer before splicing begins.
const FULL_READS: u8 = 2;

/// A splice of fewer bytes is small, and so many in a row end the splicing.
const SMALL_SPLICE: usize = 16 << 10;
const SMALL_SPLICES: u8 = 4;

/// Bytes one direction may move before other connections get their turn: half a millisecond.
const TURN: usize = 4 << 20;

/// Bytes of a turn that go by while the worker leaves its core for a microsecond.
const AWAY: usize = 8 << 10;

/// What a try costs of the turn at least.
const TRY: usize = 4 << 10;

struct Shared {
    buffer: Box<[u8]>,
    pipes: Pipes,
    yielding: Yielding,
}

thread_local! {
    static SHARED: RefCell<Shared> = RefCell::new(Shared {
        buffer: vec![0; BUFFER].into_boxed_slice(),
        pipes: Pipes::default(),
        yielding: Yielding::default(),
    });
}

/// Lends the worker's buffer, of 64 KiB, for as long as `job` runs.
pub fn with_buffer<R>(job: impl FnOnce(&mut [u8]) -> R) -> R {
    SHARED.with_borrow_mut(|shared| job(&mut shared.buffer))
}

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
    /// This side broke, and the other was reset.
    Broken(Side, io::Error),
}

/// A relay in progress. Its output is why it ended; `moved` then holds the final figures.
#[derive(Debug)]
pub struct Relay<'a> {
    client: &'a Stream,
    backend: &'a Stream,
    up: Pump,
    down: Pump,
    first_end: Option<Side>,
}

impl<'a> Relay<'a> {
    /// Both sides are connected. What the client sent before goes first: `sent` bytes have reached
    /// the backend already, `unsent` have not, and `more` tells that others may wait to be read.
    pub fn new(
        client: &'a Stream,
        backend: &'a Stream,
        sent: usize,
        unsent: Vec<u8>,
        more: bool,
    ) -> Relay<'a> {
        let up = Pump {
            moved: sent as u64,
            readable: more,
            unsent: (!unsent.is_empty()).then(|| Unsent {
                bytes: unsent.into(),
                sent: 0,
            }),
            ..Pump::default()
        };
        Relay {
            client,
            backend,
            up,
            down: Pump::default(),
            first_end: None,
        }
    }

    /// Bytes moved so far, from the client and from the backend.
    pub fn moved(&self) -> (u64, u64) {
        (self.up.moved, self.down.moved)
    }
}

impl Future for Relay<'_> {
    type Output = End;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<End> {
        let turns = SHARED.with_borrow_mut(|shared| self.turns(shared, cx));
        match turns {
            Ok((Turn::Done, Turn::Done)) => {
                let first = self.first_end.unwrap_or(Side::Client);
                return Poll::Ready(End::Closed(first));
            }
            Ok((Turn::Over, _) | (_, Turn::Over)) => cx.waker().wake_by_ref(),
            Ok(_) => {}
            Err((side, error)) => return Poll::Ready(End::Broken(side, error)),
        }
        Poll::Pending
    }
}

impl Relay<'_> {
    /// A turn for each direction that has not ended.
    fn turns(
        &mut self,
        shared: &mut Shared,
        cx: &mut Context<'_>,
    ) -> Result<(Turn, Turn), (Side, io::Error)> {
        let (client, backend) = (self.client, self.backend);
        let up = self.up.run(client, backend, shared, cx);
        let up = up.map_err(|broken| broken.by(Side::Client, Side::Backend))?;
        if self.up.ended {
            self.first_end.get_or_insert(Side::Client);
        }
        let down = self.down.run(backend, client, shared, cx);
        let down = down.map_err(|broken| broken.by(Side::Backend, Side::Client))?;
        if self.down.ended {
            self.first_end.get_or_insert(Side::Backend);
        }
        // One direction is over, so its source is not read any more: a reset of it must still
        // end the other direction. And once both are over, close(2) says the rest.
        match (up, down) {
            (Turn::Done, Turn::Done) => {}
            (Turn::Done, _) => {
                self.up
                    .pass_on_end(backend)
                    .map_err(|e| (Side::Backend, e))?;
                client.check_reset(cx).map_err(|e| (Side::Client, e))?;
            }
            (_, Turn::Done) => {
                self.down
                    .pass_on_end(client)
                    .map_err(|e| (Side::Client, e))?;
                backend.check_reset(cx).map_err(|e| (Side::Backend, e))?;
            }
            _ => {}
        }
        Ok((up, down))
    }
}

/// How a direction's turn came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    /// All bytes and the end have come, and the bytes were passed on.
    Done,
    /// A side is not ready; the task will be woken.
    Waiting,
    /// The turn is used up, and there is more.
    Over,
}

/// What broke a direction.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl Broken {
    fn by(self, source: Side, sink: Side) -> (Side, io::Error) {
        match self {
            Broken::Source(error) => (source, error),
            Broken::Sink(error) => (sink, error),
        }
    }
}

/// One direction.
#[derive(Debug, Default)]
struct Pump {
    moved: u64,
    /// The source may have bytes of which the reactor will not tell: a read that filled the
    /// buffer left them, or they came before anybody asked.
    readable: bool,
    ended: bool,
    end_passed_on: bool,
    splicing: bool,
    full_reads: u8,
    small_splices: u8,
    /// The last splice took less than half of what the pipe holds: whoever sends cannot keep up,
    /// and may want this core.
    ran_short: bool,
    /// Read, but not taken by the sink yet; never together with bytes in the pipe.
    unsent: Option<Unsent>,
    pipe: Option<Pipe>,
}

#[derive(Debug)]
struct Unsent {
    bytes: Box<[u8]>,
    sent: usize,
}

impl Pump {
    /// Moves bytes until a side is not ready or the turn is over.
    fn run(
        &mut self,
        source: &Stream,
        sink: &Stream,
        shared: &mut Shared,
        cx: &mut Context<'_>,
    ) -> Result<Turn, Broken> {
        let turn = self.moves(source, sink, shared, cx);
        // A pipe that holds bytes stays with its connection; without any it goes to the next one.
        if !matches!(turn, Ok(Turn::Over))
            && let Some(pipe) = self.pipe.take_if(|pipe| pipe.len() == 0 || turn.is_err())
        {
            shared.pipes.give_back(pipe);
        }
        turn
    }

    fn moves(
        &mut self,
        source: &Stream,
        sink: &Stream,
        shared: &mut Shared,
        cx: &mut Context<'_>,
    ) -> Result<Turn, Broken> {
        let mut turn = TURN;
        loop {
            if turn == 0 {
                return Ok(Turn::Over);
            }
            let mut cost = TRY;
            if !self.deliver(sink).map_err(Broken::Sink)? {
                if sink.poll_writable(cx).map_err(Broken::Sink)?.is_pending() {
                    source.check_reset(cx).map_err(Broken::Source)?;
                    return Ok(Turn::Waiting);
                }
            } else if self.ended {
                return Ok(Turn::Done);
            } else if !self.readable {
                if source
                    .poll_readable(cx)
                    .map_err(Broken::Source)?
                    .is_pending()
                {
                    return Ok(Turn::Waiting);
                }
                self.readable = true;
            } else {
                if self.ran_short {
                    let away = shared.yielding.leave_core();
                    turn = turn.saturating_sub(away.as_micros() as usize * AWAY);
                }
                cost = cost.max(self.take(source, sink, shared)?);
            }
            turn = turn.saturating_sub(cost);
        }
    }

    /// Tells the sink, once, that no more comes.
    fn pass_on_end(&mut self, sink: &Stream) -> io::Result<()> {
        if !std::mem::replace(&mut self.end_passed_on, true) {
            sink.shutdown_write()?;
        }
        Ok(())
    }

    /// Passes on what was taken before; true when nothing is left of it.
    fn deliver(&mut self, sink: &Stream) -> io::Result<bool> {
        while let Some(unsent) = &mut self.unsent {
            let Some(n) = unless_blocked(sink.send(&unsent.bytes[unsent.sent..]))? else {
                return Ok(false);
            };
            self.moved += n as u64;
            unsent.sent += n;
            if unsent.sent == unsent.bytes.len() {
                self.unsent = None;
            }
        }
        while let Some(pipe) = self.pipe.as_mut().filter(|pipe| pipe.len() > 0) {
            let Some(n) = unless_blocked(pipe.drain(sink))? else {
                return Ok(false);
            };
            self.moved += n as u64;
        }
        Ok(true)
    }

    /// Takes bytes from the source, and passes them on if they went into the buffer. Returns
    /// how many it took.
    fn take(
        &mut self,
        source: &Stream,
        sink: &Stream,
        shared: &mut Shared,
    ) -> Result<usize, Broken> {
        if self.splicing {
            if self.pipe.is_none() {
                self.pipe = shared.pipes.lease();
            }
            if let Some(pipe) = &mut self.pipe {
                let taken = unless_blocked(pipe.fill(source)).map_err(Broken::Source)?;
                self.small_splices = match taken {
                    Some(n) if n < SMALL_SPLICE => self.small_splices + 1,
                    Some(_) => 0,
                    None => self.small_splices,
                };
                self.splicing = self.small_splices < SMALL_SPLICES;
                self.ran_short = self.splicing && taken.is_some_and(|n| n < pipe.capacity() / 2);
                return Ok(self.note(taken));
            }
            self.splicing = false;
        }
        let buffer = &mut *shared.buffer;
        let taken = unless_blocked(source.recv(buffer)).map_err(Broken::Source)?;
        let n = self.note(taken);
        if n == buffer.len() {
            self.full_reads += 1;
            if self.full_reads >= FULL_READS {
                (self.splicing, self.full_reads, self.small_splices) = (true, 0, 0);
            }
        } else {
            // A short read emptied the socket; what arrives later wakes the task again.
            (self.readable, self.full_reads) = (false, 0);
        }
        self.pass_on(&buffer[..n], sink).map_err(Broken::Sink)?;
        Ok(n)
    }

    fn note(&mut self, taken: Option<usize>) -> usize {
        match taken {
            None => self.readable = false,
            Some(0) => self.ended = true,
            Some(_) => {}
        }
        taken.unwrap_or_default()
    }

    /// Writes what the sink takes at once and keeps the rest.
    fn pass_on(&mut self, bytes: &[u8], sink: &Stream) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        let sent = unless_blocked(sink.send(bytes))?.unwrap_or_default();
        self.moved += sent as u64;
        if sent < bytes.len() {
            self.unsent = Some(Unsent {
                bytes: bytes[sent..].into(),
                sent: 0,
            });
        }
        Ok(())
    }
}

fn unless_blocked(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}
