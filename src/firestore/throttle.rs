//! How fast to write: a fixed rate, or Firestore's own advice for new traffic.
//!
//! Firestore splits its tablets as load arrives, which takes minutes. Its advice is to begin with 500 operations a
//! second and to add half as much every five minutes
//! (<https://cloud.google.com/firestore/docs/best-practices#ramping_up_traffic>); faster, and writes fail with
//! ABORTED or RESOURCE_EXHAUSTED. When that happens anyway, the rate is cut and recovers step by step.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;

/// Time for a throttle: the system's, or a test's.
pub trait Clock: Send + Sync {
    /// The present, for durations.
    fn now(&self) -> Instant;
    /// Waits.
    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()>;
}

/// The machine's own monotonic clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::now()
    }

    fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(wait))
    }
}

const RAMP_START: f64 = 500.0;
const RAMP_FACTOR: f64 = 1.5;
const RAMP_STEP: Duration = Duration::from_secs(300);
/// What may be sent at once after a pause, as a part of a second's worth.
const BURST_SECONDS: f64 = 1.0;
/// A server that pushes back is asked for this much less, at most once a second, down to the least.
const PUSH_BACK_FACTOR: f64 = 0.7;
const LEAST_ALLOWED: f64 = 0.04;
/// How much of the cut is taken back for each second without a push-back.
const RECOVERY_PER_SECOND: f64 = 1.05;

/// The least time that so many writes take under Firestore's ramp, begun at its start and never pushed back: what a full
/// restore into a database without other traffic takes at best, and so the recovery time that can be promised.
pub fn ramp_time(writes: u64) -> Duration {
    write_time(writes, None, true).unwrap_or(Duration::MAX)
}

/// The least time that so many writes take at most `rate` writes a second, if one is given, and under the ramp, if it is to
/// be followed. `None` where neither bounds the time.
pub fn write_time(writes: u64, rate: Option<f64>, ramp: bool) -> Option<Duration> {
    let rate = rate.filter(|rate| *rate > 0.0);
    let seconds = |seconds| Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
    if !ramp {
        return rate.map(|rate| seconds(writes as f64 / rate));
    }
    let most = rate.unwrap_or(f64::INFINITY);
    let (mut left, mut passed, mut allowed) = (writes as f64, 0.0, RAMP_START);
    // The rate grows geometrically, so this ends after some eighty steps at most.
    loop {
        let now = allowed.min(most);
        let step = now * RAMP_STEP.as_secs_f64();
        if left <= step || allowed >= most {
            return Some(seconds(passed + left / now));
        }
        left -= step;
        passed += RAMP_STEP.as_secs_f64();
        allowed *= RAMP_FACTOR;
    }
}

/// Lets so many writes a second through. Shared by everything that writes.
pub struct Throttle {
    clock: Arc<dyn Clock>,
    rate: Option<f64>,
    ramp: bool,
    state: Mutex<State>,
}

struct State {
    started: Instant,
    /// When the writes let through so far are all paid for; in the past when there is credit.
    paid_until: Instant,
    /// The part of the rate that push-backs have left.
    allowed: f64,
    /// The last push-back that counted.
    pushed_back: Option<Instant>,
    /// Up to when recovery is in `allowed`.
    recovered: Instant,
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle")
            .field("rate", &self.rate)
            .field("ramp", &self.ramp)
            .finish_non_exhaustive()
    }
}

impl Throttle {
    /// At most `rate` writes a second if given, and no faster than the ramp if wished. The ramp begins now.
    pub fn new(rate: Option<f64>, ramp: bool) -> Self {
        Self::with_clock(rate, ramp, Arc::new(SystemClock))
    }

    /// The same by another clock.
    pub fn with_clock(rate: Option<f64>, ramp: bool, clock: Arc<dyn Clock>) -> Self {
        let now = clock.now();
        Self {
            clock,
            rate: rate.filter(|rate| *rate > 0.0),
            ramp,
            state: Mutex::new(State {
                started: now,
                paid_until: now,
                allowed: 1.0,
                pushed_back: None,
                recovered: now,
            }),
        }
    }

    /// Waits until `writes` more may be sent. Calls are served in the order in which they are made.
    pub async fn acquire(&self, writes: usize) {
        let wait = self.reserve(writes);
        if !wait.is_zero() {
            self.clock.sleep(wait).await;
        }
    }

    /// Takes the place of `writes` in time, and says how long it is until then.
    fn reserve(&self, writes: usize) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let Some(rate) = self.rate_at(&mut state, now) else {
            return Duration::ZERO;
        };
        let burst = Duration::from_secs_f64(BURST_SECONDS);
        let earliest = now.checked_sub(burst).unwrap_or(now).max(state.started);
        let begin = state.paid_until.max(earliest);
        state.paid_until = begin + Duration::from_secs_f64(writes as f64 / rate);
        begin.saturating_duration_since(now)
    }

    /// The server has asked for less.
    pub fn push_back(&self) {
        if !self.ramp {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        // Many answers say the same about one moment.
        let counts = state
            .pushed_back
            .is_none_or(|last| now.duration_since(last) >= Duration::from_secs(1));
        if counts {
            state.allowed = (state.allowed * PUSH_BACK_FACTOR).max(LEAST_ALLOWED);
            state.pushed_back = Some(now);
            state.recovered = now;
        }
    }

    /// Writes a second at the moment, `None` without a limit.
    pub fn current_rate(&self) -> Option<f64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        self.rate_at(&mut state, now)
    }

    fn rate_at(&self, state: &mut State, now: Instant) -> Option<f64> {
        if !self.ramp {
            return self.rate;
        }
        recover(state, now);
        let steps = now.duration_since(state.started).as_secs() / RAMP_STEP.as_secs();
        // A hundred steps are eight hours and a rate that no limit is needed for.
        let ramp = RAMP_START * RAMP_FACTOR.powi(steps.min(100) as i32);
        let rate = self.rate.map_or(ramp, |rate| rate.min(ramp));
        Some(rate * state.allowed)
    }
}

