//! How fast to write, or to read: a fixed rate, Firestore's own advice for new traffic, and what the database makes of it.
//!
//! Firestore splits its tablets as load arrives, which takes minutes. Its advice is to begin with 500
//! operations a second and to add half as much every five minutes
//! (<https://cloud.google.com/firestore/docs/best-practices#ramping_up_traffic>); faster, and writes fail
//! with ABORTED or RESOURCE_EXHAUSTED.
//!
//! Below that, two things are adapted to what comes back, with the numbers of Apache Beam's Firestore writer:
//!
//! - **The rate, to refusals.** A client that sends much more than the server takes only makes it slower. So where more than
//!   one write in five is refused, no more is sent than 1.25 times what was taken of late (the adaptive throttling of
//!   <https://sre.google/sre-book/handling-overload/> with K = 1.25). A few refusals, as of contended documents, change nothing.
//!   While less than that is refused, the rate recovers by a twentieth a second.
//! - **The size of requests, to latency.** A request should be answered within five seconds: one that takes longer comes near to
//!   deadlines, and holds up the tablet that it is at. So a request has no more writes than the last ones were answered in that time.

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
/// More than anybody waits: a rate may be as low as one likes.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// How many times what the server takes is sent to it.
const OVERSEND: f64 = 1.25;
/// However much is refused, this many writes a second are tried; [`Throttle::with_least_rate`] says otherwise.
const LEAST_RATE: f64 = 20.0;
/// How far back "of late" reaches.
const WINDOW: Duration = Duration::from_secs(10);
/// Fewer answers than this say nothing about how much the server takes.
const ENOUGH_ANSWERS: f64 = 50.0;
/// How much faster it goes for each second in which little is refused.
const RECOVERY_PER_SECOND: f64 = 1.05;
/// In which time a request should be answered.
const TARGET_LATENCY: Duration = Duration::from_secs(5);
/// A request has at least this many writes, however long it takes.
const LEAST_REQUEST: f64 = 10.0;
/// How much the newest request counts in the mean of the latency.
const NEWEST_WEIGHT: f64 = 0.2;

/// What a [`Throttle`] holds to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ThrottleOptions {
    /// Writes a second, at most.
    pub rate: Option<f64>,
    /// The ramp of 500/50/5.
    pub ramp: bool,
    /// What the server refuses, and how long it takes.
    pub adaptive: bool,
}

/// The least time that so many writes take under Firestore's ramp, begun at its start and never pushed back:
/// what a full restore into a database without other traffic takes at best, and so the recovery time that can
/// be promised.
pub fn ramp_time(writes: u64) -> Duration {
    write_time(writes, None, true).unwrap_or(Duration::MAX)
}

/// The least time that so many writes take at most `rate` writes a second, if one is given, and under the
/// ramp, if it is to be followed. `None` where neither bounds the time.
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
    options: ThrottleOptions,
    /// However much is refused, this many a second are tried.
    least_rate: f64,
    state: Mutex<State>,
}

struct State {
    started: Instant,
    /// When the writes let through so far are all paid for; in the past when there is credit.
    paid_until: Instant,
    /// What refusals have left; `None` while nothing is held back.
    limit: Option<f64>,
    /// Writes that were answered of late, and those of them that were taken.
    window: Window,
    /// When the limit was last looked at.
    looked_at: Instant,
    /// The mean of what a write takes in a request, in seconds.
    seconds_per_write: Option<f64>,
}

/// Counts that fade: what is [`WINDOW`] old counts little more than a third.
struct Window {
    since: Instant,
    answered: f64,
    taken: f64,
    /// The time that the counts stand for, in seconds.
    seconds: f64,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            answered: 0.0,
            taken: 0.0,
            seconds: 0.0,
        }
    }

    fn fade(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since).as_secs_f64();
        let kept = (-passed / WINDOW.as_secs_f64()).exp();
        self.answered *= kept;
        self.taken *= kept;
        self.seconds = self.seconds * kept + WINDOW.as_secs_f64() * (1.0 - kept);
        self.since = now;
    }

    /// Writes a second that are taken.
    fn taken_rate(&self) -> f64 {
        self.taken / self.seconds.max(1.0)
    }

    fn is_overloaded(&self) -> bool {
        self.answered >= ENOUGH_ANSWERS && self.answered > OVERSEND * self.taken
    }
}

