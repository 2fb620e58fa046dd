//! How long something took, counted in a few buckets. To count takes no lock and no memory.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of the buckets, in microseconds; one more bucket takes what is above.
const BOUNDS: [u64; 11] = [
    100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000, 10_000_000,
];

/// Times, by bucket.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    /// All of them together, in microseconds.
    sum: AtomicU64,
}

/// What histograms held, perhaps of several workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Times {
    buckets: [u64; BOUNDS.len() + 1],
    sum: u64,
}

impl Histogram {
    /// Counts a time.
    pub fn observe(&self, time: Duration) {
        let time = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS.iter().position(|bound| time <= *bound);
        self.buckets[bucket.unwrap_or(BOUNDS.len())].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(time, Ordering::Relaxed);
    }
}

impl Times {
    /// Adds what a histogram holds.
    pub fn add(&mut self, histogram: &Histogram) {
        for (count, bucket) in self.buckets.iter_mut().zip(&histogram.buckets) {
            *count += bucket.load(Ordering::Relaxed);
        }
        self.sum += histogram.sum.load(Ordering::Relaxed);
    }

    /// How many times there are.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together, in seconds.
    pub fn sum(&self) -> f64 {
        seconds(self.sum)
    }

    /// The upper bound of each bucket, in seconds, and how many times fell into that one.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.iter().map(|bound| seconds(*bound));
        bounds.chain([f64::INFINITY]).zip(self.buckets)
    }
}

fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_time_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [0, 100, 101, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let mut times = Times::default();
        times.add(&histogram);
        times.add(&histogram);
        let filled: Vec<_> = times.buckets().filter(|(_, count)| *count > 0).collect();
        let expected = [(0.0001, 4), (0.0005, 2), (10.0, 2), (f64::INFINITY, 2)];
        assert_eq!(filled, expected);
        assert_eq!((times.count(), times.sum()), (10, 40.000_404));
    }
}
