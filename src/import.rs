//! Puts documents of JSON and NDJSON files into a database.
//!
//! Every file is read through before the first document is written: a file that is cut off or says another count than it
//! holds must not be found out halfway through a restore.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tracing::info;

use crate::document::{DatabaseName, DocumentPath, Fields, Timestamp, canonical};
use crate::firestore::{self, BulkWriter, Firestore};
use crate::json::{DocumentsFile, JsonError};
use crate::progress::Progress;
use crate::restore::{
    Account, AmountRead, Checks, Conflicts, DRAIN_PATIENCE, Found, Look, Reads, ReferenceMode, RestoreCounts,
    RestoreError, RestoreMode, RestoreOptions, RestorePlan, RestoreStats, Rules, Sent, Tally, Warning,
    plan_document, refuse_foreign, ttl_fields_of, write_document,
};

/// Documents that wait for the writer.
const WAITING_DOCUMENTS: usize = 1_000;
/// Documents that are looked up together, and their bytes as far as the files tell them.
const LOOKED_UP: usize = 300;
const LOOKED_UP_BYTES: usize = 2 << 20;

/// An import that stopped. What it wrote before stays written; to run it again does no harm.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file is none that can be restored. Nothing was written.
    #[error("{0}. Nothing was written")]
    Refused(JsonError),
    /// A file that was checked can no longer be read as it was.
    #[error("a file changed while it was restored: {0}. What was written before stays written")]
    Changed(JsonError),
    /// The documents cannot be restored so, or the database could not be written.
    #[error(transparent)]
    Restore(#[from] RestoreError),
    /// Somebody asked it to stop.
    #[error(
        "stopped after {documents} documents: what was written stays written; the same command again writes it again"
    )]
    Stopped {
        /// Documents that the database has taken.
        documents: u64,
    },
    /// The thread that reads is gone.
    #[error("the thread that reads the files stopped: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

impl From<firestore::Error> for ImportError {
    fn from(error: firestore::Error) -> Self {
        Self::Restore(error.into())
    }
}

/// Reads the files through and says what [`import`] would do to the database as it is now.
pub async fn plan_import(
    files: &[DocumentsFile],
    database: &Firestore,
    options: &RestoreOptions,
) -> Result<RestorePlan, ImportError> {
    let rules = rules(options, database.database())?;
    let checks = Checks::new(&ttl_fields_of(database, options).await);
    let before = database.stats().counts();
    let (mut conflicts, mut nothing_sent) = (Conflicts::default(), Sent::default());
    let (sender, mut documents) = mpsc::channel(WAITING_DOCUMENTS);
    let reading = send_all(files, options, sender);
    let (mut counts, mut tally) = (RestoreCounts::default(), Tally::default());
    while let Some(batch) = next_batch(&mut documents, Look::Documents).await {
        let there = look_up(database, &batch, Look::Documents).await?;
        for (path, body) in &batch {
            counts.looked_at(body);
            let found = there.found(path);
            let outcome = plan_document(&rules, path, body, found, &mut tally, &checks)?;
            counts.note(&outcome);
            outcome.note(path, &mut nothing_sent, &mut conflicts);
        }
    }
    reading.await?.map_err(ImportError::Refused)?;
    let read = AmountRead::since(&before, database, rules.look());
    Ok(RestorePlan::new(&counts, tally, read, &conflicts, options))
}

/// Reads the files through for what to know before their documents are written, without a look at the database: as if all
/// of them were.
pub async fn check_import(
    files: &[DocumentsFile],
    target: &DatabaseName,
    options: &RestoreOptions,
) -> Result<Vec<Warning>, ImportError> {
    let rules = Arc::new(rules(options, target)?);
    let checks = Checks::new(&options.ttl_fields);
    let mut all = Tally::default();
    for file in files {
        let (file, rules, checks, options) =
            (file.clone(), Arc::clone(&rules), checks.clone(), options.clone());
        let part = tokio::task::spawn_blocking(move || {
            let mut tally = Tally::default();
            check_file(&file, &options, |path, fields| {
                let body = canonical::encode(&fields);
                plan_document(&rules, &path, &body, Found::Unknown, &mut tally, &checks).map(drop)
            })
            .map(|_| tally)
        });
        all.add(part.await??);
    }
    if options.references == ReferenceMode::Fail {
        refuse_foreign(&all)?;
    }
    Ok(all.into_warnings())
}

