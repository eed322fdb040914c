//! The driver's functions, looked up once.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUmemAccessDesc,
    CUmemAllocationHandleType, CUmemAllocationProp, CUmemGenericAllocationHandle, CUstream, CUuuid,
};
#[cfg(feature = "testing")]
use cudarc::driver::sys::{CUfunction, CUmodule};

use crate::{CudaError, Unavailable};

/// What the driver's functions return: a `CUresult`, as a number.
pub(super) type Code = u32;

macro_rules! calls {
    ($($(#[$if:meta])? $name:ident = $symbol:literal ($($argument:ty),*);)*) => {
        /// The functions, by the names of `cuda.h`.
        #[derive(Debug)]
        pub(super) struct Calls {
            $($(#[$if])? pub(super) $name: unsafe extern "C" fn($($argument),*) -> Code,)*
            /// Since CUDA 12.5.
            pub(super) ctx_record_event: Option<unsafe extern "C" fn(CUcontext, CUevent) -> Code>,
        }

        impl Calls {
            fn load() -> Result<Self, Unavailable> {
                // SAFETY: loading a library runs its initialisers; the driver's may run
                // in any program.
                if !unsafe { sys::is_culib_present() } {
                    let reason = "there is no CUDA driver: libcuda.so was not found".to_owned();
                    return Err(Unavailable { reason });
                }
                // SAFETY: as above; it was just found, so this does not panic.
                let library = unsafe { sys::culib() };
                Ok(Self {
                    $($(#[$if])? $name: {
                        // SAFETY: `cuda.h` declares the function so, and a symbol of
                        // this name keeps its signature: new ones get a new suffix.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn($($argument),*) -> Code>(
                                $symbol.as_bytes(),
                            )
                        };
                        *found.map_err(|_| Unavailable {
                            reason: concat!("the CUDA driver is too old: it has no ", $symbol)
                                .to_owned(),
                        })?
                    },)*
                    ctx_record_event: {
                        // SAFETY: as above.
                        let found = unsafe {
                            library.get::<unsafe extern "C" fn(CUcontext, CUevent) -> Code>(
                                b"cuCtxRecordEvent",
                            )
                        };
                        found.ok().map(|function| *function)
                    },
                })
            }
        }
    };
}

calls! {
    init = "cuInit"(c_uint);
    get_error_name = "cuGetErrorName"(Code, *mut *const c_char);
    driver_get_version = "cuDriverGetVersion"(*mut c_int);
    device_get_count = "cuDeviceGetCount"(*mut c_int);
    device_get = "cuDeviceGet"(*mut CUdevice, c_int);
    device_get_name = "cuDeviceGetName"(*mut c_char, c_int, CUdevice);
    device_get_uuid = "cuDeviceGetUuid_v2"(*mut CUuuid, CUdevice);
    device_get_attribute = "cuDeviceGetAttribute"(*mut c_int, CUdevice_attribute, CUdevice);
    device_total_mem = "cuDeviceTotalMem_v2"(*mut usize, CUdevice);
    primary_ctx_retain = "cuDevicePrimaryCtxRetain"(*mut CUcontext, CUdevice);
    primary_ctx_release = "cuDevicePrimaryCtxRelease_v2"(CUdevice);
    ctx_push = "cuCtxPushCurrent_v2"(CUcontext);
    ctx_pop = "cuCtxPopCurrent_v2"(*mut CUcontext);
    ctx_synchronize = "cuCtxSynchronize"();
    exchange_capture_mode = "cuThreadExchangeStreamCaptureMode"(*mut c_uint);
    mem_get_info = "cuMemGetInfo_v2"(*mut usize, *mut usize);
    mem_granularity = "cuMemGetAllocationGranularity"(
        *mut usize, *const CUmemAllocationProp, c_uint
    );
    mem_create = "cuMemCreate"(
        *mut CUmemGenericAllocationHandle, usize, *const CUmemAllocationProp, c_ulonglong
    );
    mem_release = "cuMemRelease"(CUmemGenericAllocationHandle);
    mem_export = "cuMemExportToShareableHandle"(
        *mut c_void, CUmemGenericAllocationHandle, CUmemAllocationHandleType, c_ulonglong
    );
    mem_import = "cuMemImportFromShareableHandle"(
        *mut CUmemGenericAllocationHandle, *mut c_void, CUmemAllocationHandleType
    );
    mem_reserve = "cuMemAddressReserve"(*mut CUdeviceptr, usize, usize, CUdeviceptr, c_ulonglong);
    mem_free_address = "cuMemAddressFree"(CUdeviceptr, usize);
    mem_map = "cuMemMap"(
        CUdeviceptr, usize, usize, CUmemGenericAllocationHandle, c_ulonglong
    );
    mem_unmap = "cuMemUnmap"(CUdeviceptr, usize);
    mem_set_access = "cuMemSetAccess"(CUdeviceptr, usize, *const CUmemAccessDesc, usize);
    host_register = "cuMemHostRegister_v2"(*mut c_void, usize, c_uint);
    host_unregister = "cuMemHostUnregister"(*mut c_void);
    copy_to_device = "cuMemcpyHtoDAsync_v2"(CUdeviceptr, *const c_void, usize, CUstream);
    copy_to_host = "cuMemcpyDtoHAsync_v2"(*mut c_void, CUdeviceptr, usize, CUstream);
    stream_create = "cuStreamCreate"(*mut CUstream, c_uint);
    stream_destroy = "cuStreamDestroy_v2"(CUstream);
    stream_synchronize = "cuStreamSynchronize"(CUstream);
    event_create = "cuEventCreate"(*mut CUevent, c_uint);
    event_destroy = "cuEventDestroy_v2"(CUevent);
    event_record = "cuEventRecord"(CUevent, CUstream);
    event_query = "cuEventQuery"(CUevent);
    event_synchronize = "cuEventSynchronize"(CUevent);
    #[cfg(feature = "testing")]
    host_alloc = "cuMemHostAlloc"(*mut *mut c_void, usize, c_uint);
    #[cfg(feature = "testing")]
    host_free = "cuMemFreeHost"(*mut c_void);
    #[cfg(feature = "testing")]
    mem_alloc = "cuMemAlloc_v2"(*mut CUdeviceptr, usize);
    #[cfg(feature = "testing")]
    mem_free = "cuMemFree_v2"(CUdeviceptr);
    #[cfg(feature = "testing")]
    module_load = "cuModuleLoadData"(*mut CUmodule, *const c_void);
    #[cfg(feature = "testing")]
    module_unload = "cuModuleUnload"(CUmodule);
    #[cfg(feature = "testing")]
    module_get_function = "cuModuleGetFunction"(*mut CUfunction, CUmodule, *const c_char);
    #[cfg(feature = "testing")]
    launch_kernel = "cuLaunchKernel"(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream,
        *mut *mut c_void, *mut *mut c_void
    );
}

static CALLS: OnceLock<Calls> = OnceLock::new();

impl Calls {
    /// The functions of the library, if there is one that has them all.
    pub(super) fn get() -> Result<&'static Self, Unavailable> {
        if let Some(calls) = CALLS.get() {
            return Ok(calls);
        }
        let loaded = Self::load()?;
        Ok(CALLS.get_or_init(|| loaded))
    }
}

/// What a call's result says.
pub(super) fn check(call: &'static str, code: Code) -> Result<(), CudaError> {
    if code == 0 { Ok(()) } else { Err(CudaError::Call { call, code, name: name(code) }) }
}

fn name(code: Code) -> String {
    let unknown = || "unknown to this driver".to_owned();
    let Some(calls) = CALLS.get() else { return unknown() };
    let mut name: *const c_char = std::ptr::null();
    // SAFETY: the pointer is to a live pointer.
    let found = unsafe { (calls.get_error_name)(code, &raw mut name) };
    if found != 0 || name.is_null() {
        return unknown();
    }
    // SAFETY: the driver's names are constants that end with a zero.
    unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
}
