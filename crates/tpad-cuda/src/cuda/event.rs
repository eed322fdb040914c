//! Events, and what they tell.

use std::ffi::c_uint;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use cudarc::driver::sys::{CUevent, CUstream};

use super::call::check;
use super::context::{Context, Entered};
use crate::{Completion, CudaError};

/// `CU_EVENT_DISABLE_TIMING`: timestamps cost.
const NO_TIMING: c_uint = 2;
/// `CU_EVENT_BLOCKING_SYNC`: the device raises an interrupt, and who waits sleeps until then.
const INTERRUPTS: c_uint = 1;
/// How long who asks sleeps between two looks. With the kernel's slack it is some four times
/// that.
const LOOK_AGAIN: Duration = Duration::from_micros(20);
/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: u32 = 600;

/// An event of a context.
#[derive(Debug)]
pub(super) struct Event {
    context: Arc<Context>,
    raw: CUevent,
    /// Whether the device tells of it, or is asked.
    tells: bool,
}

// SAFETY: an event may be used by any thread, and by several at once.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// One that the device tells of.
    pub(super) fn new(context: &Arc<Context>) -> Result<Self, CudaError> {
        Self::create(context, true)
    }

    fn create(context: &Arc<Context>, tells: bool) -> Result<Self, CudaError> {
        let _entered = context.enter()?;
        let mut raw: CUevent = ptr::null_mut();
        let flags = if tells { NO_TIMING | INTERRUPTS } else { NO_TIMING };
        // SAFETY: the pointer is to a live handle.
        let code = unsafe { (context.calls.event_create)(&raw mut raw, flags) };
        check("cuEventCreate", code)?;
        Ok(Self { context: Arc::clone(context), raw, tells })
    }

    pub(super) fn raw(&self) -> CUevent {
        self.raw
    }

    /// Marks the end of what the stream was given so far.
    pub(super) fn record(&self, _entered: &Entered<'_>, stream: CUstream) -> Result<(), CudaError> {
        // SAFETY: the event lives, and the caller's stream is one of the same context.
        let code = unsafe { (self.context.calls.event_record)(self.raw, stream) };
        check("cuEventRecord", code)
    }

    pub(super) fn is_done(&self) -> Result<bool, CudaError> {
        let _entered = self.context.enter()?;
        // SAFETY: the event lives.
        match unsafe { (self.context.calls.event_query)(self.raw) } {
            NOT_READY => Ok(false),
            code => check("cuEventQuery", code).map(|()| true),
        }
    }

    pub(super) fn wait(&self) -> Result<(), CudaError> {
        if !self.tells {
            return self.ask();
        }
        let _entered = self.context.enter()?;
        // SAFETY: the event lives.
        let code = unsafe { (self.context.calls.event_synchronize)(self.raw) };
        check("cuEventSynchronize", code)
    }
}

impl Event {
    /// Waits without an interrupt.
    #[expect(clippy::disallowed_methods, reason = "nobody else is to run on this thread")]
    fn ask(&self) -> Result<(), CudaError> {
        while !self.is_done()? {
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let _entered = self.context.enter();
        // SAFETY: the event is this one's own; one that is not over is kept by the driver
        // until it is.
        let _code = unsafe { (self.context.calls.event_destroy)(self.raw) };
    }
}

/// Events that who waits has to ask for, to be used again: a driver takes longer to make one
/// than to record it. One that the device tells of takes an interrupt: some 25 µs of one
/// thread of the driver's, and who waits hears of a copy 0.1 ms after it was over.
#[derive(Debug)]
pub(super) struct Events {
    context: Arc<Context>,
    spare: Mutex<Vec<Event>>,
}

impl Events {
    pub(super) fn new(context: &Arc<Context>) -> Arc<Self> {
        Arc::new(Self { context: Arc::clone(context), spare: Mutex::default() })
    }

    /// One that nobody waits for.
    pub(super) fn take(&self) -> Result<Event, CudaError> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(|| Event::create(&self.context, false), Ok)
    }

    /// Takes back one that is over.
    pub(super) fn give_back(&self, event: Event) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

/// What was submitted to a context.
#[derive(Debug)]
pub(super) enum Submitted {
    /// Before this event.
    Before(Event),
    /// The driver cannot tell when: all of it counts.
    Everything(Arc<Context>),
}

impl Completion for Submitted {
    fn is_done(&self) -> Result<bool, CudaError> {
        match self {
            Self::Before(event) => event.is_done(),
            Self::Everything(_) => Ok(false),
        }
    }

    fn wait(&self) -> Result<(), CudaError> {
        match self {
            Self::Before(event) => event.wait(),
            Self::Everything(context) => {
                let _entered = context.enter()?;
                // SAFETY: the context is current.
                check("cuCtxSynchronize", unsafe { (context.calls.ctx_synchronize)() })
            }
        }
    }
}
