//! Which sockets have something to read: an epoll of the listener's own, which the runtime watches
//! as one descriptor. A flow then costs its socket and one epoll_ctl(2), and no task or timer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Sockets, each with a number.
pub struct Poller {
    epoll: Epoll,
    /// A duplicate of `epoll`.
    watched: AsyncFd<OwnedFd>,
}

impl Poller {
    /// Watches nothing yet.
    pub fn new() -> io::Result<Poller> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let watched = sys::socket::register(epoll.0.try_clone()?)?;
        Ok(Poller { epoll, watched })
    }

    /// Watches a socket until it is closed.
    pub fn add(&self, socket: impl AsFd, number: u64) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN, number);
        Ok(self.epoll.add(socket, event)?)
    }

    /// Waits until sockets have something to read, or an error to tell, and returns how many of
    /// `events` say which. What is not read is told again.
    pub async fn ready(&self, events: &mut [EpollEvent]) -> io::Result<usize> {
        loop {
            let mut guard = self.watched.readable().await?;
            match self.epoll.wait(events, EpollTimeout::ZERO) {
                Ok(0) => guard.clear_ready(),
                Ok(count) => return Ok(count),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