impl std::fmt::Debug for Throttle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Throttle")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Throttle {
    /// A throttle whose ramp begins now.
    pub fn new(options: ThrottleOptions) -> Self {
        Self::with_clock(options, Arc::new(SystemClock))
    }

    /// The same by another clock.
    pub fn with_clock(options: ThrottleOptions, clock: Arc<dyn Clock>) -> Self {
        let now = clock.now();
        Self {
            clock,
            options: ThrottleOptions {
                rate: options.rate.filter(|rate| *rate > 0.0),
                ..options
            },
            least_rate: LEAST_RATE,
            state: Mutex::new(State {
                started: now,
                paid_until: now,
                limit: None,
                window: Window::new(now),
                looked_at: now,
                seconds_per_write: None,
            }),
        }
    }

    /// The same, which tries at least so many a second however much is refused.
    pub(super) fn with_least_rate(self, least_rate: f64) -> Self {
        Self { least_rate, ..self }
    }

    /// Waits until `writes` more may be sent. Calls are served in the order in which they are made.
    pub async fn acquire(&self, writes: usize) {
        if writes == 0 {
            return;
        }
        let wait = self.reserve(writes);
        self.wait(wait).await;
    }

    /// Waits until a place is there.
    pub(super) async fn wait(&self, wait: Duration) {
        if !wait.is_zero() {
            self.clock.sleep(wait).await;
        }
    }

    /// Takes the place of `writes` in time, and says how long it is until then.
    pub(super) fn reserve(&self, writes: usize) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        let Some(rate) = self.rate_at(&mut state, now) else {
            return Duration::ZERO;
        };
        let burst = Duration::from_secs_f64(BURST_SECONDS);
        let earliest = now.checked_sub(burst).unwrap_or(now).max(state.started);
        let begin = state.paid_until.max(earliest);
        let takes = Duration::try_from_secs_f64(writes as f64 / rate).unwrap_or(LONGEST);
        // A clock may have no such moment.
        state.paid_until = begin.checked_add(takes.min(LONGEST)).unwrap_or(begin);
        begin.saturating_duration_since(now)
    }

    /// A request of so many writes was answered, so many of which were refused because the server has too
    /// much to do, and it took so long.
    pub fn answered(&self, writes: usize, refused: usize, latency: Duration) {
        if !self.options.adaptive || writes == 0 {
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        state.window.fade(now);
        state.window.answered += writes as f64;
        state.window.taken += writes.saturating_sub(refused) as f64;
        // What a small request takes says little about the writes in it.
        if writes as f64 >= LEAST_REQUEST || latency > TARGET_LATENCY {
            let newest = latency.as_secs_f64() / writes as f64;
            let mean = state.seconds_per_write.unwrap_or(newest);
            state.seconds_per_write = Some(mean + NEWEST_WEIGHT * (newest - mean));
        }
        self.adapt(&mut state, now);
    }

    /// Writes that a request should have at most at the moment.
    pub fn request_writes(&self) -> usize {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.seconds_per_write {
            Some(seconds) if seconds > 0.0 => {
                (TARGET_LATENCY.as_secs_f64() / seconds).max(LEAST_REQUEST) as usize
            }
            _ => usize::MAX,
        }
    }

    /// Writes a second at the moment, `None` without a limit.
    pub fn current_rate(&self) -> Option<f64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.clock.now();
        self.rate_at(&mut state, now)
    }

    fn rate_at(&self, state: &mut State, now: Instant) -> Option<f64> {
        self.adapt(state, now);
        lower(self.asked_rate(state, now), state.limit)
    }

    /// What the options alone allow.
    fn asked_rate(&self, state: &State, now: Instant) -> Option<f64> {
        let ramp = self.options.ramp.then(|| {
            let steps = now.duration_since(state.started).as_secs() / RAMP_STEP.as_secs();
            // A hundred steps are eight hours and a rate that no limit is needed for.
            RAMP_START * RAMP_FACTOR.powi(steps.min(100) as i32)
        });
        lower(self.options.rate, ramp)
    }

    /// Looks once a second whether to hold back.
    fn adapt(&self, state: &mut State, now: Instant) {
        let seconds = now.saturating_duration_since(state.looked_at).as_secs();
        if seconds == 0 {
            return;
        }
        state.looked_at += Duration::from_secs(seconds);
        state.window.fade(now);
        let taken_rate = state.window.taken_rate();
        if state.window.is_overloaded() {
            let limit = (OVERSEND * taken_rate).max(self.least_rate);
            state.limit = lower(state.limit, Some(limit));
        } else if let Some(limit) = state.limit {
            let limit = limit * RECOVERY_PER_SECOND.powi(seconds.min(1000) as i32);
            // Held back no more once it is as fast as it would be anyway, or much faster than there is
            // anything to write.
            let is_enough = match self.asked_rate(state, now) {
                Some(asked) => limit >= asked,
                None => limit >= 10.0 * taken_rate.max(RAMP_START),
            };
            state.limit = (!is_enough).then_some(limit);
        }
    }
}

