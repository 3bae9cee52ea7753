//! The repository format: what a backup writes and what a restore reads.
//!
//! A snapshot is a stack of sorted runs over immutable, content-addressed chunks; names and bodies live apart. See
//! `FORMAT.md` beside this file for the bytes.
//!
//! Writing: [`Session::begin`] → [`Session::range_writer`] (documents of the database, cut by content) or
//! [`Session::layer_writer`] (what changed since the parent) or [`Session::exact_range_writer`] (reused bodies) →
//! [`RangeWriter::finish`] → [`Session::commit`]. Changing documents elsewhere: [`Session::append_to_journal`] first.
//! Reading: [`Repository::resolve`] → [`Repository::reader`] → [`SnapshotReader::records`] (names only),
//! [`SnapshotReader::documents`], [`SnapshotReader::get`]; [`fn@changes`] between two; what takes long holds a [`Lease`]. Checking:
//! [`check_contents`], [`check_presence`]. Deleting: [`Repository::forget`], then [`fn@sweep`].
//!
//! The archive knows neither Firestore nor the operations; it takes and gives documents as bytes.

mod attachment;
mod budget;
pub mod changes;
pub mod check;
pub mod checkpoint;
pub mod chunk;
mod claims;
mod commit;
pub mod compact;
pub mod counts;
pub mod cut;
mod documents;
pub mod envelope;
pub mod error;
pub mod filter;
pub mod forget;
mod heap;
pub mod heartbeat;
#[cfg(test)]
mod hostile;
pub mod ids;
pub mod index_page;
mod index_writer;
pub mod journal;
mod known;
pub mod layer_writer;
pub mod lease;
mod lookup;
mod merge;
pub mod range_writer;
pub mod reader;
pub mod record;
pub mod repository;
pub mod run;
mod sealed;
pub mod selection;
pub mod session;
mod session_name;
pub mod sessions;
mod shared_pages;
pub mod snapshot;
pub mod sparse;
mod stage;
mod store_time;
pub mod sweep;
mod verification;

pub use attachment::{AttachmentWriter, attachment};
pub use changes::{Change, ChangeBatch, ChangeKind, changes};
pub use check::{CheckStats, DamageReport, DataSubset, check_contents, check_data, check_presence};
pub use checkpoint::UnfinishedRange;
pub use chunk::ChunkKind;
pub use claims::{ClaimPatience, HeldRange, TaskView};
pub use compact::{due_runs, merge_range};
pub use counts::{Count, Counts};
pub use documents::DocumentSink;
pub use error::{ArchiveError, Damage, DamageKind, Result};
pub use ids::{ChunkId, ChunkRef, LeaseId, RepositoryId, RunId, SessionId, SnapshotId};
pub use journal::{Appended, BodyDigest, JournalDocument, JournalObject, JournalRecord};
pub use layer_writer::{Compared, LayerWriter};
pub use lease::Lease;
pub use range_writer::{Flow, RangeOutput, RangeWriter, StoredDocument, WriteStats};
pub use reader::SnapshotReader;
pub use record::{BodyLocation, RecordBatch, RecordRef};
pub use repository::{Parameters, Repository, SnapshotFilter, SnapshotListing};
pub use selection::Selection;
pub use session::{Committed, Plan, Session, SessionOptions, SnapshotDraft, Totals};
pub use session_name::NamedSession;
pub use sessions::OpenSession;
pub use snapshot::{
    Consistency, Decision, RangeTime, ReadMode, RunRef, Snapshot, SnapshotKind, SnapshotStats,
};
pub use sparse::SparseChunks;
pub use sweep::{SweepOptions, SweepStats, plan_sweep, sweep};
pub use verification::Verification;
