//! The repository format: what a backup writes and what a restore reads.
//!
//! A snapshot is a stack of sorted runs over immutable, content-addressed chunks; names and bodies live apart. See
//! `FORMAT.md` beside this file for the bytes.
//!
//! Writing: [`Session::begin`] → [`Session::range_writer`] (documents of the database, cut by content) or
//! [`Session::exact_range_writer`] (layers: tombstones, reused bodies) → [`RangeWriter::finish`] → [`Session::commit`].
//! Reading: [`Repository::resolve`] → [`Repository::reader`] → [`SnapshotReader::records`] (names only),
//! [`SnapshotReader::documents`], [`SnapshotReader::get`]. Checking: [`check_contents`], [`check_presence`].
//!
//! The archive knows neither Firestore nor the operations; it takes and gives documents as bytes.

mod budget;
pub mod check;
pub mod chunk;
mod commit;
pub mod counts;
pub mod cut;
mod documents;
pub mod envelope;
pub mod error;
pub mod filter;
mod heap;
pub mod ids;
pub mod index_page;
mod index_writer;
mod merge;
pub mod range_writer;
pub mod reader;
pub mod record;
pub mod repository;
pub mod run;
mod sealed;
pub mod selection;
pub mod session;
pub mod snapshot;

pub use check::{CheckStats, DamageReport, DataSubset, check_contents, check_presence};
pub use chunk::ChunkKind;
pub use counts::{Count, Counts};
pub use documents::DocumentSink;
pub use error::{ArchiveError, Damage, DamageKind, Result};
pub use ids::{ChunkId, ChunkRef, LeaseId, RepositoryId, RunId, SessionId, SnapshotId};
pub use range_writer::{Flow, RangeOutput, RangeWriter, StoredDocument, WriteStats};
pub use reader::SnapshotReader;
pub use record::{BodyLocation, RecordBatch, RecordRef};
pub use repository::{Parameters, Repository, SnapshotFilter, SnapshotListing};
pub use selection::Selection;
pub use session::{Plan, Session, SessionOptions, SnapshotDraft, Totals};
pub use snapshot::{Consistency, Decision, RangeTime, RunRef, Snapshot, SnapshotKind, SnapshotStats};
