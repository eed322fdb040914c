//! A gate with a bounded number of places, first come, first served, in which
//! demand goes before prefetch.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::Urgency;

/// Places for work that runs at once.
///
/// Who waits is served in order of arrival, however many places they want, so
/// that large wishes are not overtaken for ever by small ones. Prefetches take
/// at most half of the places, and none while a demand waits.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    places: u64,
    used: u64,
    used_by_prefetch: u64,
    demand: VecDeque<Waiter>,
    prefetch: VecDeque<Waiter>,
    /// Waiters that left since the queues were last cleared of them.
    left: usize,
}

#[derive(Debug)]
struct Waiter {
    places: u64,
    ready: oneshot::Sender<Permit>,
}

/// Places in a gate, given back on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    /// `None` once the places were given back otherwise.
    gate: Option<Arc<Gate>>,
    places: u64,
    urgency: Urgency,
}

/// Who waits, and may leave before its turn.
struct Leaving<'a>(Option<&'a Arc<Gate>>);

impl Gate {
    /// A gate with so many places, at least one.
    pub(crate) fn new(places: u64) -> Arc<Self> {
        let state = State { places: places.max(1), ..State::default() };
        Arc::new(Self { state: Mutex::new(state) })
    }

    /// Waits for places. A wish for more than there are is one for all of them.
    /// Dropped, the future leaves the queue.
    pub(crate) async fn enter(self: &Arc<Self>, places: u64, urgency: Urgency) -> Permit {
        loop {
            let mut leaving = Leaving(Some(self));
            // Declared later, so dropped earlier.
            let line = self.stand_in_line(places, urgency);
            let granted = line.await;
            leaving.0 = None;
            if let Ok(permit) = granted {
                return permit;
            }
            // Only a panic elsewhere loses a waiter: stand in line again.
        }
    }

    fn stand_in_line(self: &Arc<Self>, places: u64, urgency: Urgency) -> oneshot::Receiver<Permit> {
        let (ready, permit) = oneshot::channel();
        let mut state = self.lock();
        state.queue(urgency).push_back(Waiter { places, ready });
        self.grant(state);
        permit
    }

    /// How many places there are.
    pub(crate) fn places(&self) -> u64 {
        self.lock().places
    }

    /// How many are taken.
    pub(crate) fn used(&self) -> u64 {
        self.lock().used
    }

    /// From here on there are so many places, at least one. Who is inside stays.
    pub(crate) fn set_places(self: &Arc<Self>, places: u64) {
        let mut state = self.lock();
        state.places = places.max(1);
        self.grant(state);
    }

    /// Whether the gate is entered, or someone waits for it.
    pub(crate) fn is_busy(&self) -> bool {
        let state = self.lock();
        state.used > 0 || !state.demand.is_empty() || !state.prefetch.is_empty()
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        let state = self.lock();
        let waiters = state.demand.iter().chain(&state.prefetch);
        waiters.filter(|waiter| !waiter.ready.is_closed()).count()
    }

