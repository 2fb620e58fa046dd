//! At most so many calls a second, and as many at once.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// A bucket that fills by `rate` a second and holds a second's worth.
#[derive(Debug)]
pub struct Rate {
    rate: f64,
    bucket: Mutex<(f64, Instant)>,
}

impl Rate {
    /// A full bucket.
    pub fn new(rate: u32) -> Rate {
        let rate = f64::from(rate);
        Rate {
            rate,
            bucket: Mutex::new((rate, Instant::now())),
        }
    }

    /// Whether one more may pass now.
    pub fn pass(&self) -> bool {
        self.pass_at(Instant::now())
    }

    fn pass_at(&self, now: Instant) -> bool {
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let passed = now.saturating_duration_since(bucket.1).as_secs_f64();
        let filled = (bucket.0 + passed * self.rate).min(self.rate);
        let pass = filled >= 1.0;
        *bucket = (if pass { filled - 1.0 } else { filled }, now);
        pass
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_second_lets_as_many_pass_as_the_rate_says() {
        let rate = Rate::new(100);
        let start = Instant::now();
        let passed = |at: u64, calls| {
            let now = start + Duration::from_millis(at);
            (0..calls).filter(|_| rate.pass_at(now)).count()
        };
        assert_eq!(passed(0, 1000), 100);
        assert_eq!(passed(100, 1000), 10);
        assert_eq!(passed(60_000, 1000), 100);
    }
}
