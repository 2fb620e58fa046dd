//! Lines on their way out: whoever logs adds a line to the queue and goes on; a thread of the
//! queue's own sends them, and alone waits for a reader that stalls.
//!
//! `tracing-appender` would do the same, but at exit it prints to standard output itself when its
//! reader stalls, and so stalls too.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

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
    /// Starts the thread that has `send` send lines. First it does `begin`, which is done when this
    /// returns. `gap` makes the line that stands for lost ones.
    pub fn start(
        begin: impl FnOnce() + Send + 'static,
        mut send: impl FnMut(&[u8]) -> u64 + Send + 'static,
        gap: impl Fn(u64) -> Vec<u8> + Send + 'static,
    ) -> io::Result<Queue> {
        let queue = Queue(Arc::default());
        let shared = Arc::clone(&queue.0);
        let (begun, wait) = mpsc::channel();
        thread::Builder::new().name("log".into()).spawn(move || {
            begin();
            let _ = begun.send(());
            send_for_ever(&shared, &mut send, gap)
        })?;
        // It can fail only if `begin` panics, and then there is no log.
        wait.recv().map_err(io::Error::other)?;
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
/// reader, and a disk room. `send` tells how many lines could not be sent.
fn send_for_ever(
    shared: &Shared,
    send: &mut impl FnMut(&[u8]) -> u64,
    gap: impl Fn(u64) -> Vec<u8>,
) {
    let (mut batch, mut lost) = (Vec::new(), 0);
    loop {
        lost += shared.next(&mut batch);
        if lost > 0 {
            batch.extend(gap(lost));
        }
        let unsent = send(&batch);
        // The last line told of those that were lost already.
        lost = match unsent {
            0 => 0,
            unsent => lost + unsent - u64::from(lost > 0),
        };
    }
}

/// A stream of lines.
pub struct Stream {
    out: File,
    /// The last line is there in part.
    torn: bool,
}

impl Stream {
    /// To this file.
    pub fn new(out: File) -> Stream {
        Stream { out, torn: false }
    }

    /// Writes lines, and tells how many could not be written.
    pub fn send(&mut self, lines: &[u8]) -> u64 {
        if self.torn && write(&mut self.out, b"\n") == 0 {
            return count(lines);
        }
        let written = write(&mut self.out, lines);
        self.torn = written > 0 && lines[written - 1] != b'\n';
        count(&lines[written..])
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
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
