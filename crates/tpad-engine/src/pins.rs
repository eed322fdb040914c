//! Blocks held in host memory for an owner, for a time.
//!
//! **Invariant:** what pins hold, each block counted once, stays within their
//! share of the level; a pin ends with its time, its owner's word or its model.

mod hold;
mod ledger;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tpad_store::Hierarchy;

pub(crate) use self::hold::Hold;
use self::ledger::Ledger;
use crate::{EngineError, EngineMetrics, Scope};

/// Pins at a time: enough for every worker of a node to have some, few enough to
/// be listed.
pub(crate) const PINS: usize = 1024;

/// The longest time that a pin may ask for: one that nobody renews has to end.
pub const LONGEST_PIN: Duration = Duration::from_secs(30 * 24 * 3600);

/// Blocks and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// How many.
    pub blocks: u64,
    /// The sum of their images.
    pub bytes: u64,
}

/// One pin, for the status page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PinStatus {
    /// Who asked for it.
    pub owner: String,
    /// The model.
    pub model: String,
    /// What is pinned, in words.
    pub scope: String,
    /// The revision whose blocks are held. A later one's are not, until the
    /// owner pins again.
    pub revision: u64,
    /// What it holds.
    #[serde(flatten)]
    pub held: Totals,
    /// Seconds until it ends.
    pub expires_in_seconds: u64,
}

/// What makes a pin the same as another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PinKey {
    pub(crate) owner: String,
    pub(crate) model: String,
    pub(crate) scope: Scope,
}

/// The pins of an engine.
#[derive(Debug)]
pub(crate) struct Pins {
    hierarchy: Arc<Hierarchy>,
    metrics: EngineMetrics,
    state: Mutex<State>,
    /// The next end may be another one now.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    pins: BTreeMap<PinKey, Pin>,
    ledger: Ledger,
}

#[derive(Debug)]
struct Pin {
    /// Gives its blocks back when it is dropped.
    hold: Hold,
    revision: u64,
    expires: Instant,
}

impl Totals {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.blocks += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    fn plus(self, other: Self) -> Self {
        Self { blocks: self.blocks + other.blocks, bytes: self.bytes.saturating_add(other.bytes) }
    }
}

impl Pins {
    pub(crate) fn new(hierarchy: Arc<Hierarchy>, metrics: EngineMetrics) -> Arc<Self> {
        let (state, changed) = (Mutex::default(), Notify::new());
        Arc::new(Self { hierarchy, metrics, state, changed })
    }

    /// Whether one more pin may be made under `key`.
    pub(crate) fn check_count(&self, key: &PinKey) -> Result<(), EngineError> {
        let state = self.lock();
        if state.pins.len() >= PINS && !state.pins.contains_key(key) {
            return Err(EngineError::TooManyPins { limit: PINS });
        }
        Ok(())
    }

    /// Keeps what was held under `key` until `expires`, in the place of what was
    /// there. Says whether there was something.
    pub(crate) fn keep(
        &self,
        key: PinKey,
        hold: Hold,
        revision: u64,
        expires: Instant,
    ) -> Result<bool, EngineError> {
        let mut state = self.lock();
        if state.pins.len() >= PINS && !state.pins.contains_key(&key) {
            // The hold is given back after the lock: it takes it.
            drop(state);
            return Err(EngineError::TooManyPins { limit: PINS });
        }
        let replaced = state.pins.insert(key, Pin { hold, revision, expires });
        drop(state);
        let renewed = replaced.is_some();
        drop(replaced);
        self.publish();
        self.changed.notify_one();
        Ok(renewed)
    }

    /// Ends the pins that `wanted` picks. Returns how many there were, and what
    /// they held.
    pub(crate) fn remove(&self, wanted: impl Fn(&PinKey) -> bool) -> (u64, Totals) {
        let ended: Vec<(PinKey, Pin)> =
            self.lock().pins.extract_if(.., |key, _| wanted(key)).collect();
        let count = ended.len() as u64;
        let held =
            ended.iter().fold(Totals::default(), |sum, (_, pin)| sum.plus(pin.hold.totals()));
        drop(ended);
        self.publish();
        (count, held)
    }

    /// Ends the pins of a model that goes.
    pub(crate) fn remove_model(&self, model: &str) -> Totals {
        self.remove(|key| key.model == model).1
    }

    pub(crate) fn status(&self) -> Vec<PinStatus> {
        let now = Instant::now();
        let state = self.lock();
        let status = state.pins.iter().map(|(key, pin)| PinStatus {
            owner: key.owner.clone(),
            model: key.model.clone(),
            scope: key.scope.to_string(),
            revision: pin.revision,
            held: pin.hold.totals(),
            expires_in_seconds: pin.expires.saturating_duration_since(now).as_secs(),
        });
        status.collect()
    }

    /// What all pins hold, each block once.
    pub(crate) fn held(&self) -> Totals {
        self.lock().ledger.totals()
    }

    /// Ends pins when their time is over; a task that ends with `stop`.
    pub(crate) async fn expire(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let next = self.lock().pins.values().map(|pin| pin.expires).min();
            let due = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = stop.cancelled() => {
                    // A hold knows its pins: the circle ends here.
                    self.remove(|_| true);
                    return;
                }
                () = self.changed.notified() => {}
                () = due => self.end_overdue(),
            }
        }
    }

    fn end_overdue(&self) {
        let now = Instant::now();
        let ended: Vec<(PinKey, Pin)> =
            self.lock().pins.extract_if(.., |_, pin| pin.expires <= now).collect();
        for (key, pin) in &ended {
            let (owner, model, bytes) = (&key.owner, &key.model, pin.hold.totals().bytes);
            tracing::info!(owner, model, scope = %key.scope, bytes, "pin ended: its time is over");
        }
        drop(ended);
        self.publish();
    }

    fn publish(&self) {
        let (pins, held) = {
            let state = self.lock();
            (state.pins.len(), state.ledger.totals())
        };
        self.metrics.pinned(pins, held.bytes);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