    fn grant(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        loop {
            let urgency = if state.first(Urgency::Demand).is_some() {
                Urgency::Demand
            } else {
                Urgency::Prefetch
            };
            let Some(places) = state.first(urgency) else { return };
            let fits = state.used + places <= state.places;
            let crowded = urgency == Urgency::Prefetch
                && state.used_by_prefetch > 0
                && state.used_by_prefetch + places > state.places / 2;
            if !fits || crowded {
                return;
            }
            let Some(waiter) = state.queue(urgency).pop_front() else { return };
            // As many as were looked for, which may be fewer than were asked for.
            state.used += places;
            if urgency == Urgency::Prefetch {
                state.used_by_prefetch += places;
            }
            let permit = Permit { gate: Some(Arc::clone(self)), places, urgency };
            if let Err(mut permit) = waiter.ready.send(permit) {
                // The waiter left. Its permit must not take the lock that is held.
                permit.gate = None;
                state.leave(places, urgency);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn queue(&mut self, urgency: Urgency) -> &mut VecDeque<Waiter> {
        match urgency {
            Urgency::Demand => &mut self.demand,
            Urgency::Prefetch => &mut self.prefetch,
        }
    }

    /// What the first one in the queue wants; those who left are not in it.
    fn first(&mut self, urgency: Urgency) -> Option<u64> {
        let queue = self.queue(urgency);
        while queue.front().is_some_and(|waiter| waiter.ready.is_closed()) {
            queue.pop_front();
        }
        let places = queue.front()?.places;
        Some(places.min(self.places))
    }

    /// Forgets those who left once they are half of the queues: who waits in front
    /// may do so for long.
    fn clear(&mut self) {
        self.left += 1;
        if self.left * 2 > self.demand.len() + self.prefetch.len() {
            self.demand.retain(|waiter| !waiter.ready.is_closed());
            self.prefetch.retain(|waiter| !waiter.ready.is_closed());
            self.left = 0;
        }
    }

    fn leave(&mut self, places: u64, urgency: Urgency) {
        self.used -= places;
        if urgency == Urgency::Prefetch {
            self.used_by_prefetch -= places;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            let mut state = gate.lock();
            state.leave(self.places, self.urgency);
            gate.grant(state);
        }
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        if let Some(gate) = self.0 {
            let mut state = gate.lock();
            state.clear();
            // There may be room for those behind it.
            gate.grant(state);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use futures::future::{BoxFuture, join_all};

    use super::*;

    fn enter(gate: &Arc<Gate>, places: u64, urgency: Urgency) -> BoxFuture<'static, Permit> {
        let gate = Arc::clone(gate);
        async move { gate.enter(places, urgency).await }.boxed()
    }

    #[tokio::test]
    async fn demand_goes_first_and_then_by_arrival() {
        let gate = Gate::new(2);
        let held = gate.enter(2, Urgency::Demand).await;
        let mut prefetch = enter(&gate, 1, Urgency::Prefetch);
        let mut large = enter(&gate, 2, Urgency::Demand);
        let mut small = enter(&gate, 1, Urgency::Demand);
        for waiting in [&mut prefetch, &mut large, &mut small] {
            assert!(waiting.now_or_never().is_none());
        }
        drop(held);
        assert!((&mut small).now_or_never().is_none(), "the large wish came first");
        let large = (&mut large).now_or_never().expect("its turn");
        drop(large);
        let small = (&mut small).now_or_never().expect("its turn");
        let prefetch = (&mut prefetch).now_or_never().expect("a place is left");
        drop((small, prefetch));
        assert!(!gate.is_busy());
    }

    #[tokio::test]
    async fn places_that_are_added_are_given_and_those_taken_away_are_waited_for() {
        let gate = Gate::new(1);
        let first = gate.enter(1, Urgency::Demand).await;
        let mut second = enter(&gate, 1, Urgency::Demand);
        assert!((&mut second).now_or_never().is_none());
        gate.set_places(2);
        let second = (&mut second).now_or_never().expect("there is room");
        gate.set_places(1);
        // A wish for more than there are, from before there were fewer.
        let mut all = enter(&gate, 2, Urgency::Demand);
        drop(first);
        assert!((&mut all).now_or_never().is_none(), "one is inside, and that is all there is");
        drop(second);
        assert!((&mut all).now_or_never().is_some());
        assert_eq!((gate.places(), gate.used()), (1, 0));
    }

    #[tokio::test]
    async fn prefetch_leaves_half_of_the_places() {
        let gate = Gate::new(4);
        let mut prefetches: Vec<_> = (0..3).map(|_| enter(&gate, 1, Urgency::Prefetch)).collect();
        let entered: Vec<_> = prefetches.iter_mut().map(FutureExt::now_or_never).collect();
        assert_eq!(entered.iter().filter(|permit| permit.is_some()).count(), 2);
        assert!(gate.enter(2, Urgency::Demand).now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_leaves_the_queue_takes_nothing_along() {
        let gate = Gate::new(1);
        let held = gate.enter(1, Urgency::Demand).await;
        let mut left = enter(&gate, 1, Urgency::Demand);
        let mut granted = enter(&gate, 1, Urgency::Demand);
        let mut last = enter(&gate, 1, Urgency::Demand);
        for waiting in [&mut left, &mut granted, &mut last] {
            assert!(waiting.now_or_never().is_none());
        }
        drop(left);
        drop(held);
        // The permit is on its way when its owner leaves.
        drop(granted);
        assert!((&mut last).now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_leaves_the_front_lets_the_next_one_in() {
        let gate = Gate::new(3);
        let _held = gate.enter(2, Urgency::Demand).await;
        let mut large = enter(&gate, 3, Urgency::Demand);
        let mut small = enter(&gate, 1, Urgency::Demand);
        for waiting in [&mut large, &mut small] {
            assert!(waiting.now_or_never().is_none());
        }
        drop(large);
        assert!((&mut small).now_or_never().is_some());
    }

    #[tokio::test]
    async fn who_left_takes_no_memory_behind_one_who_stays() {
        let gate = Gate::new(1);
        let _held = gate.enter(1, Urgency::Demand).await;
        let mut front = enter(&gate, 1, Urgency::Demand);
        assert!((&mut front).now_or_never().is_none());
        for n in 0..10_000 {
            let urgency = if n % 2 == 0 { Urgency::Demand } else { Urgency::Prefetch };
            assert!(gate.enter(1, urgency).now_or_never().is_none());
        }
        assert_eq!(gate.waiting(), 1);
        let state = gate.lock();
        assert!(state.demand.len() + state.prefetch.len() < 10);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn no_permit_is_lost_or_doubled() {
        let gate = Gate::new(5);
        let inside = Arc::new(std::sync::atomic::AtomicU64::new(0));
        let tasks = (0..64u64).map(|n| {
            let (gate, inside) = (Arc::clone(&gate), Arc::clone(&inside));
            tokio::spawn(async move {
                for round in 0..50 {
                    let places = 1 + (n + round) % 7;
                    let urgency = if n % 3 == 0 { Urgency::Prefetch } else { Urgency::Demand };
                    let enter = gate.enter(places, urgency);
                    if (n + round) % 5 == 0 {
                        // Leaves at once, in the queue or inside.
                        drop(enter.now_or_never());
                        continue;
                    }
                    let permit = enter.await;
                    let places = places.min(5);
                    let now = inside.fetch_add(places, std::sync::atomic::Ordering::SeqCst);
                    assert!(now + places <= 5);
                    tokio::task::yield_now().await;
                    inside.fetch_sub(places, std::sync::atomic::Ordering::SeqCst);
                    drop(permit);
                }
            })
        });
        for task in join_all(tasks).await {
            task.expect("no panic");
        }
        assert!(!gate.is_busy());
    }
}
