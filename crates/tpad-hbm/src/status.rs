//! What an operator sees of the level.

use tpad_cuda::{DeviceUuid, DriverKind};
use tpad_store::{ClassUsage, Health};

use crate::DeviceId;

/// What an operator sees of the level.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct HbmStatus {
    /// What it is made of.
    pub mode: HbmMode,
    /// The driver's version; empty when the level is off.
    pub driver: String,
    /// Whether it works.
    pub health: Health,
    /// Its devices.
    pub devices: Vec<HbmDeviceStatus>,
}

/// What a level is made of.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum HbmMode {
    /// There is none.
    Off {
        /// Why.
        reason: String,
    },
    /// GPUs.
    Cuda,
    /// Host memory in the place of a GPU's, for tests.
    StandIn,
}

/// One device of a level.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct HbmDeviceStatus {
    /// Its index among those that the daemon sees.
    pub index: DeviceId,
    /// Its identity, the same for every process.
    pub uuid: DeviceUuid,
    /// Its maker's name for it.
    pub name: String,
    /// What the level may take of its memory, in bytes.
    pub capacity_bytes: u64,
    /// What it has taken: less while others have the memory.
    pub mapped_bytes: u64,
    /// Slots in use: kept, being filled, or still held.
    pub held_bytes: u64,
    /// What may be kept.
    pub budget_bytes: u64,
    /// What is kept.
    pub kept_bytes: u64,
    /// Blocks that are kept.
    pub blocks: u64,
    /// What each class keeps.
    pub classes: Vec<ClassUsage>,
    /// All memory of the device.
    pub total_bytes: u64,
    /// What nobody uses, whoever the others are; `None` when the driver does not say.
    pub free_bytes: Option<u64>,
}

impl HbmStatus {
    /// Of no level.
    #[must_use]
    pub fn off(reason: impl Into<String>) -> Self {
        Self {
            mode: HbmMode::Off { reason: reason.into() },
            driver: String::new(),
            health: Health::Ok,
            devices: Vec::new(),
        }
    }
}

impl From<DriverKind> for HbmMode {
    fn from(kind: DriverKind) -> Self {
        match kind {
            DriverKind::Cuda => Self::Cuda,
            DriverKind::StandIn => Self::StandIn,
        }
    }
}
