//! Which clients are the busiest: put together in the proxy, so that a screen that asks each second
//! gets a few lines, however many connections there are.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::yield_now;

use super::protocol::{BusyClient, End, Line, Sort};
use crate::proxy::Proxy;
use crate::sessions::Session;

/// Clients in an answer.
const MOST: usize = 1000;

/// What is new.
const NEW: Duration = Duration::from_secs(10);

/// What a client has open.
struct Busy {
    open: usize,
    new: usize,
    oldest: Instant,
    listeners: Vec<Arc<str>>,
}

/// The `most` busiest clients, and how many there are that the filter lets through.
pub async fn busiest(proxy: &Proxy, sort: Sort, filter: &str, most: usize) -> Vec<Line> {
    let now = Instant::now();
    let mut clients = HashMap::new();
    for worker in &proxy.workers {
        worker
            .sessions
            .each(|session| add(&mut clients, session, now));
        // Others have their turn in between.
        yield_now().await;
    }
    let wanted = |address: &IpAddr, busy: &Busy| {
        let mut names = busy.listeners.iter();
        filter.is_empty()
            || address.to_string().contains(filter)
            || names.any(|name| name.contains(filter))
    };
    clients.retain(|address, busy| wanted(address, busy));
    let all = clients.len();
    let mut clients: Vec<(IpAddr, Busy)> = clients.into_iter().collect();
    // By the address in the end, so that equal ones keep their places.
    clients.sort_unstable_by_key(|(address, busy)| {
        let first = match sort {
            Sort::Open => Some(Reverse(busy.open)),
            Sort::New => Some(Reverse(busy.new)),
            Sort::Age => None,
        };
        let age = (sort == Sort::Age).then_some(busy.oldest);
        (first, age, *address)
    });
    clients.truncate(most.min(MOST));
    let lines = clients.into_iter().map(|(address, busy)| Line::Client {
        client: BusyClient {
            address,
            open: busy.open,
            new: busy.new,
            oldest: now.saturating_duration_since(busy.oldest).as_secs(),
            listeners: busy.listeners.iter().map(|name| (**name).into()).collect(),
        },
    });
    let end = Line::End(End {
        count: Some(all),
        ..End::ok()
    });
    lines.chain([end]).collect()
}

fn add(clients: &mut HashMap<IpAddr, Busy>, session: &Session, now: Instant) {
    let Some(route) = session.route else {
        return;
    };
    let busy = clients.entry(route.client.ip()).or_insert_with(|| Busy {
        open: 0,
        new: 0,
        oldest: session.began,
        listeners: Vec::new(),
    });
    busy.open += 1;
    busy.new += usize::from(now.saturating_duration_since(session.began) < NEW);
    busy.oldest = busy.oldest.min(session.began);
    if let Some(name) = &session.listener
        && !busy.listeners.contains(name)
    {
        busy.listeners.push(Arc::clone(name));
    }
}
