//! Asking a long operation to stop where it can go on later.

use std::sync::Arc;

use tokio::sync::watch;

/// A request to stop, shared by whoever asks and whoever works.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    /// Nobody asks yet.
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Asks to stop.
    pub fn request(&self) {
        self.0.send_replace(true);
    }

    /// Whether somebody asked.
    pub fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until somebody asks.
    pub async fn requested(&self) {
        // The sender is here, so the channel is not closed.
        let _ = self.0.subscribe().wait_for(|requested| *requested).await;
    }
}
