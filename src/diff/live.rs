//! A snapshot against the live database.
//!
//! The database that the snapshot is of is read by names: a document whose times are those of the record has not changed, and
//! only the others are fetched. In another database, such as one that the snapshot was restored into, all times differ and
//! the documents are read whole.

use std::sync::Arc;

use futures::stream::{self, BoxStream, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::joined::{Joined, ReferencesThere, ranges_of};
use super::{DiffError, DiffOptions, DocumentChange, ReadTimes, leased};
use crate::archive::SnapshotReader;
use crate::firestore::Firestore;
use crate::path_filter::PathFilter;
use crate::progress::Progress;
use crate::restore::ReferenceMode;

/// Batches that a range may be ahead of whoever reads the differences.
const WAITING_BATCHES: usize = 4;

/// What changed from a snapshot to the database as it is at these times, ascending by path, in batches; only what the
/// snapshot selects. At the first of them, unless that can be read no longer before all is compared:
/// [`ReadTimes::later`] tells at the end what was read later.
///
/// # Errors
/// When the snapshot's directory cannot be read; what goes wrong later ends the stream.
pub async fn diff_live(
    snapshot: &SnapshotReader,
    database: &Firestore,
    times: &ReadTimes,
    options: &DiffOptions,
) -> Result<impl Stream<Item = Result<Vec<DocumentChange>, DiffError>> + Send + 'static + use<>, DiffError> {
    let ranges = ranges_of(snapshot, options.parallel, std::slice::from_ref(&options.range)).await?;
    let source = &snapshot.snapshot().database;
    let joined = Joined {
        snapshot: snapshot.clone(),
        database: database.clone(),
        times: times.clone(),
        trust_times: source == database.database(),
        fields: options.fields,
        filter: PathFilter::all(),
        references: ReferencesThere::new(ReferenceMode::Rewrite, source, database.database()),
        equal: Arc::default(),
        progress: Progress::new(),
    };
    let differences = ranges
        .into_iter()
        .map(|(range, groups)| joined.clone().differences(range, groups).boxed());
    let differences = side_by_side(differences.collect());
    Ok(leased(vec![snapshot.clone()], differences))
}

/// Runs streams at the same time and gives what they give one after the other.
fn side_by_side<T: Send + 'static>(
    streams: Vec<BoxStream<'static, Result<T, DiffError>>>,
) -> impl Stream<Item = Result<T, DiffError>> + Send + 'static {
    // Dropping the set stops them all.
    let mut tasks = JoinSet::new();
    let mut receivers = Vec::new();
    for mut stream in streams {
        let (to, from) = mpsc::channel(WAITING_BATCHES);
        receivers.push(from);
        tasks.spawn(async move {
            while let Some(item) = stream.next().await {
                let failed = item.is_err();
                if to.send(item).await.is_err() || failed {
                    return;
                }
            }
        });
    }
    receivers.reverse();
    stream::try_unfold((tasks, receivers), |(mut tasks, mut receivers)| async move {
        while let Some(receiver) = receivers.last_mut() {
            if let Some(item) = receiver.recv().await {
                return Ok(Some((item?, (tasks, receivers))));
            }
            receivers.pop();
            // A task that was stopped has not said all.
            while let Some(ended) = tasks.try_join_next() {
                ended?;
            }
        }
        while let Some(ended) = tasks.join_next().await {
            ended?;
        }
        Ok(None)
    })
}
