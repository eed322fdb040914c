//! A level that may break: reads go past it until it works again.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tpad_manifest::BlockId;

use crate::level::{Health, Level, LevelError, LevelRead};
use crate::{BlockBytes, CacheClass, Medium, SlotMut, StoreMetrics, Urgency};

/// How long a broken level is left alone at first; it doubles from there.
const FIRST_REST: Duration = Duration::from_secs(1);
/// How long at most.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// How long a read waits for others of a level that works. More is asked for than
/// the level gives, and the origin is better than nothing.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// What a level reads and writes at least, in bytes per millisecond: 100 MB/s.
const SLOWEST: u64 = 100_000;

/// A level with its state of health. Failures end here: as misses, counters and
/// one line in the log for each change.
pub(super) struct Guarded {
    level: Arc<dyn Level>,
    patience: Duration,
    metrics: StoreMetrics,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is wrong; `None` while the level works.
    problem: Option<String>,
    /// Left alone until then.
    rests_until: Option<Instant>,
    rest: Duration,
}

/// What a read of a level came to.
pub(super) enum Outcome {
    /// As the level says.
    Read(LevelRead),
    /// The level broke, or has too much to do, and the slot is gone.
    Broke,
}

impl Guarded {
    pub(super) fn new(level: Arc<dyn Level>, patience: Duration, metrics: StoreMetrics) -> Self {
        Self { level, patience, metrics, state: Mutex::default() }
    }

    pub(super) fn medium(&self) -> Medium {
        self.level.medium()
    }

    pub(super) fn level(&self) -> &dyn Level {
        &*self.level
    }

    /// Whether the level has the block and is in a state to be asked for it.
    pub(super) fn offers(&self, id: &BlockId) -> bool {
        !self.rests() && self.level.contains(id)
    }

    /// Likewise, and as a use: others go before it.
    pub(super) fn settles(&self, id: &BlockId) -> bool {
        !self.rests() && self.level.settle(id)
    }

    /// Whether a block is worth reading for the level.
    pub(super) fn takes(&self) -> bool {
        !self.rests() && self.level.takes()
    }

    /// The block in the level's own memory, if it can be shared there.
    pub(super) fn in_place(&self, id: &BlockId) -> Option<(BlockBytes, Medium)> {
        if self.rests() {
            return None;
        }
        Some((self.level.in_place(id)?, self.medium()))
    }

    /// Reads a block; as a prefetch until `demanded` returns, if it begins as one.
    pub(super) async fn read(
        &self,
        id: &BlockId,
        slot: SlotMut,
        urgency: Urgency,
        demanded: impl Future<Output = ()>,
    ) -> Outcome {
        let limit = self.limit(slot.len());
        let mut read = pin!(self.patiently(limit, self.level.read(id, slot, urgency)));
        let read = if urgency == Urgency::Prefetch {
            tokio::select! {
                // What has not begun cannot be hurried, what has ended need not be.
                biased;
                read = &mut read => read,
                () = demanded => {
                    self.level.hurry(id);
                    read.await
                }
            }
        } else {
            read.await
        };
        match read {
            Some(Ok(read)) => {
                self.works();
                Outcome::Read(read)
            }
            Some(Err(error)) => {
                self.broke(&error);
                Outcome::Broke
            }
            None => Outcome::Broke,
        }
    }

    /// A read that does not end in time is a level that is broken; unless others
    /// get on meanwhile, before which this one has to wait. `None` when it has
    /// waited so long for them that it goes past the level.
    async fn patiently(
        &self,
        limit: Duration,
        read: impl Future<Output = Result<LevelRead, LevelError>>,
    ) -> Option<Result<LevelRead, LevelError>> {
        let mut read = pin!(read);
        let latest = Instant::now() + LONGEST_WAIT.max(limit);
        let mut progress = self.level.progress();
        loop {
            if let Ok(read) = timeout(limit, &mut read).await {
                return Some(read);
            }
            let now = self.level.progress();
            if now == std::mem::replace(&mut progress, now) {
                return Some(Err(slow(limit)));
            }
            if Instant::now() >= latest {
                return None;
            }
        }
    }

    /// Offers a block, and says whether the level has it now. Failures are this
    /// level's own affair.
    pub(super) async fn admit(&self, id: &BlockId, class: &CacheClass, bytes: &BlockBytes) -> bool {
        let limit = self.limit(bytes.len());
        let admitted = timeout(limit, self.level.admit(id, class, bytes)).await;
        match admitted.unwrap_or_else(|_| Err(slow(limit))) {
            Ok(kept) => {
                self.works();
                if kept {
                    self.metrics.level_written(self.medium());
                } else {
                    self.metrics.level_write_dropped(self.medium());
                }
                kept
            }
            Err(error) => {
                self.broke(&error);
                false
            }
        }
    }

