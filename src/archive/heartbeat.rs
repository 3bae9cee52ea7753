//! Signs of life, by which a sweep knows sessions that are under way from those that were left.

use std::time::Duration;

use super::ids::SessionId;
use super::repository::Repository;

/// How often a worker shows that it lives.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(30);

/// Shows from time to time that a worker lives, with new objects: nothing in a repository is ever overwritten.
#[derive(Debug)]
pub(super) struct Heartbeat(tokio::task::JoinHandle<()>);

impl Heartbeat {
    /// `worker` is the process.
    pub(super) fn start(
        repository: &Repository,
        session: SessionId,
        worker: SessionId,
        at_once: bool,
    ) -> Self {
        let store = repository.store().clone();
        Self(tokio::spawn(async move {
            for beat in 0u64.. {
                if beat > 0 || !at_once {
                    tokio::time::sleep(HEARTBEAT_EVERY).await;
                }
                let name = format!("{}/heartbeats/{worker}-{beat}", session.folder());
                if let Err(error) = store.put_new(&name, bytes::Bytes::from_static(b"{}\n")).await {
                    tracing::warn!(%session, "no heartbeat: {error}");
                }
            }
        }))
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.0.abort();
    }
}
