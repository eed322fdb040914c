//! What goes wrong with GPU memory. None of it fails a request.

use tpad_cuda::{CudaError, DeviceName};
use tpad_store::ErrorKind;

use crate::DeviceId;

/// The level cannot be made, or cannot do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HbmError {
    /// A device cannot be opened.
    #[error("device {device}: {source}")]
    Open {
        /// As it was named.
        device: DeviceName,
        /// What the driver says.
        source: CudaError,
    },
    /// Two names are of one device.
    #[error("device {device} is named twice")]
    Twice {
        /// The second name.
        device: DeviceName,
    },
    /// The device has less memory than it is to give.
    #[error("device {device} has {total} bytes, the level is to take {capacity}")]
    Capacity {
        /// As it was named.
        device: DeviceName,
        /// The configured bytes.
        capacity: u64,
        /// Those of the device.
        total: u64,
    },
    /// The classes' budgets exceed a device's capacity.
    #[error("the budgets are {budgets} bytes for each device, one has {capacity}")]
    Budgets {
        /// Their sum.
        budgets: u64,
        /// The smallest capacity.
        capacity: u64,
    },
    /// The level has no such device.
    #[error("the level has no device {device}")]
    NoDevice {
        /// Its number.
        device: DeviceId,
    },
    /// Memory or a copy failed. After a sticky error the level is off.
    #[error("device {device}: {source}")]
    Cuda {
        /// Where.
        device: DeviceId,
        /// What the driver says.
        source: CudaError,
    },
}

impl HbmError {
    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Open { .. } | Self::Twice { .. } | Self::Capacity { .. } => {
                ErrorKind::FailedPrecondition
            }
            Self::Budgets { .. } => ErrorKind::InvalidArgument,
            Self::NoDevice { .. } => ErrorKind::NotFound,
            Self::Cuda { .. } => ErrorKind::Unavailable,
        }
    }
}
