//! One process takes over from another, without a connection refused or a datagram lost: `realpeer
//! ctl upgrade` and SIGUSR2.
//!
//! The old process has its [`starter`](crate::starter) execute the program anew (`upgrade`), and
//! passes on what it has over a Unix socket (`channel`, `message`): the listening sockets with their
//! queues, the control socket, the lock of its routing table, the bans, and the UDP flows with their
//! upstream sockets, so that backends see no change. The new one (`heir`) makes everything ready that
//! can fail, and then takes the place of the old one in one step, before which the old one can always
//! go on. TCP sessions stay where they are: the old process carries them to their end, and the new
//! one asks it about them for `realpeer ctl` (`elders`).

pub mod channel;
pub mod elders;
pub mod heir;
pub mod message;
pub mod succession;
pub mod upgrade;
