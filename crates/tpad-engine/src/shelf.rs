//! A small cache of what is read on first use: one load for all who wait for
//! it, and a bound on bytes.
//!
//! The load is a task of its own, so a caller that goes away stops nothing for
//! the others. What is evicted lives on while someone still holds it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt as _;
use futures::future::Shared;
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tpad_store::Tasks;

use crate::EngineError;

/// Values by key, the least recently used ones dropped over `capacity` bytes.
#[derive(Debug)]
pub(crate) struct Shelf<K, V> {
    capacity: u64,
    tasks: Tasks,
    stop: CancellationToken,
    state: Mutex<State<K, V>>,
}

#[derive(Debug)]
struct State<K, V> {
    entries: HashMap<K, Entry<V>>,
    bytes: u64,
    /// Counts uses; the smallest `used` was used longest ago.
    clock: u64,
}

#[derive(Debug)]
enum Entry<V> {
    Loading(Shared<oneshot::Receiver<Result<V, EngineError>>>),
    Ready { value: V, bytes: u64, used: u64 },
}

impl<K, V> Shelf<K, V>
where
    K: Copy + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// An empty shelf whose loads are tasks of `tasks`, until they are stopped.
    pub(crate) fn new(capacity: u64, (tasks, stop): (Tasks, CancellationToken)) -> Arc<Self> {
        let state = State { entries: HashMap::new(), bytes: 0, clock: 0 };
        Arc::new(Self { capacity, tasks, stop, state: Mutex::new(state) })
    }

    /// The value of `key`, from `load` (with its size in bytes) if it is not
    /// there. `what` names it in the error of a caller whose deadline passes
    /// first; the load goes on for the others.
    pub(crate) async fn get<L, F>(
        self: &Arc<Self>,
        key: K,
        deadline: Instant,
        what: impl FnOnce() -> String,
        load: L,
    ) -> Result<V, EngineError>
    where
        L: FnOnce() -> F,
        F: Future<Output = Result<(V, u64), EngineError>> + Send + 'static,
    {
        let loading = match self.find(key, load) {
            Ok(value) => return Ok(value),
            Err(loading) => loading,
        };
        match tokio::time::timeout_at(deadline, loading).await {
            Ok(Ok(result)) => result,
            Ok(Err(_dropped)) => Err(EngineError::Stopping),
            Err(_elapsed) => Err(EngineError::Deadline { what: what() }),
        }
    }

    fn find<L, F>(
        self: &Arc<Self>,
        key: K,
        load: L,
    ) -> Result<V, Shared<oneshot::Receiver<Result<V, EngineError>>>>
    where
        L: FnOnce() -> F,
        F: Future<Output = Result<(V, u64), EngineError>> + Send + 'static,
    {
        let mut state = self.lock();
        state.clock += 1;
        let now = state.clock;
        match state.entries.get_mut(&key) {
            Some(Entry::Ready { value, used, .. }) => {
                *used = now;
                return Ok(value.clone());
            }
            Some(Entry::Loading(loading)) => return Err(loading.clone()),
            None => {}
        }
        let (done, loading) = oneshot::channel();
        let loading = loading.shared();
        state.entries.insert(key, Entry::Loading(loading.clone()));
        let claim = Claim { shelf: Arc::clone(self), key };
        let (load, stop) = (load(), self.stop.clone());
        self.tasks.spawn(async move {
            let Some(result) = stop.run_until_cancelled(load).await else { return };
            let result = result.map(|(value, bytes)| {
                claim.fulfil(value.clone(), bytes);
                value
            });
            // Gone from the map or ready in it before anyone hears of it.
            drop(claim);
            // Nobody may be waiting any more.
            let _ = done.send(result);
        });
        Err(loading)
    }

    fn lock(&self) -> MutexGuard<'_, State<K, V>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    fn keys(&self) -> std::collections::HashSet<K> {
        self.lock().entries.keys().copied().collect()
    }
}

/// A load in progress. Dropped without being fulfilled it frees its key, so
/// that the next caller tries again.
struct Claim<K: Copy + Eq + Hash, V> {
    shelf: Arc<Shelf<K, V>>,
    key: K,
}

