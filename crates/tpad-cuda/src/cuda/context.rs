//! A device's primary context, entered for the time of a call.

use std::ffi::c_uint;
use std::marker::PhantomData;
use std::ptr;
use std::sync::Arc;

use cudarc::driver::sys::{CUcontext, CUdevice};

use super::call::{Calls, check};
use crate::CudaError;

/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: c_uint = 2;

/// A primary context that is retained until this is dropped.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) calls: &'static Calls,
    pub(super) device: CUdevice,
    raw: CUcontext,
}

// SAFETY: a context may be used by any thread, and by several at once.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// The context is current on this thread until this is dropped, and no capture that
/// another thread is making of its own streams forbids what is called.
#[derive(Debug)]
pub(super) struct Entered<'a> {
    context: &'a Context,
    capture_mode: c_uint,
    /// What is current belongs to the thread.
    _here: PhantomData<*const ()>,
}

impl Context {
    pub(super) fn retain(calls: &'static Calls, device: CUdevice) -> Result<Arc<Self>, CudaError> {
        let mut raw: CUcontext = ptr::null_mut();
        // SAFETY: the pointer is to a live handle, the device is one of the driver's.
        let code = unsafe { (calls.primary_ctx_retain)(&raw mut raw, device) };
        check("cuDevicePrimaryCtxRetain", code)?;
        Ok(Arc::new(Self { calls, device, raw }))
    }

    pub(super) fn raw(&self) -> CUcontext {
        self.raw
    }

    pub(super) fn enter(&self) -> Result<Entered<'_>, CudaError> {
        // SAFETY: the context is retained.
        check("cuCtxPushCurrent", unsafe { (self.calls.ctx_push)(self.raw) })?;
        let mut entered = Entered { context: self, capture_mode: RELAXED, _here: PhantomData };
        // SAFETY: the pointer is to a live integer, which holds a mode and gets one.
        let code = unsafe { (self.calls.exchange_capture_mode)(&raw mut entered.capture_mode) };
        match check("cuThreadExchangeStreamCaptureMode", code) {
            Ok(()) => Ok(entered),
            Err(error) => {
                // Nothing was exchanged: nothing is to be put back but the context.
                entered.leave();
                std::mem::forget(entered);
                Err(error)
            }
        }
    }
}

impl Entered<'_> {
    fn leave(&self) {
        let mut left: CUcontext = ptr::null_mut();
        // SAFETY: the pointer is to a live handle; what is popped was pushed by `enter`.
        let code = unsafe { (self.context.calls.ctx_pop)(&raw mut left) };
        debug_assert!(code != 0 || left == self.context.raw, "someone left its context behind");
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        // A dead context refuses; there is nothing to put back then.
        // SAFETY: the pointer is to a live integer that holds a mode.
        let _code =
            unsafe { (self.context.calls.exchange_capture_mode)(&raw mut self.capture_mode) };
        self.leave();
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained once, and everything made in it holds the `Arc`.
        let _code = unsafe { (self.calls.primary_ctx_release)(self.device) };
    }
}
