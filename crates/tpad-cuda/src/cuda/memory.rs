//! Memory of the driver's virtual memory management: physical memory, a range of
//! addresses, and the mapping of one to the other, each given back once.

use std::ffi::c_void;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::sys::{
    CUdevice, CUdeviceptr, CUmemAccess_flags, CUmemAccessDesc, CUmemAllocationHandleType,
    CUmemAllocationProp, CUmemAllocationProp_st__bindgen_ty_1, CUmemAllocationType,
    CUmemGenericAllocationHandle, CUmemLocation, CUmemLocationType,
};

use super::call::{Calls, check};
use super::context::Context;
use super::stream::CudaStream;
use crate::driver::span;
use crate::{CudaError, Memory, Slab};

const DESCRIPTOR: CUmemAllocationHandleType =
    CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;
/// `CU_MEM_ALLOC_GRANULARITY_RECOMMENDED`.
const RECOMMENDED: u32 = 1;

/// What memory is created in multiples of.
pub(super) fn granularity(calls: &Calls, device: CUdevice) -> Result<u64, CudaError> {
    let mut bytes: usize = 0;
    let properties = properties(device);
    // SAFETY: the pointers are to a live integer and a live structure.
    let code =
        unsafe { (calls.mem_granularity)(&raw mut bytes, &raw const properties, RECOMMENDED) };
    check("cuMemGetAllocationGranularity", code)?;
    Ok(bytes as u64)
}

fn location(device: CUdevice) -> CUmemLocation {
    CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device }
}

fn properties(device: CUdevice) -> CUmemAllocationProp {
    CUmemAllocationProp {
        type_: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: DESCRIPTOR,
        location: location(device),
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

/// Physical memory, made here or by another process.
#[derive(Debug)]
pub(super) struct Physical {
    context: Arc<Context>,
    handle: CUmemGenericAllocationHandle,
    bytes: usize,
}

/// A range of addresses without memory.
#[derive(Debug)]
struct Range {
    context: Arc<Context>,
    start: CUdeviceptr,
    bytes: usize,
}

/// Physical memory at an address of this process.
///
/// Invariant: `range` is mapped to `physical`, whole, until drop.
#[derive(Debug)]
pub(super) struct Mapped {
    access: Access,
    range: Range,
    physical: Physical,
    /// Made when it is first asked for: exporting takes longer than a copy of it.
    descriptor: Mutex<Option<OwnedFd>>,
}

/// What may be done with a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// By who imports it.
    Read,
    /// By who made it.
    ReadWrite,
}

impl Physical {
    /// Makes memory of so many bytes, a multiple of the granularity.
    pub(super) fn create(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut handle: CUmemGenericAllocationHandle = 0;
        let properties = properties(context.device);
        // SAFETY: the pointers are to a live handle and a live structure.
        let code =
            unsafe { (context.calls.mem_create)(&raw mut handle, bytes, &raw const properties, 0) };
        check("cuMemCreate", code)?;
        Ok(Self { context: Arc::clone(context), handle, bytes })
    }

    /// Takes up another process's memory.
    pub(super) fn import(
        context: &Arc<Context>,
        descriptor: BorrowedFd<'_>,
        bytes: usize,
    ) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut handle: CUmemGenericAllocationHandle = 0;
        // The descriptor itself goes in the place of a pointer.
        let raw = usize::try_from(descriptor.as_raw_fd()).unwrap_or(usize::MAX);
        let shared = std::ptr::without_provenance_mut::<c_void>(raw);
        // SAFETY: the pointer is to a live handle, and the descriptor is open.
        let code = unsafe { (context.calls.mem_import)(&raw mut handle, shared, DESCRIPTOR) };
        check("cuMemImportFromShareableHandle", code)?;
        Ok(Self { context: Arc::clone(context), handle, bytes })
    }

    fn export(&self) -> Result<OwnedFd, CudaError> {
        let _entered = self.context.enter()?;
        let mut raw: RawFd = -1;
        // SAFETY: for this kind of handle the pointer is to a live descriptor.
        let code = unsafe {
            (self.context.calls.mem_export)(
                (&raw mut raw).cast::<c_void>(),
                self.handle,
                DESCRIPTOR,
                0,
            )
        };
        check("cuMemExportToShareableHandle", code)?;
        if raw < 0 {
            return Err(CudaError::system("exporting memory", "it gave no descriptor"));
        }
        // SAFETY: the driver opened it for the caller alone.
        let descriptor = unsafe { OwnedFd::from_raw_fd(raw) };
        // A program that is started from here gets it by a message or not at all.
        rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)
            .map_err(|error| CudaError::system("closing a descriptor on exec", error))?;
        Ok(descriptor)
    }
}

