//! Bans that come from a CrowdSec engine: up to millions, which one thread changes while all workers
//! look clients up. They lie in many small tables, each with a lock of its own, so that a change
//! holds up one look-up in a thousand, for the time of one insertion.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use arc_swap::ArcSwap;
use ipnet::IpNet;

use super::UnixSeconds;

/// How many tables there are: with a million decisions, the growth of one moves a thousand of them.
const TABLES: usize = 1024;

/// Who decided, and because of what; shared by all its decisions.
#[derive(Debug)]
pub struct Cause {
    /// As the engine names it: `crowdsec`, `cscli`, `CAPI`, `lists` ...
    pub origin: Box<str>,
    /// What the client did.
    pub scenario: Box<str>,
    /// Clients that were refused because of it.
    refused: AtomicU64,
    /// Its decisions in force.
    active: AtomicU64,
}

impl Cause {
    /// One that nothing is decided by yet.
    pub fn new(origin: &str, scenario: &str) -> Cause {
        Cause {
            origin: origin.into(),
            scenario: scenario.into(),
            refused: AtomicU64::new(0),
            active: AtomicU64::new(0),
        }
    }

    /// Decisions in force, and clients refused since the start.
    pub fn counts(&self) -> (u64, u64) {
        (
            self.active.load(Ordering::Relaxed),
            self.refused.load(Ordering::Relaxed),
        )
    }
}

/// A decision as it stands in the tables. Its network is the key.
#[derive(Clone, Debug)]
struct Entry {
    id: u64,
    /// Seconds since 1970, good until 2106.
    until: u32,
    /// The last full answer of the engine that named it.
    round: u32,
    cause: Arc<Cause>,
}

/// The decisions on one network; nearly always one.
#[derive(Debug)]
struct Entries {
    first: Entry,
    more: Box<[Entry]>,
}

/// A decision of the engine that keeps a client away.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The network that is banned.
    pub network: IpNet,
    /// When it ends, unless the engine deletes it before.
    pub until: UnixSeconds,
    /// Why.
    pub cause: Arc<Cause>,
}

impl Decision {
    /// Notes that a client was refused because of it.
    pub fn note_refusal(&self) {
        self.cause.refused.fetch_add(1, Ordering::Relaxed);
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cause {
            origin, scenario, ..
        } = &*self.cause;
        write!(f, "{} by CrowdSec ({origin}), {scenario:?}", self.network)
    }
}

type Table = RwLock<HashMap<IpNet, Entries>>;

/// All decisions in force.
#[derive(Debug, Default)]
pub struct Decisions {
    hasher: RandomState,
    /// Made when the first decision comes.
    tables: OnceLock<Box<[Table]>>,
    len: AtomicUsize,
    /// The lengths of prefixes that there are, the longest first: IPv4, IPv6. A look-up tries each.
    lengths: [ArcSwap<Vec<u8>>; 2],
    /// How many networks have each length. Whoever changes anything holds it.
    changing: Mutex<[HashMap<u8, usize>; 2]>,
}

impl Decisions {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The decision on the narrowest network that holds this client; of several on one network, the
    /// one that ends last.
    pub fn find(&self, client: IpAddr, now: UnixSeconds) -> Option<Decision> {
        let lengths = self.lengths[family(client)].load();
        lengths.iter().find_map(|length| {
            let network = IpNet::new(client, *length).ok()?.trunc();
            self.on(&network, now)
        })
    }

    /// The decision on exactly this network.
    pub fn on(&self, network: &IpNet, now: UnixSeconds) -> Option<Decision> {
        let table = self.table(network)?;
        let table = table.read().unwrap_or_else(PoisonError::into_inner);
        let last = table.get(network)?.iter().max_by_key(|entry| entry.until)?;
        last.holds(now).then(|| last.decision(*network))
    }

    /// Adds a decision, or changes the one of that id on that network; tells whether it is new.
    pub fn insert(&self, id: u64, round: u32, decision: Decision) -> bool {
        let Decision {
            network,
            until,
            cause,
        } = decision;
        let entry = Entry {
            id,
            until: u32::try_from(until).unwrap_or(u32::MAX),
            round,
            cause,
        };
        let mut lengths = self.changing();
        self.tables
            .get_or_init(|| (0..TABLES).map(|_| Table::default()).collect());
        // Before the network can be found, look-ups must try its length.
        self.count_length(&mut lengths, &network, true);
        let active = Arc::clone(&entry.cause);
        let (old, was_there) = self.put(network, entry);
        active.active.fetch_add(1, Ordering::Relaxed);
        if was_there {
            self.count_length(&mut lengths, &network, false);
        }
        let is_new = old.is_none();
        match old {
            Some(old) => self.forget(&[old]),
            None => _ = self.len.fetch_add(1, Ordering::Relaxed),
        }
        is_new
    }

