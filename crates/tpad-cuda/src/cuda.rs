//! NVIDIA's driver.
//!
//! The library and each of its functions are looked up when they are first needed, so
//! that one program runs with and without a GPU. Results are plain numbers here: a
//! newer driver may return one that the bindings' enumeration does not have.
#![expect(unsafe_code, reason = "the driver is a C library")]

mod call;
mod context;
mod device;
mod event;
mod host;
#[cfg(feature = "testing")]
mod late;
mod memory;
#[cfg(feature = "testing")]
mod plain;
mod stream;

use std::ffi::{c_char, c_int};
use std::sync::Arc;

use cudarc::driver::sys::{CUdevice, CUdevice_attribute, CUuuid};

use self::call::{Calls, check};
use self::context::Context;
use self::device::CudaDevice;
use crate::{
    CudaError, Device, DeviceFacts, DeviceName, DeviceUuid, Driver, DriverKind, Unavailable,
};

/// Memory can be mapped by hand ...
const VIRTUAL: CUdevice_attribute =
    CUdevice_attribute::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED;
/// ... and exported.
const DESCRIPTORS: CUdevice_attribute =
    CUdevice_attribute::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED;

/// The driver, started.
#[derive(Debug)]
pub(crate) struct Cuda {
    calls: &'static Calls,
}

impl Cuda {
    /// Looks for the library, starts it, and sees whether it has devices.
    pub(crate) fn probe() -> Result<Self, Unavailable> {
        let calls = Calls::get()?;
        let unavailable = |error: CudaError| Unavailable { reason: error.to_string() };
        // SAFETY: any thread may start the driver, any number of times.
        check("cuInit", unsafe { (calls.init)(0) }).map_err(unavailable)?;
        let driver = Self { calls };
        match driver.count().map_err(unavailable)? {
            0 => Err(Unavailable { reason: "the CUDA driver has no devices".to_owned() }),
            _ => Ok(driver),
        }
    }

    fn count(&self) -> Result<u32, CudaError> {
        let mut count: c_int = 0;
        // SAFETY: the pointer is to a live integer.
        check("cuDeviceGetCount", unsafe { (self.calls.device_get_count)(&raw mut count) })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    fn device(&self, index: u32) -> Result<CUdevice, CudaError> {
        let mut device: CUdevice = 0;
        let ordinal = c_int::try_from(index).unwrap_or(c_int::MAX);
        // SAFETY: the pointer is to a live handle.
        check("cuDeviceGet", unsafe { (self.calls.device_get)(&raw mut device, ordinal) })?;
        Ok(device)
    }

    fn facts(&self, index: u32) -> Result<DeviceFacts, CudaError> {
        let device = self.device(index)?;
        let calls = self.calls;
        let mut uuid = CUuuid { bytes: [0; 16] };
        // SAFETY: the pointer is to a live structure.
        check("cuDeviceGetUuid", unsafe { (calls.device_get_uuid)(&raw mut uuid, device) })?;
        let mut name: [c_char; 128] = [0; 128];
        // One less: the last byte stays zero, whatever is written.
        let length = 127;
        // SAFETY: the array has room for so many bytes.
        let code = unsafe { (calls.device_get_name)(name.as_mut_ptr(), length, device) };
        check("cuDeviceGetName", code)?;
        let name: Vec<u8> =
            name.iter().map(|byte| byte.cast_unsigned()).take_while(|byte| *byte != 0).collect();
        let mut total: usize = 0;
        // SAFETY: the pointer is to a live integer.
        check("cuDeviceTotalMem", unsafe { (calls.device_total_mem)(&raw mut total, device) })?;
        let exports = self.attribute(device, VIRTUAL)? && self.attribute(device, DESCRIPTORS)?;
        let granularity = if exports { memory::granularity(calls, device)? } else { 0 };
        Ok(DeviceFacts {
            index,
            uuid: DeviceUuid::new(uuid.bytes.map(c_char::cast_unsigned)),
            name: String::from_utf8_lossy(&name).into_owned(),
            total_bytes: total as u64,
            granularity_bytes: granularity,
            exports,
        })
    }

    fn attribute(&self, device: CUdevice, which: CUdevice_attribute) -> Result<bool, CudaError> {
        let mut value: c_int = 0;
        // SAFETY: the pointer is to a live integer.
        let code = unsafe { (self.calls.device_get_attribute)(&raw mut value, which, device) };
        check("cuDeviceGetAttribute", code)?;
        Ok(value != 0)
    }
}

impl Driver for Cuda {
    fn kind(&self) -> DriverKind {
        DriverKind::Cuda
    }

    fn version(&self) -> String {
        let mut version: c_int = 0;
        // SAFETY: the pointer is to a live integer.
        let code = unsafe { (self.calls.driver_get_version)(&raw mut version) };
        match check("cuDriverGetVersion", code) {
            Ok(()) => format!("CUDA {}.{}", version / 1000, version % 1000 / 10),
            Err(error) => error.to_string(),
        }
    }

    fn devices(&self) -> Result<Vec<DeviceFacts>, CudaError> {
        (0..self.count()?).map(|index| self.facts(index)).collect()
    }

    fn open(&self, device: &DeviceName) -> Result<Arc<dyn Device>, CudaError> {
        let all = self.devices()?;
        let Some(facts) = all.iter().find(|facts| device.names(facts)) else {
            let there: Vec<String> =
                all.iter().map(|facts| format!("{} ({})", facts.index, facts.uuid)).collect();
            let there = there.join(", ");
            return Err(CudaError::NoDevice { device: device.clone(), there });
        };
        let context = Context::retain(self.calls, self.device(facts.index)?)?;
        Ok(Arc::new(CudaDevice::new(context, facts.clone())))
    }
}
