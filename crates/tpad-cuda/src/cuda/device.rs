//! An open device.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
#[cfg(feature = "testing")]
use std::time::Duration;

use super::call::check;
use super::context::Context;
use super::event::{Event, Submitted};
use super::host::Pinned;
use super::memory::{Access, Mapped, Physical};
use super::stream::CudaStream;
use crate::{
    Completion, CudaError, Device, DeviceFacts, Memory, MemoryUse, Registration, Slab, Stream,
};

/// A device in its primary context.
#[derive(Debug)]
pub(super) struct CudaDevice {
    context: Arc<Context>,
    facts: DeviceFacts,
}

impl CudaDevice {
    pub(super) fn new(context: Arc<Context>, facts: DeviceFacts) -> Self {
        Self { context, facts }
    }
}

impl Device for CudaDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn memory(&self) -> Result<MemoryUse, CudaError> {
        let _entered = self.context.enter()?;
        let (mut free, mut total): (usize, usize) = (0, 0);
        // SAFETY: the pointers are to live integers.
        let code = unsafe { (self.context.calls.mem_get_info)(&raw mut free, &raw mut total) };
        check("cuMemGetInfo", code)?;
        Ok(MemoryUse { free_bytes: free as u64, total_bytes: total as u64 })
    }

    fn create(&self, bytes: u64) -> Result<Arc<dyn Slab>, CudaError> {
        if !self.facts.exports {
            return Err(CudaError::NoExport { index: self.facts.index });
        }
        let rounded = bytes.max(1).checked_next_multiple_of(self.facts.granularity_bytes);
        let length = rounded.and_then(|bytes| usize::try_from(bytes).ok());
        let length = length.ok_or(CudaError::Span { offset: 0, bytes, of: u64::MAX })?;
        let physical = Physical::create(&self.context, length)?;
        Ok(Arc::new(Mapped::map(physical, Access::ReadWrite)?))
    }

    fn import(&self, descriptor: BorrowedFd<'_>, bytes: u64) -> Result<Arc<dyn Memory>, CudaError> {
        let length = usize::try_from(bytes).ok().filter(|length| *length > 0);
        let length = length.ok_or(CudaError::Span { offset: 0, bytes, of: u64::MAX })?;
        let physical = Physical::import(&self.context, descriptor, length)?;
        Ok(Arc::new(Mapped::map(physical, Access::Read)?))
    }

    fn stream(&self) -> Result<Box<dyn Stream>, CudaError> {
        Ok(Box::new(CudaStream::new(&self.context)?))
    }

    fn submitted(&self) -> Result<Box<dyn Completion>, CudaError> {
        let Some(record) = self.context.calls.ctx_record_event else {
            return Ok(Box::new(Submitted::Everything(Arc::clone(&self.context))));
        };
        let event = Event::new(&self.context)?;
        let _entered = self.context.enter()?;
        // SAFETY: the context is retained, and the event is one of its own.
        let code = unsafe { record(self.context.raw(), event.raw()) };
        check("cuCtxRecordEvent", code)?;
        Ok(Box::new(Submitted::Before(event)))
    }

    unsafe fn register(
        &self,
        start: NonNull<u8>,
        bytes: usize,
    ) -> Result<Box<dyn Registration>, CudaError> {
        // SAFETY: the caller promises what it needs.
        let pinned = unsafe { Pinned::new(&self.context, start, bytes) }?;
        Ok(Box::new(pinned))
    }

    #[cfg(feature = "testing")]
    fn read_late(
        &self,
        memory: &Arc<dyn Memory>,
        offset: u64,
        bytes: u64,
        delay: Duration,
    ) -> Result<Box<dyn crate::fault::LateRead>, CudaError> {
        super::late::launch(&self.context, memory, offset, bytes, delay)
    }

    #[cfg(feature = "testing")]
    fn plain_copies(&self, bytes: u64, count: u64) -> Result<Duration, CudaError> {
        super::plain::copies(&self.context, bytes, count)
    }
}
