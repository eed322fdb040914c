//! GPU memory as a level: blocks in slabs that workers map, kept by class within budgets.
//!
//! An [`HbmLevel`] copies verified blocks from host memory to devices, and gives out
//! [`DeviceBlock`]s: where a block lies, for as long as one is held. Bytes never flow
//! back: a block that is given up is dropped, and host memory, disk and origin have it
//! as before. So nothing here can fail a request: what is refused or broken is served
//! from host memory.
//!
//! A block is published when the host has seen its copy complete. A slot is used again
//! when the last [`DeviceBlock`] of it is gone, and a slab's memory goes back to the
//! device when no worker has it mapped ([`SharedDeviceSlab`]).
//!
//! Workers map whole slabs, and a device does not keep them from reading all of them:
//! one level serves one trust domain.

mod block;
mod budget;
mod config;
mod error;
mod flights;
mod host;
mod keep;
mod lane;
mod level;
mod metrics;
mod pool;
mod status;

pub use block::{DeviceBlock, DeviceId, DevicePlace, SharedDeviceSlab};
pub use config::{DeviceBudget, HbmConfig};
pub use error::HbmError;
pub use host::HostMemory;
pub use level::HbmLevel;
pub use metrics::HbmMetrics;
pub use status::{HbmDeviceStatus, HbmMode, HbmStatus};
