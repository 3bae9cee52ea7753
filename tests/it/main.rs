//! The tests that look at Firebank from outside: through its public API and its binary.
//!
//! One test binary, so that the crate and its dependencies are linked once.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod archive_damage;
mod archive_golden;
mod archive_layers;
mod archive_roundtrip;
mod archive_sessions;
mod archive_support;
mod backup_full_disk;
mod bucket_faults;
mod bucket_requests;
mod bucket_rights;
mod buckets;
mod cli_clean;
mod cli_commands;
mod cli_damage;
mod cli_diff;
mod cli_faults;
mod cli_input;
mod cli_json;
mod cli_safety;
mod cli_support;
mod compaction;
mod conformance;
mod consistency;
mod dedup;
mod faults;
mod firestore_client;
mod incremental;
mod leases;
mod migrations_drift;
mod migrations_kills;
mod migrations_library;
mod migrations_lock;
mod migrations_manager;
mod migrations_runner;
mod migrations_support;
mod model;
mod protocol_model;
mod prune;
mod prune_beside;
mod resume;
mod retention;
mod roundtrip;
mod sandbox;
mod scale;
mod stops;
mod store_conformance;
mod store_faults;
mod strange_store;
mod support;
mod unknown_values;
