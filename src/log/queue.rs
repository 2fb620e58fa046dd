//! Lines on their way out: whoever logs adds a line to the queue and goes on; a thread of the
//! queue's own writes them, and alone waits for a reader that stalls.
//!
//! `tracing-appender` would do the same, but at exit it prints to standard output itself when its
//! reader stalls, and so stalls too.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing_subscriber::fmt::MakeWriter;

use crate::sys::capabilities::{SYS_ADMIN, give_up};

/// Bytes that may wait, some ten thousand lines. Lines beyond are lost, and counted.
const MOST: usize = 4 << 20;

/// A buffer that a burst made larger than this is not kept.
const USUAL: usize = 64 << 10;

/// A queue and the thread that empties it.
#[derive(Clone)]
pub struct Queue(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    /// Lines that found no room behind those that wait.
    lost: u64,
    writing: bool,
}

impl Queue {
    /// Starts the thread that writes to `out`. `gap` words the line that stands for lost ones.
    pub fn start(out: File, gap: impl Fn(u64) -> String + Send + 'static) -> io::Result<Queue> {
        let queue = Queue(Arc::default());
        let shared = Arc::clone(&queue.0);
        thread::Builder::new().name("log".into()).spawn(move || {
            // It was started before the process gave it up.
            let _ = give_up(&[SYS_ADMIN]);
            write_for_ever(&shared, out, gap);
        })?;
        Ok(queue)
    }

    /// Adds a whole line, if there is room.
    pub fn push(&self, line: &[u8]) {
        let mut state = self.0.lock();
        if state.waiting.len() + line.len() > MOST {
            state.lost += 1;
            return;
        }
        state.waiting.extend_from_slice(line);
        drop(state);
        self.0.changed.notify_all();
    }

    /// Waits until everything is written, but not longer than `patience`.
    pub fn flush(&self, patience: Duration) {
        let state = self.0.lock();
        let unwritten = |state: &mut State| state.writing || !state.waiting.is_empty();
        drop(
            self.0
                .changed
                .wait_timeout_while(state, patience, unwritten),
        );
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for lines and moves them to `batch`; tells how many were lost behind them.
    fn next(&self, batch: &mut Vec<u8>) -> u64 {
        let mut state = self.lock();
        state.writing = false;
        self.changed.notify_all();
        let empty = |state: &mut State| state.waiting.is_empty();
        state = self
            .changed
            .wait_while(state, empty)
            .unwrap_or_else(PoisonError::into_inner);
        state.writing = true;
        batch.clear();
        if batch.capacity() > USUAL {
            *batch = Vec::new();
        }
        std::mem::swap(batch, &mut state.waiting);
        std::mem::take(&mut state.lost)
    }
}

/// A reader that is gone, or a full disk, costs the lines of its time; a named pipe may get another
/// reader, and a disk room.
fn write_for_ever(shared: &Shared, mut out: File, gap: impl Fn(u64) -> String) {
    let (mut batch, mut lost, mut torn) = (Vec::new(), 0, false);
    loop {
        lost += shared.next(&mut batch);
        if lost > 0 {
            batch.extend(gap(lost).into_bytes());
        }
        if torn {
            batch.insert(0, b'\n');
        }
        let written = write(&mut out, &batch);
        let missing = &batch[written..];
        if missing.is_empty() {
            (lost, torn) = (0, false);
            continue;
        }
        let lines = missing.iter().filter(|byte| **byte == b'\n').count() as u64;
        // The last line told of those that were lost already.
        lost += lines - u64::from(lost > 0);
        torn = written > 0 && batch[written - 1] != b'\n' || written == 0 && torn;
    }
}

/// How much of it could be written.
fn write(out: &mut File, bytes: &[u8]) -> usize {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // Another program that has the same pipe or terminal may have made it non-blocking.
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(_) => break,
        }
    }
    written
}

impl<'a> MakeWriter<'a> for Queue {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self)
    }
}

/// Takes each line in one piece.
pub struct Line<'a>(&'a Queue);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
