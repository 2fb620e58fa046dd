//! Who is banned: networks in a trie, and the order in which the bans end. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ipnet::IpNet;
use prefix_trie::joint::map::JointPrefixMap;
use serde::{Deserialize, Serialize};

/// Seconds since 1970, as programs read them. Bans are kept over restarts, so they end by the
/// wall clock.
pub type UnixSeconds = u64;

/// The time now.
pub fn now() -> UnixSeconds {
    at(SystemTime::now())
}

/// When a ban of that length ends, rounded up to a whole second.
pub fn after(length: Duration) -> UnixSeconds {
    at(SystemTime::now() + length + Duration::from_nanos(999_999_999))
}

fn at(time: SystemTime) -> UnixSeconds {
    // A clock before 1970 is as good as 1970.
    time.duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// A network whose clients are not served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ban {
    /// A single address is a network of one.
    pub network: IpNet,
    /// The listener it holds for; `None` for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<String>,
    /// When it was spoken.
    pub since: UnixSeconds,
    /// When it ends; `None` for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<UnixSeconds>,
    /// Why, in the administrator's words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

impl fmt::Display for Ban {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.network)?;
        if let Some(listener) = &self.listener {
            write!(f, " at {listener}")?;
        }
        if !self.reason.is_empty() {
            write!(f, ", {:?}", self.reason)?;
        }
        Ok(())
    }
}

impl Ban {
    fn holds(&self, listener: Option<&str>, now: UnixSeconds) -> bool {
        let here = self.listener.is_none() || self.listener.as_deref() == listener;
        here && self.until.is_none_or(|until| now < until)
    }

    fn end(&self) -> Option<End> {
        let until = self.until?;
        Some((until, self.network, self.listener.clone()))
    }
}

/// An end of a ban, and which ban.
type End = (UnixSeconds, IpNet, Option<String>);

/// All bans. A look-up walks down the trie once, and once more for each covering ban that does not
/// hold (it has ended, or is another listener's); a change costs about as much.
#[derive(Debug, Default)]
pub struct BanList {
    /// One network may be banned for several listeners. Whoever is refused because of a ban shares
    /// it: a copy for each datagram of a flood would cost allocations.
    bans: JointPrefixMap<IpNet, Vec<Arc<Ban>>>,
    ends: BTreeSet<End>,
    len: usize,
}

impl BanList {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The ban that keeps this client from that listener now.
    pub fn find(
        &self,
        client: IpAddr,
        listener: Option<&str>,
        now: UnixSeconds,
    ) -> Option<&Arc<Ban>> {
        // From the narrowest to the widest: the narrowest may have ended, or be of another listener.
        let mut network = Some(IpNet::from(client));
        while let Some((narrowest, bans)) = network.and_then(|n| self.bans.get_lpm(&n)) {
            if let Some(ban) = bans.iter().find(|ban| ban.holds(listener, now)) {
                return Some(ban);
            }
            network = narrowest.supernet();
        }
        None
    }

    /// Adds a ban in place of one for the same network and listener, if there is one.
    pub fn insert(&mut self, ban: Ban) {
        self.take(&ban.network, |old| old.listener == ban.listener);
        self.ends.extend(ban.end());
        self.len += 1;
        let here = self.bans.entry(ban.network).or_default();
        here.push(Arc::new(ban));
    }

    /// Takes away the bans of exactly this network: for one listener, or all of them.
    pub fn remove(&mut self, network: &IpNet, listener: Option<&str>) -> Vec<Arc<Ban>> {
        self.take(network, |ban| {
            listener.is_none() || ban.listener.as_deref() == listener
        })
    }

    /// When the next ban ends.
    pub fn next_end(&self) -> Option<UnixSeconds> {
        self.ends.first().map(|(until, ..)| *until)
    }

    /// Removes the bans that have expired.
    pub fn expire(&mut self, now: UnixSeconds) -> Vec<Arc<Ban>> {
        let mut ended = Vec::new();
        while let Some((until, network, listener)) = self.ends.first().cloned() {
            if now < until {
                break;
            }
            ended.extend(self.take(&network, |ban| ban.listener == listener));
        }
        ended
    }

    /// Every ban, in the order of their networks.
    pub fn iter(&self) -> impl Iterator<Item = &Ban> {
        self.bans.values().flatten().map(AsRef::as_ref)
    }