    /// Puts an entry in its place; returns what stood there, and whether the network had any.
    fn put(&self, network: IpNet, entry: Entry) -> (Option<Entry>, bool) {
        let Some(table) = self.table(&network) else {
            return (None, false);
        };
        let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
        let Some(here) = table.get_mut(&network) else {
            let more = Box::default();
            table.insert(network, Entries { first: entry, more });
            return (None, false);
        };
        if let Some(same) = here.iter_mut().find(|old| old.id == entry.id) {
            return (Some(std::mem::replace(same, entry)), true);
        }
        let mut more = std::mem::take(&mut here.more).into_vec();
        more.push(entry);
        here.more = more.into_boxed_slice();
        (None, true)
    }

    /// Takes away a decision; tells whether it was there.
    pub fn remove(&self, id: u64, network: &IpNet) -> bool {
        self.take(network, |entry| entry.id == id) > 0
    }

    /// Takes away all decisions on exactly this network, and tells how many they were.
    pub fn remove_all(&self, network: &IpNet) -> usize {
        self.take(network, |_| true)
    }

    /// Takes away what is over, and tells how many they were. It goes through all of them.
    pub fn expire(&self, now: UnixSeconds) -> usize {
        self.sweep(|_, entry| !entry.holds(now))
    }

    /// Takes away what the full answer of that round did not name, and networks that may not be
    /// banned any more.
    pub fn keep(&self, round: u32, allowed: impl Fn(&IpNet) -> bool) -> usize {
        self.sweep(|network, entry| entry.round != round || !allowed(network))
    }

    /// The decisions in force, table by table.
    pub fn pages(&self, now: UnixSeconds) -> impl Iterator<Item = Vec<Decision>> {
        let tables = self.tables.get().map_or(&[][..], |tables| tables);
        tables.iter().map(move |table| {
            let table = table.read().unwrap_or_else(PoisonError::into_inner);
            let all = table
                .iter()
                .flat_map(|(network, here)| here.iter().map(move |entry| (network, entry)));
            let current = all.filter(|(_, entry)| entry.holds(now));
            current
                .map(|(network, entry)| entry.decision(*network))
                .collect()
        })
    }

    fn sweep(&self, over: impl Fn(&IpNet, &Entry) -> bool) -> usize {
        let tables = self.tables.get().map_or(&[][..], |tables| tables);
        let mut count = 0;
        for table in tables {
            let table = table.read().unwrap_or_else(PoisonError::into_inner);
            let is_over = |network: &IpNet, here: &Entries| here.iter().any(|e| over(network, e));
            let networks = table
                .iter()
                .filter(|(network, here)| is_over(network, here));
            let networks: Vec<IpNet> = networks.map(|(network, _)| *network).collect();
            drop(table);
            for network in networks {
                count += self.take(&network, |entry| over(&network, entry));
            }
        }
        count
    }

    fn take(&self, network: &IpNet, which: impl Fn(&Entry) -> bool) -> usize {
        let mut lengths = self.changing();
        let Some(table) = self.table(network) else {
            return 0;
        };
        let mut table = table.write().unwrap_or_else(PoisonError::into_inner);
        let Some(here) = table.remove(network) else {
            return 0;
        };
        let all = std::iter::once(here.first).chain(here.more);
        let (taken, mut rest): (Vec<Entry>, Vec<Entry>) = all.partition(|entry| which(entry));
        let gone = match rest.is_empty() {
            true => true,
            false => {
                let first = rest.remove(0);
                let more = rest.into_boxed_slice();
                table.insert(*network, Entries { first, more });
                false
            }
        };
        drop(table);
        if gone {
            self.count_length(&mut lengths, network, false);
        }
        self.forget(&taken);
        self.len.fetch_sub(taken.len(), Ordering::Relaxed);
        taken.len()
    }

    fn forget(&self, taken: &[Entry]) {
        for entry in taken {
            entry.cause.active.fetch_sub(1, Ordering::Relaxed);
        }
    }

    fn count_length(&self, all: &mut [HashMap<u8, usize>; 2], network: &IpNet, more: bool) {
        let family = family(network.addr());
        let count = all[family].entry(network.prefix_len()).or_default();
        *count = match more {
            true => *count + 1,
            false => *count - 1,
        };
        let changes = match more {
            true => *count == 1,
            false => *count == 0,
        };
        if changes {
            all[family].retain(|_, count| *count > 0);
            let mut lengths: Vec<u8> = all[family].keys().copied().collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            self.lengths[family].store(Arc::new(lengths));
        }
    }

