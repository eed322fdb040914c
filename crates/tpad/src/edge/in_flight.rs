//! The bytes that the edge holds for clients, bounded over all connections.
//!
//! A piece of a reply counts from when it is handed to HTTP/2 until HTTP/2 has
//! written or dropped it. At the bound a body is not asked for more, except that
//! a connection which holds nothing always gets one piece: clients that do not
//! read cannot stop one that does. So what can be held is the bound, a piece for
//! each connection, and a piece for each thread that passed the gate at the same
//! moment. A stream that passes wakes the next while there is room.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio::time::Instant;

/// At the bound without a reply's byte moving for this long, new requests are refused: in
/// a busy daemon one moves many times a second even at 10 MB/s.
const SATURATED_AFTER: Duration = Duration::from_secs(1);

/// What is held for all connections.
#[derive(Debug)]
pub(super) struct InFlight {
    limit: u64,
    bytes: AtomicU64,
    /// Those of them that requests brought.
    of_requests: AtomicU64,
    room: Arc<Notify>,
    /// Since when the bound is reached and nothing moved; `None` below it.
    closed_since: Mutex<Option<Instant>>,
    gauge: Gauge,
}

/// What is held for one connection.
#[derive(Debug)]
pub(super) struct Share {
    all: Arc<InFlight>,
    bytes: AtomicU64,
    empty: Arc<Notify>,
}

/// A stream that waits until it may send another piece.
pub(super) struct Waiting {
    room: Pin<Box<OwnedNotified>>,
    empty: Pin<Box<OwnedNotified>>,
}

impl InFlight {
    pub(super) fn new(limit: u64, gauge: Gauge) -> Self {
        Self {
            limit,
            bytes: AtomicU64::new(0),
            of_requests: AtomicU64::new(0),
            room: Arc::new(Notify::new()),
            closed_since: Mutex::new(None),
            gauge,
        }
    }

    fn add(&self, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.gauge.inc_by(signed(bytes));
        if before < self.limit && before.saturating_add(bytes) >= self.limit {
            *self.closed() = Some(Instant::now());
        }
    }

    /// Counts what a request brought, and says what all requests hold.
    pub(super) fn add_request(&self, bytes: u64) -> u64 {
        self.add(bytes);
        self.of_requests.fetch_add(bytes, Ordering::AcqRel).saturating_add(bytes)
    }

    /// Gives it back. Requests that come and go are no sign that replies move.
    pub(super) fn remove_request(&self, bytes: u64) {
        self.of_requests.fetch_sub(bytes, Ordering::AcqRel);
        self.take_off(bytes, false);
    }

    /// The part of the bound that requests may hold: with all of it they could
    /// keep every reply from being sent.
    pub(super) fn for_requests(&self) -> u64 {
        self.limit / 2
    }

    /// Whether the bound was reached and no reply has moved since for a while.
    pub(super) fn saturated(&self) -> bool {
        !self.has_room() && self.closed().is_some_and(|since| since.elapsed() >= SATURATED_AFTER)
    }

    fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Acquire) < self.limit
    }

    fn take_off(&self, bytes: u64, moved: bool) {
        let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.gauge.dec_by(signed(bytes));
        if before < self.limit {
            return;
        }
        if before - bytes < self.limit {
            *self.closed() = None;
            self.room.notify_one();
        } else if moved {
            *self.closed() = Some(Instant::now());
        }
    }

    fn closed(&self) -> MutexGuard<'_, Option<Instant>> {
        self.closed_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Share {
    pub(super) fn new(all: Arc<InFlight>) -> Self {
        Self { all, bytes: AtomicU64::new(0), empty: Arc::new(Notify::new()) }
    }

    /// Ready when a stream of this connection may send a piece; `waiting` is its place in the queue.
    pub(super) fn poll_room(
        &self,
        waiting: &mut Option<Waiting>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        loop {
            if self.has_room() {
                if waiting.take().is_some() {
                    self.pass_on();
                }
                return Poll::Ready(());
            }
            match waiting {
                Some(waits) => match waits.poll(cx) {
                    Poll::Ready(()) => {
                        *waiting = None;
                        if self.has_room() {
                            self.pass_on();
                            return Poll::Ready(());
                        }
                    }
                    Poll::Pending => return Poll::Pending,
                },
                // In the queue first, then looking again: no wake-up is missed.
                None => *waiting = Some(self.wait()),
            }
        }
    }

    /// Counts a piece that is handed to HTTP/2.
    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::AcqRel);
        self.all.add(bytes);
    }

    /// A piece was taken or dropped.
    pub(super) fn remove(&self, bytes: u64) {
        let before = self.bytes.fetch_sub(bytes, Ordering::AcqRel);
        self.all.take_off(bytes, true);
        if before == bytes {
            self.empty.notify_one();
        }
    }

    fn is_empty(&self) -> bool {
        self.bytes.load(Ordering::Acquire) == 0
    }

    fn has_room(&self) -> bool {
        self.all.has_room() || self.is_empty()
    }

    fn wait(&self) -> Waiting {
        let enabled = |notify: &Arc<Notify>| {
            let mut notified = Box::pin(Arc::clone(notify).notified_owned());
            notified.as_mut().enable();
            notified
        };
        Waiting { room: enabled(&self.all.room), empty: enabled(&self.empty) }
    }

    /// Wakes the next: the one that passed may have nothing to send yet.
    fn pass_on(&self) {
        if self.all.has_room() {
            self.all.room.notify_one();
        }
        if self.is_empty() {
            self.empty.notify_one();
        }
    }
}

