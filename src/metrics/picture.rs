//! The process at a moment, as the status page and programs see it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use nix::sys::resource::{Resource, getrlimit};
use serde::Serialize;

use super::rates::{Rate, Rates};
use super::readiness;
use crate::bans::{self, Ban, Bans};
use crate::control::{Office, Status};
use crate::doctor;
use crate::proxy::Proxy;
use crate::service::Service;

/// Clients and bans that are listed; programs that want all of them use the control socket.
const LISTED: usize = 20;

/// What is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Picture {
    /// As `realpeer ctl status` has it.
    #[serde(flatten)]
    pub status: Status,
    /// Why clients may not be served; nothing if all is well.
    pub not_ready: Vec<String>,
    /// What the doctor would say by what is known already.
    pub advice: Vec<String>,
    /// By the listeners' names, or their addresses where they have none.
    pub rates: BTreeMap<String, Rate>,
    /// Those with the most open sessions.
    pub clients: Vec<Client>,
    /// The newest.
    pub newest_bans: Vec<Ban>,
    /// How often another program's change of the routing was undone.
    pub routing_repairs: u64,
    /// Descriptors in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files: Option<u64>,
    /// How many there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_files_limit: Option<u64>,
}

/// A client that has sessions.
#[derive(Debug, Serialize)]
pub struct Client {
    /// Its address.
    pub address: IpAddr,
    /// Sessions that are open.
    pub open: usize,
    /// Seconds since the oldest of them began.
    pub oldest: u64,
}

impl Picture {
    /// Looks at everything.
    pub async fn take(office: &Office, rates: &Rates) -> Picture {
        let listeners = &office.listeners;
        let (status, config) = (office.status_of_all().await, listeners.config().await);
        let services = listeners.services().await;
        let rates = services.iter().map(|(service, _)| {
            let label = label(service);
            let rate = rates.of(&label, &service.record);
            (label, rate)
        });
        Picture {
            advice: doctor::of_running(&status, &config),
            rates: rates.collect(),
            not_ready: readiness::reasons(listeners).await,
            clients: busiest(&listeners.proxy).await,
            newest_bans: newest(&listeners.proxy.bans),
            routing_repairs: listeners.routing().restored(),
            open_files: open_files().await,
            open_files_limit: open_files_limit(),
            status,
        }
    }
}

/// What a listener is called: its name, or else its address.
pub fn label(service: &Service) -> String {
    match &service.record.name {
        Some(name) => name.to_string(),
        None => {
            let addresses = service.destinations.addresses();
            addresses
                .first()
                .map(ToString::to_string)
                .unwrap_or_default()
        }
    }
}

async fn busiest(proxy: &Proxy) -> Vec<Client> {
    let mut by_address: HashMap<IpAddr, Client> = HashMap::new();
    for worker in &proxy.workers {
        let count = |session: &crate::sessions::Session| {
            let Some(route) = session.route else { return };
            let address = route.client.ip();
            let age = session.began.elapsed().as_secs();
            let client = by_address.entry(address).or_insert(Client {
                address,
                open: 0,
                oldest: 0,
            });
            client.open += 1;
            client.oldest = client.oldest.max(age);
        };
        worker.sessions.look(count).await;
    }
    let all = by_address.into_values().collect();
    first(all, |client| (Reverse(client.open), client.address))
}

fn newest(bans: &Bans) -> Vec<Ban> {
    let (list, now) = (bans.list(), bans::now());
    let current = |ban: &&Ban| ban.until.is_none_or(|until| now < until);
    let all = list.iter().filter(current).collect();
    let newest = first(all, |ban| (Reverse(ban.since), ban.network));
    newest.into_iter().cloned().collect()
}

/// The first few by that order, without sorting the rest.
fn first<T, K: Ord>(mut all: Vec<T>, key: impl Fn(&T) -> K + Copy) -> Vec<T> {
    if all.len() > LISTED {
        all.select_nth_unstable_by_key(LISTED, key);
        all.truncate(LISTED);
    }
    all.sort_unstable_by_key(key);
    all
}

/// How many descriptors are in use. Since Linux 6.2 the directory's size tells; before that they have
/// to be counted, on a thread of its own, for there may be many.
pub async fn open_files() -> Option<u64> {
    const LIST: &str = "/proc/self/fd";
    match std::fs::metadata(LIST).ok()?.len() {
        0 => {
            let count = || std::fs::read_dir(LIST).map(|list| list.count() as u64);
            tokio::task::spawn_blocking(count).await.ok()?.ok()
        }
        count => Some(count),
    }
}

/// How many descriptors there may be.
pub fn open_files_limit() -> Option<u64> {
    getrlimit(Resource::RLIMIT_NOFILE)
        .ok()
        .map(|(soft, _)| soft)
}
