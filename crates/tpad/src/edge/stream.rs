//! One gRPC stream on the server: its task, what its client has not taken, and when it is cut.
//!
//! HTTP/2 polls a reply's body only while the client takes it, so a body cannot
//! notice a client that stopped. The task around it can: every stream runs in a
//! task of its connection, which ends it when nothing was taken for too long,
//! when its deadline has passed, and when the connection is gone. Dropping the
//! stream drops the bytes that HTTP/2 still holds for it and sends RST_STREAM.
//!
//! For that the end of a reply is held back until the client has taken the rest,
//! unless the reply fits in the [window](super::window) of a client that says so:
//! its task is not woken once more then. With blocks of 1,047,552 bytes that brings
//! 1.02, 1.07 and 1.01 times the throughput at 1, 4 and 16 at a time, for 0.95, 0.97
//! and 1.00 of the processor time (docs/performance.md, "Ends of replies").

use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures::task::AtomicWaker;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::in_flight::Share;
use super::metrics::{CutLabel, CutReason, EdgeMetrics};
use super::stall::Stall;
use super::tails::Tails;
use super::window::Window;

/// A stream that has this much or less outstanding is let go at its end: unary
/// replies then need no second wake-up, and what a client can leave behind is small.
pub(super) const HELD_BYTES: u64 = 16 << 10;

/// After its deadline a stream gets this long to deliver the status that says so.
const STATUS_GRACE: Duration = Duration::from_millis(250);

tokio::task_local! {
    /// The stream that the current task serves.
    static STREAM: Arc<StreamState>;
}

/// What a stream's task and its body know of each other.
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

/// Runs the streams of one connection.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor {
    streams: TaskTracker,
    closed: CancellationToken,
    progress_deadline: Duration,
    window: Window,
    tails: Arc<Tails>,
    metrics: EdgeMetrics,
}

/// Bytes that HTTP/2 holds for a client; counted until it drops them.
struct Piece {
    bytes: Bytes,
    stream: Arc<StreamState>,
    share: Arc<Share>,
    metrics: EdgeMetrics,
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

    /// The state of the stream whose task is running; a fresh one outside of any.
    pub(super) fn current() -> Arc<Self> {
        STREAM.try_with(Arc::clone).unwrap_or_else(|_| Arc::new(Self::new(Window::new())))
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

    /// The reply's end goes, although the client may have more to take than a stream may leave.
    pub(super) fn end_early(&self) {
        self.ended_early.store(self.outstanding_bytes() > HELD_BYTES, Ordering::Relaxed);
    }

    /// For how long the client has taken nothing; `None`: nothing waits for it.
    pub(super) fn stalled(&self) -> Option<Duration> {
        self.stall.lasted()
    }

    pub(super) fn outstanding_bytes(&self) -> u64 {
        self.outstanding.load(Ordering::Acquire)
    }

    /// Wraps bytes on their way to HTTP/2, so that it is known when they are taken.
    pub(super) fn send(
        self: &Arc<Self>,
        bytes: Bytes,
        share: &Arc<Share>,
        metrics: &EdgeMetrics,
    ) -> Bytes {
        let length = length(&bytes);
        if length == 0 {
            return bytes;
        }
        self.sent.fetch_add(length, Ordering::Relaxed);
        let begins = self.outstanding.fetch_add(length, Ordering::AcqRel) == 0;
        share.add(length, begins);
        self.stall.begin();
        Bytes::from_owner(Piece {
            bytes,
            stream: Arc::clone(self),
            share: Arc::clone(share),
            metrics: metrics.clone(),
        })
    }

    /// After `bytes` of the `before` that were outstanding were taken.
    fn taken(&self, bytes: u64, before: u64) {
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
    async fn cut(&self, progress_deadline: Duration) -> CutReason {
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

impl StreamExecutor {
    /// `window` is what the connection's client gives each stream at first; who does not
    /// take the end of a reply within it is found in `tails`.
    pub(super) fn new(
        progress_deadline: Duration,
        window: Window,
        tails: Arc<Tails>,
        metrics: EdgeMetrics,
    ) -> Self {
        Self {
            streams: TaskTracker::new(),
            closed: CancellationToken::new(),
            progress_deadline,
            window,
            tails,
            metrics,
        }
    }

    /// Ends every stream of the connection and waits for their tasks.
    pub(super) async fn close(&self) {
        self.closed.cancel();
        self.streams.close();
        self.streams.wait().await;
    }
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        let state = Arc::new(StreamState::new(self.window.clone()));
        let this = self.clone();
        self.streams.spawn(async move {
            let served = STREAM.scope(Arc::clone(&state), stream);
            // In this order: the first poll of the stream sets its deadline.
            let cut = tokio::select! {
                biased;
                () = this.closed.cancelled() => None,
                () = served => {
                    if state.ended_early.load(Ordering::Relaxed) {
                        this.tails.add(Arc::clone(&state));
                    }
                    None
                }
                reason = state.cut(this.progress_deadline) => Some(reason),
            };
            if let Some(reason) = cut {
                this.metrics.streams_cut.get_or_create(&CutLabel { reason }).inc();
                tracing::debug!(?reason, "stream cut");
            }
        });
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        let length = length(&self.bytes);
        self.metrics.sent_bytes.inc_by(length);
        let before = self.stream.outstanding.fetch_sub(length, Ordering::AcqRel);
        // Room first: who is woken looks for it.
        self.share.remove(length, before == length);
        self.stream.taken(length, before);
    }
}

fn length(bytes: &Bytes) -> u64 {
    // usize is 64 bits wherever this runs.
    bytes.len() as u64
}
