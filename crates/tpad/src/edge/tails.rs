//! The ends of replies that HTTP/2 still holds when their streams' tasks are over.
//!
//! A reply within its client's first window needs nobody who waits for its last byte, so its
//! task ends when that byte is with HTTP/2. Whether the client takes it is watched here: of a
//! stream without a task nothing can be reset, so who does not loses the connection.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::stream::StreamState;

/// Those of one connection.
#[derive(Debug, Default)]
pub(super) struct Tails(Mutex<Vec<Arc<StreamState>>>);

impl Tails {
    pub(super) fn add(&self, stream: Arc<StreamState>) {
        self.held().push(stream);
    }

    /// Ends once a client has taken nothing of one for `limit`.
    pub(super) async fn stall(&self, limit: Duration) {
        loop {
            let longest = self.held().iter().filter_map(|stream| stream.stalled()).max();
            let left = limit.saturating_sub(longest.unwrap_or_default());
            if left.is_zero() {
                return;
            }
            // Whatever begins to wait meanwhile cannot be due before this.
            tokio::time::sleep(left).await;
        }
    }

    /// Those that are not taken.
    fn held(&self) -> MutexGuard<'_, Vec<Arc<StreamState>>> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| stream.outstanding_bytes() > 0);
        streams
    }
}
