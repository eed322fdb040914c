//! Plain copies, for tests to measure against.

use std::ffi::c_void;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::CUdeviceptr;

use super::call::check;
use super::context::Context;
use super::stream::CudaStream;
use crate::CudaError;

/// Sources in turn: more than the processor's caches have.
const SOURCES_BYTES: usize = 256 << 20;

/// Host memory of the driver's own, pinned.
struct Host {
    context: Arc<Context>,
    start: *mut c_void,
}

/// Memory of the device.
struct Target {
    context: Arc<Context>,
    start: CUdeviceptr,
}

pub(super) fn copies(
    context: &Arc<Context>,
    bytes: u64,
    count: u64,
) -> Result<Duration, CudaError> {
    let length = usize::try_from(bytes).map_err(|error| CudaError::system("a size", error))?;
    let sources = (SOURCES_BYTES / length.max(1)).max(1);
    let host = Host::new(context, sources * length)?;
    let target = Target::new(context, length)?;
    let stream = CudaStream::new(context)?;
    let entered = context.enter()?;
    let copy = |n: usize| {
        let from = host.start.wrapping_byte_add(n % sources * length);
        // SAFETY: the source lies in the host's memory, and is not dropped before the
        // stream is waited for; the target has so many bytes.
        let code = unsafe {
            (context.calls.copy_to_device)(target.start, from.cast_const(), length, stream.raw())
        };
        check("cuMemcpyHtoDAsync", code)
    };
    let copied: Result<Duration, CudaError> = (|| {
        // Whatever the first one takes besides.
        copy(0)?;
        stream.wait()?;
        let began = Instant::now();
        for n in 0..usize::try_from(count).unwrap_or(usize::MAX) {
            copy(n)?;
        }
        stream.wait()?;
        Ok(began.elapsed())
    })();
    // Nothing is under way when the memory goes, whatever happened.
    let _over = stream.wait();
    drop(entered);
    copied
}

impl Host {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut start: *mut c_void = ptr::null_mut();
        // SAFETY: the pointer is to a live pointer.
        let code = unsafe { (context.calls.host_alloc)(&raw mut start, bytes, 0) };
        check("cuMemHostAlloc", code)?;
        let host = Self { context: Arc::clone(context), start };
        // SAFETY: the memory has so many bytes, and nobody else knows it.
        unsafe { ptr::write_bytes(host.start.cast::<u8>(), 1, bytes) };
        Ok(host)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        // SAFETY: the memory is this one's own, and no copy of it is under way.
        let _code = unsafe { (self.context.calls.host_free)(self.start) };
    }
}

impl Target {
    fn new(context: &Arc<Context>, bytes: usize) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut start: CUdeviceptr = 0;
        // SAFETY: the pointer is to a live address.
        check("cuMemAlloc", unsafe { (context.calls.mem_alloc)(&raw mut start, bytes) })?;
        Ok(Self { context: Arc::clone(context), start })
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        // SAFETY: the memory is this one's own, and no copy to it is under way.
        let _code = unsafe { (self.context.calls.mem_free)(self.start) };
    }
}
