//! The session: how writers come to one snapshot without waiting for each other or trusting a clock.
//!
//! The steps are those of the protocol in `FORMAT.md`, which was model-checked; each is needed. Pins come first, then the
//! check that every pinned snapshot still stands, then the plan: after that, whatever a sweep does, all that the pins reach
//! stays while the session is undecided. Workers begin only from the plan. The commit is one create-only put; so is an abort,
//! and whichever comes first decides.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::budget::ByteBudget;
use super::chunk::{BuiltChunk, FrameTable, with_decoder};
use super::claims::Requests;
use super::counts::Counts;
use super::envelope::{self, MAX_JSON_LEN};
use super::error::{ArchiveError, DamageKind, Result};
use super::heartbeat::Heartbeat;
use super::ids::{ChunkId, ChunkRef, SessionId, SnapshotId};
use super::known::{Known, known_chunks};
use super::layer_writer::{HeldJoiner, LayerWriter};
use super::range_writer::{RangeOutput, RangeWriter, WriteStats};
use super::repository::{Parameters, Repository};
use super::selection::Selection;
use super::snapshot::{
    AbortRecord, Consistency, Decision, RangeTime, ReadMode, RunRef, Snapshot, SnapshotKind, SnapshotStats,
    range_as_hex, rfc3339,
};
use crate::document::{DatabaseName, KeyRange, Timestamp};
use crate::store::StoreError;

/// Bytes of finished chunks that a session's writers hold until they are uploaded.
pub const UPLOAD_BUDGET: u64 = 64 << 20;

/// What a session sets out to do: decided once, the same for all its workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// What the snapshot is for.
    pub kind: SnapshotKind,
    /// The database.
    pub database: DatabaseName,
    /// The database's own identity, where the server told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_uid: Option<String>,
    /// The moment to read at.
    #[serde(with = "rfc3339")]
    pub read_time: Timestamp,
    /// When the session began.
    pub started_at: DateTime<Utc>,
    /// Which documents.
    pub selection: Selection,
    /// The snapshot that the documents are compared with; only what differs is written, by [`Session::layer_writer`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<SnapshotId>,
    /// The snapshot whose layers are merged: nothing is read from a database, and what the session has written of a range need not
    /// be all that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub merges: Option<SnapshotId>,
    /// How the database is read.
    #[serde(default)]
    pub read: ReadMode,
    /// The ranges to begin with: they tile the selection's key ranges. Workers may split them.
    #[serde(with = "range_as_hex::list")]
    pub ranges: Vec<KeyRange>,
    /// Whatever else the workers must agree upon.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, serde_json::Value>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Pins {
    pub(crate) pins: Vec<SnapshotId>,
}

/// How to begin a session.
#[derive(Clone, Debug)]
pub struct SessionOptions {
    /// Its id; a new one when none.
    pub id: Option<SessionId>,
    /// The snapshots to deduplicate against and to build upon.
    pub pins: Vec<SnapshotId>,
    /// What to do.
    pub plan: Plan,
    /// Bytes of finished chunks held until they are uploaded, by all range writers together.
    pub upload_budget: u64,
}

impl SessionOptions {
    /// A new session with this plan and no pins.
    pub fn new(plan: Plan) -> Self {
        Self {
            id: None,
            pins: Vec::new(),
            plan,
            upload_budget: UPLOAD_BUDGET,
        }
    }
}

/// What a snapshot says beyond what the session knows by itself.
#[derive(Clone, Debug, Default)]
pub struct SnapshotDraft {
    /// The snapshot that this one builds upon: its stack goes below the new run, and its id becomes the parent.
    pub parent: Option<Snapshot>,
    /// The whole snapshot's counts. Without them they are those of the session's documents, where its writers took note of
    /// all: in a session without a parent, or of one whose plan names it.
    pub totals: Option<Totals>,
    /// The snapshot that this one stands in for.
    pub replaces: Option<SnapshotId>,
    /// The user's tags.
    pub tags: Vec<String>,
    /// The user's words.
    pub description: Option<String>,
    /// The machine.
    pub host: Option<String>,
    /// The snapshot's attachment: see [`AttachmentWriter::finish`](super::AttachmentWriter::finish).
    pub refs: Vec<String>,
    /// Reads that Firestore bills.
    pub billed_reads: u64,
    /// Whatever the operation wants to remember.
    pub extra: BTreeMap<String, serde_json::Value>,
    /// When the session ends; now when none.
    pub finished_at: Option<DateTime<Utc>>,
}

