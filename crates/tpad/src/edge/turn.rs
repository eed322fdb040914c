//! Turns at writing: no connection writes so long that the others wait for it.
//!
//! A client that reads as fast as the daemon writes never makes a write wait, and
//! a connection would write until the runtime's own patience ends, 128 writes of a
//! frame each. So a connection's task gives the thread back after its turn, and
//! stands in [line](super::line) for the next.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Waker;

use super::in_flight::Share;
use super::line::Place;

/// What a write that is then done may exceed a turn by: a frame's header and the head of a
/// reply, so that a frame of a turn's length is one write.
const HEADER_BYTES: u64 = 17 << 10;

/// A connection that writes less stands in no line.
pub(super) const LONG_BYTES: u64 = 64 << 10;

/// What a connection has written since its turn began.
#[derive(Debug)]
pub(super) struct Turn {
    share: Arc<Share>,
    /// In the line of its thread, if it has one to itself.
    place: Option<Place>,
    written: AtomicU64,
}

impl Turn {
    pub(super) fn new(share: Arc<Share>, place: Option<Place>) -> Self {
        Self { share, place, written: AtomicU64::new(0) }
    }

    /// The connection is polled.
    pub(super) fn begin(&self) {
        let waits = self.place.as_ref().is_some_and(|place| {
            place.arrive();
            place.waits()
        });
        // Whoever woke it before its next turn, there is no more of the last one.
        if !waits {
            self.written.store(0, Ordering::Relaxed);
        }
    }

    /// The poll is over.
    pub(super) fn end(&self) {
        if let Some(place) = &self.place {
            place.pass();
        }
    }

    /// What HTTP/2 holds of the connection's replies.
    pub(super) fn held_bytes(&self) -> u64 {
        self.share.held_bytes()
    }

    pub(super) fn is_over(&self) -> bool {
        self.written.load(Ordering::Relaxed) >= self.share.turn_bytes()
    }

    /// How many of `bytes` may be written now; `None` if it is not the connection's turn:
    /// `waker` is woken when it is.
    pub(super) fn may_write(&self, bytes: usize, waker: &Waker) -> Option<usize> {
        if self.is_over() {
            self.line_up(waker);
            return None;
        }
        // usize is 64 bits wherever this runs.
        let bytes = bytes as u64;
        // Of short frames as many as of a long one: who takes no others stands in line too.
        let long = self.written.load(Ordering::Relaxed) + bytes >= LONG_BYTES;
        if long && self.place.as_ref().is_some_and(|place| !place.has_turn(waker)) {
            return None;
        }
        let turn = self.share.turn_bytes();
        let most = if bytes <= turn + HEADER_BYTES { bytes } else { turn };
        // At most some MiB.
        Some(usize::try_from(most).unwrap_or(usize::MAX))
    }

    /// Has `waker` woken for another turn: behind everybody else who is ready.
    pub(super) fn line_up(&self, waker: &Waker) {
        match &self.place {
            Some(place) => place.line_up(waker),
            None => waker.wake_by_ref(),
        }
    }

    /// Whether the connection will be woken for a turn.
    pub(super) fn is_lined_up(&self) -> bool {
        self.place.as_ref().is_some_and(Place::waits)
    }

    pub(super) fn wrote(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}
