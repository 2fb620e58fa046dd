//! How much happens a second, by counts that are noted once a second.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::picture::label;
use crate::listeners::Listeners;
use crate::service::Record;
use crate::stats::Count;

/// Seconds that rates are taken over.
const WINDOW: usize = 5;

/// The counts of the last seconds, by listener.
#[derive(Debug, Default)]
pub struct Rates(Mutex<VecDeque<(Instant, BTreeMap<String, Counts>)>>);

#[derive(Clone, Copy, Debug)]
struct Counts {
    accepted: u64,
    refused: u64,
    bytes_up: u64,
    bytes_down: u64,
}

/// What happened at a listener each second, over the last few.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// Connections or UDP flows.
    pub accepted: f64,
    /// Connections or datagrams.
    pub refused: f64,
    /// Those of a TCP session count when it ends.
    pub bytes_up: f64,
    /// As `bytes_up`.
    pub bytes_down: f64,
}

impl Rates {
    /// Notes the counts once a second, until it is dropped.
    pub async fn follow(&self, listeners: &Listeners) -> Infallible {
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            second.tick().await;
            let services = listeners.services().await;
            let counts = services
                .iter()
                .map(|(service, _)| (label(service), Counts::of(&service.record)));
            let counts = counts.collect();
            let mut noted = self.noted();
            noted.push_back((Instant::now(), counts));
            if noted.len() > WINDOW {
                noted.pop_front();
            }
        }
    }

    /// What a listener does a second now.
    pub fn of(&self, label: &str, record: &Record) -> Rate {
        let noted = self.noted();
        let known =
            |(at, counts): &(Instant, BTreeMap<String, Counts>)| Some((*at, *counts.get(label)?));
        let before = noted.iter().find_map(known);
        before.map_or(Rate::default(), |(at, before)| {
            Counts::of(record).since(&before, at.elapsed())
        })
    }

    fn noted(&self) -> MutexGuard<'_, VecDeque<(Instant, BTreeMap<String, Counts>)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn of(record: &Record) -> Counts {
        Counts {
            accepted: record.count(Count::Accepted),
            refused: Count::REFUSALS.iter().map(|kind| record.count(*kind)).sum(),
            bytes_up: record.count(Count::BytesUp),
            bytes_down: record.count(Count::BytesDown),
        }
    }

    /// A listener that a reload took away and brought back counts from 0 again.
    fn since(&self, before: &Counts, time: Duration) -> Rate {
        let seconds = time.as_secs_f64().max(0.001);
        let rate = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        Rate {
            accepted: rate(self.accepted, before.accepted),
            refused: rate(self.refused, before.refused),
            bytes_up: rate(self.bytes_up, before.bytes_up),
            bytes_down: rate(self.bytes_down, before.bytes_down),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_what_came_since_by_time_and_never_negative() {
        let counts = |accepted, refused| Counts {
            accepted,
            refused,
            bytes_up: 0,
            bytes_down: 1000,
        };
        let rate = counts(30, 2).since(&counts(10, 8), Duration::from_secs(4));
        assert_eq!(
            (rate.accepted, rate.refused, rate.bytes_down),
            (5.0, 0.0, 0.0)
        );
    }
}
