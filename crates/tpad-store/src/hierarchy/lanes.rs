//! A gate for each origin: one that hangs keeps its places from its own reads
//! and from no other origin's. Each has as many places as its origin makes
//! something of.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::pace::{Ended, Pace};
use crate::gate::Gate;
use crate::{Origin, StoreMetrics};

/// So many origins are remembered while nobody reads them: a daemon has one for
/// each model and base, and what was learned of it is worth keeping over a pause.
const REMEMBERED: usize = 64;

/// The ranges in flight of each origin.
#[derive(Debug)]
pub(super) struct Lanes {
    least: u64,
    most: u64,
    metrics: StoreMetrics,
    /// By URL: generations and models on one root share one.
    lanes: Mutex<HashMap<String, Arc<Lane>>>,
}

/// An origin's gate.
#[derive(Debug)]
pub(super) struct Lane {
    gate: Arc<Gate>,
    pace: Mutex<Pace>,
}

/// What is asked of an origin at once.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct OriginLane {
    /// Where it is.
    pub url: String,
    /// Ranges that may be asked for at once, as the origin goes now.
    pub parallel: u64,
    /// Ranges that are asked for.
    pub in_flight: u64,
}

/// A range that is being asked for.
#[derive(Debug)]
pub(super) struct Asked {
    began: Instant,
    setbacks: u64,
}

impl Lanes {
    /// Each lane with `least` to `most` places.
    pub(super) fn new(least: u64, most: u64, metrics: StoreMetrics) -> Self {
        Self { least, most, metrics, lanes: Mutex::default() }
    }

    /// The origin's lane.
    pub(super) fn of(&self, origin: &dyn Origin) -> Arc<Lane> {
        let mut lanes = self.lock();
        if let Some(lane) = lanes.get(origin.url()) {
            return Arc::clone(lane);
        }
        if lanes.len() >= REMEMBERED {
            lanes.retain(|_, lane| Arc::strong_count(lane) > 1);
        }
        let pace = Pace::new(self.least, self.most);
        let lane = Lane { gate: Gate::new(pace.places()), pace: Mutex::new(pace) };
        let lane = Arc::new(lane);
        lanes.insert(origin.url().to_owned(), Arc::clone(&lane));
        self.metrics.origin_parallel(lanes.values().map(|lane| lane.gate.places()).sum());
        lane
    }

    /// What is asked of each origin.
    pub(super) fn status(&self) -> Vec<OriginLane> {
        let lanes = self.lock();
        let status = lanes.iter().map(|(url, lane)| OriginLane {
            url: url.clone(),
            parallel: lane.gate.places(),
            in_flight: lane.gate.used(),
        });
        let mut status: Vec<OriginLane> = status.collect();
        status.sort_unstable_by(|a, b| a.url.cmp(&b.url));
        status
    }

    /// Takes note of a range that ended: with so many bytes, or without success.
    pub(super) fn ended(&self, lane: &Lane, origin: &dyn Origin, asked: &Asked, bytes: u64) {
        let ended = Ended {
            began: asked.began,
            bytes,
            setback: origin.setbacks() != asked.setbacks,
            full: lane.gate.waiting() > 0,
        };
        let mut pace = lane.pace.lock().unwrap_or_else(PoisonError::into_inner);
        if !pace.note(ended) {
            return;
        }
        lane.gate.set_places(pace.places());
        drop(pace);
        self.metrics.origin_parallel(self.lock().values().map(|lane| lane.gate.places()).sum());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Lane>>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Lane {
    pub(super) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }
}

impl Asked {
    /// Of this origin, from now on.
    pub(super) fn of(origin: &dyn Origin) -> Self {
        Self { began: Instant::now(), setbacks: origin.setbacks() }
    }
}
