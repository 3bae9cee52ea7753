//! Servers for tests: the sandbox, buckets, and Google's emulator where it is installed.
//!
//! Tests that share a server keep apart by projects of their own: see [`project`].

pub(crate) mod buckets;
mod emulator;
pub(crate) mod operations;
pub(crate) mod plain;
pub(crate) mod pruning;
pub(crate) mod tools;

use std::sync::atomic::{AtomicU64, Ordering};

use firebank::sandbox::{Sandbox, SandboxConfig};

pub(crate) use emulator::emulator;

/// A sandbox of the test's own, without faults.
pub(crate) async fn sandbox() -> Sandbox {
    sandbox_with(SandboxConfig::default()).await
}

/// A sandbox of the test's own.
pub(crate) async fn sandbox_with(config: SandboxConfig) -> Sandbox {
    Sandbox::start(config)
        .await
        .expect("the sandbox starts on a free port")
}

/// A project that no other test has, in this process or another.
pub(crate) fn project(test: &str) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("demo-{test}-{}-{number}", std::process::id())
}
