//! How far each tier of a generation is on its way home.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tpad_manifest::{Placement, TierFit};
use tpad_store::Medium;

use super::medium;
use crate::{WarmState, WarmStatus};

/// A tier's place, and what was brought there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) home: Medium,
    pub(crate) home_reason: Option<&'static str>,
    pub(crate) warm: WarmStatus,
    /// Image bytes that were found or brought home, as of the last look.
    pub(crate) present_bytes: u64,
    /// What the tier's class kept at home then: what it has lost since is missing.
    pub(crate) kept_then: u64,
}

/// The tiers of one generation; empty until they are placed.
#[derive(Debug)]
pub(crate) struct Places {
    state: Mutex<State>,
    /// Whether every tier is where it is to be, as far as it fits.
    over: watch::Sender<bool>,
    /// Counts tiers that were placed or seen to.
    steps: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    places: BTreeMap<String, Place>,
    warnings: Vec<String>,
}

impl Place {
    /// What of the tier's images is not at home, when `kept` says what its class
    /// takes of a medium now.
    pub(crate) fn missing(&self, image_bytes: u64, kept: impl Fn(Medium) -> u64) -> u64 {
        if self.home == Medium::ObjectStore {
            return 0;
        }
        let lost = match self.warm.state {
            WarmState::Warm | WarmState::Failed => self.kept_then.saturating_sub(kept(self.home)),
            _ => 0,
        };
        let missing = image_bytes.saturating_sub(self.present_bytes);
        missing.saturating_add(lost).min(image_bytes)
    }
}

impl Default for Places {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            over: watch::Sender::new(false),
            steps: watch::Sender::new(0),
        }
    }
}

impl Places {
    /// The tier's place, once it has one.
    pub(crate) fn get(&self, tier: &str) -> Option<Place> {
        self.lock().places.get(tier).cloned()
    }

    /// What does not fit, in one line each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.lock().warnings.clone()
    }

    /// Whether what fits is at home.
    pub(crate) fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    /// Returns once these tiers are at home, as far as they fit.
    pub(crate) async fn wait(&self, tiers: &[String]) {
        let there = |tier: &String| {
            self.get(tier).is_some_and(|place| match place.warm.state {
                WarmState::OnDemand | WarmState::Warm | WarmState::Failed => true,
                WarmState::Waiting | WarmState::Warming => false,
            })
        };
        let mut steps = self.steps.subscribe();
        while !self.is_over() && !tiers.iter().all(there) {
            if steps.changed().await.is_err() {
                return;
            }
        }
    }

    /// Gives a tier its place. One that keeps its home keeps what is known of it.
    pub(super) fn plan(&self, fit: &TierFit) {
        let home = medium(fit.home);
        let mut state = self.lock();
        let known = state.places.get_mut(&fit.tier).filter(|known| known.home == home);
        if let Some(known) = known {
            known.home_reason = fit.home_reason;
            return;
        }
        let warm = match fit.home {
            Placement::ObjectStore => WarmStatus::on_demand(),
            _ => WarmStatus { state: WarmState::Waiting, ..WarmStatus::on_demand() },
        };
        let home_reason = fit.home_reason;
        let place = Place { home, home_reason, warm, present_bytes: 0, kept_then: 0 };
        state.places.insert(fit.tier.clone(), place);
        drop(state);
        self.step();
    }

    /// Takes the warnings of the latest plan, and returns those that are new.
    pub(super) fn warn(&self, warnings: Vec<String>) -> Vec<String> {
        let mut state = self.lock();
        let fresh = |warning: &String| !state.warnings.contains(warning);
        let fresh = warnings.iter().filter(|warning| fresh(warning)).cloned().collect();
        state.warnings = warnings;
        fresh
    }

    /// Changes what is known of a tier.
    pub(super) fn update(&self, tier: &str, change: impl FnOnce(&mut Place)) {
        if let Some(place) = self.lock().places.get_mut(tier) {
            change(place);
        }
    }

    /// A tier was seen to.
    pub(super) fn step(&self) {
        self.steps.send_modify(|steps| *steps = steps.wrapping_add(1));
    }

    /// Every tier was seen to.
    pub(super) fn finish(&self) {
        self.over.send_replace(true);
        self.step();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
