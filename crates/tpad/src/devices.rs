//! GPU memory, as the configuration has it and this machine.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tpad_cuda::{CudaError, DeviceName, Driver, DriverKind, StandIn};
use tpad_engine::DeviceMemory;
use tpad_hbm::{DeviceBudget, HbmConfig, HbmError, HbmLevel, HbmMetrics};

use crate::config::Hbm;

/// Why the level cannot be had as it is configured.
#[derive(Debug, thiserror::Error)]
#[error("levels.hbm: {0}")]
pub struct HbmStartError(#[from] HbmError);

/// Opens the level. Without a GPU it is off: what is at home there is served from host
/// memory.
///
/// # Errors
/// When a device that is named is not there, cannot hand memory over, or does not have the
/// capacity. One that does not work turns the level off.
pub(crate) fn open(
    config: Option<Hbm>,
    metrics: HbmMetrics,
) -> Result<DeviceMemory, HbmStartError> {
    let Some(Hbm { capacity_bytes, devices, stand_in }) = config else {
        return Ok(DeviceMemory::default());
    };
    let driver = match stand_in {
        Some(directory) => stand_in_at(&directory, devices.len(), capacity_bytes)?,
        None => match tpad_cuda::cuda() {
            Ok(driver) => driver,
            Err(unavailable) => {
                tracing::warn!(reason = %unavailable, "levels.hbm is off");
                return Ok(DeviceMemory::Off(unavailable.to_string()));
            }
        },
    };
    if driver.kind() == DriverKind::StandIn {
        tracing::warn!("levels.hbm.stand_in: host memory stands in for GPU memory");
    }
    let devices = if devices.is_empty() { all(&driver) } else { Ok(devices) };
    let devices = match devices {
        Ok(devices) => devices,
        Err(error) => return off(&error),
    };
    let devices = devices.into_iter();
    let config = HbmConfig {
        devices: devices.map(|device| DeviceBudget { device, capacity_bytes }).collect(),
        class_budgets: BTreeMap::new(),
        streams: HbmConfig::STREAMS,
    };
    let level = match HbmLevel::open(&driver, &config, metrics) {
        Ok(level) => level,
        // A GPU that does not work, or has no room for a context: host memory serves.
        Err(HbmError::Open { source, device }) if !is_misnamed(&source) => {
            return off(&HbmError::Open { source, device });
        }
        Err(error) => return Err(error.into()),
    };
    for facts in level.devices() {
        let (uuid, name) = (facts.uuid.to_string(), facts.name.as_str());
        tracing::info!(index = facts.index, uuid, name, bytes = capacity_bytes, "GPU memory");
    }
    Ok(DeviceMemory::On(Arc::new(level)))
}

fn off(error: &HbmError) -> Result<DeviceMemory, HbmStartError> {
    tracing::warn!(%error, "levels.hbm is off until restart");
    Ok(DeviceMemory::Off(error.to_string()))
}

/// Whether the configuration names what there is not.
fn is_misnamed(error: &CudaError) -> bool {
    matches!(error, CudaError::NoDevice { .. } | CudaError::NoExport { .. })
}

/// Host memory in the place of so many GPUs' and at least one's, with twice what the level
/// takes of each.
fn stand_in_at(
    directory: &Path,
    devices: usize,
    capacity_bytes: u64,
) -> Result<Arc<dyn Driver>, HbmError> {
    std::fs::create_dir_all(directory).map_err(|error| HbmError::Open {
        device: DeviceName::Index(0),
        source: CudaError::System {
            what: "making levels.hbm.stand_in",
            problem: error.to_string(),
        },
    })?;
    let devices = u32::try_from(devices.max(1)).unwrap_or(u32::MAX);
    Ok(StandIn::on(directory, devices, capacity_bytes.saturating_mul(2)))
}

fn all(driver: &Arc<dyn Driver>) -> Result<Vec<DeviceName>, HbmError> {
    let failed = |source: CudaError| HbmError::Open { device: DeviceName::Index(0), source };
    let devices = driver.devices().map_err(failed)?;
    Ok(devices.into_iter().map(|facts| DeviceName::Index(facts.index)).collect())
}
