//! The streams of one connection, served in the connection's own task.
//!
//! A request is a frame that comes in, a stream that answers it, and a frame that goes out.
//! As tasks of their own these would wake each other through the thread's queue, each behind
//! every other connection; here one poll of the connection does all of it. A thread then has
//! one task for each connection and polls them in the order in which they were woken.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker, ready};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::task::AtomicWaker;
use tokio::task::unconstrained;

use super::metrics::{CutLabel, CutReason, EdgeMetrics};
use super::stream::StreamState;
use super::tails::Tails;
use super::turn::{LONG_BYTES, Turn};
use super::window::Window;

/// A poll goes on while what it did lets more be done, so many times at most.
const MOST_ROUNDS: usize = 32;

/// Streams that begin in one round: a client with hundreds of requests gives the thread back
/// in between.
const BEGUN_AT_ONCE: usize = 8;

/// What HTTP/2 gives new streams to.
#[derive(Clone, Debug)]
pub(super) struct StreamExecutor(Arc<Begun>);

/// Streams that no poll has seen, and what each of them is told.
struct Begun {
    streams: Mutex<Vec<Served>>,
    progress_deadline: Duration,
    window: Window,
    tails: Arc<Tails>,
    metrics: EdgeMetrics,
}

/// The streams in progress. Dropped, they end.
pub(super) struct Streams {
    begun: Arc<Begun>,
    running: FuturesUnordered<Served>,
}

/// A stream until it is over or cut.
struct Served {
    reply: BoxFuture<'static, ()>,
    stream: Arc<StreamState>,
    /// From when it first waits: most streams are over before.
    cut: Option<BoxFuture<'static, CutReason>>,
    begun: Arc<Begun>,
}

/// Polls a connection and its streams until neither can do more.
pub(super) struct Rounds {
    wakes: Arc<Wakes>,
    waker: Waker,
}

/// Whom to wake: the task, or while it runs its next round.
struct Wakes {
    task: AtomicWaker,
    state: AtomicU8,
}

/// What a task's state is made of.
const IDLE: u8 = 0;
const RUNNING: u8 = 1;
const WOKEN: u8 = 2;

impl Streams {
    /// `window` is what the connection's client gives each stream at first; who does not
    /// take the end of a reply within it is found in `tails`.
    pub(super) fn new(
        progress_deadline: Duration,
        window: Window,
        tails: Arc<Tails>,
        metrics: EdgeMetrics,
    ) -> Self {
        let streams = Mutex::default();
        let begun = Arc::new(Begun { streams, progress_deadline, window, tails, metrics });
        Self { begun, running: FuturesUnordered::new() }
    }

    pub(super) fn executor(&self) -> StreamExecutor {
        StreamExecutor(Arc::clone(&self.begun))
    }

    /// Lets each stream that was begun or woken do what it can; whether any was begun.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let mut begun = self.begun.streams();
        let at_once = begun.len().min(BEGUN_AT_ONCE);
        self.running.extend(begun.drain(..at_once));
        drop(begun);
        let all = poll_fn(|cx| {
            while let Poll::Ready(Some(())) = self.running.poll_next_unpin(cx) {}
            Poll::Ready(())
        });
        // The connection may have used up the task's budget with writes of small frames; a
        // stream that could then read nothing would wait for as long as that goes on.
        let Poll::Ready(()) = pin!(unconstrained(all)).poll(cx) else { return false };
        at_once > 0
    }

    /// Whether some were begun that no poll has seen.
    fn has_more(&self) -> bool {
        !self.begun.streams().is_empty()
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        // Streams that no poll has seen hold on to where they wait.
        let unseen = std::mem::take(&mut *self.begun.streams());
        drop(unseen);
    }
}

impl Begun {
    fn streams(&self) -> MutexGuard<'_, Vec<Served>> {
        // Nothing is left half done under the lock.
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F> hyper::rt::Executor<F> for StreamExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, reply: F) {
        let begun = Arc::clone(&self.0);
        let stream = Arc::new(StreamState::new(begun.window.clone()));
        let served = Served { reply: Box::pin(reply), stream, cut: None, begun };
        self.0.streams().push(served);
    }
}

impl Future for Served {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let Self { reply, stream, cut, begun } = self.get_mut();
        // In this order: the first poll of the reply sets the stream's deadline.
        let polled = AssertUnwindSafe(|| stream.scope(|| reply.as_mut().poll(cx)));
        match catch_unwind(polled) {
            Ok(Poll::Pending) => {}
            Ok(Poll::Ready(())) => {
                if stream.ended_early() {
                    begun.tails.add(Arc::clone(stream));
                }
                return Poll::Ready(());
            }
            // The panic hook has told of it. No other stream ends with this one.
            Err(_) => return Poll::Ready(()),
        }
        let cut = cut.get_or_insert_with(|| {
            let (stream, limit) = (Arc::clone(stream), begun.progress_deadline);
            Box::pin(async move { stream.cut(limit).await })
        });
        let reason = ready!(cut.as_mut().poll(cx));
        begun.metrics.streams_cut.get_or_create(&CutLabel { reason }).inc();
        tracing::debug!(?reason, "stream cut");
        Poll::Ready(())
    }
}

impl Rounds {
    pub(super) fn new() -> Self {
        let wakes = Arc::new(Wakes { task: AtomicWaker::new(), state: AtomicU8::new(IDLE) });
        Self { waker: Waker::from(Arc::clone(&wakes)), wakes }
    }

    /// One poll of the task: ready when the connection is, and later if its turn is over.
    pub(super) fn poll<C: Future>(
        &self,
        mut connection: Pin<&mut C>,
        streams: &mut Streams,
        turn: &Turn,
        cx: &Context<'_>,
    ) -> Poll<C::Output> {
        turn.begin();
        self.wakes.task.register(cx.waker());
        let inner = &mut Context::from_waker(&self.waker);
        let mut again = true;
        for _ in 0..MOST_ROUNDS {
            self.wakes.state.swap(RUNNING, Ordering::AcqRel);
            if let Poll::Ready(ended) = connection.as_mut().poll(inner) {
                self.wakes.state.swap(IDLE, Ordering::AcqRel);
                return Poll::Ready(ended);
            }
            let held = turn.held_bytes();
            let begun = streams.poll(inner);
            if streams.has_more() {
                break;
            }
            if self.wakes.rest() {
                turn.end();
                return Poll::Pending;
            }
            // A long write throws out of the processor's caches what reads a request. So
            // requests that have come in are read before long replies are written.
            if begun && turn.held_bytes() >= held + LONG_BYTES {
                turn.line_up(inner.waker());
                // Others of its streams may have something short to say.
                again = !streams.running.is_empty();
                break;
            }
            if turn.is_over() {
                again = false;
                break;
            }
        }
        self.wakes.state.swap(IDLE, Ordering::AcqRel);
        if again || !turn.is_lined_up() {
            // To the end of the queue, behind everybody else who was woken.
            cx.waker().wake_by_ref();
        }
        turn.end();
        Poll::Pending
    }
}

impl Wakes {
    /// Whether nothing woke the task while it ran; it then wakes as any other does.
    fn rest(&self) -> bool {
        self.state.compare_exchange(RUNNING, IDLE, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        // Always written, so that the next round sees what this is about.
        if self.state.fetch_or(WOKEN, Ordering::AcqRel) & RUNNING == 0 {
            self.task.wake();
        }
    }
}

impl std::fmt::Debug for Begun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Begun").field("streams", &self.streams().len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
