//! The history: which migrations a database has seen, in its collection `_migrations`.
//!
//! A record has the fields that the original tool wrote, in its forms (`"version": "2.0"`, times as text), and more beside
//! them; what is not known here is kept as it is. The document's id is the migration's id. The original tool let the
//! server choose ids and wrote a record for every attempt: those are understood, and of several the one counts that
//! says most.

use std::collections::BTreeMap;

use futures::TryStreamExt;

use super::{MigrationError, MigrationId};
use crate::archive::{RepositoryId, SessionId};
use crate::document::{CollectionPath, DocumentPath, Fields, Timestamp, Value, canonical};
use crate::firestore::{Firestore, ScanOptions};

/// The collection of the history.
pub const HISTORY_COLLECTION: &str = crate::export::MIGRATIONS_COLLECTION;

/// How a migration stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordStatus {
    /// It is applied.
    Completed,
    /// It failed. What it wrote was undone, unless [`Record::partial`] says otherwise.
    Failed,
    /// It is under way, or was when its process ended.
    Running,
    /// Its rollback is under way, or was when the process ended.
    RollingBack,
    /// It was taken back.
    RolledBack,
    /// Something that another tool wrote: it does not count as applied.
    Other(String),
}

impl RecordStatus {
    /// The word in the record.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Running => "running",
            Self::RollingBack => "rolling_back",
            Self::RolledBack => "rolled_back",
            Self::Other(word) => word,
        }
    }

    fn of(word: &str) -> Self {
        match word {
            "completed" => Self::Completed,
            "failed" => Self::Failed,
            "running" => Self::Running,
            "rolling_back" => Self::RollingBack,
            "rolled_back" => Self::RolledBack,
            other => Self::Other(other.to_owned()),
        }
    }
}

/// How a rollback is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RollbackWay {
    /// By the script's own `rollback()`.
    Script,
    /// By putting the before-images back.
    BeforeImages {
        /// Whether also over what somebody changed since.
        force: bool,
    },
}

/// One migration in the history.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// The migration.
    pub id: MigrationId,
    /// The record's own document.
    pub path: DocumentPath,
    /// How it stands.
    pub status: RecordStatus,
    /// When it was begun, by the server's clock; `None` where the record does not say.
    pub executed_at: Option<Timestamp>,
    /// When it was taken back.
    pub rolled_back_at: Option<Timestamp>,
    /// What the script said about itself.
    pub description: Option<String>,
    /// The checksum of the script that ran; `None` where another tool ran it.
    pub checksum: Option<String>,
    /// How long it took, in milliseconds.
    pub duration_ms: Option<u64>,
    /// Documents that it wrote.
    pub documents_written: Option<u64>,
    /// Documents that it deleted.
    pub documents_deleted: Option<u64>,
    /// Collections that had no documents before.
    pub created_collections: Vec<String>,
    /// Collections that it would have made, had it not failed.
    pub failed_collections: Vec<String>,
    /// The version of Firebank that ran it.
    pub tool_version: Option<String>,
    /// The repository that has its before-images.
    pub repository_id: Option<RepositoryId>,
    /// The snapshot of its before-images, or the session that is to become it.
    pub snapshot_id: Option<SessionId>,
    /// The same of a rollback by the script.
    pub rollback_snapshot_id: Option<SessionId>,
    /// How the rollback that is under way is done.
    pub rollback_way: Option<RollbackWay>,
    /// Why it failed.
    pub error: Option<String>,
    /// Whether it failed and what it wrote was left.
    pub partial: bool,
    /// Whether it was taken for applied and never run.
    pub baseline: bool,
    /// Whether somebody accepted that its script is gone.
    pub missing_accepted: bool,
    /// Everything in the document, also what is not known here.
    fields: Fields,
}

impl Record {
    /// A record of a migration that nothing is known about yet.
    pub fn new(id: MigrationId) -> Result<Self, MigrationError> {
        let path = DocumentPath::parse(format!("{HISTORY_COLLECTION}/{id}"))?;
        Ok(Self::read(id, path, Fields::new()))
    }

    /// Whether the migration counts as applied.
    pub fn is_applied(&self) -> bool {
        matches!(self.status, RecordStatus::Completed | RecordStatus::RollingBack)
    }

    /// Whether it or its rollback was under way when a process ended, or still is.
    pub fn is_unfinished(&self) -> bool {
        matches!(self.status, RecordStatus::Running | RecordStatus::RollingBack)
    }

    /// A document of the collection; `None` where it is no record of a migration.
    fn parse(path: DocumentPath, fields: Fields) -> Option<Self> {
        let named = text(&fields, "migration_id").unwrap_or_else(|| path.id().to_owned());
        match named.parse() {
            Ok(id) => Some(Self::read(id, path, fields)),
            Err(error) => {
                tracing::warn!("`{path}` is passed over: {error}");
                None
            }
        }
    }