impl Drop for Physical {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        // SAFETY: the handle is this one's own. Who has it mapped keeps the memory.
        let _code = unsafe { (self.context.calls.mem_release)(self.handle) };
    }
}

impl Range {
    fn reserve(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut start: CUdeviceptr = 0;
        // SAFETY: the pointer is to a live address; no address is asked for.
        let code = unsafe { (context.calls.mem_reserve)(&raw mut start, bytes, 0, 0, 0) };
        check("cuMemAddressReserve", code)?;
        Ok(Self { context: Arc::clone(context), start, bytes })
    }

    fn unmap(&self) {
        // SAFETY: the whole range was mapped at once, and nothing refers to it: copies
        // under way own the mapping.
        let _code = unsafe { (self.context.calls.mem_unmap)(self.start, self.bytes) };
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        // SAFETY: the range is this one's own, and nothing is mapped there any more.
        let _code = unsafe { (self.context.calls.mem_free_address)(self.start, self.bytes) };
    }
}

impl Mapped {
    pub(super) fn map(physical: Physical, access: Access) -> Result<Self, CudaError> {
        let range = Range::reserve(&physical.context, physical.bytes)?;
        let context = Arc::clone(&physical.context);
        let _entered = context.enter()?;
        // SAFETY: the range is reserved, of this size, and nothing is mapped there.
        let code =
            unsafe { (context.calls.mem_map)(range.start, physical.bytes, 0, physical.handle, 0) };
        check("cuMemMap", code)?;
        // From here on, its drop unmaps.
        let mapped = Self { access, range, physical, descriptor: Mutex::default() };
        let flags = match access {
            Access::Read => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READ,
            Access::ReadWrite => CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
        };
        let who = CUmemAccessDesc { location: location(context.device), flags };
        let (start, bytes) = (mapped.range.start, mapped.range.bytes);
        // SAFETY: the range is mapped, and the pointer is to one live structure.
        let code = unsafe { (context.calls.mem_set_access)(start, bytes, &raw const who, 1) };
        check("cuMemSetAccess", code)?;
        Ok(mapped)
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // A dead context does not let anyone in, and has given up its mappings.
        let _entered = self.range.context.enter();
        self.range.unmap();
    }
}

impl Memory for Mapped {
    fn bytes(&self) -> u64 {
        self.range.bytes as u64
    }

    fn address(&self) -> u64 {
        self.range.start
    }

    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), CudaError> {
        span(offset, into.len(), self.bytes())?;
        CudaStream::new(&self.range.context)?.read(self.range.start + offset, into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), CudaError> {
        span(offset, from.len(), self.bytes())?;
        // Nothing is checked here: that the driver refuses is what protects the memory.
        CudaStream::new(&self.range.context)?.write(self.range.start + offset, from)
    }
}

impl Slab for Mapped {
    fn descriptor(&self) -> Result<OwnedFd, CudaError> {
        debug_assert_eq!(self.access, Access::ReadWrite);
        let mut descriptor = self.descriptor.lock().unwrap_or_else(PoisonError::into_inner);
        let descriptor = match &*descriptor {
            Some(there) => there,
            None => descriptor.insert(self.physical.export()?),
        };
        descriptor.try_clone().map_err(|error| CudaError::system("copying a descriptor", error))
    }
}
