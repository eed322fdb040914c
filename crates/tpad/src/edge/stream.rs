//! One gRPC stream on the server: what its client has not taken, and when it is cut.
//!
//! HTTP/2 polls a reply's body only while the client takes it, so a body cannot
//! notice a client that stopped. What is [around it](super::streams) can: it ends the
//! stream when nothing was taken for too long, when its deadline has passed, and when
//! the connection is gone. Dropping the stream drops the bytes that HTTP/2 still holds
//! for it and sends RST_STREAM.
//!
//! For that the end of a reply is held back until the client has taken the rest,
//! unless the reply fits in the [window](super::window) of a client that says so:
//! the stream is not woken once more then. With blocks of 1,047,552 bytes that brings
//! 1.02, 1.07 and 1.01 times the throughput at 1, 4 and 16 at a time, for 0.95, 0.97
//! and 1.00 of the processor time (docs/performance.md, "Ends of replies").

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::time::Instant;

use super::metrics::CutReason;
use super::stall::Stall;
use super::window::Window;

/// A stream that has this much or less outstanding is let go at its end: unary
/// replies then need no second wake-up, and what a client can leave behind is small.
pub(super) const HELD_BYTES: u64 = 16 << 10;

/// After its deadline a stream gets this long to deliver the status that says so.
const STATUS_GRACE: Duration = Duration::from_millis(250);

/// What tpad's bulk receiver gives each stream, four times what its ordinary one does.
const BULK_WINDOW_BYTES: u64 = 64 << 20;

tokio::task_local! {
    /// The stream that is being served.
    static STREAM: Arc<StreamState>;
}

/// What a stream and its body know of each other.
#[derive(Debug)]
pub(super) struct StreamState {
    stall: Stall,
    outstanding: AtomicU64,
    sent: AtomicU64,
    window: Window,
    ended_early: AtomicBool,
    body: AtomicWaker,
    deadline: OnceLock<Instant>,
}

impl StreamState {
    pub(super) fn new(window: Window) -> Self {
        Self {
            stall: Stall::new(),
            outstanding: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            window,
            ended_early: AtomicBool::new(false),
            body: AtomicWaker::new(),
            deadline: OnceLock::new(),
        }
    }

    /// The state of the stream that is being served; a fresh one outside of any.
    pub(super) fn current() -> Arc<Self> {
        STREAM.try_with(Arc::clone).unwrap_or_else(|_| Arc::new(Self::new(Window::new())))
    }

    /// Does `part` of what serves the stream, which finds it as the current one.
    pub(super) fn scope<T>(self: &Arc<Self>, part: impl FnOnce() -> T) -> T {
        STREAM.sync_scope(Arc::clone(self), part)
    }

    /// When the stream is cut at the latest; the first call counts.
    pub(super) fn set_deadline(&self, deadline: Instant) {
        let _ = self.deadline.set(deadline);
    }

    /// Whether the client has yet to take more than a stream may leave behind.
    ///
    /// If so, `waker` is woken when that changes.
    pub(super) fn holds_back(&self, waker: &std::task::Waker) -> bool {
        if self.outstanding.load(Ordering::Acquire) <= HELD_BYTES {
            return false;
        }
        self.body.register(waker);
        // Again: what was taken before the waker was there woke nobody.
        self.outstanding.load(Ordering::Acquire) > HELD_BYTES
    }

    /// Whether all of the reply waits for the socket alone, not for who reads it.
    pub(super) fn is_within_window(&self) -> bool {
        self.sent.load(Ordering::Relaxed) <= self.window.bytes()
    }

    /// Whether the client reads within frames, as far as its windows tell: those of tpad's
    /// bulk receiver. Others hear nothing of a frame before its last byte, and of a reply that
    /// breaks off within the first nothing at all.
    pub(super) fn reads_within_frames(&self) -> bool {
        self.window.bytes() >= BULK_WINDOW_BYTES
    }

    /// The reply's end goes, although the client may have more to take than a stream may leave.
    pub(super) fn end_early(&self) {
        self.ended_early.store(self.outstanding_bytes() > HELD_BYTES, Ordering::Relaxed);
    }

    /// Whether the reply's end went so.
    pub(super) fn ended_early(&self) -> bool {
        self.ended_early.load(Ordering::Relaxed)
    }

    /// For how long the client has taken nothing; `None`: nothing waits for it.
    pub(super) fn stalled(&self) -> Option<Duration> {
        self.stall.lasted()
    }

    pub(super) fn outstanding_bytes(&self) -> u64 {
        self.outstanding.load(Ordering::Acquire)
    }

    /// `bytes` are handed to HTTP/2.
    pub(super) fn sends(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.outstanding.fetch_add(bytes, Ordering::AcqRel);
        self.stall.begin();
    }

    /// HTTP/2 has dropped `bytes`, of which `room` is made.
    pub(super) fn taken(&self, bytes: u64, room: impl FnOnce()) {
        let before = self.outstanding.fetch_sub(bytes, Ordering::AcqRel);
        // Room first: who is woken looks for it.
        room();
        if before == bytes {
            self.stall.clear();
            // More may have been sent between the two lines above.
            if self.outstanding_bytes() > 0 {
                self.stall.begin();
            }
        } else {
            self.stall.progress();
        }
        if before - bytes <= HELD_BYTES {
            self.body.wake();
        }
    }

    /// Ends when the stream is to be cut, and says why.
    pub(super) async fn cut(&self, progress_deadline: Duration) -> CutReason {
        let late = async {
            match self.deadline.get() {
                Some(deadline) => tokio::time::sleep_until(*deadline + STATUS_GRACE).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.stall.exceeds(progress_deadline) => CutReason::Stalled,
            () = late => CutReason::Deadline,
        }
    }
}
