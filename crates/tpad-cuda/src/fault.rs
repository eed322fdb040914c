//! For tests: work that reads late, and a driver that fails on demand.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::OUT_OF_MEMORY;
use crate::{
    Completion, CudaError, Device, DeviceFacts, DeviceName, Driver, DriverKind, HostCopy, Memory,
    MemoryUse, Registration, Slab, Stream,
};

/// Work of a device that reads a block after a while.
pub trait LateRead: Completion {
    /// Waits, and says what was there: see [`checksum`].
    ///
    /// # Errors
    /// When the work failed.
    fn checksum(&self) -> Result<u64, CudaError>;
}

/// The sum of the words of `bytes`, each multiplied by one more than twice its place,
/// without the overflow: what [`Device::read_late`] computes.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    for (factor, word) in (0..).map(|n: u64| 2 * n + 1).zip(bytes.as_chunks().0) {
        sum = sum.wrapping_add(u64::from_le_bytes(*word).wrapping_mul(factor));
    }
    sum
}

/// What is to fail, and how often it did.
#[derive(Debug, Default)]
pub struct Faults {
    /// Counted down by each copy; the one that makes it 0 kills the context.
    pub copies_to_death: AtomicU64,
    /// Slabs still to be refused for lack of memory.
    pub creates_refused: AtomicU64,
    /// Host memory still to be refused registration.
    pub registrations_refused: AtomicU64,
    /// How often something failed.
    pub fired: AtomicU64,
    dead: AtomicU64,
}

impl Faults {
    /// How often something failed.
    #[must_use]
    pub fn fired(&self) -> u64 {
        self.fired.load(Ordering::SeqCst)
    }

    fn fire(&self, call: &'static str, code: u32, name: &str) -> CudaError {
        self.fired.fetch_add(1, Ordering::SeqCst);
        CudaError::Call { call, code, name: format!("{name}, injected") }
    }

    fn death(&self, call: &'static str) -> CudaError {
        self.dead.store(1, Ordering::SeqCst);
        self.fire(call, 700, "CUDA_ERROR_ILLEGAL_ADDRESS")
    }

    fn alive(&self, call: &'static str) -> Result<(), CudaError> {
        if self.dead.load(Ordering::SeqCst) == 0 { Ok(()) } else { Err(self.death(call)) }
    }
}

/// Takes one from a count that is not 0; the count before.
fn take(count: &AtomicU64) -> Option<u64> {
    let less = |count: u64| count.checked_sub(1);
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).ok()
}

/// A driver whose devices fail as their [`Faults`] say.
#[derive(Debug)]
pub struct Faulty {
    inner: Arc<dyn Driver>,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct FaultyDevice {
    inner: Arc<dyn Device>,
    faults: Arc<Faults>,
}

#[derive(Debug)]
struct FaultyStream {
    inner: Box<dyn Stream>,
    faults: Arc<Faults>,
}

/// A copy that was made, and is said to have failed.
#[derive(Debug)]
struct Lost {
    inner: Box<dyn Completion>,
    error: CudaError,
}

impl Faulty {
    /// The driver `inner`, with these faults.
    #[must_use]
    pub fn over(inner: Arc<dyn Driver>, faults: &Arc<Faults>) -> Arc<dyn Driver> {
        Arc::new(Self { inner, faults: Arc::clone(faults) })
    }
}

impl Driver for Faulty {
    fn kind(&self) -> DriverKind {
        self.inner.kind()
    }

    fn version(&self) -> String {
        self.inner.version()
    }

    fn devices(&self) -> Result<Vec<DeviceFacts>, CudaError> {
        self.inner.devices()
    }

    fn open(&self, device: &DeviceName) -> Result<Arc<dyn Device>, CudaError> {
        let (inner, faults) = (self.inner.open(device)?, Arc::clone(&self.faults));
        Ok(Arc::new(FaultyDevice { inner, faults }))
    }
}

impl Device for FaultyDevice {
    fn facts(&self) -> &DeviceFacts {
        self.inner.facts()
    }

    fn memory(&self) -> Result<MemoryUse, CudaError> {
        self.faults.alive("cuMemGetInfo")?;
        self.inner.memory()
    }

    fn create(&self, bytes: u64) -> Result<Arc<dyn Slab>, CudaError> {
        self.faults.alive("cuMemCreate")?;
        if take(&self.faults.creates_refused).is_some() {
            return Err(self.faults.fire("cuMemCreate", OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"));
        }
        self.inner.create(bytes)
    }

    fn import(&self, descriptor: BorrowedFd<'_>, bytes: u64) -> Result<Arc<dyn Memory>, CudaError> {
        self.faults.alive("cuMemImportFromShareableHandle")?;
        self.inner.import(descriptor, bytes)
    }

    fn stream(&self) -> Result<Box<dyn Stream>, CudaError> {
        let (inner, faults) = (self.inner.stream()?, Arc::clone(&self.faults));
        Ok(Box::new(FaultyStream { inner, faults }))
    }

    fn submitted(&self) -> Result<Box<dyn Completion>, CudaError> {
        self.faults.alive("cuCtxRecordEvent")?;
        self.inner.submitted()
    }

    #[expect(unsafe_code, reason = "what it wraps is unsafe to call")]
    unsafe fn register(
        &self,
        start: NonNull<u8>,
        bytes: usize,
    ) -> Result<Box<dyn Registration>, CudaError> {
        if take(&self.faults.registrations_refused).is_some() {
            return Err(self.faults.fire("cuMemHostRegister", 1, "CUDA_ERROR_INVALID_VALUE"));
        }
        // SAFETY: the caller promises what it needs.
        unsafe { self.inner.register(start, bytes) }
    }

    fn read_late(
        &self,
        memory: &Arc<dyn Memory>,
        offset: u64,
        bytes: u64,
        delay: Duration,
    ) -> Result<Box<dyn LateRead>, CudaError> {
        self.faults.alive("cuLaunchKernel")?;
        self.inner.read_late(memory, offset, bytes, delay)
    }

    fn plain_copies(&self, bytes: u64, count: u64) -> Result<Duration, CudaError> {
        self.inner.plain_copies(bytes, count)
    }
}

impl Stream for FaultyStream {
    fn copy(&self, copy: HostCopy) -> Result<Box<dyn Completion>, CudaError> {
        self.faults.alive("cuMemcpyHtoDAsync")?;
        // The count before this one.
        let left = take(&self.faults.copies_to_death);
        let inner = self.inner.copy(copy)?;
        if left != Some(1) {
            return Ok(inner);
        }
        // As on a device: what was submitted fails when it is waited for.
        Ok(Box::new(Lost { inner, error: self.faults.death("cuEventSynchronize") }))
    }
}

impl Completion for Lost {
    fn is_done(&self) -> Result<bool, CudaError> {
        Err(self.error.clone())
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.inner.wait()?;
        Err(self.error.clone())
    }
}
