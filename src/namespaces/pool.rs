//! Sockets made ahead of need, inside a namespace, for workers that are outside.

use std::io;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::Notify;

/// Sockets of each kind that wait to be taken, at most.
const STOCK: usize = 32;
/// When so few are left, new ones are made.
const LOW: usize = STOCK / 2;
/// Made at once: whoever waits gets one of the first.
const BATCH: usize = 8;
/// No socket takes that long, unless the thread that makes them hangs.
const PATIENCE: Duration = Duration::from_secs(1);

/// Descriptors that a namespace needs besides those of connections: of the four kinds two are used
/// mostly; then the runtime, netlink, the lock of the routing.
pub const DESCRIPTORS: usize = 2 * STOCK + 16;

/// TCP and UDP, IPv4 and IPv6: all kinds of upstream sockets.
const KINDS: usize = 4;

/// The sockets that wait.
#[derive(Debug, Default)]
pub struct Pool {
    shelves: [Shelf; KINDS],
    /// One of the shelves needs filling.
    low: Notify,
}

#[derive(Debug, Default)]
struct Shelf {
    stock: Mutex<Stock>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct Stock {
    sockets: Vec<Socket>,
    wanted: bool,
    /// The errno of the last try, if it made none.
    failed: Option<i32>,
}

impl Shelf {
    fn lock(&self) -> MutexGuard<'_, Stock> {
        self.stock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A non-blocking socket of the namespace. It is there mostly; only a burst of connections waits
    /// for the thread inside. Fails as socket(2) does there.
    pub fn take(&self, domain: Domain, transport: Type) -> io::Result<Socket> {
        let shelf = &self.shelves[number(domain, transport)];
        let mut stock = shelf.lock();
        if stock.sockets.is_empty() {
            (stock.wanted, stock.failed) = (true, None);
            self.low.notify_one();
            let unfilled = |stock: &mut Stock| stock.sockets.is_empty() && stock.failed.is_none();
            let waited = shelf.filled.wait_timeout_while(stock, PATIENCE, unfilled);
            stock = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        let Some(socket) = stock.sockets.pop() else {
            return Err(match stock.failed {
                Some(errno) => io::Error::from_raw_os_error(errno),
                None => io::ErrorKind::TimedOut.into(),
            });
        };
        if stock.sockets.len() == LOW {
            stock.wanted = true;
            self.low.notify_one();
        }
        Ok(socket)
    }

    /// Has sockets of this kind made before the first is asked for.
    pub fn prepare(&self, domain: Domain, transport: Type) {
        self.shelves[number(domain, transport)].lock().wanted = true;
        self.low.notify_one();
    }

    /// Makes sockets whenever some are wanted. To be run by the thread inside, for ever.
    pub async fn fill(&self) {
        loop {
            self.low.notified().await;
            for (number, shelf) in self.shelves.iter().enumerate() {
                if std::mem::take(&mut shelf.lock().wanted) {
                    fill(shelf, number);
                }
            }
        }
    }
}

fn fill(shelf: &Shelf, number: usize) {
    while shelf.lock().sockets.len() < STOCK {
        let made: io::Result<Vec<Socket>> = (0..BATCH).map(|_| make(number)).collect();
        let mut stock = shelf.lock();
        match made {
            Ok(made) => stock.sockets.extend(made),
            Err(error) => {
                stock.failed = Some(error.raw_os_error().unwrap_or(libc::EIO));
                shelf.filled.notify_all();
                return;
            }
        }
        shelf.filled.notify_all();
    }
}

fn number(domain: Domain, transport: Type) -> usize {
    usize::from(domain == Domain::IPV6) * 2 + usize::from(transport == Type::DGRAM)
}

fn make(number: usize) -> io::Result<Socket> {
    let domain = [Domain::IPV4, Domain::IPV6][number / 2];
    let (transport, protocol) =
        [(Type::STREAM, Protocol::TCP), (Type::DGRAM, Protocol::UDP)][number % 2];
    Socket::new(domain, transport.nonblocking(), Some(protocol))
}