/// Writes the documents of the files, under the ids that they have there.
///
/// # Errors
/// Before anything is written when a file cannot be read to its end or contradicts itself; afterwards when the database
/// cannot be written at all. A single document that the database refuses is no error: it is counted and goes to the
/// dead-letter file.
pub async fn import(
    files: &[DocumentsFile],
    database: &Firestore,
    options: RestoreOptions,
    progress: &Progress,
) -> Result<RestoreStats, ImportError> {
    let start = Instant::now();
    let rules = rules(&options, database.database())?;
    if options.references == ReferenceMode::Fail {
        check_import(files, database.database(), &options).await?;
    }
    let mut total = 0;
    for file in files {
        let (checked, options) = (file.clone(), options.clone());
        let checking = tokio::task::spawn_blocking(move || check_file(&checked, &options, |_, _| Ok(())));
        let documents = checking.await??;
        info!(file = %file.name().display(), documents, "checked");
        total += documents;
    }
    if options.filter.is_all() {
        progress.set_total_documents(total);
    }

    let reads = Reads::new(database, 0);
    let refusals = options.refusals(rules.look());
    let sink = options.sink(refusals.clone());
    let mut account = Account::new(refusals);
    let mut writer = BulkWriter::new(database, options.write.clone(), sink);
    progress.watch(writer.pace());
    let (sender, mut documents) = mpsc::channel(WAITING_DOCUMENTS);
    let reading = send_all(files, &options, sender);
    let mut encoder = writer.encoder();
    loop {
        account.acknowledge(&mut writer);
        let next = tokio::select! {
            biased;
            () = options.stop.requested() => {
                writer.drain(DRAIN_PATIENCE).await?;
                let documents = writer.stats().written;
                return Err(ImportError::Stopped { documents });
            }
            next = next_batch(&mut documents, rules.look()) => next,
        };
        let Some(batch) = next else { break };
        let there = look_up(database, &batch, rules.look()).await?;
        let (mut counts, mut sent) = (RestoreCounts::default(), Sent::default());
        let mut conflicts = Conflicts::default();
        for (path, body) in &batch {
            counts.looked_at(body);
            let found = there.found(path);
            let outcome = write_document(&rules, path, body, found, |write| Ok(encoder.write(write)?))?;
            counts.note(&outcome);
            outcome.note(path, &mut sent, &mut conflicts);
            progress.add(1, body.len() as u64);
        }
        let mark = writer.mark();
        account.expect(mark, counts, sent, conflicts);
        tokio::select! {
            submitted = writer.submit(encoder.take().marked(mark)) => submitted?,
            () = options.stop.requested() => continue,
        }
    }
    reading.await?.map_err(ImportError::Changed)?;
    let writes = tokio::select! {
        writes = writer.complete() => writes?,
        () = options.stop.requested() => {
            writer.drain(DRAIN_PATIENCE).await?;
            let documents = writer.stats().written;
            return Err(ImportError::Stopped { documents });
        }
    };
    account.acknowledge(&mut writer);
    let (mut counts, conflicts) = account.finish();
    counts.billed_reads = reads.billed();
    Ok(counts.stats(writes, &conflicts, start.elapsed()))
}

/// What decides about documents of files.
fn rules(options: &RestoreOptions, target: &DatabaseName) -> Result<Rules, ImportError> {
    let no = |what: &str| Err(RestoreError::Options(what.to_owned()).into());
    if options.mode == RestoreMode::Mirror {
        return no(
            "a file does not say that it has all there is, so nothing can be deleted for not being in it: \
                   mirror needs a snapshot",
        );
    }
    if options.references == ReferenceMode::Keep {
        return no(
            "a file does not say of which database it is, so references cannot be kept pointing there",
        );
    }
    Ok(options.rules(None, target)?)
}

/// Documents that wait, and no more: as many as are looked up together, or one where nothing is.
async fn next_batch(
    documents: &mut mpsc::Receiver<(DocumentPath, Vec<u8>)>,
    look: Look,
) -> Option<Vec<(DocumentPath, Vec<u8>)>> {
    let first = documents.recv().await?;
    let mut bytes = first.1.len();
    let mut batch = vec![first];
    while look != Look::Nothing && batch.len() < LOOKED_UP && bytes < LOOKED_UP_BYTES {
        let Some(next) = documents.recv().await else { break };
        bytes += next.1.len();
        batch.push(next);
    }
    Some(batch)
}

