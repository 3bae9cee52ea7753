//! How fast to read: a limit over all streams of a connection, and what the database makes of it.
//!
//! Whoever reads a database at night reads it beside its users. So documents are paid for **before** they are asked for: a query
//! has a limit, and is sent when there is room for as many documents. That way a server is never asked for more than the rate, where
//! a pause between two answers would leave it with a window full of documents that it had read already. Under a limit queries are
//! short, a quarter of a second's worth, so that streams take turns.
//!
//! What comes back lowers the limit, by the same rules that writers follow (see [`throttle`](super::throttle)): where more than one
//! document in five that was asked for was in a query that the server refused (RESOURCE_EXHAUSTED, ABORTED), no more is asked for than
//! 1.25 times what it gave of late, and that recovers by a twentieth a second. That holds with and without a rate. Where a rate was
//! asked for, somebody cares for the database's other users, and a query that is slow to begin counts for half refused: one whose
//! first answer takes longer than a second and three times as long as it did at best.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tonic::{Code, Status};

use super::throttle::{Clock, SystemClock, Throttle, ThrottleOptions};

/// However much is refused, this many documents a second are tried.
const LEAST_RATE: f64 = 500.0;
/// The part of a second's documents that a query asks for under a limit.
const QUERY_SECONDS: f64 = 0.25;
/// A query asks for at least as many, so that the queries themselves are not what a server has to do.
const LEAST_QUERY: u32 = 100;
/// An answer that begins sooner is not slow.
const SLOW: Duration = Duration::from_secs(1);
/// How many times as long as at best a slow answer takes to begin.
const SLOWER: f64 = 3.0;

/// Lets so many documents a second be asked for. Shared by everything that reads.
#[derive(Debug)]
pub(super) struct ReadRate {
    throttle: Throttle,
    /// Whether slow answers count.
    watches_latency: bool,
    /// The shortest time to a first answer.
    best: Mutex<Option<Duration>>,
    /// Documents that a request brings, about.
    usual: AtomicUsize,
}

impl ReadRate {
    /// With a limit in documents a second, if there is to be one.
    pub(super) fn new(rate: Option<f64>) -> Self {
        Self::with_clock(rate, Arc::new(SystemClock))
    }

    fn with_clock(rate: Option<f64>, clock: Arc<dyn Clock>) -> Self {
        let options = ThrottleOptions {
            rate,
            ramp: false,
            adaptive: true,
        };
        Self {
            throttle: Throttle::with_clock(options, clock).with_least_rate(LEAST_RATE),
            watches_latency: rate.is_some(),
            best: Mutex::default(),
            usual: AtomicUsize::new(1),
        }
    }

    /// Documents a second at the moment; `None` without a limit.
    pub(super) fn current(&self) -> Option<f64> {
        self.throttle.current_rate()
    }

    /// Waits until a query may ask for documents, and says for how many: no more than `wanted`.
    pub(super) async fn query(&self, wanted: u32) -> u32 {
        let documents = match self.throttle.current_rate() {
            None => return wanted,
            Some(rate) => {
                let share = (rate * QUERY_SECONDS) as u32;
                wanted.min(share.max(LEAST_QUERY).min((rate as u32).max(1)))
            }
        };
        self.throttle.acquire(documents as usize).await;
        documents
    }

    /// Waits until so many documents may be asked for by name.
    pub(super) async fn names(&self, documents: usize) {
        self.throttle.acquire(documents).await;
    }

    /// A request brought so many documents, the first of them after this time.
    pub(super) fn answered(&self, documents: u64, first_after: Option<Duration>) {
        let documents = usize::try_from(documents.max(1)).unwrap_or(usize::MAX);
        self.usual.store(documents, Ordering::Relaxed);
        let slow = first_after.is_some_and(|latency| self.is_slow(latency));
        let refused = if slow { documents / 2 } else { 0 };
        self.throttle.answered(documents, refused, Duration::ZERO);
    }