    fn table(&self, network: &IpNet) -> Option<&Table> {
        let number = self.hasher.hash_one(network) as usize % TABLES;
        self.tables.get().map(|tables| &tables[number])
    }

    fn changing(&self) -> MutexGuard<'_, [HashMap<u8, usize>; 2]> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn holds(&self, now: UnixSeconds) -> bool {
        now < u64::from(self.until)
    }

    fn decision(&self, network: IpNet) -> Decision {
        Decision {
            network,
            until: self.until.into(),
            cause: Arc::clone(&self.cause),
        }
    }
}

impl Entries {
    fn iter(&self) -> impl Iterator<Item = &Entry> {
        std::iter::once(&self.first).chain(&self.more)
    }

    fn iter_mut(&mut self) -> impl Iterator<Item = &mut Entry> {
        std::iter::once(&mut self.first).chain(&mut self.more)
    }
}

fn family(ip: IpAddr) -> usize {
    usize::from(ip.is_ipv6())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cause() -> Arc<Cause> {
        Arc::new(Cause::new("cscli", "test"))
    }

    fn decision(network: &str, until: UnixSeconds, cause: &Arc<Cause>) -> Decision {
        Decision {
            network: crate::networks::parse(network).unwrap(),
            until,
            cause: Arc::clone(cause),
        }
    }

    fn found(all: &Decisions, client: &str, now: UnixSeconds) -> Option<String> {
        let decision = all.find(client.parse().unwrap(), now)?;
        Some(decision.network.to_string())
    }

    #[test]
    fn the_narrowest_network_that_holds_now_is_found_in_its_family() {
        let (all, cause) = (Decisions::default(), cause());
        let networks = [
            "203.0.113.0/24",
            "203.0.0.0/16",
            "2001:db8::/32",
            "2001:db8::7",
        ];
        for (id, network) in networks.iter().enumerate() {
            all.insert(id as u64, 1, decision(network, 10 + id as u64, &cause));
        }
        for (client, now, expected) in [
            ("203.0.113.7", 9, Some("203.0.113.0/24")),
            ("203.0.113.7", 10, Some("203.0.0.0/16")),
            ("203.0.113.7", 11, None),
            ("203.1.0.1", 9, None),
            ("2001:db8::7", 9, Some("2001:db8::7/128")),
            ("2001:db8::8", 9, Some("2001:db8::/32")),
            ("::1", 9, None),
        ] {
            assert_eq!(found(&all, client, now).as_deref(), expected, "{client}");
        }
        assert_eq!((all.len(), cause.counts()), (4, (4, 0)));
        assert_eq!(all.expire(11), 2);
        assert_eq!((all.len(), cause.counts()), (2, (2, 0)));
        assert!(all.lengths[0].load().is_empty());
    }

    #[test]
    fn several_decisions_on_one_address_hold_until_the_last_is_over() {
        let (all, cause) = (Decisions::default(), cause());
        for (id, until) in [(1, 20), (2, 30), (3, 10)] {
            all.insert(id, 1, decision("203.0.113.7", until, &cause));
        }
        let network = crate::networks::parse("203.0.113.7").unwrap();
        assert_eq!(all.on(&network, 0).unwrap().until, 30);
        assert!(all.remove(2, &network) && !all.remove(2, &network));
        assert!(found(&all, "203.0.113.7", 19).is_some());
        assert!(found(&all, "203.0.113.7", 20).is_none());
        assert!(all.remove(1, &network) && all.remove(3, &network));
        assert!(all.is_empty() && found(&all, "203.0.113.7", 0).is_none());
    }

    #[test]
    fn a_full_answer_takes_the_place_of_what_was_there() {
        let (all, cause) = (Decisions::default(), cause());
        for id in 0..100 {
            all.insert(id, 1, decision(&format!("10.0.0.{id}"), 10, &cause));
        }
        for id in 50..120 {
            all.insert(id, 2, decision(&format!("10.0.0.{id}"), 20, &cause));
        }
        assert_eq!(all.len(), 120);
        assert_eq!(all.keep(2, |_| true), 50);
        assert_eq!((all.len(), cause.counts().0), (70, 70));
        assert!(found(&all, "10.0.0.49", 0).is_none() && found(&all, "10.0.0.50", 19).is_some());
        let listed: usize = all.pages(0).map(|page| page.len()).sum();
        assert_eq!(listed, 70);
    }
}
