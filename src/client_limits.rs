//! How many connections and flows one client has open, and how fast it opens them. An IPv6 client is
//! its /64, because that is what a host gets. What is kept is bounded by what is open and by a
//! table of fixed size, however many clients come.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::ClientAddr;
use crate::config::Rate;
use crate::refusal::Refusal;

/// Places of the table in which a client may stand, and how many such sets there are: 32,768
/// clients, 1 MiB.
const WAYS: usize = 8;
const SETS: usize = 4096;

/// What may be asked of one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Connections or flows open at once.
    pub open: Option<u32>,
    /// Connections or flows in a time.
    pub rate: Option<Rate>,
}

/// What the clients of a listener have open and have opened lately.
#[derive(Debug)]
pub struct Clients {
    began: Instant,
    hasher: RandomState,
    open: Mutex<HashMap<Client, u32>>,
    /// Made when a rate is first asked for.
    buckets: OnceLock<Box<[Mutex<[Bucket; WAYS]>]>>,
}

/// An IPv4 address, or an IPv6 network of 64 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Client(u128);

/// A token bucket, as the time at which it will be full again: one that is full needs no place.
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    client: Client,
    /// Since `Clients::began`.
    full_at: Duration,
}

/// A connection or flow that counts as open until this is dropped.
#[derive(Debug)]
pub struct Permit {
    clients: Arc<Clients>,
    client: Client,
}

impl Default for Clients {
    fn default() -> Clients {
        Clients {
            began: Instant::now(),
            hasher: RandomState::new(),
            open: Mutex::default(),
            buckets: OnceLock::new(),
        }
    }
}

impl Clients {
    /// Lets one more connection or flow of a client in; `None` if nobody counts them.
    pub fn admit(
        self: &Arc<Clients>,
        addr: ClientAddr,
        limits: Limits,
    ) -> Result<Option<Permit>, Refusal> {
        let client = Client::of(addr.ip());
        let permit = match limits.open {
            Some(most) => Some(
                self.open_one(client, most)
                    .ok_or(Refusal::TooManyOpen(addr, most))?,
            ),
            None => None,
        };
        match limits.rate {
            Some(rate) if !self.take_token(client, rate, self.began.elapsed()) => {
                Err(Refusal::TooFast(addr, rate))
            }
            _ => Ok(permit),
        }
    }

    /// Counts one that was let in elsewhere.
    pub fn adopt(self: &Arc<Clients>, addr: ClientAddr) -> Option<Permit> {
        self.open_one(Client::of(addr.ip()), u32::MAX)
    }

    fn open_one(self: &Arc<Clients>, client: Client, most: u32) -> Option<Permit> {
        let mut all = self.open();
        let open = all.entry(client).or_default();
        if *open >= most {
            return None;
        }
        *open += 1;
        Some(Permit {
            clients: Arc::clone(self),
            client,
        })
    }

    fn take_token(&self, client: Client, rate: Rate, now: Duration) -> bool {
        let sets = self
            .buckets
            .get_or_init(|| (0..SETS).map(|_| Mutex::default()).collect());
        let set = self.hasher.hash_one(client) as usize % SETS;
        let mut set = sets[set].lock().unwrap_or_else(PoisonError::into_inner);
        let known = set.iter().position(|bucket| bucket.client == client);
        // A newcomer takes the place of the one who is nearest to being full.
        let fullest = || (0..WAYS).min_by_key(|way| set[*way].full_at).unwrap_or(0);
        let way = known.unwrap_or_else(fullest);
        let token = rate.period / rate.count;
        let full_at = match known {
            // It is empty at most: a reload may have brought a faster rate.
            Some(_) => set[way].full_at.clamp(now, now + rate.period),
            None => now,
        };
        let has_token = full_at + token <= now + rate.period;
        set[way] = Bucket {
            client,
            full_at: if has_token { full_at + token } else { full_at },
        };
        has_token
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Client, u32>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut all = self.clients.open();
        if let Some(open) = all.get_mut(&self.client) {
            *open -= 1;
            if *open == 0 {
                all.remove(&self.client);
            }
        }
    }
}

impl Client {
    fn of(ip: IpAddr) -> Client {
        Client(match ip {
            // The low half of an IPv6 client is zero, so the two never meet.
            IpAddr::V4(ip) => ip.to_ipv6_mapped().to_bits(),
            IpAddr::V6(ip) => ip.to_bits() >> 64 << 64,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(text: &str) -> ClientAddr {
        ClientAddr((text.parse::<IpAddr>().unwrap(), 1).into())
    }

    #[test]
    fn a_client_has_so_many_open_and_an_ipv6_client_is_its_64() {
        let clients = Arc::new(Clients::default());
        let limits = Limits {
            open: Some(2),
            rate: None,
        };
        let admit = |addr| clients.admit(client(addr), limits);
        let first = admit("2001:db8::1").unwrap();
        let second = admit("2001:db8::2").unwrap();
        assert!(admit("2001:db8::3").is_err());
        assert!(admit("2001:db8:0:1::1").is_ok());
        assert!(admit("203.0.113.1").is_ok());
        drop(first);
        assert!(admit("2001:db8::3").is_ok());
        drop(second);
        assert!(clients.open().is_empty());
    }

    #[test]
    fn a_bucket_holds_so_many_tokens_and_fills_evenly() {
        let clients = Clients::default();
        let rate = Rate {
            count: 10,
            period: Duration::from_secs(1),
        };
        let ours = Client::of("203.0.113.1".parse().unwrap());
        let at = |ms| clients.take_token(ours, rate, Duration::from_millis(ms));
        assert_eq!((0..20).filter(|_| at(0)).count(), 10);
        assert!(!at(99) && at(100) && !at(100));
        assert_eq!((0..20).filter(|_| at(60_000)).count(), 10);
    }

    #[test]
    fn another_rate_finds_the_bucket_empty_at_most() {
        let clients = Clients::default();
        let ours = Client::of("203.0.113.1".parse().unwrap());
        let take = |count, period, ms| {
            let period = Duration::from_secs(period);
            clients.take_token(ours, Rate { count, period }, Duration::from_millis(ms))
        };
        assert!(take(1, 3600, 0) && !take(1, 3600, 1));
        assert!(!take(10, 1, 2) && !take(10, 1, 101) && take(10, 1, 102));
    }

    #[test]
    fn a_hundred_thousand_clients_take_no_more_room_than_the_table() {
        let clients = Clients::default();
        let rate = Rate {
            count: 1,
            period: Duration::from_secs(60),
        };
        for n in 0..100_000_u32 {
            let client = Client::of(IpAddr::from(n.to_be_bytes()));
            assert!(clients.take_token(client, rate, Duration::ZERO));
        }
        assert_eq!(clients.buckets.get().map(|sets| sets.len()), Some(SETS));
        assert!(clients.open().is_empty());
    }
}
