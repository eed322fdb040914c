//! Host memory that the driver has pinned.

use std::ffi::{c_uint, c_void};
use std::ptr::NonNull;
use std::sync::Arc;

use super::call::check;
use super::context::Context;
use crate::{CudaError, Registration};

/// `CU_MEMHOSTREGISTER_PORTABLE`: pinned for every context of the process.
const PORTABLE: c_uint = 1;

/// A pinned span.
#[derive(Debug)]
pub(super) struct Pinned {
    context: Arc<Context>,
    start: NonNull<u8>,
}

// SAFETY: the address is only ever told to the driver.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// Pins the span.
    ///
    /// # Safety
    /// It is mapped, and stays so until this is dropped.
    pub(super) unsafe fn new(
        context: &Arc<Context>,
        start: NonNull<u8>,
        bytes: usize,
    ) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let address = start.as_ptr().cast::<c_void>();
        // SAFETY: the caller says that it is mapped.
        let code = unsafe { (context.calls.host_register)(address, bytes, PORTABLE) };
        check("cuMemHostRegister", code)?;
        Ok(Self { context: Arc::clone(context), start })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        // SAFETY: it was registered once, by `new`.
        let _code =
            unsafe { (self.context.calls.host_unregister)(self.start.as_ptr().cast::<c_void>()) };
    }
}

impl Registration for Pinned {}