    /// A request has failed. What it would have brought is taken to be what the last one did.
    pub(super) fn refused(&self, status: &Status) {
        if matches!(status.code(), Code::ResourceExhausted | Code::Aborted) {
            let documents = self.usual.load(Ordering::Relaxed);
            self.throttle.answered(documents, documents, Duration::ZERO);
        }
    }

    fn is_slow(&self, latency: Duration) -> bool {
        let mut best = self.best.lock().unwrap_or_else(PoisonError::into_inner);
        let shortest = best.map_or(latency, |best| best.min(latency));
        *best = Some(shortest);
        self.watches_latency && latency > SLOW && latency > shortest.mul_f64(SLOWER)
    }
}

#[cfg(test)]
mod tests {
    use super::super::throttle::tests::FakeClock;
    use super::*;

    /// Documents a second that streams get which ask for as many as they may, of a server that refuses every n-th request,
    /// and answers after this time.
    async fn read(
        rate: &ReadRate,
        clock: &FakeClock,
        seconds: u64,
        refuse_every: u64,
        latency: Duration,
    ) -> f64 {
        let begin = clock.now();
        let (mut documents, mut requests) = (0, 0);
        while clock.now() - begin < Duration::from_secs(seconds) {
            let asked = rate.query(10_000).await;
            requests += 1;
            if refuse_every > 0 && requests % refuse_every == 0 {
                rate.refused(&Status::resource_exhausted("quota"));
            } else {
                rate.answered(asked.into(), Some(latency));
                documents += u64::from(asked);
            }
            // Without a limit, something has to take time.
            clock.pass(Duration::from_millis(2));
        }
        documents as f64 / seconds as f64
    }

    const FAST: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn a_rate_is_kept_by_short_queries() {
        for wanted in [1.0, 150.0, 1000.0, 40_000.0] {
            let clock = FakeClock::new();
            let rate = ReadRate::with_clock(Some(wanted), clock.clone());
            let first = rate.query(10_000).await;
            assert!(
                f64::from(first) <= wanted.max(1.0),
                "{first} at once of {wanted} a second"
            );
            let got = read(&rate, &clock, 400, 0, FAST).await;
            assert!(
                (wanted * 0.95..=wanted * 1.05 + 1.0).contains(&got),
                "{got} of {wanted}"
            );
        }
    }

    #[tokio::test]
    async fn nothing_is_limited_where_nothing_is_asked_for_or_refused() {
        let clock = FakeClock::new();
        let rate = ReadRate::with_clock(None, clock.clone());
        read(&rate, &clock, 60, 0, Duration::from_secs(30)).await;
        assert_eq!((rate.current(), rate.query(10_000).await), (None, 10_000));
        // One in ten is an accident.
        read(&rate, &clock, 60, 10, FAST).await;
        assert_eq!(rate.current(), None);
    }

    #[tokio::test]
    async fn refusals_lower_the_rate_and_it_recovers() {
        for asked in [None, Some(20_000.0)] {
            let clock = FakeClock::new();
            let rate = ReadRate::with_clock(asked, clock.clone());
            let before = read(&rate, &clock, 30, 0, FAST).await;
            let pushed_back = read(&rate, &clock, 60, 2, FAST).await;
            assert!(pushed_back < before / 2.0, "{pushed_back} after {before}");
            let least = rate.current().unwrap();
            assert!(least >= LEAST_RATE && least < before, "{least}");
            read(&rate, &clock, 600, 0, FAST).await;
            assert_eq!(rate.current(), asked);
        }
    }

    #[tokio::test]
    async fn slow_answers_lower_a_rate_that_was_asked_for() {
        let clock = FakeClock::new();
        let rate = ReadRate::with_clock(Some(20_000.0), clock.clone());
        read(&rate, &clock, 30, 0, FAST).await;
        // Less than a second is nothing to worry about.
        read(&rate, &clock, 30, 0, Duration::from_millis(900)).await;
        assert_eq!(rate.current(), Some(20_000.0));
        let slowed = read(&rate, &clock, 60, 0, Duration::from_secs(3)).await;
        assert!(slowed < 10_000.0, "{slowed}");
        read(&rate, &clock, 600, 0, FAST).await;
        assert_eq!(rate.current(), Some(20_000.0));
    }
}
