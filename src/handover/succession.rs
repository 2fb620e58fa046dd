//! Where commands stand while the process may be succeeded: they wait while everything is passed on,
//! and go to the new process once that serves.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{Notify, RwLock, mpsc, oneshot};

use crate::control::{Bound, End, Line, Request};

/// Who asks for a new process hears its number, or what went wrong.
pub type Order = oneshot::Sender<Result<u32, String>>;

/// Whether and how this process is succeeded.
#[derive(Debug)]
pub struct Succession {
    /// Held for reading by who changes something, and for writing while everything is passed on.
    pub gate: RwLock<()>,
    /// The control socket, for as long as it is ours.
    control: Mutex<Option<Bound>>,
    /// Where the new process answers.
    over: OnceLock<Option<PathBuf>>,
    /// Told when `over` is set.
    pub end: Notify,
    orders: mpsc::Sender<Order>,
    under_way: tokio::sync::Mutex<()>,
}

impl Succession {
    /// Nobody succeeds it yet. The receiver hears who wants that.
    pub fn new() -> (Succession, mpsc::Receiver<Order>) {
        let (orders, receiver) = mpsc::channel(1);
        let succession = Succession {
            gate: RwLock::default(),
            control: Mutex::default(),
            over: OnceLock::new(),
            end: Notify::new(),
            orders,
            under_way: tokio::sync::Mutex::default(),
        };
        (succession, receiver)
    }

    /// Has a new process take over, and tells its number.
    pub async fn order(&self) -> Result<u32, String> {
        let Ok(_turn) = self.under_way.try_lock() else {
            return Err("an upgrade is under way".into());
        };
        // Its end would be that of its PID namespace.
        if std::process::id() == 1 {
            return Err("realpeer is process 1 here: restart its container instead".into());
        }
        let (order, answer) = oneshot::channel();
        let stops = |_| "realpeer stops".to_owned();
        self.orders.send(order).await.map_err(|_| stops(()))?;
        answer.await.map_err(|_| stops(()))?
    }

    /// Notes that the control socket is ours.
    pub fn have_control(&self, bound: Bound) {
        *self.control() = Some(bound);
    }

    /// What `action` makes of our control socket, if there is one.
    pub fn with_control<T>(&self, action: impl FnOnce(&Bound) -> T) -> Option<T> {
        self.control().as_ref().map(action)
    }

    /// The new process serves; the control socket is its own now if it took it.
    pub fn is_over_now(&self, control: bool) {
        let bound = self.control().take();
        let path = bound.map(|bound| {
            let path = bound.path.clone();
            if control {
                bound.keep();
            }
            path
        });
        let _ = self.over.set(path);
        self.end.notify_waiters();
    }

    /// Closes the control socket, if it is ours.
    pub fn close_control(&self) {
        drop(self.control().take());
    }

    /// Whether another process serves.
    pub fn is_over(&self) -> bool {
        self.over.get().is_some()
    }

    /// Lets the process that serves answer.
    pub async fn relay(&self, request: &Request) -> Vec<Line> {
        let path = self.over.get().and_then(Option::as_deref);
        let answer = match path {
            Some(path) => ask(path, request).await,
            None => Err(io::ErrorKind::NotConnected.into()),
        };
        answer.unwrap_or_else(|error| {
            let error = format!("another process serves now, and cannot be asked: {error}");
            vec![Line::End(End::error(error))]
        })
    }

    fn control(&self) -> std::sync::MutexGuard<'_, Option<Bound>> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(path: &Path, request: &Request) -> io::Result<Vec<Line>> {
    let mut stream = UnixStream::connect(path).await?;
    let mut text = serde_json::to_vec(request)?;
    text.push(b'\n');
    stream.write_all(&text).await?;
    let mut input = BufReader::new(stream).lines();
    let mut answer = Vec::new();
    while let Some(line) = input.next_line().await? {
        let line = serde_json::from_str(&line)?;
        let is_last = matches!(line, Line::End(_));
        answer.push(line);
        if is_last {
            return Ok(answer);
        }
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}
