//! The one place where the wall clock is read.
//!
//! Clocks decide when to give something up and what a person is told, never what is safe or what is consistent.

use chrono::{DateTime, Utc};

/// The present time.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that the ban points to"
)]
pub fn now() -> DateTime<Utc> {
    Utc::now()
}