    fn read(id: MigrationId, path: DocumentPath, fields: Fields) -> Self {
        let flag = |name: &str| matches!(fields.get(name), Some(Value::Boolean(true)));
        let session = |name: &str| text(&fields, name).and_then(|id| id.parse().ok());
        let way = match text(&fields, "rollback_way").as_deref() {
            Some("script") => Some(RollbackWay::Script),
            Some("before_images") => Some(RollbackWay::BeforeImages { force: false }),
            Some("before_images_force") => Some(RollbackWay::BeforeImages { force: true }),
            _ => None,
        };
        Self {
            status: RecordStatus::of(text(&fields, "status").as_deref().unwrap_or("unknown")),
            executed_at: time(&fields, "executed_at"),
            rolled_back_at: time(&fields, "rolled_back_at"),
            description: text(&fields, "description"),
            checksum: text(&fields, "checksum"),
            duration_ms: number(&fields, "duration_ms"),
            documents_written: number(&fields, "documents_written"),
            documents_deleted: number(&fields, "documents_deleted"),
            created_collections: texts(&fields, "created_collections"),
            failed_collections: texts(&fields, "failed_collections"),
            tool_version: text(&fields, "tool_version"),
            repository_id: text(&fields, "repository_id").and_then(|id| id.parse().ok()),
            snapshot_id: session("snapshot_id"),
            rollback_snapshot_id: session("rollback_snapshot_id"),
            rollback_way: way,
            error: text(&fields, "error"),
            partial: flag("partial"),
            baseline: flag("baseline"),
            missing_accepted: flag("missing_accepted"),
            id,
            path,
            fields,
        }
    }

    /// The document to write.
    pub fn to_fields(&self) -> Fields {
        let mut fields = self.fields.clone();
        let mut set = |name: &str, value: Option<Value>| match value {
            Some(value) => drop(fields.insert(name.to_owned(), value)),
            None => drop(fields.remove(name)),
        };
        let string = |text: &dyn std::fmt::Display| Value::String(text.to_string());
        let strings = |texts: &[String]| Value::Array(texts.iter().cloned().map(Value::String).collect());
        let integer = |number: u64| Value::Integer(i64::try_from(number).unwrap_or(i64::MAX));
        let flag = |flag: bool| flag.then_some(Value::Boolean(true));
        set("migration_id", Some(string(&self.id)));
        set("version", Some(Value::String(format!("{}.0", self.id.version()))));
        set("status", Some(Value::String(self.status.as_str().to_owned())));
        set("executed_at", self.executed_at.map(|time| string(&time)));
        set("rolled_back_at", self.rolled_back_at.map(|time| string(&time)));
        set("description", self.description.clone().map(Value::String));
        set("checksum", self.checksum.clone().map(Value::String));
        set("duration_ms", self.duration_ms.map(integer));
        set("documents_written", self.documents_written.map(integer));
        set("documents_deleted", self.documents_deleted.map(integer));
        set("created_collections", Some(strings(&self.created_collections)));
        set("failed_collections", Some(strings(&self.failed_collections)));
        set("tool_version", self.tool_version.clone().map(Value::String));
        set("repository_id", self.repository_id.map(|id| string(&id)));
        set("snapshot_id", self.snapshot_id.map(|id| string(&id)));
        set(
            "rollback_snapshot_id",
            self.rollback_snapshot_id.map(|id| string(&id)),
        );
        let way = self.rollback_way.map(|way| match way {
            RollbackWay::Script => "script",
            RollbackWay::BeforeImages { force: false } => "before_images",
            RollbackWay::BeforeImages { force: true } => "before_images_force",
        });
        set("rollback_way", way.map(|way| Value::String(way.to_owned())));
        set("error", self.error.clone().map(Value::String));
        set("partial", flag(self.partial));
        set("baseline", flag(self.baseline));
        set("missing_accepted", flag(self.missing_accepted));
        fields
    }
}

fn text(fields: &Fields, name: &str) -> Option<String> {
    match fields.get(name)? {
        Value::String(text) => Some(text.clone()),
        _ => None,
    }
}

fn texts(fields: &Fields, name: &str) -> Vec<String> {
    let Some(Value::Array(values)) = fields.get(name) else {
        return Vec::new();
    };
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        _ => None,
    };
    values.iter().filter_map(text).collect()
}

