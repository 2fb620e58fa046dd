//! How often the same trouble is logged: a stranger must not be able to fill the log.

use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::config::{Protocol, Verbosity};
use crate::stats::Count;

/// Decides what is said now and what is only counted.
#[derive(Debug)]
pub struct Reporter {
    verbosity: Verbosity,
    protocol: Protocol,
    said: Vec<Mutex<Said>>,
}

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    held_back: u64,
    refused: Option<Refused>,
}

/// The last trouble of a kind, and how many came in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Whose connection it was; `None` for the listener's own trouble.
    pub peer: Option<IpAddr>,
    /// When it was.
    pub at: Instant,
    /// How many clients had been served by then.
    pub served: u64,
    /// How many of the kind came without any client served in between.
    pub in_a_row: u64,
    /// How many of these came from `peer`, without another's in between.
    pub of_peer: u64,
}

impl Reporter {
    /// A reporter that has said nothing yet.
    pub fn new(verbosity: Verbosity, protocol: Protocol) -> Reporter {
        let said = Count::ALL.iter().map(|_| Mutex::default()).collect();
        Reporter {
            verbosity,
            protocol,
            said,
        }
    }

    /// Whether every connection's end is logged.
    pub fn says_all(&self) -> bool {
        self.verbosity == Verbosity::All
    }

    /// Whether a trouble of this kind is to be logged now: then how many were held back since the
    /// last one. At `-v 0` each kind is logged when it first happens and then once a minute.
    pub fn due(&self, kind: Count) -> Option<u64> {
        self.due_at(kind, Instant::now())
    }

    /// Notes a trouble for who asks later; `served` clients have been served so far.
    pub fn note(&self, kind: Count, peer: Option<IpAddr>, served: u64) {
        let mut said = self.said(kind);
        let before = said.refused.filter(|before| before.served == served);
        said.refused = Some(Refused {
            peer,
            at: Instant::now(),
            served,
            in_a_row: 1 + before.map_or(0, |before| before.in_a_row),
            of_peer: 1 + before
                .filter(|before| before.peer == peer)
                .map_or(0, |before| before.of_peer),
        });
    }

    /// The last trouble of a kind.
    pub fn refused(&self, kind: Count) -> Option<Refused> {
        self.said(kind).refused
    }

    fn said(&self, kind: Count) -> MutexGuard<'_, Said> {
        match self.said[kind as usize].lock() {
            Ok(said) => said,
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn due_at(&self, kind: Count, now: Instant) -> Option<u64> {
        let pause = match (kind, self.verbosity) {
            (Count::Silent, Verbosity::Quiet | Verbosity::Errors) => return None,
            (
                Count::TooManyConnections | Count::AcceptFailed,
                Verbosity::Errors | Verbosity::All,
            ) => Duration::from_secs(1),
            // A datagram costs its sender next to nothing, and may have a forged sender.
            (_, Verbosity::Errors | Verbosity::All) if self.protocol == Protocol::Udp => {
                Duration::from_secs(1)
            }
            (_, Verbosity::Errors | Verbosity::All) => return Some(0),
            (Count::TooManyConnections, Verbosity::Quiet) => Duration::from_secs(1),
            (_, Verbosity::Quiet) => Duration::from_secs(60),
        };
        let mut said = self.said(kind);
        if said
            .last
            .is_some_and(|last| now.duration_since(last) < pause)
        {
            said.held_back += 1;
            return None;
        }
        said.last = Some(now);
        Some(std::mem::take(&mut said.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn at_v_0_each_kind_is_said_once_a_minute_with_a_count() {
        let reporter = Reporter::new(Verbosity::Quiet, Protocol::Tcp);
        let start = Instant::now();
        let at = |s| reporter.due_at(Count::HeaderBad, start + Duration::from_secs(s));
        assert_eq!(
            [at(0), at(1), at(59), at(60), at(61), at(121)],
            [Some(0), None, None, Some(2), None, Some(1)]
        );
        assert_eq!(reporter.due_at(Count::HeaderAbsent, start), Some(0));
    }

    #[test]
    fn at_v_1_every_one_is_said_but_for_floods() {
        let reporter = Reporter::new(Verbosity::Errors, Protocol::Tcp);
        let now = Instant::now();
        assert_eq!(reporter.due_at(Count::HeaderBad, now), Some(0));
        assert_eq!(reporter.due_at(Count::HeaderBad, now), Some(0));
        assert_eq!(reporter.due_at(Count::TooManyConnections, now), Some(0));
        assert_eq!(reporter.due_at(Count::TooManyConnections, now), None);
        assert_eq!(reporter.due_at(Count::Silent, now), None);
    }

    #[test]
    fn refusals_in_a_row_are_counted() {
        let reporter = Reporter::new(Verbosity::Quiet, Protocol::Tcp);
        let [a, b] = [[192, 0, 2, 5], [192, 0, 2, 6]].map(|ip| Some(IpAddr::from(ip)));
        let note = |peer, served| {
            reporter.note(Count::HeaderBad, peer, served);
            let refused = reporter.refused(Count::HeaderBad).unwrap();
            (refused.in_a_row, refused.of_peer)
        };
        assert_eq!(
            [note(a, 0), note(a, 0), note(b, 0), note(b, 7), note(b, 7)],
            [(1, 1), (2, 2), (3, 1), (1, 1), (2, 2)]
        );
        assert_eq!(reporter.refused(Count::Silent), None);
    }

    #[test]
    fn of_datagrams_each_kind_is_said_once_a_second() {
        let reporter = Reporter::new(Verbosity::All, Protocol::Udp);
        let start = Instant::now();
        let at = |ms| reporter.due_at(Count::HeaderBad, start + Duration::from_millis(ms));
        assert_eq!(
            [at(0), at(1), at(999), at(1000)],
            [Some(0), None, None, Some(2)]
        );
    }
}