/// The counts of a whole snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Documents.
    pub documents: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// Documents by root collection.
    pub collections: Counts,
    /// Documents by collection group.
    pub collection_groups: Counts,
}

/// The snapshot that came of a session.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Whether it is this worker's; otherwise another one was faster.
    pub by_this_worker: bool,
}

/// A session under way, seen by one worker. Dropping it stops its heartbeat; what it wrote stays for a resume.
#[derive(Debug)]
pub struct Session {
    pub(super) shared: Arc<SessionShared>,
    _heartbeat: Heartbeat,
}

/// What range writers need of their session.
#[derive(Debug)]
pub(crate) struct SessionShared {
    pub(crate) repository: Repository,
    pub(crate) budget: ByteBudget,
    id: SessionId,
    pins: Vec<SnapshotId>,
    plan: Plan,
    known: HashMap<ChunkId, Known>,
    /// Chunks that this worker stored: only those that are durable.
    written: Mutex<HashMap<ChunkId, Known>>,
    /// Checkpoints that this worker wrote, by name: the commit need not fetch them.
    pub(super) finished: Mutex<HashMap<String, RangeOutput>>,
    /// This worker's own id.
    pub(super) worker: SessionId,
    /// What other tasks want of this worker.
    pub(super) requests: Requests,
    /// Claims that were read: the worker and the task of each, by name.
    pub(super) claims: Mutex<HashMap<String, (SessionId, u32)>>,
    /// The newest object that this worker has seen, and when it was first seen.
    pub(super) newest: Mutex<Option<(DateTime<Utc>, Instant)>>,
    /// Objects of the journal that this worker has begun.
    pub(super) journal_objects: AtomicU64,
}

/// A chunk that is durable now.
pub(crate) struct Stored {
    pub(crate) chunk: ChunkRef,
    /// Where its frames are, when another worker of the session had stored it already, in its own way.
    pub(crate) found: Option<FrameTable>,
}

