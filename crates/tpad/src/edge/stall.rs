//! Noticing that a peer takes nothing: since when something waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Since when something has waited for a peer without any progress.
#[derive(Debug)]
pub(super) struct Stall {
    created: Instant,
    /// Milliseconds after `created`, plus one; zero: nothing waits.
    since: AtomicU64,
}

impl Stall {
    pub(super) fn new() -> Self {
        Self { created: Instant::now(), since: AtomicU64::new(0) }
    }

    /// Something begins to wait; it may already do so.
    pub(super) fn begin(&self) {
        let _ = self.since.compare_exchange(0, self.now(), Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The peer took some, and more waits.
    pub(super) fn progress(&self) {
        self.since.store(self.now(), Ordering::Relaxed);
    }

    /// Nothing waits any more.
    pub(super) fn clear(&self) {
        self.since.store(0, Ordering::Relaxed);
    }

    /// For how long something has waited without progress; `None`: nothing waits.
    pub(super) fn lasted(&self) -> Option<Duration> {
        match self.since.load(Ordering::Relaxed) {
            0 => None,
            since => Some(Duration::from_millis(self.now().saturating_sub(since))),
        }
    }

    /// Ends once something has waited for `limit` without progress.
    ///
    /// One timer, armed again at most once per `limit`: whatever begins to wait
    /// while it sleeps cannot be due before it wakes.
    pub(super) async fn exceeds(&self, limit: Duration) {
        loop {
            let now = Instant::now();
            let due = match self.since.load(Ordering::Relaxed) {
                0 => now + limit,
                since => self.created + Duration::from_millis(since - 1) + limit,
            };
            if due <= now {
                return;
            }
            tokio::time::sleep_until(due).await;
        }
    }

    fn now(&self) -> u64 {
        // 2^64 milliseconds are half a billion years.
        u64::try_from(self.created.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    /// Seconds on the paused clock until `stall` exceeds the limit.
    async fn seconds_until_exceeded(stall: &Stall) -> u64 {
        let start = Instant::now();
        stall.exceeds(LIMIT).await;
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_without_progress_exceeds_the_limit() {
        let stall = Stall::new();
        stall.begin();
        stall.begin();
        assert_eq!(seconds_until_exceeded(&stall).await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn progress_starts_the_limit_anew() {
        let stall = Stall::new();
        stall.begin();
        tokio::join!(
            async {
                tokio::time::sleep(Duration::from_secs(7)).await;
                stall.progress();
            },
            async { assert_eq!(seconds_until_exceeded(&stall).await, 17) },
        );
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_that_waits_never_exceeds() {
        let stall = Stall::new();
        stall.begin();
        stall.clear();
        let a_day = Duration::from_secs(86_400);
        assert!(tokio::time::timeout(a_day, stall.exceeds(LIMIT)).await.is_err());
        stall.begin();
        assert_eq!(seconds_until_exceeded(&stall).await, 10);
    }
}
