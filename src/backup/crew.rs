//! The readers of a backup: each takes a range after the other, and when there are none left, parts of what others read.
//!
//! Ranges are cut evenly as far as one can tell beforehand, which is not far: the last of them may run for hours while all other
//! readers have nothing to do. So as soon as readers are idle, the one that has been at its range for longest is asked to give
//! away parts of what it has not read yet. It does so itself, between two batches, for only it knows where it is. One is asked at a time;
//! who has nothing worth sharing says so, and is not asked again.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::info;

use super::{BackupError, BackupOptions};
use crate::archive::ArchiveError;
use crate::firestore;

/// How the readers came to an end.
pub(super) enum Ended {
    /// Nothing is left that they know of.
    Done,
    /// Somebody asked them to stop.
    Stopped,
    /// The database can no longer be read at the time that they read at.
    WindowClosed(firestore::Error),
}

/// A reader's ties to the others. `J` is what they read.
pub(super) struct Share<J> {
    crew: Arc<Crew<J>>,
    reader: Arc<Reader>,
}

impl<J> Clone for Share<J> {
    fn clone(&self) -> Self {
        Self {
            crew: Arc::clone(&self.crew),
            reader: Arc::clone(&self.reader),
        }
    }
}

struct Crew<J> {
    queue: Mutex<VecDeque<J>>,
    changed: Notify,
}

struct Reader {
    began: Mutex<Instant>,
    /// How many others would take a part.
    wanted: AtomicUsize,
    /// Whether it has nothing to share.
    alone: AtomicBool,
}

impl<J> Share<J> {
    /// How many others would take a part of what is left of the range; `None` when they have enough to do.
    pub(super) fn wanted(&self) -> Option<usize> {
        Some(self.reader.wanted.load(Ordering::Relaxed)).filter(|&wanted| wanted > 0)
    }

    /// Gives parts away; they are started in this order.
    pub(super) fn give(&self, parts: Vec<J>) {
        {
            let mut queue = self.crew.queue.lock().unwrap_or_else(PoisonError::into_inner);
            for part in parts.into_iter().rev() {
                queue.push_front(part);
            }
        }
        *self.reader.began.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.answered();
    }

    /// Says that nothing is left that would be worth sharing.
    pub(super) fn give_nothing(&self) {
        self.reader.alone.store(true, Ordering::Relaxed);
        self.answered();
    }

    fn answered(&self) {
        self.reader.wanted.store(0, Ordering::Relaxed);
        self.crew.changed.notify_one();
    }
}

/// Asks the reader that has been at its range for longest for parts of it. Says how long to wait before that is worth while; `None`
/// when there is nobody to ask, or somebody was asked.
fn ask(readers: &HashMap<tokio::task::Id, Arc<Reader>>, idle: usize, after: Duration) -> Option<Duration> {
    let began = |reader: &Reader| *reader.began.lock().unwrap_or_else(PoisonError::into_inner);
    let asked = |reader: &&Arc<Reader>| reader.wanted.load(Ordering::Relaxed) > 0;
    if readers.values().any(|reader| asked(&reader)) {
        return None;
    }
    let able = readers
        .values()
        .filter(|reader| !reader.alone.load(Ordering::Relaxed));
    let longest = able.min_by_key(|reader| began(reader))?;
    let early = after.saturating_sub(began(longest).elapsed());
    if early.is_zero() {
        longest.wanted.store(idle, Ordering::Relaxed);
        return None;
    }
    Some(early)
}

/// Has jobs done, `options.parallel` at a time, in order.
pub(super) async fn run<J, Work>(
    jobs: Vec<J>,
    options: &BackupOptions,
    work: impl Fn(J, Share<J>) -> Work,
) -> Result<Ended, BackupError>
where
    Work: Future<Output = Result<(), BackupError>> + Send + 'static,
{
    let parallel = options.parallel.max(1);
    let crew = Arc::new(Crew {
        queue: Mutex::new(jobs.into()),
        changed: Notify::new(),
    });
    let mut running = JoinSet::new();
    let mut readers = HashMap::new();
    let mut closed = None;
    loop {
        let goes_on = closed.is_none() && !options.stop.is_requested();
        if !goes_on {
            // Who waits for one of these waits no longer.
            crew.queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
        while running.len() < parallel {
            let next = crew
                .queue
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .pop_front();
            let Some(job) = next else { break };
            let reader = Arc::new(Reader {
                began: Mutex::new(Instant::now()),
                wanted: AtomicUsize::new(0),
                alone: AtomicBool::new(false),
            });
            let share = Share {
                crew: Arc::clone(&crew),
                reader: Arc::clone(&reader),
            };
            readers.insert(running.spawn(work(job, share)).id(), reader);
        }
        if running.is_empty() {
            break;
        }
        let idle = parallel - running.len();
        let wait = match goes_on && idle > 0 {
            true => ask(&readers, idle, options.split_after),
            false => None,
        };
        tokio::select! {
            done = running.join_next_with_id() => match done {
                Some(Ok((id, result))) => {
                    readers.remove(&id);
                    match result {
                        Ok(()) => {}
                        Err(BackupError::Firestore(error @ firestore::Error::ReadTimeTooOld { .. })) => {
                            info!("{error}");
                            closed.get_or_insert(error);
                        }
                        Err(error) => return Err(error),
                    }
                }
                Some(Err(error)) => return Err(ArchiveError::from(error).into()),
                None => {}
            },
            () = crew.changed.notified() => {}
            () = tokio::time::sleep(wait.unwrap_or_default()), if wait.is_some() => {}
        }
    }
    Ok(match closed {
        _ if options.stop.is_requested() => Ended::Stopped,
        Some(error) => Ended::WindowClosed(error),
        None => Ended::Done,
    })
}
