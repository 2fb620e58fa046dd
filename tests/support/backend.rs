//! A backend that the test plays itself: it accepts, and the test says what happens then.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use nix::poll::PollFlags;

use super::{DEADLINE, Host, addr, streams, wait_until};

/// A listening socket on a host.
pub struct Backend(TcpListener);

impl Backend {
    /// Listens on a host.
    pub fn listen(host: &Host, address: &str) -> Backend {
        let listener = host.enter(|| TcpListener::bind(addr(address)));
        let listener = listener.unwrap_or_else(|e| panic!("cannot listen on {address}: {e}"));
        listener
            .set_nonblocking(true)
            .expect("make a listener non-blocking");
        Backend(listener)
    }

    /// The next connection and the address that it comes from.
    #[track_caller]
    pub fn accept(&self) -> (TcpStream, SocketAddr) {
        streams::is_ready(&self.0, PollFlags::POLLIN, DEADLINE);
        let (stream, from) = self.0.accept().expect("nothing connected to the backend");
        stream
            .set_nonblocking(false)
            .expect("make a stream blocking");
        (streams::with_deadline(stream), from)
    }

    /// A connection that has come already.
    pub fn try_accept(&self) -> Option<TcpStream> {
        self.0.accept().ok().map(|(stream, _)| stream)
    }

    /// The next connection, or none once `given_up` holds.
    #[track_caller]
    pub fn accept_unless(&self, given_up: impl Fn() -> bool) -> Option<(TcpStream, SocketAddr)> {
        wait_until("somebody reaches the backend or gives up", || {
            self.has_somebody() || given_up()
        });
        self.has_somebody().then(|| self.accept())
    }

    fn has_somebody(&self) -> bool {
        streams::is_ready(&self.0, PollFlags::POLLIN, Duration::ZERO)
    }

    /// Checks that nobody has connected. It proves something only after a condition that would
    /// have come later than the connection.
    #[track_caller]
    pub fn assert_idle(&self) {
        if let Ok((_, from)) = self.0.accept() {
            panic!("the backend was reached by {from}");
        }
    }
}