    /// Has the level forget a block that it holds wrongly.
    pub(super) async fn remove(&self, id: &BlockId) {
        let removed = timeout(self.patience, self.level.remove(id)).await;
        if let Err(error) = removed.unwrap_or_else(|_| Err(slow(self.patience))) {
            self.broke(&error);
        }
    }

    /// The level's own word, or what was seen of it.
    pub(super) fn health(&self) -> Health {
        let problem = self.lock().problem.clone();
        problem.map_or_else(|| self.level.health(), Health::Broken)
    }

    /// Whether the level is left alone.
    pub(super) fn rests(&self) -> bool {
        self.lock().rests_until.is_some_and(|until| Instant::now() < until)
    }

    fn works(&self) {
        let recovered = std::mem::take(&mut *self.lock()).problem;
        if let Some(problem) = recovered {
            let level = self.medium().as_str();
            tracing::info!(level, problem, "level works again");
        }
    }

    fn broke(&self, error: &LevelError) {
        self.metrics.level_failed(self.medium());
        let mut state = self.lock();
        let first = state.problem.is_none();
        state.problem = Some(error.problem.clone());
        state.rest = (state.rest * 2).clamp(FIRST_REST, LONGEST_REST);
        state.rests_until = Some(Instant::now() + state.rest);
        drop(state);
        if first {
            let level = self.medium().as_str();
            tracing::warn!(level, problem = error.problem, "level is broken: reads go past it");
        }
    }

    fn limit(&self, bytes: usize) -> Duration {
        self.patience + Duration::from_millis(bytes as u64 / SLOWEST)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn slow(limit: Duration) -> LevelError {
    LevelError::new(format!("no answer within {limit:?}"))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::Arena;
    use crate::level::{Check, LevelUsage};

    /// A level that takes a while, or none, and counts who hurries it.
    #[derive(Default)]
    struct Slow {
        yields: usize,
        begun: AtomicU64,
        hurried: AtomicU64,
    }

    #[async_trait]
    impl Level for Slow {
        fn medium(&self) -> Medium {
            Medium::Nvme
        }

        fn contains(&self, _id: &BlockId) -> bool {
            true
        }

        async fn read(
            &self,
            _id: &BlockId,
            slot: SlotMut,
            _urgency: Urgency,
        ) -> Result<LevelRead, LevelError> {
            self.begun.fetch_add(1, Ordering::Relaxed);
            for _ in 0..self.yields {
                tokio::task::yield_now().await;
            }
            Ok(LevelRead::Hit { slot, check: Check::Held })
        }

        fn hurry(&self, _id: &BlockId) {
            assert!(self.begun.load(Ordering::Relaxed) > 0, "there is nothing to hurry yet");
            self.hurried.fetch_add(1, Ordering::Relaxed);
        }

        async fn admit(
            &self,
            _id: &BlockId,
            _class: &CacheClass,
            _bytes: &BlockBytes,
        ) -> Result<bool, LevelError> {
            Ok(false)
        }

        async fn remove(&self, _id: &BlockId) -> Result<(), LevelError> {
            Ok(())
        }

        fn usage(&self) -> LevelUsage {
            LevelUsage::default()
        }
    }

    /// How often a prefetch is hurried that is wanted at once.
    async fn hurried(yields: usize) -> u64 {
        let level = Arc::new(Slow { yields, ..Slow::default() });
        let dynamic = Arc::clone(&level) as Arc<dyn Level>;
        let guarded = Guarded::new(dynamic, Duration::from_secs(9), StoreMetrics::default());
        let slot = Arena::new(1 << 20).slot(5000).expect("mapped").expect("room");
        let id = BlockId::of(b"");
        let read = guarded.read(&id, slot, Urgency::Prefetch, std::future::ready(())).await;
        assert!(matches!(read, Outcome::Read(LevelRead::Hit { .. })));
        level.hurried.load(Ordering::Relaxed)
    }

    #[tokio::test]
    async fn a_read_is_hurried_once_it_has_begun_and_not_when_it_has_ended() {
        // Often: it was left to chance.
        for _ in 0..64 {
            assert_eq!(hurried(0).await, 0);
            assert_eq!(hurried(3).await, 1);
        }
    }
}
