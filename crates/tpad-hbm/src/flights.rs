//! Single flight: one fill of a block on a device for all who want it there at once.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tpad_cuda::Errand;
use tpad_manifest::BlockId;
use tpad_store::{ReadOptions, Urgency};

use crate::{DeviceBlock, HbmError};

/// What came of a fill; `None` if it was refused.
pub(crate) type Filled = Result<Option<DeviceBlock>, HbmError>;

/// How a flight ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// By the fill.
    Filled(Filled),
    /// Nobody waited for it any more, and it would have had to wait for room. Who joined
    /// it since begins another.
    GivenUp,
}

/// The fills in progress.
#[derive(Debug, Default)]
pub(crate) struct Flights(Mutex<HashMap<BlockId, Flight>>);

/// A fill that others may wait for, too.
#[derive(Clone, Debug)]
pub(crate) struct Flight {
    /// How whoever began it waits.
    pub(crate) options: ReadOptions,
    pub(crate) outcome: watch::Receiver<Option<Outcome>>,
    /// Hurried by the first that waits for it.
    pub(crate) errand: Arc<Errand>,
}

/// The fill of a flight, for whoever makes it.
#[derive(Debug)]
pub(crate) struct Lead {
    awaited: Awaited,
    pub(crate) errand: Arc<Errand>,
}

/// Whether anybody waits for a fill.
#[derive(Clone, Debug)]
pub(crate) struct Awaited {
    say: Arc<watch::Sender<Option<Outcome>>>,
    given_up: Arc<AtomicBool>,
}

/// What somebody who wants a block finds.
pub(crate) enum Boarding {
    /// It is there.
    Landed(DeviceBlock),
    /// Somebody fills it already.
    Joined(Flight),
    /// The caller has to.
    Lead(Lead, Flight),
}

impl Awaited {
    /// Whether nobody waits for the block. If so, the fill has to end without it.
    pub(crate) fn is_given_up(&self) -> bool {
        // One receiver is there for those who may come.
        let alone = self.say.receiver_count() <= 1;
        if alone {
            // Kept: somebody may come before the fill has ended.
            self.given_up.store(true, Ordering::Relaxed);
        }
        alone
    }
}

impl Lead {
    /// As [`Awaited::is_given_up`].
    pub(crate) fn is_given_up(&self) -> bool {
        self.awaited.is_given_up()
    }

    /// For whoever has to know without the lead.
    pub(crate) fn awaited(&self) -> &Awaited {
        &self.awaited
    }

    /// Tells all who joined what came of it.
    pub(crate) fn say(self, filled: Filled) {
        let Awaited { say, given_up } = self.awaited;
        let given_up = given_up.load(Ordering::Relaxed);
        let outcome = if given_up { Outcome::GivenUp } else { Outcome::Filled(filled) };
        say.send_replace(Some(outcome));
    }
}

impl Flight {
    /// Whether a fill with these options would wait where this one is refused.
    pub(crate) fn is_outwaited_by(&self, options: ReadOptions) -> bool {
        options.urgency == Urgency::Demand
            && (self.options.urgency == Urgency::Prefetch
                || self.options.deadline < options.deadline)
    }
}

impl Flights {
    /// Joins the block's flight, or begins one. `landed` is asked under the lock under
    /// which flights end, and a flight ends after its block was published: so none is
    /// copied twice.
    pub(crate) fn board(
        &self,
        id: &BlockId,
        options: ReadOptions,
        landed: impl FnOnce() -> Option<DeviceBlock>,
    ) -> Boarding {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(id) {
            return Boarding::Joined(flight.clone());
        }
        if let Some(block) = landed() {
            return Boarding::Landed(block);
        }
        let (say, outcome) = watch::channel(None);
        let errand = Arc::<Errand>::default();
        let flight = Flight { options, outcome, errand: Arc::clone(&errand) };
        flights.insert(*id, flight.clone());
        let awaited = Awaited { say: Arc::new(say), given_up: Arc::default() };
        Boarding::Lead(Lead { awaited, errand }, flight)
    }

    /// The block's flight is over.
    pub(crate) fn end(&self, id: &BlockId) {
        self.lock().remove(id);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<BlockId, Flight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
