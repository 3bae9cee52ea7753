//! What can go wrong with a backup.

use crate::archive::{ArchiveError, SessionId, SnapshotId};
use crate::document::{DatabaseName, DocumentPath, PathError, Timestamp};
use crate::firestore;

/// A backup that failed. Nothing that it wrote is taken for a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The database could not be read.
    #[error(transparent)]
    Firestore(#[from] firestore::Error),
    /// The repository could not be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// More would be billed than may be. Nothing was begun.
    #[error(
        "the backup would be billed about {expected} reads, and --max-reads allows {most}: nothing was begun. `firebank backup \
         --dry-run` tells more; --read changed:FIELD bills less where documents carry the time of their last change"
    )]
    TooManyReads {
        /// Reads that it would be billed, or this task of it.
        expected: u64,
        /// Reads that it may be billed.
        most: u64,
    },
    /// As many reads were billed as may be, and not all is read.
    #[error(
        "stopped after {reads} billed reads, for --max-reads allows {most}: {finished} of {ranges} ranges of session {session} are \
         read. The same command with --resume goes on from there, or with the same --session, and counts from 0"
    )]
    ReadsSpent {
        /// The session.
        session: SessionId,
        /// Ranges that are finished.
        finished: usize,
        /// Ranges of the session.
        ranges: usize,
        /// Reads that were billed.
        reads: u64,
        /// Reads that may be billed.
        most: u64,
    },
    /// The server sent a document whose name is none.
    #[error("the server sent a document whose name makes no sense: {0}")]
    Name(#[from] PathError),
    /// The snapshot that was named as the parent cannot be it.
    #[error("the backup cannot build upon snapshot {snapshot}: {why}. Name another one, or none with --full")]
    NotAParent {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What speaks against it.
        why: &'static str,
    },
    /// The parent's index cannot be read.
    #[error(
        "snapshot {snapshot}, which the backup builds upon, cannot be read: {source}. Nothing was committed. Build upon \
         nothing with --full, or upon another snapshot with --parent; `firebank verify {snapshot}` tells what is damaged"
    )]
    DamagedParent {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What is wrong with it.
        source: Box<ArchiveError>,
    },
    /// The server counts documents that it does not send.
    #[error(
        "the server sends no documents of {range} and counts {documents} there, as of {read_time}: nothing may be \
         concluded from that, and nothing was committed. Try again later"
    )]
    Contradiction {
        /// Where.
        range: String,
        /// When.
        read_time: Timestamp,
        /// How many it counts.
        documents: u64,
    },
    /// The server listed a document and then had none of that name at the same moment.
    #[error(
        "the server listed `{path}` and then said that there is no such document, both as of {read_time}: nothing was \
         committed. Try again, or read whole documents with --read full"
    )]
    Vanished {
        /// The document.
        path: DocumentPath,
        /// When.
        read_time: Timestamp,
    },
    /// Somebody asked it to stop.
    #[error(
        "stopped with {finished} of {ranges} key ranges finished: there is no snapshot of it, and what was read is kept. \
         `firebank backup --resume` goes on from there while the database can be read at the same time: for an hour after it began, \
         with --pitr for seven days (session {session})"
    )]
    Stopped {
        /// Its session.
        session: SessionId,
        /// Ranges that are finished.
        finished: usize,
        /// Ranges in all.
        ranges: usize,
    },
    /// The session of this name has come to its end.
    #[error(
        "session `{name}` was {how} already (snapshot {session}): a name stands for one session, so name another one to take another \
         backup"
    )]
    NameUsed {
        /// The name.
        name: String,
        /// Its session.
        session: SessionId,
        /// Committed, or given up.
        how: &'static str,
    },
    /// The session of this name is another backup's.
    #[error(
        "session `{name}` backs up {selection} of {database}: its workers must all be asked for the same"
    )]
    OtherPlan {
        /// The name.
        name: String,
        /// Of which database.
        database: DatabaseName,
        /// What of it.
        selection: String,
    },
    /// The session's plan is for another number of tasks.
    #[error(
        "session `{name}` was begun {}, and this process {}: all must be given the same --task-count. (`firebank backup --resume` \
         goes on with it alone.)",
        in_tasks(*.planned),
        as_task(*.asked)
    )]
    TaskCount {
        /// The name.
        name: String,
        /// For how many it was planned; `None`: for processes that do not know how many they are.
        planned: Option<u32>,
        /// How many this process says that there are.
        asked: Option<u32>,
    },
    /// The session of this name belongs to another execution of the tasks.
    #[error(
        "session `{name}` belongs to execution `{theirs}`, and this is a task of `{ours}`: a name stands for one session, so name another \
         one to take another backup"
    )]
    OtherExecution {
        /// The name.
        name: String,
        /// Whose it is.
        theirs: String,
        /// Which this is.
        ours: String,
    },
    /// The database can no longer be read at the time of the backup, and only that would have been consistent.
    #[error(
        "{source}: the backup did not come to its end in time, and documents of several moments were not asked for \
         (--require-consistent), so nothing was committed. Read with more readers (--parallel), or as of a whole minute of a database \
         with point-in-time recovery (--pitr) (session {session})"
    )]
    WindowClosed {
        /// Its session.
        session: SessionId,
        /// The server's answer.
        source: firestore::Error,
    },
    /// A session that others began, or that was left, has read at several times.
    #[error(
        "session {session} has read the database at several times, and documents of several moments were not asked for \
         (--require-consistent): nothing was committed. Begin a new backup"
    )]
    Mixed {
        /// The session.
        session: SessionId,
    },
    /// A time that the database cannot be read at.
    #[error("the database cannot be read as of {read_time}: {why}")]
    ReadTime {
        /// The time.
        read_time: Timestamp,
        /// What speaks against it.
        why: &'static str,
    },
    /// Another worker of the session has split a range: what was read of it is of no use.
    #[error("another worker has split the range")]
    #[doc(hidden)]
    SplitElsewhere,
    /// Documents that were held in memory could not be compressed.
    #[error("cannot compress documents in memory: {0}")]
    Compression(#[from] std::io::Error),
}

impl BackupError {
    /// An error from reading the snapshot that the backup builds upon.
    pub(super) fn of_parent(snapshot: SnapshotId, error: ArchiveError) -> Self {
        match error.into_damage() {
            Ok(damage) => Self::DamagedParent {
                snapshot,
                source: Box::new(ArchiveError::Damaged(Box::new(damage))),
            },
            Err(error) => error.into(),
        }
    }
}

fn in_tasks(count: Option<u32>) -> String {
    match count {
        Some(1) => "by a single task".to_owned(),
        Some(count) => format!("by {count} tasks"),
        None => "by processes without a task's number".to_owned(),
    }
}

fn as_task(count: Option<u32>) -> String {
    match count {
        Some(count) => format!("says that there are {count}"),
        None => "has none".to_owned(),
    }
}