impl Session {
    /// Begins a session: pins, check, plan. With an id of an undecided session, takes part in it: the stored pins and plan
    /// hold, see [`Session::plan`].
    ///
    /// # Errors
    /// [`ArchiveError::PinGone`] when a snapshot to build upon was forgotten; the session is aborted then.
    pub async fn begin(repository: &Repository, options: SessionOptions) -> Result<Self> {
        repository.check_writable()?;
        let store = repository.store();
        let id = options.id.unwrap_or_else(SessionId::random);
        let pins_name = format!("{}/pins.json", id.folder());
        let mut pins = Pins { pins: options.pins };
        pins.pins.extend(options.plan.parent);
        pins.pins.sort();
        pins.pins.dedup();
        let mut adopted = false;
        match store.put_new(&pins_name, envelope::encode("pins", &pins)?).await {
            Ok(()) => {}
            Err(StoreError::AlreadyExists { .. }) => {
                let bytes = store.get_at_most(&pins_name, MAX_JSON_LEN).await?;
                pins = envelope::decode(&pins_name, "pins", &bytes)?;
                adopted = true;
            }
            Err(error) => return Err(error.into()),
        }
        let plan_name = format!("{}/plan.json", id.folder());
        let resumed = store.exists(&plan_name).await?;
        if !resumed {
            if adopted
                && options
                    .plan
                    .parent
                    .is_some_and(|parent| !pins.pins.contains(&parent))
            {
                return Err(ArchiveError::OtherPins { session: id });
            }
            if let Some((pin, what)) = abort_without_pins(repository, id, &pins.pins).await? {
                return Err(ArchiveError::PinGone {
                    session: id,
                    pin,
                    what,
                });
            }
            match store
                .put_new(&plan_name, envelope::encode("plan", &options.plan)?)
                .await
            {
                Ok(()) | Err(StoreError::AlreadyExists { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Self::work(repository, id, pins, options.upload_budget, resumed).await
    }

    /// Takes part in a session that has a plan.
    ///
    /// # Errors
    /// [`ArchiveError::Store`] with `NotFound` when it has none, [`ArchiveError::CommittedAlready`] and
    /// [`ArchiveError::Aborted`] when it is at its end.
    pub async fn join(repository: &Repository, id: SessionId, upload_budget: u64) -> Result<Self> {
        repository.check_writable()?;
        let name = format!("{}/pins.json", id.folder());
        let bytes = repository.store().get_at_most(&name, MAX_JSON_LEN).await?;
        let pins = envelope::decode(&name, "pins", &bytes)?;
        Self::work(repository, id, pins, upload_budget, true).await
    }

    /// Works from the stored plan. One that is `resumed` may be old, and shows that it lives at once.
    async fn work(
        repository: &Repository,
        id: SessionId,
        pins: Pins,
        upload_budget: u64,
        resumed: bool,
    ) -> Result<Self> {
        match repository.decision(id).await? {
            None => {}
            Some(Decision::Aborted(record)) => return Err(aborted(record)),
            Some(Decision::Committed(_)) => return Err(ArchiveError::CommittedAlready { session: id }),
        }
        let name = format!("{}/plan.json", id.folder());
        let bytes = repository.store().get_at_most(&name, MAX_JSON_LEN).await?;
        let plan: Plan = envelope::decode(&name, "plan", &bytes)?;
        let worker = SessionId::random();
        let heartbeat = Heartbeat::start(repository, id, worker, resumed);
        // What changed is hardly ever stored already: not worth reading the directories of everything each night.
        let known = match plan.parent {
            Some(_) => HashMap::new(),
            None => known_chunks(repository, &pins.pins).await?,
        };
        let shared = SessionShared {
            repository: repository.clone(),
            budget: ByteBudget::new(upload_budget),
            id,
            pins: pins.pins,
            plan,
            known,
            written: Mutex::default(),
            finished: Mutex::default(),
            worker,
            requests: Requests::default(),
            claims: Mutex::default(),
            newest: Mutex::default(),
            journal_objects: AtomicU64::new(0),
        };
        Ok(Self {
            shared: Arc::new(shared),
            _heartbeat: heartbeat,
        })
    }

    /// The session's id, and that of the snapshot it will commit.
    pub fn id(&self) -> SessionId {
        self.shared.id
    }

    /// The plan that holds: the stored one, which another worker may have made.
    pub fn plan(&self) -> &Plan {
        &self.shared.plan
    }

    /// The pins that hold.
    pub fn pins(&self) -> &[SnapshotId] {
        &self.shared.pins
    }

    /// A writer of the segments that the range owns by its cuts: for documents that come from the database. Feed it
    /// [`RangeWriter::reads`], which goes past the range's end, until it is done.
    pub fn range_writer(&self, range: KeyRange) -> RangeWriter {
        let selected = self.shared.plan.selection.key_ranges();
        let within = selected.iter().find(|selected| {
            selected.start <= range.start
                && match (&selected.end, &range.start) {
                    (Some(end), Some(start)) => start < end,
                    _ => true,
                }
        });
        let reads = KeyRange {
            start: range.start.clone(),
            end: within.and_then(|selected| selected.end.clone()),
        };
        let open_start = within.is_none_or(|selected| selected.start == range.start);
        RangeWriter::new(Arc::clone(&self.shared), range, reads, open_start, false)
    }

    /// A writer of exactly the records in the range: for layers, which hold tombstones and reuse bodies.
    pub fn exact_range_writer(&self, range: KeyRange) -> RangeWriter {
        RangeWriter::exact(Arc::clone(&self.shared), range)
    }

    /// A writer of what changed in the range since the plan's parent.
    pub fn layer_writer(&self, range: KeyRange) -> LayerWriter {
        LayerWriter::new(Arc::clone(&self.shared), range)
    }

    /// Makes the snapshot of all finished ranges. When another worker was faster, its snapshot is the answer.
    ///
    /// # Errors
    /// [`ArchiveError::Incomplete`] when the finished ranges do not tile the selection, [`ArchiveError::Aborted`] when
    /// somebody gave the session up.
    pub async fn commit(&self, draft: SnapshotDraft) -> Result<Snapshot> {
        Ok(self.commit_or_adopt(draft).await?.snapshot)
    }

    /// The same, and says which worker made the snapshot: what is to be done once with it is for that one.
    ///
    /// # Errors
    /// As [`Session::commit`].
    pub async fn commit_or_adopt(&self, draft: SnapshotDraft) -> Result<Committed> {
        let (run, stats, times) = self.write_run().await?;
        let snapshot = Snapshot {
            read_time: times.read_time,
            consistency: times.consistency,
            ..self.shared.snapshot(draft, run, stats)?
        };
        self.decide(snapshot).await
    }

    /// Makes the snapshot that stands in for `compacted`: the same, with the run of all finished ranges in the place of some
    /// runs of its stack, which must have the same records.
    ///
    /// # Errors
    /// As [`Session::commit`].
    pub async fn commit_compaction(
        &self,
        compacted: &Snapshot,
        runs: std::ops::Range<usize>,
    ) -> Result<Snapshot> {
        let (run, stats, _) = self.write_run().await?;
        let mut stack = compacted.runs.clone();
        stack.splice(runs, run);
        let snapshot = Snapshot {
            id: self.shared.id,
            runs: stack,
            pins: self.shared.pins.clone(),
            replaces: Some(compacted.id),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            stats: SnapshotStats {
                stored_bytes: compacted.stats.stored_bytes + stats.stored_bytes,
                ..compacted.stats
            },
            ..compacted.clone()
        };
        Ok(self.decide(snapshot).await?.snapshot)
    }

    /// Makes one run of all finished ranges, and sums up what was done.
    async fn write_run(&self) -> Result<(Option<RunRef>, WriteStats, Times)> {
        let shared = &self.shared;
        let outputs = self.finished_ranges().await?;
        shared.check_tiling(&outputs)?;
        let times = Times::of(&outputs, shared.plan.read_time);
        let mut stats = WriteStats::default();
        let mut entries = Vec::new();
        let mut joiner = HeldJoiner::new(Arc::clone(shared));
        for output in outputs {
            stats.add(&output.stats);
            if let Some(held) = output.held {
                joiner.push(output.range.start, held).await?;
            } else if !output.entries.is_empty() {
                entries.extend(joiner.complete(&mut stats).await?);
                entries.extend(output.entries);
            }
        }
        entries.extend(joiner.complete(&mut stats).await?);
        let run = shared.write_run(entries, &mut stats.stored_bytes).await?;
        Ok((run, stats, times))
    }

    /// Commits the snapshot, unless the session is decided.
    async fn decide(&self, snapshot: Snapshot) -> Result<Committed> {
        let shared = &self.shared;
        let name = shared.id.snapshot_name();
        let record = Decision::Committed(Box::new(snapshot.clone()));
        shared.check_undecided().await?;
        match shared.repository.store().put_new(&name, record.encode()?).await {
            Ok(()) => Ok(Committed {
                snapshot,
                by_this_worker: true,
            }),
            Err(StoreError::AlreadyExists { .. }) => match shared.repository.decision(shared.id).await? {
                Some(Decision::Committed(snapshot)) => Ok(Committed {
                    snapshot: *snapshot,
                    by_this_worker: false,
                }),
                Some(Decision::Aborted(record)) => Err(aborted(record)),
                None => Err(ArchiveError::damaged(
                    name,
                    DamageKind::Missing,
                    "it exists and does not",
                )),
            },
            Err(error) => Err(error.into()),
        }
    }

    /// How the session came to its end, if it did, through another worker.
    ///
    /// # Errors
    /// [`ArchiveError::Aborted`] when somebody gave it up.
    pub async fn decided(&self) -> Result<Option<Committed>> {
        match self.shared.repository.decision(self.shared.id).await? {
            None => Ok(None),
            Some(Decision::Committed(snapshot)) => Ok(Some(Committed {
                snapshot: *snapshot,
                by_this_worker: false,
            })),
            Some(Decision::Aborted(record)) => Err(aborted(record)),
        }
    }

    /// Gives the session up. Says how it is decided: it may have been committed before.
    pub async fn abort(&self, reason: &str) -> Result<Decision> {
        abort(&self.shared.repository, self.shared.id, reason).await
    }
}

/// Gives a session up: by anyone, at any time. Says how the session is decided.
pub async fn abort(repository: &Repository, session: SessionId, reason: &str) -> Result<Decision> {
    record_abort(
        repository,
        AbortRecord {
            session,
            reason: reason.to_owned(),
            at: crate::clock::now(),
            pin_gone: None,
        },
    )
    .await
}

/// Gives a session up that has no plan yet, if one of its pins does not stand. Says which, and why.
pub(super) async fn abort_without_pins(
    repository: &Repository,
    session: SessionId,
    pins: &[SnapshotId],
) -> Result<Option<(SnapshotId, &'static str)>> {
    for &pin in pins {
        let Some(what) = repository.why_fallen(pin).await? else {
            continue;
        };
        let record = AbortRecord {
            session,
            reason: format!("snapshot {pin}, which it was to build upon, {what}"),
            at: crate::clock::now(),
            pin_gone: Some(pin),
        };
        record_abort(repository, record).await?;
        return Ok(Some((pin, what)));
    }
    Ok(None)
}

async fn record_abort(repository: &Repository, record: AbortRecord) -> Result<Decision> {
    let session = record.session;
    let record = Decision::Aborted(record);
    match repository
        .store()
        .put_new(&session.snapshot_name(), record.encode()?)
        .await
    {
        Ok(()) => Ok(record),
        Err(StoreError::AlreadyExists { .. }) => Ok(repository.decision(session).await?.unwrap_or(record)),
        Err(error) => Err(error.into()),
    }
}

fn aborted(record: AbortRecord) -> ArchiveError {
    ArchiveError::Aborted {
        session: record.session,
        reason: match record.reason.is_empty() {
            true => String::new(),
            false => format!(": {}", record.reason),
        },
    }
}

impl SessionShared {
    pub(crate) fn id(&self) -> SessionId {
        self.id
    }

    /// Sweeps remove the records of aborted sessions in the end, long after the sessions' objects. A worker that slept for so
    /// long must not find its name free again: its plan is gone then.
    async fn check_undecided(&self) -> Result<()> {
        let store = self.repository.store();
        if store.exists(&format!("{}/plan.json", self.id.folder())).await?
            || store.exists(&self.id.snapshot_name()).await?
        {
            return Ok(());
        }
        Err(ArchiveError::Aborted {
            session: self.id,
            reason: ": it slept so long that a sweep has removed it".to_owned(),
        })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.plan
    }

    pub(crate) fn parameters(&self) -> &Parameters {
        self.repository.parameters()
    }

    /// The stored chunk with this id, when the pins reach one or this worker stored it.
    pub(crate) fn known_chunk(&self, id: &ChunkId, raw_len: u64) -> Option<ChunkRef> {
        let known = match self.known.get(id) {
            Some(known) => *known,
            None => *self
                .written
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .get(id)?,
        };
        (u64::from(known.raw_len) == raw_len).then(|| known.chunk(*id))
    }

    /// Stores a chunk under this session's name for it.
    pub(crate) async fn put_chunk(&self, built: BuiltChunk) -> Result<Stored> {
        let mut chunk = ChunkRef {
            id: built.id,
            session: self.id,
            raw_len: built.table.raw_len,
            stored_len: built.table.stored_len(),
        };
        let name = chunk.name();
        let store = self.repository.store();
        let mut found = None;
        match store.put_new(&name, built.payload()).await {
            Ok(()) => {}
            // Another worker of this session stored the same plaintext, compressed by another version of zstd.
            Err(StoreError::AlreadyExists { .. }) => {
                let bytes = store.get_at_most(&name, chunk.raw_len + (64 << 20)).await?;
                let table = FrameTable::parse(&name, built.table.kind, &built.id, &bytes)?;
                let table =
                    tokio::task::spawn_blocking(move || verify_frames(&name, table, &bytes)).await??;
                chunk.stored_len = table.stored_len();
                found = Some(table);
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(known) = Known::new(&chunk) {
            let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
            written.insert(chunk.id, known);
        }
        Ok(Stored { chunk, found })
    }

    fn snapshot(&self, draft: SnapshotDraft, run: Option<RunRef>, stats: WriteStats) -> Result<Snapshot> {
        let all_counted = draft.parent.is_none() || self.plan.parent.is_some();
        let totals = match draft.totals {
            Some(totals) => totals,
            None if all_counted => Totals {
                documents: stats.collections.values().map(|count| count.documents).sum(),
                body_bytes: stats.collections.values().map(|count| count.bytes).sum(),
                collections: stats.collections.clone(),
                collection_groups: stats.collection_groups.clone(),
            },
            None => {
                return Err(ArchiveError::Misuse(
                    "a snapshot that builds upon another must bring its counts".to_owned(),
                ));
            }
        };
        let parent = draft.parent.as_ref().map(|parent| parent.id);
        if parent.is_some_and(|parent| !self.pins.contains(&parent)) {
            return Err(ArchiveError::Misuse(
                "a snapshot can only build upon one that its session pinned".to_owned(),
            ));
        }
        let added = match self.plan.parent {
            Some(_) => stats.added_documents,
            None => stats.documents,
        };
        let below = draft.parent.map(|parent| parent.runs).unwrap_or_default();
        let plan = self.plan.clone();
        Ok(Snapshot {
            id: self.id,
            kind: plan.kind,
            database: plan.database,
            database_uid: plan.database_uid,
            read_time: plan.read_time,
            consistency: Consistency::Consistent,
            started_at: plan.started_at,
            finished_at: draft.finished_at.unwrap_or_else(crate::clock::now),
            selection: plan.selection,
            documents: totals.documents,
            body_bytes: totals.body_bytes,
            runs: run.into_iter().chain(below).collect(),
            parent,
            pins: self.pins.clone(),
            replaces: draft.replaces,
            refs: draft.refs,
            tags: draft.tags,
            description: draft.description,
            host: draft.host,
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            stats: SnapshotStats {
                raw_bytes: stats.raw_bytes,
                new_bytes: stats.new_bytes,
                stored_bytes: stats.stored_bytes,
                deduplicated_bytes: stats.deduplicated_bytes,
                chunks_written: stats.chunks_written,
                chunks_reused: stats.chunks_reused,
                billed_reads: draft.billed_reads,
                read: plan.read,
                new_documents: added,
                changed_documents: stats.documents - added.min(stats.documents),
                deleted_documents: stats.tombstones,
                unchanged_documents: stats.unchanged_documents,
                largest_lag_micros: stats.largest_lag_micros,
            },
            collections: totals.collections,
            collection_groups: totals.collection_groups,
            extra: draft.extra,
        })
    }
}

/// Which moments the documents of a session are of.
struct Times {
    read_time: Timestamp,
    consistency: Consistency,
}

impl Times {
    /// Of ranges in key order, which were read at the planned time if they do not say otherwise.
    fn of(outputs: &[RangeOutput], planned: Timestamp) -> Self {
        let time = |output: &RangeOutput| output.read_time.unwrap_or(planned);
        let read_time = outputs.iter().map(time).min().unwrap_or(planned);
        let mut ranges: Vec<RangeTime> = Vec::new();
        for output in outputs.iter().filter(|output| time(output) != read_time) {
            match ranges.last_mut() {
                Some(last) if last.read_time == time(output) && last.range.end == output.range.start => {
                    last.range.end.clone_from(&output.range.end);
                }
                _ => ranges.push(RangeTime {
                    range: output.range.clone(),
                    read_time: time(output),
                }),
            }
        }
        Self {
            read_time,
            consistency: match ranges.is_empty() {
                true => Consistency::Consistent,
                false => Consistency::Mixed { ranges },
            },
        }
    }
}

/// Checks that every frame of a chunk is what its table says.
fn verify_frames(name: &str, table: FrameTable, bytes: &[u8]) -> Result<FrameTable> {
    if table.stored_len() != bytes.len() as u64 {
        return Err(ArchiveError::damaged(
            name,
            DamageKind::WrongSize,
            "it was cut short",
        ));
    }
    let mut plain = Vec::new();
    for (frame, row) in table.rows().iter().enumerate() {
        let range = table.stored_range(frame);
        plain.clear();
        with_decoder(|decoder| {
            decoder.decode(
                name,
                row,
                &bytes[range.start as usize..range.end as usize],
                &mut plain,
            )
        })?;
    }
    Ok(table)
}
