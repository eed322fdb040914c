//! What the engine says of itself: one document for `/status`, `tpactl status`
//! and gRPC.

mod process;
mod tier;

use serde::Serialize;
use tpad_hbm::HbmStatus;
use tpad_store::StoreStatus;

pub use self::process::ProcessStatus;
pub use self::tier::{ComingTier, ResidentBytes, TierReads, TierStatus, WarmState, WarmStatus};
use crate::placement::Levels;
use crate::{Generation, LeaseStatus, ModelState, ModelView, PinStatus, ReadyWhen, Totals};

/// The daemon's state.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// tpad's version.
    pub version: &'static str,
    /// Seconds since the engine started.
    pub uptime_seconds: u64,
    /// Whether requests can be answered.
    pub ready: bool,
    /// What the process has used; absent where the system does not say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub process: Option<ProcessStatus>,
    /// The models: the configuration's in its order, then those added since.
    pub models: Vec<ModelStatus>,
    /// What pins hold in host memory, each block once.
    pub pinned: Totals,
    /// The pins, by owner, model and scope.
    pub pins: Vec<PinStatus>,
    /// What workers of this machine hold of host memory.
    pub leases: LeaseStatus,
    /// GPU memory and what is in it.
    pub hbm: HbmStatus,
    /// The levels and what is in them.
    pub store: StoreStatus,
}

/// One model.
#[derive(Clone, Debug, Serialize)]
pub struct ModelStatus {
    /// The name that requests use.
    pub name: String,
    /// Its root as configured.
    pub root: String,
    /// Whether it can be read.
    pub state: ModelState,
    /// Why the last attempt to load it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Why what is served may be older than what the store has: the store could
    /// not be asked when it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale: Option<String>,
    /// The manifest's number; absent before it is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u64>,
    /// The daemon's count of swaps when it was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// The activation record that chose the revision; absent where it is the highest
    /// or pinned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<u64>,
    /// Whether it stays on its revision whatever its root says: it was given by the
    /// revision's URL, or somebody chose the revision for this daemon.
    pub pinned: bool,
    /// What it is about to serve, once the tiers that this adds are at home.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub coming: Option<ComingStatus>,
    /// Its tiers, in manifest order.
    pub tiers: Vec<TierStatus>,
    /// What is odd about the manifest but does not stop it, and which tiers do not
    /// fit their homes.
    pub warnings: Vec<String>,
}

/// A revision that is about to be served.
#[derive(Clone, Debug, Serialize)]
pub struct ComingStatus {
    /// The manifest's number.
    pub revision: u64,
    /// The activation record that chose it, if one did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<u64>,
    /// How far its tiers were brought home, in manifest order.
    pub tiers: Vec<ComingTier>,
}

/// Whether requests can be answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Every model has been tried, and at least one can be read.
    Ready,
    /// Not yet, or not any more; says what is missing.
    NotReady(String),
}

impl Readiness {
    /// Whether requests can be answered.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        matches!(self, Self::Ready)
    }

    /// One bad model must not take a node with good ones out of service, so a
    /// failed model counts only when there is no other.
    pub(crate) fn of(models: &[ModelView], when: ReadyWhen) -> Self {
        if models.is_empty() {
            return Self::NotReady("every model was unloaded".into());
        }
        let named = |state| {
            let names = models.iter().filter(move |model| model.state == state);
            names.map(|model| model.name.as_str()).collect::<Vec<_>>()
        };
        let loading = named(ModelState::Loading);
        if !loading.is_empty() {
            return Self::NotReady(format!("loading {}", loading.join(", ")));
        }
        if named(ModelState::Serving).is_empty() {
            let failed = named(ModelState::Failed);
            return Self::NotReady(format!("no model could be loaded: {}", failed.join(", ")));
        }
        let cold = |model: &&ModelView| {
            model.generation.as_ref().is_some_and(|generation| !generation.places().is_over())
        };
        let cold = models.iter().filter(cold);
        let cold: Vec<&str> = cold.map(|model| model.name.as_str()).collect();
        if when == ReadyWhen::Warm && !cold.is_empty() {
            return Self::NotReady(format!("warming {}", cold.join(", ")));
        }
        Self::Ready
    }
}

impl ModelStatus {
    pub(crate) fn of(model: ModelView, levels: &Levels) -> Self {
        let ModelView { name, root, state, reason, stale, generation, coming, pinned } = model;
        let generation = generation.as_deref();
        Self {
            name,
            root,
            state,
            reason,
            stale,
            revision: generation.map(Generation::revision),
            generation: generation.map(Generation::number),
            activation: generation.and_then(Generation::activation),
            pinned,
            coming: coming.as_deref().map(|coming| ComingStatus {
                revision: coming.revision(),
                activation: coming.activation(),
                tiers: tier::coming(coming),
            }),
            tiers: generation.map(|g| tier::tiers(g, levels)).unwrap_or_default(),
            warnings: generation.map(warnings).unwrap_or_default(),
        }
    }
}

fn warnings(generation: &Generation) -> Vec<String> {
    let of_placement = generation.places().warnings();
    generation.warnings().iter().cloned().chain(of_placement).collect()
}
