//! Bytes one way.
//!
//! Small messages go through one buffer that the worker's connections share; bulk goes by
//! splice(2) through a leased pipe. A direction that waits holds neither.

use std::cell::RefCell;
use std::io;
use std::task::Context;

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
pub(super) const TURN: usize = 4 << 20;

/// Bytes of a turn that go by while the worker leaves its core for a microsecond.
const AWAY: usize = 8 << 10;

/// What a try costs of the turn at least.
const TRY: usize = 4 << 10;

/// What the connections of a worker share.
pub(super) struct Shared {
    pub(super) buffer: Box<[u8]>,
    pipes: Pipes,
    yielding: Yielding,
}

thread_local! {
    pub(super) static SHARED: RefCell<Shared> = RefCell::new(Shared {
        buffer: vec![0; BUFFER].into_boxed_slice(),
        pipes: Pipes::default(),
        yielding: Yielding::default(),
    });
}

/// Lends the worker's buffer, of 64 KiB, for as long as `job` runs.
pub fn with_buffer<R>(job: impl FnOnce(&mut [u8]) -> R) -> R {
    SHARED.with_borrow_mut(|shared| job(&mut shared.buffer))
}

/// How a direction's turn came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// All bytes and the end have come, and the bytes were passed on.
    Done,
    /// The source has nothing more for now; the task will be woken.
    Waiting,
    /// The sink takes no more for now; the task will be woken. The source is not read meanwhile.
    Blocked,
    /// The turn is used up, and there is more.
    Over,
}

/// What broke a direction, with the error that the socket told. It tells each one only once.
pub(super) enum Broken {
    /// All that had come from the source was passed on before.
    Source(io::Error),
    /// What the sink had not taken is lost.
    Sink(io::Error),
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Pump {
    /// Bytes that the sink has taken.
    pub(super) moved: u64,
    /// The source may have bytes of which the reactor will not tell: a read that filled the
    /// buffer left them, or they came before anybody asked.
    pub(super) readable: bool,
    /// The source has told its end.
    pub(super) ended: bool,
    /// The sink was told that no more comes.
    pub(super) end_passed_on: bool,
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
    /// Begins with bytes that were read before: `sent` of them have reached the sink, `unsent` have
    /// not; `more` tells that others may wait to be read.
    pub(super) fn begun(sent: usize, unsent: Vec<u8>, more: bool) -> Pump {
        Pump {
            moved: sent as u64,
            readable: more,
            unsent: (!unsent.is_empty()).then(|| Unsent {
                bytes: unsent.into(),
                sent: 0,
            }),
            ..Pump::default()
        }
    }

    /// Whether there are bytes that the source has given and the sink has not taken.
    pub(super) fn holds_bytes(&self) -> bool {
        self.unsent.is_some() || self.pipe.as_ref().is_some_and(|pipe| pipe.len() > 0)
    }

    /// Moves bytes until a side is not ready or the turn is over.
    pub(super) fn run(
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
                    return Ok(Turn::Blocked);
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
    pub(super) fn pass_on_end(&mut self, sink: &Stream) -> io::Result<()> {
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
            // A splice that passed some bytes on before it met an error keeps silent about it, and
            // every later call tells EPIPE: so here that is no news of an end (see `Tail::learn`).
            let drained = pipe.drain(sink).map_err(|e| match e.raw_os_error() {
                Some(libc::EPIPE) => io::ErrorKind::BrokenPipe.into(),
                _ => e,
            });
            let Some(n) = unless_blocked(drained)? else {
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
                // splice(2) does not pass an urgent mark, and calls it an end if one has come
                // somewhere behind it: recv(2) tells.
                if taken == Some(0) || taken.is_none() && source.has_urgent() {
                    self.splicing = false;
                    return Ok(0);
                }
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
            // A short read emptied the socket, unless it stopped at an urgent mark; what arrives
            // later wakes the task again.
            (self.readable, self.full_reads) = (taken.is_some() && source.has_urgent(), 0);
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
