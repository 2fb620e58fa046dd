//! How often the same trouble is logged: a stranger must not be able to fill the log.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::addr::TargetAddr;
use crate::config::{Protocol, Verbosity};
use crate::refusal::Reason;
use crate::stats::Count;

/// How much is logged: `-v`, until `realpeer ctl log` says otherwise.
#[derive(Debug)]
pub struct Volume(AtomicU8);

impl Volume {
    /// So much.
    pub fn new(verbosity: Verbosity) -> Volume {
        Volume(AtomicU8::new(verbosity.number()))
    }

    /// How much now.
    pub fn get(&self) -> Verbosity {
        match self.0.load(Ordering::Relaxed) {
            0 => Verbosity::Quiet,
            1 => Verbosity::Errors,
            _ => Verbosity::All,
        }
    }

    /// So much from now on.
    pub fn set(&self, verbosity: Verbosity) {
        self.0.store(verbosity.number(), Ordering::Relaxed);
    }
}

/// Subjects of one counter that are told apart at a time. With `-dynamic-destination` strangers
/// name the targets, so memory and log lines need a bound.
const SUBJECTS: usize = 16;

/// Decides what is logged now and what is only counted.
#[derive(Debug)]
pub struct Reporter {
    volume: Arc<Volume>,
    protocol: Protocol,
    /// One for each counter.
    ledgers: Vec<Mutex<Ledger>>,
}

/// What a line is about: lines of one counter hold each other back only if their subject is the
/// same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// Why a client was refused.
    pub reason: Option<Reason>,
    /// Where it was to go.
    pub target: Option<TargetAddr>,
}