impl Waiting {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Dropping the other one hands its wake-up on if it had one.
        if self.room.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        self.empty.as_mut().poll(cx)
    }
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use futures::future::poll_fn;

    use super::*;

    fn in_flight() -> Arc<InFlight> {
        Arc::new(InFlight::new(100, Gauge::default()))
    }

    async fn room(share: &Share) {
        let mut waiting = None;
        poll_fn(|cx| share.poll_room(&mut waiting, cx)).await;
    }

    /// Whether a stream of `share` would have to wait.
    async fn is_closed(share: &Share) -> bool {
        futures::poll!(Box::pin(room(share))).is_pending()
    }

    #[tokio::test]
    async fn the_gate_closes_at_the_bound_and_opens_below_it() {
        let share = Share::new(in_flight());
        share.add(60);
        assert!(!is_closed(&share).await);
        share.add(60);
        let mut waits = Box::pin(room(&share));
        assert!(futures::poll!(&mut waits).is_pending());
        share.remove(60);
        waits.await;
    }

    #[tokio::test]
    async fn a_connection_that_holds_nothing_passes_a_closed_gate() {
        let all = in_flight();
        let (greedy, modest) = (Share::new(Arc::clone(&all)), Share::new(all));
        greedy.add(100);
        assert!(is_closed(&greedy).await);
        assert!(!is_closed(&modest).await);
        modest.add(10);
        let mut waits = Box::pin(room(&modest));
        assert!(futures::poll!(&mut waits).is_pending());
        modest.remove(10);
        waits.await;
        assert!(is_closed(&greedy).await);
    }

    #[tokio::test]
    async fn a_stream_that_passes_wakes_the_next_whoever_it_is() {
        let all = in_flight();
        let (first, second) = (Share::new(Arc::clone(&all)), Share::new(all));
        first.add(50);
        second.add(50);
        let (mut one, mut two) = (Box::pin(room(&first)), Box::pin(room(&second)));
        assert!(futures::poll!(&mut one).is_pending() && futures::poll!(&mut two).is_pending());
        // One wake-up for two streams, neither of which then sends anything.
        first.remove(10);
        one.await;
        two.await;
    }

    #[tokio::test]
    async fn a_waiting_stream_that_goes_away_hands_its_wake_up_on() {
        let share = Share::new(in_flight());
        share.add(110);
        let (mut gone, mut next) = (Box::pin(room(&share)), Box::pin(room(&share)));
        assert!(futures::poll!(&mut gone).is_pending() && futures::poll!(&mut next).is_pending());
        share.remove(20);
        drop(gone);
        next.await;
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_bound_without_movement_is_saturation() {
        let all = in_flight();
        let share = Share::new(Arc::clone(&all));
        share.add(150);
        assert!(!all.saturated(), "just reached");
        tokio::time::advance(SATURATED_AFTER).await;
        assert!(all.saturated());
        all.add_request(5);
        all.remove_request(5);
        assert!(all.saturated(), "a request is no movement");
        share.remove(10);
        assert!(!all.saturated(), "a reply moved");
        tokio::time::advance(SATURATED_AFTER).await;
        assert!(all.saturated());
        share.remove(140);
        assert!(!all.saturated(), "open");
    }
}