impl<K: Copy + Eq + Hash, V> Claim<K, V> {
    fn fulfil(&self, value: V, bytes: u64) {
        let mut state = self.shelf.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { entries, bytes: total, clock } = &mut *state;
        *clock += 1;
        *total = total.saturating_add(bytes);
        entries.insert(self.key, Entry::Ready { value, bytes, used: *clock });
        while *total > self.shelf.capacity {
            // A few hundred entries at most: a scan costs less than an order.
            let oldest = entries
                .iter()
                .filter_map(|(key, entry)| match entry {
                    Entry::Ready { bytes, used, .. } if *key != self.key => {
                        Some((*used, *key, *bytes))
                    }
                    _ => None,
                })
                .min_by_key(|(used, ..)| *used);
            let Some((_, key, bytes)) = oldest else { break };
            entries.remove(&key);
            *total = total.saturating_sub(bytes);
        }
    }
}

impl<K: Copy + Eq + Hash, V> Drop for Claim<K, V> {
    fn drop(&mut self) {
        let mut state = self.shelf.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Entry::Loading(_)) = state.entries.get(&self.key) {
            state.entries.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use super::*;

    fn tasks() -> (Tasks, CancellationToken) {
        (Tasks::new(), CancellationToken::new())
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    async fn get(shelf: &Arc<Shelf<u32, u32>>, key: u32, bytes: u64) -> Result<u32, EngineError> {
        let load = || async move { Ok((key * 10, bytes)) };
        shelf.get(key, soon(), || "it".into(), load).await
    }

    #[tokio::test]
    async fn all_who_wait_share_one_load_even_when_the_first_leaves() {
        let shelf = Shelf::<u32, u32>::new(100, tasks());
        let loads = Arc::new(AtomicU32::new(0));
        let (open, gate) = oneshot::channel::<()>();
        let counted = Arc::clone(&loads);
        let first = shelf.get(1, soon(), String::new, move || async move {
            counted.fetch_add(1, Ordering::SeqCst);
            let _ = gate.await;
            Ok((7, 1))
        });
        assert!(futures::poll!(Box::pin(first)).is_pending(), "and now it is dropped");
        let others = (0..20).map(|_| get(&shelf, 1, 1)).collect::<Vec<_>>();
        open.send(()).expect("the load waits");
        for other in futures::future::join_all(others).await {
            assert_eq!(other.expect("loaded"), 7);
        }
        assert_eq!(loads.load(Ordering::SeqCst), 1);
    }

    #[tokio::test]
    async fn the_least_recently_used_go_first() {
        let shelf = Shelf::new(30, tasks());
        for key in [1, 2, 3] {
            get(&shelf, key, 10).await.expect("loaded");
        }
        get(&shelf, 1, 10).await.expect("there");
        get(&shelf, 4, 10).await.expect("loaded");
        assert_eq!(shelf.keys(), [1, 3, 4].into());
        get(&shelf, 5, 1000).await.expect("loaded, and kept alone");
        assert_eq!(shelf.keys(), [5].into());
    }

    #[tokio::test]
    async fn a_failed_load_is_told_and_tried_again() {
        let shelf = Shelf::<u32, u32>::new(100, tasks());
        let fail = || async { Err(EngineError::Stopping) };
        assert!(shelf.get(1, soon(), String::new, fail).await.is_err());
        assert_eq!(get(&shelf, 1, 1).await.expect("loaded"), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_ends_the_wait_and_not_the_load() {
        let shelf = Shelf::<u32, u32>::new(100, tasks());
        let (open, gate) = oneshot::channel::<()>();
        let load = || async move {
            let _ = gate.await;
            Ok((7, 1))
        };
        let late = shelf.get(1, Instant::now(), || "segment".into(), load).await;
        assert!(matches!(late, Err(EngineError::Deadline { what }) if what == "segment"));
        open.send(()).expect("the load goes on");
        assert_eq!(get(&shelf, 1, 1).await.expect("loaded"), 7);
    }
}
