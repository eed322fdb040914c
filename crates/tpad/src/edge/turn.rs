//! Turns at writing: no connection writes so long that the others wait for it.
//!
//! A client that reads as fast as the daemon writes never makes a write wait, and
//! a connection would write until the runtime's own patience ends, 128 writes of a
//! frame each. So a connection's task gives the thread back after its turn, and
//! goes to the end of the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::in_flight::Share;

/// What a write may exceed a turn by: a frame's header, so that a frame of a turn's
/// length is one write.
const HEADER_BYTES: u64 = 1 << 10;

/// What a connection has written since it was polled.
#[derive(Debug)]
pub(super) struct Turn {
    share: Arc<Share>,
    written: AtomicU64,
}

impl Turn {
    pub(super) fn new(share: Arc<Share>) -> Self {
        Self { share, written: AtomicU64::new(0) }
    }

    /// The connection is polled.
    pub(super) fn begin(&self) {
        self.written.store(0, Ordering::Relaxed);
    }

    /// The longest write now; `None` when the turn is over.
    pub(super) fn longest_write(&self) -> Option<usize> {
        let turn = self.share.turn_bytes();
        let written = self.written.load(Ordering::Relaxed);
        // At most some MiB.
        (written < turn).then(|| usize::try_from(turn + HEADER_BYTES).unwrap_or(usize::MAX))
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