fn number(fields: &Fields, name: &str) -> Option<u64> {
    match fields.get(name)? {
        Value::Integer(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// A time as the original tool wrote it, ISO 8601 text that may lack the zone, or as a timestamp.
fn time(fields: &Fields, name: &str) -> Option<Timestamp> {
    match fields.get(name)? {
        Value::Timestamp(time) => Some(*time),
        Value::String(text) => {
            let zoned = chrono::DateTime::parse_from_rfc3339(text).map(|time| time.to_utc());
            let naive = || text.parse::<chrono::NaiveDateTime>().map(|time| time.and_utc());
            zoned.or_else(|_| naive()).ok().map(Timestamp::from)
        }
        _ => None,
    }
}

/// The records of a database, one a migration, ascending.
#[derive(Clone, Debug, Default)]
pub struct History {
    records: BTreeMap<MigrationId, Record>,
}

impl History {
    /// Reads the history as it is now.
    pub async fn read(database: &Firestore) -> Result<Self, MigrationError> {
        let collection = CollectionPath::parse(HISTORY_COLLECTION)?;
        let read_time = database.current_read_time().await?;
        let mut found = Vec::new();
        let mut batches = std::pin::pin!(database.scan(ScanOptions::new(collection.key_range(), read_time)));
        while let Some(batch) = batches.try_next().await? {
            for document in batch.iter() {
                let path = document.path()?;
                if path.collection() == collection {
                    found.push((path, canonical::decode(document.body)?));
                }
            }
        }
        Ok(Self::of(found))
    }

    /// The history in these documents.
    pub fn of(documents: impl IntoIterator<Item = (DocumentPath, Fields)>) -> Self {
        let mut records: BTreeMap<MigrationId, Record> = BTreeMap::new();
        for record in documents
            .into_iter()
            .filter_map(|(path, fields)| Record::parse(path, fields))
        {
            match records.get(&record.id) {
                Some(known) if weight(known) >= weight(&record) => {}
                _ => drop(records.insert(record.id.clone(), record)),
            }
        }
        Self { records }
    }

    /// The records, ascending.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = &Record> {
        self.records.values()
    }

    /// A migration's record.
    pub fn get(&self, id: &MigrationId) -> Option<&Record> {
        self.records.get(id)
    }

    /// The highest version that is applied.
    pub fn current(&self) -> Option<u64> {
        let applied = self.records().rev().find(|record| record.is_applied());
        applied.map(|record| record.id.version())
    }
}

/// Of several records of a migration the greatest counts: the one with the migration's own id, else one that says that it is
/// applied, else the newest.
fn weight(record: &Record) -> (bool, bool, Option<Timestamp>) {
    (
        record.path.id() == record.id.as_str(),
        record.is_applied(),
        record.executed_at,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn string(text: &str) -> Value {
        Value::String(text.to_owned())
    }

    fn document(id: &str, fields: &[(&str, Value)]) -> (DocumentPath, Fields) {
        let fields = fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        (
            DocumentPath::parse(format!("_migrations/{id}")).unwrap(),
            fields.collect(),
        )
    }

    #[test]
    fn records_of_the_original_tool() {
        let original = |id: &str, migration: &str, status: &str, at: &str| {
            document(
                id,
                &[
                    ("migration_id", string(migration)),
                    ("version", string("2.0")),
                    ("executed_at", string(at)),
                    ("status", string(status)),
                    (
                        "created_collections",
                        Value::Array(vec![string("user_preferences")]),
                    ),
                    ("failed_collections", Value::Array(Vec::new())),
                ],
            )
        };
        let history = History::of([
            original("aB3", "v2_add_user_preferences", "failed", "2025-06-29T13:00:00Z"),
            original(
                "Zx9",
                "v2_add_user_preferences",
                "completed",
                "2025-06-29T12:00:00.123456",
            ),
            original("x", "v10_ten", "failed", "2025-06-30T12:00:00+00:00"),
            original("y", "something else", "completed", "2025-06-30T12:00:00Z"),
        ]);
        assert_eq!(history.records().count(), 2);
        let id = "v2_add_user_preferences".parse().unwrap();
        let record = history.get(&id).unwrap();
        assert!(record.is_applied());
        assert_eq!(record.created_collections, ["user_preferences"]);
        assert_eq!(
            record.executed_at.unwrap().to_string(),
            "2025-06-29T12:00:00.123456Z"
        );
        assert_eq!(record.path.id(), "Zx9");
        assert_eq!(record.checksum, None);
        assert_eq!(history.current(), Some(2));
    }

    #[test]
    fn what_is_written_reads_back_and_foreign_fields_stay() {
        let (path, fields) = document(
            "v3_x",
            &[
                ("status", string("completed")),
                ("reviewed_by", string("Ada")),
                ("notes", Value::Integer(7)),
            ],
        );
        let mut record = Record::parse(path.clone(), fields).unwrap();
        record.executed_at = Some(Timestamp::new(1_750_000_000, 5_000));
        record.duration_ms = Some(12);
        record.snapshot_id = Some(SessionId::from_u64(7));
        record.rollback_way = Some(RollbackWay::BeforeImages { force: true });
        record.partial = true;
        let fields = record.to_fields();
        assert_eq!(fields["version"], string("3.0"));
        assert_eq!(fields["reviewed_by"], string("Ada"));
        let again = Record::parse(path, fields.clone()).unwrap();
        assert_eq!(again.to_fields(), fields);
        assert_eq!(
            (again.executed_at, again.duration_ms, again.snapshot_id),
            (record.executed_at, record.duration_ms, record.snapshot_id)
        );
        assert_eq!((again.rollback_way, again.partial), (record.rollback_way, true));
    }
}
