//! The seam: what a driver of GPUs does for a daemon and its workers.

use std::fmt;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
#[cfg(feature = "testing")]
use std::time::Duration;

use bytes::Bytes;

use crate::{CudaError, DeviceFacts, DeviceName, MemoryUse};

/// What drives the devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverKind {
    /// NVIDIA's driver.
    Cuda,
    /// Host memory and threads, for tests: no GPU.
    StandIn,
}

/// A driver and its devices.
pub trait Driver: Send + Sync + fmt::Debug + 'static {
    /// What it is.
    fn kind(&self) -> DriverKind;

    /// Its version, for an operator.
    fn version(&self) -> String;

    /// Every device that this process sees. Makes no context.
    ///
    /// # Errors
    /// When the driver does not say.
    fn devices(&self) -> Result<Vec<DeviceFacts>, CudaError>;

    /// Opens a device: with CUDA, in its primary context, which PyTorch uses, too.
    ///
    /// # Errors
    /// When there is no such device, or it gives no context.
    fn open(&self, device: &DeviceName) -> Result<Arc<dyn Device>, CudaError>;
}

/// An open device. What is made of it keeps it open.
///
/// Whatever is called, the calling thread has the same context current afterwards as
/// before, and a capture of a graph in another thread goes on: but see
/// [`Device::submitted`].
pub trait Device: Send + Sync + fmt::Debug + 'static {
    /// What it is.
    fn facts(&self) -> &DeviceFacts;

    /// What of its memory is in use.
    ///
    /// # Errors
    /// When the driver does not say.
    fn memory(&self) -> Result<MemoryUse, CudaError>;

    /// Makes memory that other processes can map, of at least `bytes` bytes rounded up
    /// to the granularity, mapped here to be read and written. What is in it is
    /// undefined.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::CudaErrorKind::OutOfMemory) when it does not have so much.
    fn create(&self, bytes: u64) -> Result<Arc<dyn Slab>, CudaError>;

    /// Maps memory that another process has made, of exactly `bytes` bytes, to be read.
    /// The descriptor is not needed any longer then. The memory lives as long as
    /// anyone has it mapped, whoever made it.
    ///
    /// # Errors
    /// When it is no such memory, or not so large.
    fn import(&self, descriptor: BorrowedFd<'_>, bytes: u64) -> Result<Arc<dyn Memory>, CudaError>;

    /// A stream of its own, which waits for no other.
    ///
    /// # Errors
    /// When the driver gives none.
    fn stream(&self) -> Result<Box<dyn Stream>, CudaError>;

    /// All work that this process has submitted to the device by now, on any stream of
    /// the context. Work that is submitted later does not count, except where the
    /// driver knows no better (before CUDA 12.5): then waiting waits for that, too, and
    /// `is_done` may say no for ever.
    ///
    /// A kernel in a captured graph is submitted whenever the graph is launched, so who
    /// captures a block's address keeps the block for the graph's life. While any
    /// stream of the context is being captured this fails, and the capture with it:
    /// CUDA offers no other way.
    ///
    /// # Errors
    /// When the driver does not do it now.
    fn submitted(&self) -> Result<Box<dyn Completion>, CudaError>;

    /// Pins host memory, so that copies from it run at the bus's full speed and do
    /// not block. Counts for all devices of the process.
    ///
    /// # Safety
    /// The span is mapped, and stays so until the registration is dropped.
    ///
    /// # Errors
    /// When the driver refuses.
    #[expect(unsafe_code, reason = "only the caller knows how long memory is mapped")]
    unsafe fn register(
        &self,
        start: NonNull<u8>,
        bytes: usize,
    ) -> Result<Box<dyn Registration>, CudaError>;

    /// Submits work that reads these bytes late: after `delay`, it computes their
    /// [`checksum`](crate::fault::checksum) as they are then. `bytes` is a multiple
    /// of 8.
    ///
    /// # Errors
    /// When the driver does not take it.
    #[cfg(feature = "testing")]
    fn read_late(
        &self,
        memory: &Arc<dyn Memory>,
        offset: u64,
        bytes: u64,
        delay: Duration,
    ) -> Result<Box<dyn crate::fault::LateRead>, CudaError>;

    /// How long `count` plain copies of so many bytes take, from host memory that the
    /// driver itself has allocated, on one stream, with one wait at the end: what copies
    /// are measured against. Making the memory does not count.
    ///
    /// # Errors
    /// When the driver fails.
    #[cfg(feature = "testing")]
    fn plain_copies(&self, bytes: u64, count: u64) -> Result<Duration, CudaError>;
}

/// Device memory that is mapped into this process's context. Dropped, it is unmapped.
pub trait Memory: Send + Sync + fmt::Debug + 'static {
    /// Its bytes.
    fn bytes(&self) -> u64;

    /// Where it begins, as kernels see it: a device pointer.
    fn address(&self) -> u64;

    /// Copies bytes from `offset` on to the host. Blocks; slow, for checks.
    ///
    /// # Errors
    /// When they lie outside, or the driver fails.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), CudaError>;

    /// Copies bytes from the host to `offset`. Blocks; slow, for checks.
    ///
    /// # Errors
    /// When they lie outside, the memory is mapped to be read, or the driver fails.
    fn write(&self, offset: u64, from: &[u8]) -> Result<(), CudaError>;
}

/// Memory that was made here.
pub trait Slab: Memory {
    /// A descriptor of the memory, for another process to import. As long as it or a
    /// copy is open, or a process has it mapped, the memory is in use.
    ///
    /// # Errors
    /// When the driver or the system gives none.
    fn descriptor(&self) -> Result<OwnedFd, CudaError>;
}

/// Host memory that is pinned until this is dropped.
pub trait Registration: Send + Sync + fmt::Debug {}

/// One queue of copies, in order.
pub trait Stream: Send + Sync + fmt::Debug {
    /// Begins a copy. The completion owns its source and its destination until it has
    /// seen it done: dropped before, it waits.
    ///
    /// Returns at once where the source is registered; otherwise the driver may copy it
    /// aside first.
    ///
    /// # Errors
    /// When the span lies outside of the slab, or the driver fails. Nothing is under
    /// way then.
    fn copy(&self, copy: HostCopy) -> Result<Box<dyn Completion>, CudaError>;
}

/// Bytes to be copied to a device.
#[derive(Clone, Debug)]
pub struct HostCopy {
    /// The bytes.
    pub from: Bytes,
    /// Where they go.
    pub to: Arc<dyn Slab>,
    /// Where in it.
    pub offset: u64,
}

/// Work of a device that is under way.
pub trait Completion: Send + fmt::Debug {
    /// Whether it is done. Does not block.
    ///
    /// # Errors
    /// When it failed, or anything before it did.
    fn is_done(&self) -> Result<bool, CudaError>;

    /// Waits until it is. Blocks without spinning.
    ///
    /// # Errors
    /// As above.
    fn wait(&self) -> Result<(), CudaError>;
}

/// The span of `bytes` bytes from `offset`, if it is one of memory of `of` bytes.
pub(crate) fn span(offset: u64, bytes: usize, of: u64) -> Result<(), CudaError> {
    let bytes = bytes as u64;
    let end = offset.checked_add(bytes);
    if bytes > 0 && end.is_some_and(|end| end <= of) {
        Ok(())
    } else {
        Err(CudaError::Span { offset, bytes, of })
    }
}