/// What the database has in the places of some documents.
struct There {
    looked: bool,
    documents: HashMap<String, (Timestamp, Vec<u8>)>,
}

impl There {
    fn found(&self, path: &DocumentPath) -> Found<'_> {
        match self.documents.get(path.as_str()) {
            _ if !self.looked => Found::Unknown,
            None => Found::Missing,
            Some((update_time, body)) => Found::There {
                update_time: *update_time,
                body,
            },
        }
    }
}

async fn look_up(
    database: &Firestore,
    batch: &[(DocumentPath, Vec<u8>)],
    look: Look,
) -> Result<There, ImportError> {
    let mut documents = HashMap::new();
    let looked = look != Look::Nothing;
    if looked {
        let paths: Vec<DocumentPath> = batch.iter().map(|(path, _)| path.clone()).collect();
        for document in database.get_documents(&paths, None).await?.found.iter() {
            let path = document.path().map_err(RestoreError::from)?;
            documents.insert(path.into(), (document.update_time, document.body.to_vec()));
        }
    }
    Ok(There { looked, documents })
}

/// Reads a file through, and says how many documents it has. `each` gets those that were chosen, where they are to be.
fn check_file(
    file: &DocumentsFile,
    options: &RestoreOptions,
    mut each: impl FnMut(DocumentPath, Fields) -> Result<(), RestoreError>,
) -> Result<u64, ImportError> {
    enum Stopped {
        Restore(RestoreError),
        File(JsonError),
    }
    impl From<JsonError> for Stopped {
        fn from(error: JsonError) -> Self {
            Self::File(error)
        }
    }
    let taken = options.renames.taken();
    let read = file.read(|path, fields| {
        if !options.filter.matches(&path) {
            return Ok(());
        }
        let moved = options.renamed(path.clone()).map_err(Stopped::Restore)?;
        let key = path.key();
        let collides = taken
            .iter()
            .find(|(range, _)| moved == path && range.contains(key.as_bytes()));
        match collides {
            Some((_, rename)) => Err(Stopped::Restore(RestoreError::Collision {
                rename: rename.to_string(),
                path,
            })),
            None => each(moved, fields).map_err(Stopped::Restore),
        }
    });
    match read {
        Ok(documents) => Ok(documents),
        Err(Stopped::Restore(error)) => Err(error.into()),
        Err(Stopped::File(error)) => Err(ImportError::Refused(error)),
    }
}

/// Reads the files on a thread of their own and sends the documents that were chosen, under the paths that they get.
fn send_all(
    files: &[DocumentsFile],
    options: &RestoreOptions,
    sender: mpsc::Sender<(DocumentPath, Vec<u8>)>,
) -> tokio::task::JoinHandle<Result<(), JsonError>> {
    let (files, options) = (files.to_vec(), options.clone());
    tokio::task::spawn_blocking(move || {
        files.iter().try_for_each(|file| {
            send_documents(file, |path, body| {
                if !options.filter.matches(&path) {
                    return true;
                }
                // A path with another name in it is a path. A closed channel means that the writer has failed, and its
                // error is the one to report.
                match options.renamed(path) {
                    Ok(path) => sender.blocking_send((path, body)).is_ok(),
                    Err(_) => true,
                }
            })
        })
    })
}

/// Calls `each` with the documents of a file until it answers false.
fn send_documents(
    file: &DocumentsFile,
    mut each: impl FnMut(DocumentPath, Vec<u8>) -> bool,
) -> Result<(), JsonError> {
    enum Stopped {
        ByReceiver,
        ByFile(JsonError),
    }
    impl From<JsonError> for Stopped {
        fn from(error: JsonError) -> Self {
            Self::ByFile(error)
        }
    }
    let read = file.read(|path, fields| match each(path, canonical::encode(&fields)) {
        true => Ok(()),
        false => Err(Stopped::ByReceiver),
    });
    match read {
        Ok(_) | Err(Stopped::ByReceiver) => Ok(()),
        Err(Stopped::ByFile(error)) => Err(error),
    }
}
