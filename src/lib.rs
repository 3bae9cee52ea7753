//! Firebank: streaming backup, restore and migration for Google Cloud Firestore.
//!
//! # The rooms
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`document`] | the data model: paths and their order, values, canonical MessagePack, the protobuf side, typed JSON. Pure |
//! | [`firestore`] | the database: connect, scan key ranges, split the key space, fetch by name, write in bulk, retry |
//! | [`store`] | objects in a folder, in a bucket or in memory, created once, requests counted |
//! | [`archive`] | the repository's format: chunks, runs, snapshots, sessions, the merge that reads a snapshot |
//! | [`json`] | the JSON files for compatibility, and NDJSON |
//! | [`backup`](mod@backup), [`restore`](mod@restore), [`verify`](mod@verify), [`compact`](mod@compact), [`prune`](mod@prune), [`export`], [`import`](mod@import), [`diff`](mod@diff), [`history`](mod@history) | the operations, one file each: options in, stats out |
//! | [`migration`] | scripts that change a database: the engine they run in, their history and lock, and the way back |
//! | [`schedule`] | crontabs, units and manifests for what starts the jobs of the nights and weeks |
//! | [`sandbox`] | an embedded Firestore for the demonstration, the tests and the benchmarks |
//! | [`cost`] | what operations cost: units in money, and bytes that leave a region |
//! | [`clock`], [`stop`], [`task`], [`progress`], [`path_filter`], [`compare`](mod@compare) | what operations share: the time, how to end early, who of several processes one is, what is told meanwhile, which documents, two sides document by document |
//! | [`cli`] | the command line |
//!
//! Arrows point one way: `cli` → operations → `archive`, `firestore` → `store`, `document`. The archive does
//! not know Firestore and Firestore does not know the archive; only the operations know both.
//!
//! # The way of the data
//!
//! ```text
//! backup    firestore::scan ──► DocumentBatch ──► archive::RangeWriter ──► store
//!           (pages of key       (canonical        (cut, compress, hash,    (created once)
//!           ranges, parallel)   bodies)           index)
//!
//! …upon a   firestore::scan (names) ──┬──► what differs ──► firestore::get_documents ──► archive::LayerWriter ──► store
//! parent    SnapshotReader::records ──┘    (merge by key)
//!
//! restore   store ──► archive::SnapshotReader ──► decide: what to write ──► firestore::BulkWriter
//!                     (k-way merge of runs)       (mode, selection,         (acknowledged range by range,
//!                                                 references)               so that it can go on)
//!
//! verify    store ──► re-hash, decode, order and counts        (live: merge-join with firestore::scan)
//!
//! migrate   a script ──► migration::engine ──► before-images into the archive ──► firestore::ConditionalWriter
//! ```
//!
//! Documents travel in [`document::DocumentBatch`]es; every stage waits for the next one, so that nothing
//! piles up.
//!
//! The messages of errors are written for those who use the command line: some say which of its options helps.

pub mod archive;
pub mod backup;
pub mod cli;
pub mod clock;
pub mod compact;
pub mod compare;
pub mod cost;
pub mod diff;
pub mod document;
pub mod export;
pub mod firestore;
pub mod history;
pub mod import;
pub mod json;
pub mod migration;
pub mod path_filter;
pub mod progress;
pub mod prune;
mod records;
pub mod restore;
pub mod sandbox;
pub mod schedule;
pub mod stop;
pub mod store;
pub mod task;
pub mod verify;
