//! Asks the proxy each second, and whatever the user wants, so that the screen never waits for it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use crate::control::client::{Conversation, no_proxy};
use crate::control::protocol::{BusyClient, End, Line, Request, Sort, Status};

/// Between two looks.
const PERIOD: Duration = Duration::from_secs(1);

/// Clients that are shown at the most.
const MOST: usize = 100;

/// What the user wants of the proxy.
pub enum Order {
    /// Other clients, or in another order.
    Look(View),
    /// Something done.
    Do(Request),
}

/// Which clients are shown.
#[derive(Clone, Default)]
pub struct View {
    /// By what the busiest are found.
    pub sort: Sort,
    /// A part of an address or of a listener's name; all without.
    pub filter: String,
}

/// What came of it.
pub enum News {
    /// How the proxy is.
    Snapshot(Box<Snapshot>),
    /// What was to be done is done, or why not.
    Done(Result<String, String>),
    /// There is no proxy for now.
    Gone(String),
}

/// The proxy at a moment.
pub struct Snapshot {
    /// When.
    pub at: Instant,
    /// What it says of itself.
    pub status: Status,
    /// Its busiest clients.
    pub clients: Vec<BusyClient>,
    /// How many clients there are in all.
    pub all: usize,
}

/// The thread that asks.
pub struct Feed {
    orders: Sender<Order>,
    news: Receiver<News>,
}

impl Feed {
    /// Asks at that socket from now on.
    pub fn start(path: PathBuf) -> Feed {
        let (orders, ordered) = mpsc::channel();
        let (telling, news) = mpsc::channel();
        thread::spawn(move || ask_for_ever(&path, &ordered, &telling));
        Feed { orders, news }
    }

    /// Has something asked, soon.
    pub fn order(&self, order: Order) {
        // It fails when the thread is gone, which then is seen on the screen.
        let _ = self.orders.send(order);
    }

    /// What was heard since the last time.
    pub fn news(&self) -> Option<News> {
        self.news.try_recv().ok()
    }
}

fn ask_for_ever(path: &Path, orders: &Receiver<Order>, news: &Sender<News>) {
    let mut view = View::default();
    loop {
        let Err(error) = ask_while_it_answers(path, &mut view, orders, news) else {
            return;
        };
        if news
            .send(News::Gone(no_proxy(path, &error).to_string()))
            .is_err()
        {
            return;
        }
        let retry = Instant::now() + PERIOD;
        while let Ok(order) = orders.recv_timeout(retry.saturating_duration_since(Instant::now())) {
            match order {
                Order::Look(wanted) => view = wanted,
                Order::Do(_) => {
                    let _ = news.send(News::Done(Err("no proxy answers".into())));
                }
            }
        }
    }
}

/// Ends well when nobody wants to know any more.
fn ask_while_it_answers(
    path: &Path,
    view: &mut View,
    orders: &Receiver<Order>,
    news: &Sender<News>,
) -> io::Result<()> {
    let mut proxy = Conversation::begin(path)?;
    loop {
        let snapshot = look(&mut proxy, view)?;
        if news.send(News::Snapshot(Box::new(snapshot))).is_err() {
            return Ok(());
        }
        match orders.recv_timeout(PERIOD) {
            Ok(Order::Look(wanted)) => *view = wanted,
            Ok(Order::Do(request)) => {
                let (_, end) = proxy.ask(&request)?;
                if news.send(News::Done(outcome(end))).is_err() {
                    return Ok(());
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

fn outcome(end: End) -> Result<String, String> {
    if let Some(error) = end.error {
        return Err(error);
    }
    let done = format!("done: sessions ended: {}", end.killed.unwrap_or_default());
    Ok(match end.warning {
        Some(warning) => format!("{done}; {warning}"),
        None => done,
    })
}

fn look(proxy: &mut Conversation, view: &View) -> io::Result<Snapshot> {
    let at = Instant::now();
    let status = answered(proxy.ask(&Request::Status {})?.1)?.status;
    let (lines, end) = proxy.ask(&Request::Clients {
        sort: view.sort,
        filter: view.filter.clone(),
        most: MOST,
    })?;
    let clients = lines.into_iter().filter_map(|line| match line {
        Line::Client { client } => Some(client),
        _ => None,
    });
    Ok(Snapshot {
        at,
        status: *status.ok_or(io::ErrorKind::InvalidData)?,
        clients: clients.collect(),
        all: answered(end)?.count.unwrap_or_default(),
    })
}

/// Such as "too many clients".
fn answered(end: End) -> io::Result<End> {
    match end.error {
        Some(error) => Err(io::Error::other(error)),
        None => Ok(end),
    }
}