fn recover(state: &mut State, now: Instant) {
    let seconds = now.duration_since(state.recovered).as_secs();
    if state.allowed < 1.0 && seconds > 0 {
        let growth = RECOVERY_PER_SECOND.powi(seconds.min(1000) as i32);
        state.allowed = (state.allowed * growth).min(1.0);
        state.recovered += Duration::from_secs(seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct FakeClock {
        start: Instant,
        passed: Mutex<Duration>,
    }

    impl FakeClock {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                start: Instant::now(),
                passed: Mutex::default(),
            })
        }

        fn pass(&self, time: Duration) {
            *self.passed.lock().unwrap() += time;
        }
    }

    impl Clock for FakeClock {
        fn now(&self) -> Instant {
            self.start + *self.passed.lock().unwrap()
        }

        fn sleep(&self, wait: Duration) -> BoxFuture<'static, ()> {
            self.pass(wait);
            Box::pin(async {})
        }
    }

    /// Writes let through in a time, in batches of 100.
    async fn through(throttle: &Throttle, clock: &FakeClock, time: Duration) -> f64 {
        let begin = clock.now();
        let mut writes = 0;
        while clock.now().duration_since(begin) < time {
            throttle.acquire(100).await;
            writes += 100;
        }
        f64::from(writes) / time.as_secs_f64()
    }

    #[tokio::test]
    async fn a_rate_is_kept() {
        let clock = FakeClock::new();
        let throttle = Throttle::with_clock(Some(1000.0), false, clock.clone());
        let rate = through(&throttle, &clock, Duration::from_secs(30)).await;
        assert!((980.0..1020.0).contains(&rate), "{rate}");
        // A pause gives no more than a second's worth of credit.
        clock.pass(Duration::from_secs(60));
        let rate = through(&throttle, &clock, Duration::from_secs(10)).await;
        assert!((1000.0..1120.0).contains(&rate), "{rate}");
    }

    #[tokio::test]
    async fn the_ramp_is_500_50_5() {
        let clock = FakeClock::new();
        let throttle = Throttle::with_clock(None, true, clock.clone());
        let rate = through(&throttle, &clock, Duration::from_secs(290)).await;
        assert!((490.0..510.0).contains(&rate), "{rate}");
        clock.pass(Duration::from_secs(11));
        let rate = through(&throttle, &clock, Duration::from_secs(280)).await;
        assert!((740.0..765.0).contains(&rate), "{rate}");
        clock.pass(Duration::from_secs(3600));
        assert!(throttle.current_rate().unwrap() > 50_000.0);
    }

    #[test]
    fn the_ramp_tells_the_recovery_time() {
        let seconds = |writes| ramp_time(writes).as_secs_f64();
        assert_eq!(ramp_time(0), Duration::ZERO);
        assert_eq!(seconds(500), 1.0);
        assert_eq!(seconds(150_000), 300.0);
        // 150,000 in the first five minutes, then 750 a second.
        assert_eq!(seconds(150_000 + 7_500), 310.0);
        assert_eq!(seconds(150_000 + 225_000 + 11_250), 610.0);
        assert!((4_200.0..4_400.0).contains(&seconds(100_000_000)));
        assert!(seconds(u64::MAX) > seconds(u64::MAX / 2));

        let limited = |writes, rate, ramp| write_time(writes, rate, ramp).map(|time| time.as_secs_f64());
        assert_eq!(limited(1000, None, false), None);
        assert_eq!(limited(1000, Some(100.0), false), Some(10.0));
        assert_eq!(limited(1000, Some(100.0), true), Some(10.0));
        assert_eq!(limited(150_000 + 6_000, Some(600.0), true), Some(310.0));
        assert_eq!(write_time(u64::MAX, Some(1e-300), true), Some(Duration::MAX));
    }

    #[tokio::test]
    async fn the_time_that_the_ramp_tells_is_the_time_that_it_takes() {
        let clock = FakeClock::new();
        let throttle = Throttle::with_clock(None, true, clock.clone());
        let writes = 1_000_000;
        for _ in 0..writes / 100 {
            throttle.acquire(100).await;
        }
        let taken = clock.passed.lock().unwrap().as_secs_f64();
        let told = ramp_time(writes).as_secs_f64();
        assert!((told - taken).abs() < told * 0.01, "{told} {taken}");
    }

    #[tokio::test]
    async fn without_a_rate_and_a_ramp_nothing_waits() {
        let clock = FakeClock::new();
        let throttle = Throttle::with_clock(None, false, clock.clone());
        throttle.acquire(10_000_000).await;
        assert_eq!(*clock.passed.lock().unwrap(), Duration::ZERO);
    }

    #[tokio::test]
    async fn push_backs_cut_the_rate_and_it_recovers() {
        let clock = FakeClock::new();
        let throttle = Throttle::with_clock(None, true, clock.clone());
        for _ in 0..20 {
            throttle.push_back();
        }
        let once = throttle.current_rate().unwrap();
        assert!((349.0..351.0).contains(&once), "{once}");
        for _ in 0..60 {
            clock.pass(Duration::from_secs(1));
            throttle.push_back();
        }
        let low = throttle.current_rate().unwrap();
        assert!((19.0..21.0).contains(&low), "{low}");
        clock.pass(Duration::from_secs(120));
        assert!(throttle.current_rate().unwrap() > 499.0);
    }
}
