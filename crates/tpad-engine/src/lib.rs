//! Keys in, blocks out: the engine loads models, resolves what requests ask for
//! to blocks, and reads them from the hierarchy below.
//!
//! A model's manifest and index headers are one [`Generation`], immutable and
//! swapped as a whole; whoever reads holds one from start to end. Index segments
//! are read when first needed. Nothing here knows a wire format.

mod base;
mod config;
mod device;
mod engine;
mod error;
#[cfg(any(test, feature = "fixture"))]
pub mod fixture;
mod follow;
mod generation;
mod kept;
mod leases;
mod load;
mod locate;
mod mask;
mod metrics;
mod model;
mod pins;
mod placement;
mod prefetch;
mod scope;
mod shelf;
mod status;

pub use config::{Bounds, BudgetEnforcement, EngineConfig, ModelConfig, ReadyWhen, RetryIntervals};
pub use device::DeviceMemory;
pub use engine::{Engine, Evictions, LoadOutcome, Loaded, Pinned, StartError, Unloaded};
pub use error::{EngineError, FileProblem, IndexProblem};
pub use generation::{
    Block, Generation, ListedBlock, Memory, Page, PageRequest, Selected, Selection,
};
pub use leases::{
    Acquired, DeviceAcquired, DeviceLeased, DirectoryOffer, LeaseBounds, LeaseHolder, LeaseStatus,
    Leased, Worker, WorkerName, WorkerStatus,
};
pub use mask::{GenerationMask, MaskRequest, Residency};
pub use metrics::EngineMetrics;
pub use model::{ModelState, ModelView, Target};
pub use pins::{LONGEST_PIN, PinStatus, Totals};
pub use prefetch::{Prefetch, Prefetched, PrefetchedBlock};
pub use scope::Scope;
pub use status::{
    ComingStatus, ComingTier, ModelStatus, ProcessStatus, Readiness, ResidentBytes, Status,
    TierReads, TierStatus, WarmState, WarmStatus,
};
