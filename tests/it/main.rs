//! The tests that look at Firebank from outside: through its public API and its binary.
//!
//! One test binary, so that the crate and its dependencies are linked once.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod conformance;
mod sandbox;
mod support;