/// The lines of one counter. It never grows: a datagram must not cost an allocation.
#[derive(Debug)]
struct Ledger {
    subjects: Vec<(Subject, Said)>,
    /// All subjects beyond the first `SUBJECTS`.
    others: Said,
    refused: Option<Refused>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Said {
    last: Option<Instant>,
    held_back: u64,
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
    pub fn new(volume: Arc<Volume>, protocol: Protocol) -> Reporter {
        let ledgers = Count::ALL.iter().map(|_| Mutex::new(Ledger::new()));
        Reporter {
            volume,
            protocol,
            ledgers: ledgers.collect(),
        }
    }

    /// Whether the end of every connection is logged.
    pub fn says_all(&self) -> bool {
        self.volume.get() == Verbosity::All
    }

    /// Whether a line of this kind and subject is to be logged now, and if so, how many were held
    /// back since the last one. At `-v 0` each is logged when it first happens and then at most
    /// once a minute.
    pub fn due(&self, kind: Count, subject: Subject) -> Option<u64> {
        self.due_at(kind, subject, Instant::now())
    }

    /// Notes a trouble for who asks later; `served` clients have been served so far.
    pub fn note(&self, kind: Count, peer: Option<IpAddr>, served: u64) {
        let mut ledger = self.ledger(kind);
        let before = ledger.refused.filter(|before| before.served == served);
        ledger.refused = Some(Refused {
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
        self.ledger(kind).refused
    }

    fn ledger(&self, kind: Count) -> MutexGuard<'_, Ledger> {
        let ledger = &self.ledgers[kind as usize];
        ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn due_at(&self, kind: Count, subject: Subject, now: Instant) -> Option<u64> {
        let pause = match (kind, self.volume.get()) {
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
        let mut ledger = self.ledger(kind);
        let said = ledger.find(subject, pause, now);
        if said.is_recent(pause, now) {
            said.held_back += 1;
            return None;
        }
        said.last = Some(now);
        Some(std::mem::take(&mut said.held_back))
    }
}

impl Ledger {
    fn new() -> Ledger {
        Ledger {
            subjects: Vec::with_capacity(SUBJECTS),
            others: Said::default(),
            refused: None,
        }
    }

    /// What was said about a subject. A new one takes a free entry or that of a subject that may
    /// be logged again anyway; when there is none, it shares one with all others.
    fn find(&mut self, subject: Subject, pause: Duration, now: Instant) -> &mut Said {
        let known = self
            .subjects
            .iter()
            .position(|(known, _)| *known == subject);
        if let Some(at) = known {
            return &mut self.subjects[at].1;
        }
        if self.subjects.len() < SUBJECTS {
            let at = self.subjects.len();
            self.subjects.push((subject, Said::default()));
            return &mut self.subjects[at].1;
        }
        let old = self
            .subjects
            .iter()
            .position(|(_, said)| !said.is_recent(pause, now));
        let Some(at) = old else {
            return &mut self.others;
        };
        self.others.held_back += self.subjects[at].1.held_back;
        self.subjects[at] = (subject, Said::default());
        &mut self.subjects[at].1
    }
}

impl Said {
    fn is_recent(&self, pause: Duration, now: Instant) -> bool {
        self.last
            .is_some_and(|last| now.duration_since(last) < pause)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reporter(verbosity: Verbosity, protocol: Protocol) -> Reporter {
        Reporter::new(Arc::new(Volume::new(verbosity)), protocol)
    }

    #[test]
    fn at_v_0_each_kind_is_said_once_a_minute_with_a_count() {
        let reporter = reporter(Verbosity::Quiet, Protocol::Tcp);
        let start = Instant::now();
        let at = |s| {
            reporter.due_at(
                Count::HeaderBad,
                Subject::default(),
                start + Duration::from_secs(s),
            )
        };
        assert_eq!(
            [at(0), at(1), at(59), at(60), at(61), at(121)],
            [Some(0), None, None, Some(2), None, Some(1)]
        );
        assert_eq!(
            reporter.due_at(Count::HeaderAbsent, Subject::default(), start),
            Some(0)
        );
    }

    #[test]
    fn at_v_1_every_one_is_said_but_for_floods() {
        let reporter = reporter(Verbosity::Errors, Protocol::Tcp);
        let now = Instant::now();
        assert_eq!(
            reporter.due_at(Count::HeaderBad, Subject::default(), now),
            Some(0)
        );
        assert_eq!(
            reporter.due_at(Count::HeaderBad, Subject::default(), now),
            Some(0)
        );
        assert_eq!(
            reporter.due_at(Count::TooManyConnections, Subject::default(), now),
            Some(0)
        );
        assert_eq!(
            reporter.due_at(Count::TooManyConnections, Subject::default(), now),
            None
        );
        assert_eq!(
            reporter.due_at(Count::Silent, Subject::default(), now),
            None
        );
    }

    #[test]
    fn refusals_in_a_row_are_counted() {
        let reporter = reporter(Verbosity::Quiet, Protocol::Tcp);
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
        let reporter = reporter(Verbosity::All, Protocol::Udp);
        let start = Instant::now();
        let at = |ms| {
            reporter.due_at(
                Count::HeaderBad,
                Subject::default(),
                start + Duration::from_millis(ms),
            )
        };
        assert_eq!(
            [at(0), at(1), at(999), at(1000)],
            [Some(0), None, None, Some(2)]
        );
    }

    fn to(number: usize) -> Subject {
        let target = format!("192.0.2.1:{}", number + 1).parse().unwrap();
        Subject {
            reason: None,
            target: Some(TargetAddr(target)),
        }
    }

    #[test]
    fn one_target_does_not_hide_another() {
        let reporter = reporter(Verbosity::Quiet, Protocol::Tcp);
        let now = Instant::now();
        let due = |number| reporter.due_at(Count::UpstreamFailed, to(number), now);
        assert_eq!(
            [due(1), due(1), due(2), due(2)],
            [Some(0), None, Some(0), None]
        );
    }

    #[test]
    fn any_number_of_targets_takes_bounded_memory_and_lines() {
        let reporter = reporter(Verbosity::Quiet, Protocol::Udp);
        let start = Instant::now();
        let minute = |minute: u64| {
            let now = start + Duration::from_secs(60 * minute);
            let due = |number| reporter.due_at(Count::UpstreamFailed, to(number), now);
            (0..10_000).filter_map(due).collect::<Vec<_>>()
        };
        let lines = minute(0);
        assert_eq!(lines.len(), SUBJECTS + 1);
        let ledger = &reporter.ledgers[Count::UpstreamFailed as usize];
        assert_eq!(ledger.lock().unwrap().subjects.capacity(), SUBJECTS);
        // Those that no line told of are in the next one's count.
        let lines = minute(1);
        assert_eq!(lines.len(), SUBJECTS + 1);
        assert_eq!(lines.iter().sum::<u64>(), 10_000 - (SUBJECTS as u64 + 1));
    }

    #[test]
    fn a_target_that_was_not_told_apart_is_when_an_entry_is_free() {
        let reporter = reporter(Verbosity::Quiet, Protocol::Tcp);
        let start = Instant::now();
        let due = |number, seconds| {
            let now = start + Duration::from_secs(seconds);
            reporter.due_at(Count::UpstreamFailed, to(number), now)
        };
        (0..SUBJECTS).for_each(|number| assert_eq!(due(number, 0), Some(0)));
        assert_eq!(due(0, 1), None);
        assert_eq!(due(100, 1), Some(0));
        assert_eq!(due(101, 2), None);
        assert_eq!(due(101, 60), Some(0));
        assert_eq!(due(1, 60), Some(0));
        (200..200 + SUBJECTS - 2).for_each(|number| assert_eq!(due(number, 61), Some(0)));
        // Its count has what was held back of 0 and of 101, which have no entry any more.
        assert_eq!(due(300, 61), Some(2));
    }
}
