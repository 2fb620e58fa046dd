//! Who asked for which ban, and until when: an application server's unban ends its own ban and no
//! other's, and what the administrator put into the set or the jail stays. Pure.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// How far the kernel's clock and ours may be apart where they speak of the same ban.
const SLACK: Duration = Duration::from_secs(2);

/// When a ban ends. Later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Milliseconds since 1970.
    At(u64),
    /// Only by an unban.
    Never,
}

impl End {
    /// So long from now.
    pub fn after(time: Duration) -> End {
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        End::At(now().saturating_add(time))
    }

    /// How long it is until then; `None` if it never comes.
    pub fn left(self) -> Option<Duration> {
        match self {
            End::At(end) => Some(Duration::from_millis(end.saturating_sub(now()))),
            End::Never => None,
        }
    }

    /// Whether it is later than `other` by more than clocks differ.
    pub fn is_beyond(self, other: End) -> bool {
        match other {
            End::At(other) => self > End::At(other.saturating_add(SLACK.as_millis() as u64)),
            End::Never => false,
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            End::At(end) => {
                let end = UNIX_EPOCH + Duration::from_millis(*end);
                humantime::format_rfc3339_seconds(end).fmt(f)
            }
            End::Never => f.write_str("never"),
        }
    }
}

/// Milliseconds since 1970.
pub fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

/// The bans that were asked for.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Book(HashMap<IpAddr, Claims>);

/// Who wants one address banned.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Claims {
    /// The administrator, by a ban that no call made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    administrator: Option<End>,
    /// Application servers, by the address that they call from.
    callers: BTreeMap<IpAddr, End>,
}

impl Claims {
    fn end(&self) -> Option<End> {
        self.callers.values().copied().max().max(self.administrator)
    }
}

impl Book {
    /// When the ban of an address ends; `None` if nobody asked for one.
    pub fn end(&self, target: IpAddr) -> Option<End> {
        self.0.get(&target).and_then(Claims::end)
    }

    /// As `end`, were it not for this caller.
    pub fn end_without(&self, target: IpAddr, caller: IpAddr) -> Option<End> {
        let claims = self.0.get(&target)?;
        let others = claims.callers.iter().filter(|(other, _)| **other != caller);
        others.map(|(_, end)| *end).max().max(claims.administrator)
    }

    /// Whether this caller asked for it.
    pub fn has(&self, target: IpAddr, caller: IpAddr) -> bool {
        let claims = self.0.get(&target);
        claims.is_some_and(|claims| claims.callers.contains_key(&caller))
    }

    /// Every address.
    pub fn targets(&self) -> Vec<IpAddr> {
        self.0.keys().copied().collect()
    }

    /// Notes how long an address is really banned: what no call explains is the administrator's.
    pub fn see(&mut self, target: IpAddr, held: Option<End>) {
        let Some(held) = held else {
            if let Some(claims) = self.0.get_mut(&target) {
                claims.administrator = None;
            }
            return;
        };
        if self.end(target).is_none_or(|end| held.is_beyond(end)) {
            self.0.entry(target).or_default().administrator = Some(held);
        }
    }

    /// Notes a caller's ban. It never shortens an earlier one.
    pub fn claim(&mut self, target: IpAddr, caller: IpAddr, end: End) {
        let claims = self.0.entry(target).or_default();
        let claimed = claims.callers.entry(caller).or_insert(end);
        *claimed = end.max(*claimed);
    }

    /// Forgets a caller's ban; with the last one, all that is known of the address.
    pub fn release(&mut self, target: IpAddr, caller: IpAddr) {
        if let Some(claims) = self.0.get_mut(&target) {
            claims.callers.remove(&caller);
            if claims.callers.is_empty() {
                self.0.remove(&target);
            }
        }
    }

    /// The addresses that no caller wants banned any more at this time, and that the administrator
    /// has not banned.
    pub fn over(&self, now: u64) -> Vec<IpAddr> {
        let over = |(_, claims): &(&IpAddr, &Claims)| claims.end() <= Some(End::At(now));
        let over = self.0.iter().filter(over);
        over.map(|(target, _)| *target).collect()
    }

    /// Forgets the callers' bans that are over at this time.
    pub fn forget_what_is_over(&mut self, now: u64) {
        self.0.retain(|_, claims| {
            claims.callers.retain(|_, end| *end > End::At(now));
            !claims.callers.is_empty()
        });
    }

    /// How long it is until the next caller's ban ends.
    pub fn next_end(&self) -> Option<Duration> {
        let ends = self.0.values().flat_map(|claims| claims.callers.values());
        ends.copied().min().and_then(End::left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_ban_lasts_as_long_as_the_last_who_asked_for_it_wants() {
        let (bot, one, two) = (ip("203.0.113.9"), ip("10.0.0.2"), ip("10.0.0.3"));
        let mut book = Book::default();
        let (soon, late) = (
            End::after(Duration::from_secs(60)),
            End::after(Duration::from_secs(3600)),
        );
        book.claim(bot, one, late);
        book.claim(bot, one, soon);
        book.claim(bot, two, soon);
        assert_eq!(book.end(bot), Some(late));
        assert_eq!(book.end_without(bot, one), Some(soon));
        book.release(bot, one);
        assert_eq!(book.end(bot), Some(soon));
        book.release(bot, two);
        assert_eq!((book.end(bot), book.targets().len()), (None, 0));
    }

    #[test]
    fn what_no_call_explains_is_the_administrators() {
        let (bot, one) = (ip("203.0.113.9"), ip("10.0.0.2"));
        let hour = End::after(Duration::from_secs(3600));
        let mut book = Book::default();
        book.claim(bot, one, hour);
        book.see(bot, Some(End::after(Duration::from_secs(3601))));
        assert_eq!(book.end_without(bot, one), None);
        book.see(bot, Some(End::Never));
        assert_eq!(book.end_without(bot, one), Some(End::Never));
        book.see(bot, None);
        assert_eq!(book.end_without(bot, one), None);
    }

    #[test]
    fn bans_that_are_over_are_forgotten() {
        let (bot, other, one) = (ip("203.0.113.9"), ip("203.0.113.10"), ip("10.0.0.2"));
        let mut book = Book::default();
        book.claim(bot, one, End::At(1));
        book.claim(other, one, End::Never);
        assert_eq!(book.next_end(), Some(Duration::ZERO));
        assert_eq!(book.over(now()), [bot]);
        book.forget_what_is_over(now());
        assert_eq!((book.targets(), book.next_end()), (vec![other], None));
    }
}
