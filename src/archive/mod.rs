//! The repository format: what a backup writes and what a restore reads.
//!
//! A snapshot is a stack of sorted runs over immutable, content-addressed chunks; names and bodies live apart. See
//! `FORMAT.md` beside this file for the bytes.
//!
//! The interface, as it stands (signatures are settled, bodies follow):
//!
//! ```text
//! Repository::init(store: Store, now: DateTime<Utc>) -> Result<Repository>            Repository::open(store: Store) -> Result<Repository>
//!   .id() .store() .parameters() .body_hash(body: &[u8]) -> u64
//!   .snapshots() -> Result<SnapshotListing { snapshots: Vec<Snapshot> /* newest first */, unreadable: Vec<(String, ArchiveError)>, forgotten, aborted }>
//!   .resolve(wanted: &str, filter: &SnapshotFilter { database: Option<DatabaseName>, selection: Option<Selection>, kind: Option<SnapshotKind> }) -> Result<Snapshot>
//!   .reader(&Snapshot) -> SnapshotReader
//! Selection { collections: Vec<CollectionPath>, collection_groups: Vec<String> }  // both empty: whole database; .key_ranges(), .contains(key)
//!
//! Session::begin(&Repository, SessionOptions { id: Option<SessionId>, pins: Vec<SnapshotId>, plan: Plan }) -> Result<Session>
//! Session::join(&Repository, SessionId) -> Result<Session>
//!   Plan { kind: SnapshotKind, database: DatabaseName, database_uid: Option<String>, read_time: Timestamp, selection: Selection,
//!          ranges: Vec<KeyRange>, extra: BTreeMap<String, serde_json::Value> }
//!   .id() .plan() .finished_ranges() -> Result<Vec<KeyRange>>
//!   .range_writer(range: KeyRange) -> RangeWriter            // content-defined ownership: feed it writer.reads()
//!   .exact_range_writer(range: KeyRange) -> RangeWriter       // owns exactly the range: for layers (tombstones, reused bodies)
//!   .commit(SnapshotDraft) -> Result<Snapshot>               .abort(reason: &str) -> Result<()>
//! RangeWriter
//!   .reads() -> &KeyRange                                     // from the range's start to the selection's end
//!   .push(DocumentRef<'_>).await -> Result<Flow>              // Flow::{Continue, Done}: after Done, stop reading
//!   .push_tombstone(key) .push_reusing(key, create_time, update_time, body_hash, ChunkRef, offset, length)
//!   .finish().await -> Result<RangeOutput { range, stats: WriteStats, .. }>  // all uploads durable, checkpoint written
//!
//! SnapshotReader (cheap clone)
//!   .records(KeyRange) -> Stream<Item = Result<RecordBatch>>    // RecordBatch::iter() -> RecordRef { key, create_time, update_time, body_hash, body }
//!   .documents(KeyRange) -> Stream<Item = Result<DocumentBatch>>
//!   .get(&DocumentPath) -> Result<Option<DocumentBatch /* of one */>>
//!   .page_boundaries(parts: usize) -> Result<Vec<DocumentKey>>
//! check_structure(&SnapshotReader, &mut DamageReport), check_presence(..), check_data(.., DataSubset)
//! ```

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

pub use check::{CheckStats, DamageReport, DataSubset, check_data, check_presence, check_structure};
pub use chunk::ChunkKind;
pub use counts::{Count, Counts};
pub use error::{ArchiveError, Damage, DamageKind, Result};
pub use ids::{ChunkId, ChunkRef, LeaseId, RepositoryId, RunId, SessionId, SnapshotId};
pub use range_writer::{Flow, RangeOutput, RangeWriter, StoredDocument, WriteStats};
pub use reader::SnapshotReader;
pub use record::{BodyLocation, RecordBatch, RecordRef};
pub use repository::{Parameters, Repository, SnapshotFilter, SnapshotListing};
pub use selection::Selection;
pub use session::{Plan, Session, SessionOptions, SnapshotDraft, Totals};
pub use snapshot::{Consistency, Decision, RangeTime, RunRef, Snapshot, SnapshotKind, SnapshotStats};