    /// The bans of networks that hold `network`, from the widest on.
    pub fn covering(&self, network: &IpNet) -> impl Iterator<Item = &Ban> {
        let covering = self.bans.cover_values(network);
        covering.flatten().map(AsRef::as_ref)
    }

    fn take(&mut self, network: &IpNet, mut which: impl FnMut(&Ban) -> bool) -> Vec<Arc<Ban>> {
        let Some(here) = self.bans.get_mut(network) else {
            return Vec::new();
        };
        let taken: Vec<Arc<Ban>> = here.extract_if(.., |ban| which(ban)).collect();
        if here.is_empty() {
            self.bans.remove(network);
        }
        for end in taken.iter().filter_map(|ban| ban.end()) {
            self.ends.remove(&end);
        }
        self.len -= taken.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ban(network: &str, listener: Option<&str>, until: Option<UnixSeconds>) -> Ban {
        Ban {
            network: crate::networks::parse(network).unwrap(),
            listener: listener.map(str::to_owned),
            since: 0,
            until,
            reason: String::new(),
        }
    }

    fn banned(list: &BanList, client: &str, listener: Option<&str>, now: UnixSeconds) -> bool {
        list.find(client.parse().unwrap(), listener, now).is_some()
    }

    #[test]
    fn a_ban_covers_its_network_in_its_family() {
        let mut list = BanList::default();
        list.insert(ban("203.0.113.0/24", None, None));
        list.insert(ban("2001:db8::7", None, None));
        list.insert(ban("0.0.0.0/0", Some("other"), None));
        for (client, expected) in [
            ("203.0.113.255", true),
            ("203.0.114.0", false),
            ("2001:db8::7", true),
            ("2001:db8::8", false),
        ] {
            assert_eq!(banned(&list, client, None, 0), expected, "{client}");
        }
    }

    #[test]
    fn a_narrow_ban_that_ended_or_is_of_another_listener_hides_no_wider_one() {
        let mut list = BanList::default();
        list.insert(ban("203.0.113.0/24", None, None));
        list.insert(ban("203.0.113.7", None, Some(10)));
        list.insert(ban("203.0.113.8", Some("ssh"), None));
        assert!(banned(&list, "203.0.113.7", None, 10));
        assert!(banned(&list, "203.0.113.8", Some("web"), 10));
        list.remove(&"203.0.113.0/24".parse().unwrap(), None);
        assert!(banned(&list, "203.0.113.7", None, 9) && !banned(&list, "203.0.113.7", None, 10));
        assert!(banned(&list, "203.0.113.8", Some("ssh"), 10));
        assert!(!banned(&list, "203.0.113.8", Some("web"), 10));
    }

    #[test]
    fn a_second_ban_replaces_the_first_and_its_end() {
        let mut list = BanList::default();
        list.insert(ban("203.0.113.7", None, Some(10)));
        list.insert(ban("203.0.113.7", None, Some(20)));
        list.insert(ban("203.0.113.7", Some("ssh"), None));
        assert_eq!(list.len(), 2);
        assert!(list.expire(19).is_empty());
        assert_eq!(list.expire(20), [ban("203.0.113.7", None, Some(20)).into()]);
        assert_eq!(
            list.remove(&"203.0.113.7/32".parse().unwrap(), Some("web")),
            []
        );
        assert_eq!(
            list.remove(&"203.0.113.7/32".parse().unwrap(), None).len(),
            1
        );
        assert!(list.is_empty() && list.iter().next().is_none());
    }

    #[test]
    fn a_hundred_thousand_bans_come_and_go() {
        let mut list = BanList::default();
        let network = |n: u32| IpNet::from(IpAddr::from((n * 16).to_be_bytes()));
        for n in 0..100_000 {
            list.insert(Ban {
                network: network(n),
                ..ban("0.0.0.0", None, Some(u64::from(n)))
            });
        }
        assert_eq!(list.len(), 100_000);
        assert!(banned(&list, "0.0.0.16", None, 0) && !banned(&list, "0.0.0.17", None, 0));
        assert_eq!(list.expire(50_000).len(), 50_001);
        for n in 50_001..100_000 {
            assert_eq!(list.remove(&network(n), None).len(), 1, "{n}");
        }
        assert!(list.is_empty() && list.ends.is_empty());
    }
}
