//! Which failures are worth another attempt, and how long to wait before it.
//!
//! Google's list for reads and writes alike: UNAVAILABLE, INTERNAL, ABORTED, RESOURCE_EXHAUSTED and
//! DEADLINE_EXCEEDED, and what a broken connection looks like. Anything else says the same thing every time it
//! is asked. The wait is exponential with full jitter
//! (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>), so that many streams that were
//! cut at once do not come back at once.

use std::time::Duration;

use rand::RngExt;
use tonic::{Code, Status};

/// How often and after how long a failed request is sent again.
#[derive(Clone, Debug, PartialEq)]
pub struct RetryPolicy {
    /// The longest wait before the second attempt. It doubles with every further one.
    pub base: Duration,
    /// The longest wait before any attempt.
    pub cap: Duration,
    /// Attempts in a row without progress, the first included, before the request is given up.
    pub attempts: u32,
}

impl Default for RetryPolicy {
    /// Twelve attempts with waits up to 32 s: about a minute on average before giving up.
    fn default() -> Self {
        Self {
            base: Duration::from_millis(100),
            cap: Duration::from_secs(32),
            attempts: 12,
        }
    }
}

impl RetryPolicy {
    /// Hardly any waiting, and so many attempts that no request fails in all of them where only chance fails it: for tests.
    pub fn quick() -> Self {
        Self {
            base: Duration::from_millis(1),
            cap: Duration::from_millis(10),
            attempts: 50,
        }
    }
}

/// The attempts of one request, or of one stream that is resumed.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    policy: RetryPolicy,
    failures: u32,
}

impl Backoff {
    pub(super) fn new(policy: RetryPolicy) -> Self {
        Self { policy, failures: 0 }
    }

    /// Something arrived: what failed before does not count any more.
    pub(super) fn progressed(&mut self) {
        self.failures = 0;
    }

    /// Attempts that have failed in a row.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Notes a failure. The wait before the next attempt, `None` when there is none left.
    pub(super) fn next_wait(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.policy.attempts {
            return None;
        }
        let doublings = (self.failures - 1).min(20);
        let longest = self
            .policy
            .base
            .saturating_mul(1 << doublings)
            .min(self.policy.cap);
        Some(longest.mul_f64(rand::rng().random_range(0.0..=1.0)))
    }
}

/// Whether another attempt may succeed.
pub(super) fn is_retryable(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable
        | Code::Internal
        | Code::Aborted
        | Code::ResourceExhausted
        | Code::DeadlineExceeded => true,
        // Not the server's words but a transport's: a reset stream or a connection that broke.
        Code::Unknown | Code::Cancelled => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

/// Whether the status of a single write within a batch is worth another attempt.
pub(super) fn is_retryable_code(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable | Code::Internal | Code::Aborted | Code::ResourceExhausted | Code::DeadlineExceeded
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_cap_and_end() {
        let policy = RetryPolicy {
            base: Duration::from_millis(100),
            cap: Duration::from_millis(500),
            attempts: 6,
        };
        let mut backoff = Backoff::new(policy);
        let longest = [100, 200, 400, 500, 500];
        for longest in longest {
            let wait = backoff.next_wait().unwrap();
            assert!(wait <= Duration::from_millis(longest), "{wait:?} <= {longest} ms");
        }
        assert_eq!(backoff.next_wait(), None);
        backoff.progressed();
        assert!(backoff.next_wait().unwrap() <= Duration::from_millis(100));
    }

    #[test]
    fn what_says_the_same_every_time_is_not_asked_again() {
        for code in [
            Code::InvalidArgument,
            Code::NotFound,
            Code::PermissionDenied,
            Code::Unauthenticated,
            Code::FailedPrecondition,
            Code::Unknown,
            Code::Cancelled,
        ] {
            assert!(!is_retryable(&Status::new(code, "")), "{code:?}");
        }
        for code in [
            Code::Unavailable,
            Code::Internal,
            Code::Aborted,
            Code::ResourceExhausted,
        ] {
            assert!(is_retryable(&Status::new(code, "")), "{code:?}");
        }
        let broken = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        assert!(is_retryable(&broken), "{broken:?}");
    }
}