/// The lower of two limits, `None` being no limit.
fn lower(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A clock that stands still, but for those who sleep.
    pub(in crate::firestore) struct FakeClock {
        start: Instant,
        passed: Mutex<Duration>,
    }

    impl FakeClock {
        pub(in crate::firestore) fn new() -> Arc<Self> {
            Arc::new(Self {
                start: Instant::now(),
                passed: Mutex::default(),
            })
        }

        pub(in crate::firestore) fn pass(&self, time: Duration) {
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

    const RAMP: ThrottleOptions = ThrottleOptions {
        rate: None,
        ramp: true,
        adaptive: true,
    };

    /// Writes let through in a time, in batches of 100.
    async fn through(throttle: &Throttle, clock: &FakeClock, time: Duration) -> f64 {
        serve(throttle, clock, time, f64::INFINITY).await.0
    }

    /// The same to a server that takes so many writes a second and refuses the others: writes a second that
    /// were sent, and that were taken.
    async fn serve(throttle: &Throttle, clock: &FakeClock, time: Duration, takes: f64) -> (f64, f64) {
        let begin = clock.now();
        let (mut sent, mut taken) = (0.0, 0.0);
        while clock.now().duration_since(begin) < time {
            throttle.acquire(100).await;
            let passed = clock.now().duration_since(begin).as_secs_f64();
            let room = (takes * passed.max(0.1) - taken).clamp(0.0, 100.0).floor();
            sent += 100.0;
            taken += room;
            throttle.answered(100, 100 - room as usize, Duration::from_millis(50));
        }
        let seconds = time.as_secs_f64();
        (sent / seconds, taken / seconds)
    }

    #[test]
    fn a_rate_that_takes_for_ever_is_no_accident() {
        for rate in [1e-20, 1e-300, f64::MIN_POSITIVE] {
            let throttle = Throttle::new(ThrottleOptions {
                rate: Some(rate),
                ..ThrottleOptions::default()
            });
            throttle.reserve(1);
            assert!(throttle.reserve(500) > Duration::from_secs(1 << 30));
            assert!(throttle.reserve(500) > Duration::from_secs(1 << 30));
        }
    }

    #[tokio::test]
    async fn a_rate_is_kept() {
        let clock = FakeClock::new();
        let options = ThrottleOptions {
            rate: Some(1000.0),
            ..ThrottleOptions::default()
        };
        let throttle = Throttle::with_clock(options, clock.clone());
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
        let throttle = Throttle::with_clock(RAMP, clock.clone());
        let mut expected = 500.0;
        for step in 0..6 {
            let rate = through(&throttle, &clock, Duration::from_secs(290)).await;
            assert!(
                (0.98 * expected..1.02 * expected).contains(&rate),
                "step {step}: {rate}"
            );
            let into_next = RAMP_STEP * (step + 1) + Duration::from_secs(1);
            let passed = *clock.passed.lock().unwrap();
            clock.pass(into_next.saturating_sub(passed));
            expected *= 1.5;
        }
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
        let throttle = Throttle::with_clock(RAMP, clock.clone());
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
        let throttle = Throttle::with_clock(ThrottleOptions::default(), clock.clone());
        throttle.acquire(10_000_000).await;
        assert_eq!(*clock.passed.lock().unwrap(), Duration::ZERO);
        // Nor does it hold back what was asked to go as fast as it can.
        throttle.answered(500, 500, Duration::from_secs(60));
        clock.pass(Duration::from_secs(5));
        assert_eq!(
            (throttle.current_rate(), throttle.request_writes()),
            (None, usize::MAX)
        );
    }

    #[tokio::test]
    async fn it_sends_little_more_than_is_taken_and_recovers() {
        let clock = FakeClock::new();
        let throttle = Throttle::with_clock(RAMP, clock.clone());
        serve(&throttle, &clock, Duration::from_secs(60), 100.0).await;
        let (sent, taken) = serve(&throttle, &clock, Duration::from_secs(120), 100.0).await;
        assert!((90.0..105.0).contains(&taken), "{taken}");
        assert!((105.0..150.0).contains(&sent), "{sent}");
        // The server takes everything again, and in less than a minute the ramp is all that counts.
        serve(&throttle, &clock, Duration::from_secs(60), f64::INFINITY).await;
        assert_eq!(throttle.current_rate(), Some(500.0));
    }

    #[tokio::test]
    async fn a_server_that_takes_nothing_is_tried_again_and_again() {
        let clock = FakeClock::new();
        let throttle = Throttle::with_clock(RAMP, clock.clone());
        serve(&throttle, &clock, Duration::from_secs(60), 0.0).await;
        assert_eq!(throttle.current_rate(), Some(LEAST_RATE));
        serve(&throttle, &clock, Duration::from_secs(120), f64::INFINITY).await;
        assert_eq!(throttle.current_rate(), Some(500.0));
    }

    #[tokio::test]
    async fn a_few_contended_documents_change_nothing() {
        let clock = FakeClock::new();
        let throttle = Throttle::with_clock(RAMP, clock.clone());
        for _ in 0..300 {
            throttle.acquire(500).await;
            throttle.answered(500, 75, Duration::from_millis(200));
        }
        assert_eq!(throttle.current_rate(), Some(500.0));
    }

    #[tokio::test]
    async fn requests_shrink_until_they_are_answered_in_time() {
        let clock = FakeClock::new();
        let throttle = Throttle::with_clock(RAMP, clock.clone());
        assert_eq!(throttle.request_writes(), usize::MAX);
        // A server that takes 40 ms a write.
        for _ in 0..50 {
            let writes = throttle.request_writes().min(500);
            clock.pass(Duration::from_secs(1));
            throttle.answered(writes, 0, Duration::from_millis(40 * writes as u64));
        }
        assert_eq!(throttle.request_writes(), 125);
        for _ in 0..50 {
            throttle.answered(100, 0, Duration::from_millis(100));
        }
        assert!(throttle.request_writes() > 500);
        for _ in 0..50 {
            throttle.answered(10, 0, Duration::from_secs(30));
        }
        assert_eq!(throttle.request_writes(), LEAST_REQUEST as usize);
    }
}
