//! What HTTP/2 still holds of replies whose streams are over.
//!
//! A reply within its client's [window](super::window) needs nobody who waits for its last byte,
//! so its stream is over when that byte is with HTTP/2. Whether it is taken is watched here: what
//! is over cannot be reset, so who does not take it loses the connection. That is one
//! who does not read its socket, took a window back, left 1 GiB of other streams unread, or
//! has so many streams on so slow a link that a whole piece of each takes too long.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::stream::{HELD_BYTES, StreamState};

/// Those of one connection.
#[derive(Debug, Default)]
pub(super) struct Tails(Mutex<Vec<Arc<StreamState>>>);

impl Tails {
    pub(super) fn add(&self, stream: Arc<StreamState>) {
        self.held().push(stream);
    }

    /// Ends once a client has taken nothing of one for `limit`, or for twice that at most if
    /// it began before its stream was over.
    pub(super) async fn stall(&self, limit: Duration) {
        loop {
            let longest = self.held().iter().filter_map(|stream| stream.stalled()).max();
            let left = limit.saturating_sub(longest.unwrap_or_default());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left).await;
        }
    }

    /// Those that are not taken.
    fn held(&self) -> MutexGuard<'_, Vec<Arc<StreamState>>> {
        let mut streams = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        streams.retain(|stream| stream.outstanding_bytes() > HELD_BYTES);
        streams
    }
}
