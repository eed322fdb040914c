//! Blocks by content: the levels in front of the origin.
//!
//! A [`Hierarchy`] answers reads of blocks from the fastest level that holds
//! them, and from the [`Origin`] otherwise. Every block lies in a slot of the
//! host-memory arena and is verified against its [`BlockId`](tpad_manifest::BlockId)
//! before anyone sees it. This crate knows neither experts nor any wire format.

mod arena;
mod arrival;
#[cfg(feature = "testing")]
pub mod conformance;
mod dram;
#[cfg(feature = "testing")]
pub mod fault;
mod fetch;
mod footprint;
mod gate;
mod hierarchy;
mod kind;
mod level;
pub mod memory;
mod metrics;
mod nvme;
mod origin;
mod readers;
mod tasks;
#[cfg(feature = "testing")]
pub mod testing;

pub use arena::{
    Arena, ArenaUsage, BlockBytes, DEVICE_SLABS, Place, SharedSlab, SlabObserver, SlotMut,
    SlotReader, slot_bytes,
};
pub use arrival::Intake;
pub use dram::{ClassUsage, DramLevel};
pub use fetch::{BlockFetch, CacheClass, FetchPart, Medium, ReadOptions, Urgency};
pub use footprint::Footprint;
pub use hierarchy::{
    Claim, DramConfig, Evicted, FetchTuning, Hierarchy, HierarchyConfig, LevelStatus, Lookups,
    OriginLane, ReadError, Served, Staged, StoreError, StoreStatus, home_bytes,
};
pub use kind::ErrorKind;
pub use level::{Check, Health, Level, LevelError, LevelRead, LevelReader, LevelUsage, crc64_nvme};
pub use metrics::StoreMetrics;
pub use nvme::{DocumentCache, NvmeConfig, NvmeIo, NvmeLevel};
pub use origin::{
    Created, Listing, ObjectEntry, ObjectOrigin, Origin, OriginError, OriginOptions, install_tls,
};
pub use readers::{InSlot, Readers, SlotDirectory};
pub use tasks::{TaskToken, Tasks};
