//! GPUs: devices, memory that processes share, copies, completion. CUDA only here.
//!
//! A [`Driver`] opens [`Device`]s. There are two: [`cuda`], which is NVIDIA's, looked
//! for when the program runs, and the [`StandIn`], which has host memory for device
//! memory and threads for streams. The stand-in shows that what uses this crate is
//! right, on machines without a GPU; it shows nothing about a GPU, and says of itself
//! that it is none wherever it is named.
//!
//! The daemon exports: it makes [`Slab`]s with [`Device::create`], fills them through a
//! [`Copier`], and hands out their descriptors. A worker imports: [`Device::import`]
//! maps a slab read-only into its own context, and a [`Reaper`] keeps what a GPU may
//! still read until the work that was submitted has completed.
//!
//! Nothing here survives a `fork`: CUDA does not work in a child of a process that has
//! used it.

mod copier;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod driver;
mod error;
#[cfg(feature = "testing")]
pub mod fault;
mod reaper;
mod stand_in;

pub use copier::{Copier, Errand};
pub use device::{DeviceFacts, DeviceName, DeviceUuid, MemoryUse};
pub use driver::{
    Completion, Device, Driver, DriverKind, HostCopy, Memory, Registration, Slab, Stream,
};
pub use error::{CudaError, CudaErrorKind, Unavailable};
pub use reaper::Reaper;
pub use stand_in::StandIn;

use std::sync::Arc;

/// NVIDIA's driver, if this machine has one and it has a device.
///
/// Makes no context: that happens when a device is opened, and takes some hundred
/// megabytes of its memory.
///
/// # Errors
/// When this program was built without it, the library is missing or too old, it does
/// not start, or it has no devices. The reason is for an operator.
pub fn cuda() -> Result<Arc<dyn Driver>, Unavailable> {
    #[cfg(feature = "cuda")]
    {
        cuda::Cuda::probe().map(|driver| Arc::new(driver) as Arc<dyn Driver>)
    }
    #[cfg(not(feature = "cuda"))]
    {
        Err(Unavailable { reason: "this program was built without CUDA".to_owned() })
    }
}
