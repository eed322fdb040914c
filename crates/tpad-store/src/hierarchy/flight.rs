//! Single flight: one fill for all who want a block at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;
use tpad_manifest::BlockId;

use crate::{BlockFetch, Origin, ReadError, ReadOptions, Served, Urgency};

/// The fills in progress.
#[derive(Debug, Default)]
pub(super) struct Flights {
    flights: Mutex<HashMap<BlockId, Arc<Flight>>>,
}

/// One fill, and who waits for it.
pub(super) struct Flight {
    pub(super) origin: Arc<dyn Origin>,
    pub(super) fetch: Arc<BlockFetch>,
    wishes: watch::Sender<Wishes>,
    stage: AtomicU8,
    result: watch::Sender<Option<Result<Served, ReadError>>>,
}

/// What those who wait want, taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wishes {
    /// When the last of them stops waiting.
    pub(super) deadline: Instant,
    /// The most urgent.
    pub(super) urgency: Urgency,
    /// What any of them wants it for.
    pub(super) purpose: Purpose,
}

/// What a block is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Purpose {
    /// A level below host memory, which takes it itself.
    Lower,
    /// Host memory, where it is at home.
    Home,
    /// A reader to come, who may not.
    Guess,
    /// A reader.
    Use,
}

/// How far a fill is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Stage {
    /// Waits for its turn.
    Queued = 0,
    /// Waits for memory.
    Room = 1,
    /// Has memory; reads and verifies.
    Filling = 2,
}

/// What a read finds when it asks for a flight.
pub(super) enum Boarding {
    /// Someone leads already.
    Joined(Arc<Flight>),
    /// The caller has to start the leader.
    Lead(Arc<Flight>),
    /// The block arrived in the meantime.
    Landed(Served),
    /// There are as many flights as there may be.
    Full(usize),
}

impl Flights {
    /// Joins the block's flight, or makes one. `landed` is asked, under the lock
    /// under which flights end, whether the block is there by now: a flight ends
    /// after its block was kept, so none is fetched twice.
    pub(super) fn board(
        &self,
        origin: &Arc<dyn Origin>,
        fetch: &Arc<BlockFetch>,
        options: ReadOptions,
        purpose: Purpose,
        limit: usize,
        landed: impl FnOnce() -> Option<Served>,
    ) -> Boarding {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(&fetch.id) {
            flight.join(options, purpose);
            return Boarding::Joined(Arc::clone(flight));
        }
        if let Some(served) = landed() {
            return Boarding::Landed(served);
        }
        if flights.len() >= limit {
            return Boarding::Full(flights.len());
        }
        let ReadOptions { deadline, urgency } = options;
        let wishes = Wishes { deadline, urgency, purpose };
        let flight = Arc::new(Flight {
            origin: Arc::clone(origin),
            fetch: Arc::clone(fetch),
            wishes: watch::Sender::new(wishes),
            stage: AtomicU8::new(Stage::Queued as u8),
            result: watch::Sender::new(None),
        });
        flights.insert(fetch.id, Arc::clone(&flight));
        Boarding::Lead(flight)
    }

    /// Ends the flight with this result, unless it failed for want of what has
    /// come since: demand for a fill that was a prefetch, or a caller with time
    /// left for one that ended because nobody had any. `false` then, and it has to
    /// be tried again.
    pub(super) fn land(
        &self,
        flight: &Flight,
        result: Result<Served, ReadError>,
        tried_as: Urgency,
    ) -> bool {
        let mut flights = self.lock();
        let wishes = flight.wishes();
        if result.is_err() && wishes.urgency > tried_as {
            return false;
        }
        // A fill's own time is told as `Slow` or by the origin, and a demand waits
        // for room as long as anybody does.
        let expired = matches!(result, Err(ReadError::Deadline { .. } | ReadError::NoRoom { .. }));
        if expired && wishes.urgency == Urgency::Demand && wishes.deadline > Instant::now() {
            return false;
        }
        flights.remove(&flight.fetch.id);
        drop(flights);
        flight.result.send_replace(Some(result));
        true
    }

    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlockId, Arc<Flight>>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Flight {
    fn join(&self, options: ReadOptions, purpose: Purpose) {
        self.wishes.send_if_modified(|wishes| {
            let before = *wishes;
            wishes.deadline = wishes.deadline.max(options.deadline);
            wishes.urgency = wishes.urgency.max(options.urgency);
            wishes.purpose = wishes.purpose.max(purpose);
            *wishes != before
        });
    }

    pub(super) fn wishes(&self) -> Wishes {
        *self.wishes.borrow()
    }

    /// Returns when a prefetch has become urgent.
    pub(super) async fn demanded(&self) {
        let mut wishes = self.wishes.subscribe();
        // The sender lives in `self`, so the channel is open.
        let _ = wishes.wait_for(|wishes| wishes.urgency == Urgency::Demand).await;
    }

    /// Returns when nobody waits any more because all deadlines have passed.
    pub(super) async fn expired(&self) {
        loop {
            let deadline = self.wishes().deadline;
            tokio::time::sleep_until(deadline).await;
            if self.wishes().deadline == deadline {
                return;
            }
        }
    }

    /// The result, as soon as there is one.
    pub(super) async fn landed(&self) -> Result<Served, ReadError> {
        let mut result = self.result.subscribe();
        match result.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            // The sender lives in `self`, so the channel is open.
            _ => Err(ReadError::Lost { id: self.fetch.id }),
        }
    }

    /// Whether it reads what this caller would read.
    pub(super) fn reads_the_same(&self, origin: &dyn Origin, fetch: &BlockFetch) -> bool {
        self.origin.url() == origin.url() && self.fetch.parts == fetch.parts
    }

    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Ordering::Relaxed) {
            0 => Stage::Queued,
            1 => Stage::Room,
            _ => Stage::Filling,
        }
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
    }
}

impl std::fmt::Debug for Flight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Flight")
            .field("id", &self.fetch.id)
            .field("wishes", &self.wishes())
            .field("stage", &self.stage())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;

    use super::*;
    use crate::OriginError;

    struct Nowhere;

    #[async_trait]
    impl Origin for Nowhere {
        fn url(&self) -> &str {
            "nowhere"
        }

        async fn read_range(
            &self,
            object: &str,
            _offset: u64,
            _into: &mut [u8],
            _deadline: Instant,
        ) -> Result<(), OriginError> {
            Err(OriginError::NotFound { object: object.into() })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_boards_while_a_flight_expires_is_not_told_that_it_did() {
        let flights = Flights::default();
        let origin: Arc<dyn Origin> = Arc::new(Nowhere);
        let id = BlockId::of(b"x");
        let fetch = Arc::new(BlockFetch { id, bytes: 0, parts: Vec::new(), class: "a".into() });
        let board = |options| flights.board(&origin, &fetch, options, Purpose::Use, 9, || None);
        let Boarding::Lead(flight) = board(ReadOptions::demand(Instant::now())) else {
            panic!("nobody led");
        };
        flight.expired().await;
        let later = Instant::now() + Duration::from_secs(9);
        assert!(matches!(board(ReadOptions::demand(later)), Boarding::Joined(_)));
        let expired = || Err(ReadError::Deadline { id });
        assert!(!flights.land(&flight, expired(), Urgency::Demand));
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(flights.land(&flight, expired(), Urgency::Demand));
        assert_eq!(flights.len(), 0);
    }
}
