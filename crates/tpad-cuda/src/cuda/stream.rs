//! Streams, and copies on them.

use std::ffi::{c_uint, c_void};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cudarc::driver::sys::CUstream;

use super::call::check;
use super::context::{Context, Entered};
use super::event::{Event, Events};
use crate::driver::span;
use crate::{Completion, CudaError, HostCopy, Stream};

/// `CU_STREAM_NON_BLOCKING`: it does not wait for the default stream, nor that for it.
const NON_BLOCKING: c_uint = 1;

/// A stream of a context.
#[derive(Debug)]
pub(super) struct CudaStream {
    context: Arc<Context>,
    events: Arc<Events>,
    raw: CUstream,
}

// SAFETY: a stream may be used by any thread, and by several at once.
unsafe impl Send for CudaStream {}
// SAFETY: as above.
unsafe impl Sync for CudaStream {}

/// A copy to the device that is under way.
#[derive(Debug)]
struct Flight {
    /// `None` only while this is dropped.
    event: Option<Event>,
    events: Arc<Events>,
    /// Whether the event was seen: nothing touches the copy's memory any more.
    seen: AtomicBool,
    /// Read until then, and written.
    _copy: HostCopy,
}

impl CudaStream {
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut raw: CUstream = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        let code = unsafe { (context.calls.stream_create)(&raw mut raw, NON_BLOCKING) };
        check("cuStreamCreate", code)?;
        Ok(Self { context: Arc::clone(context), events: Events::new(context), raw })
    }

    #[cfg(feature = "testing")]
    pub(super) fn raw(&self) -> CUstream {
        self.raw
    }

    pub(super) fn wait(&self) -> Result<(), CudaError> {
        let _entered = self.context.enter()?;
        // SAFETY: the stream lives.
        let code = unsafe { (self.context.calls.stream_synchronize)(self.raw) };
        check("cuStreamSynchronize", code)
    }

    /// Copies from the device's `address` and waits.
    pub(super) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), CudaError> {
        let entered = self.context.enter()?;
        let start = into.as_mut_ptr().cast::<c_void>();
        // SAFETY: the slice is exclusive and outlives the copy, which is waited for
        // below; the caller has the device's span mapped.
        let code =
            unsafe { (self.context.calls.copy_to_host)(start, address, into.len(), self.raw) };
        drop(entered);
        check("cuMemcpyDtoHAsync", code)?;
        self.wait()
    }

    /// Copies to the device's `address` and waits.
    pub(super) fn write(&self, address: u64, from: &[u8]) -> Result<(), CudaError> {
        self.begin(&self.context.enter()?, address, from)?;
        self.wait()
    }

    fn begin(&self, _entered: &Entered<'_>, address: u64, from: &[u8]) -> Result<(), CudaError> {
        let start = from.as_ptr().cast::<c_void>();
        // SAFETY: both callers keep the slice and the device's span until the copy is
        // done: one waits for it, the other moves them into the flight.
        let code =
            unsafe { (self.context.calls.copy_to_device)(address, start, from.len(), self.raw) };
        check("cuMemcpyHtoDAsync", code)
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        // SAFETY: the stream is this one's own. What is under way goes on, and keeps its
        // memory by its flights.
        let _code = unsafe { (self.context.calls.stream_destroy)(self.raw) };
    }
}

impl Stream for CudaStream {
    fn copy(&self, copy: HostCopy) -> Result<Box<dyn Completion>, CudaError> {
        span(copy.offset, copy.from.len(), copy.to.bytes())?;
        let event = self.events.take()?;
        // Once for all calls: each entering is four of the driver's own.
        let entered = self.context.enter()?;
        self.begin(&entered, copy.to.address() + copy.offset, &copy.from)?;
        if let Err(error) = event.record(&entered, self.raw) {
            // Nobody would learn when it is over: it has to be before anyone goes on.
            let _over = self.wait();
            return Err(error);
        }
        let (event, events) = (Some(event), Arc::clone(&self.events));
        Ok(Box::new(Flight { event, events, seen: AtomicBool::new(false), _copy: copy }))
    }
}

impl Completion for Flight {
    fn is_done(&self) -> Result<bool, CudaError> {
        let done = self.event()?.is_done()?;
        self.seen.fetch_or(done, Ordering::Relaxed);
        Ok(done)
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.event()?.wait()?;
        self.seen.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Flight {
    fn event(&self) -> Result<&Event, CudaError> {
        self.event.as_ref().ok_or(CudaError::Ended)
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        let Some(event) = self.event.take() else { return };
        // An error means that the context is dead and copies nothing any more.
        if *self.seen.get_mut() || event.wait().is_ok() {
            self.events.give_back(event);
        }
    }
}
