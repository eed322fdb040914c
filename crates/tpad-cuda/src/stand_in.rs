//! Host memory in the place of a GPU's, and threads in the place of its streams.
//!
//! It makes the rules of a device hold where there is none: memory that processes
//! share and that lives as long as anyone has it mapped, a bound on it over all
//! processes, copies that are over later than they were begun. It is no measure of a
//! GPU in any way.
#![expect(unsafe_code, reason = "mappings cannot be made or shared otherwise")]

mod latch;
mod machine;
mod memory;
mod stream;

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
#[cfg(feature = "testing")]
use std::time::Duration;

use self::latch::Ledger;
use self::machine::{GRANULARITY_BYTES, Machine};
use self::memory::SharedMemory;
use self::stream::ThreadStream;
use crate::{
    Completion, CudaError, Device, DeviceFacts, DeviceName, DeviceUuid, Driver, DriverKind, Memory,
    MemoryUse, Registration, Slab, Stream,
};

/// A driver without a GPU.
///
/// Its devices' memory is files in a directory. Every process that is given the same
/// directory sees the same devices, as with a GPU; a file counts as in use as long as a
/// process has it open or mapped, however that process ends.
#[derive(Debug)]
pub struct StandIn {
    machine: Arc<Machine>,
}

#[derive(Debug)]
struct StandInDevice {
    machine: Arc<Machine>,
    facts: DeviceFacts,
    /// Work that was submitted.
    ledger: Arc<Ledger>,
}

impl StandIn {
    /// So many devices with so many bytes each, whose memory lies in `directory`, which
    /// is to be a file system in memory and the caller's to remove.
    #[must_use]
    pub fn on(directory: &Path, devices: u32, bytes: u64) -> Arc<dyn Driver> {
        let machine = Arc::new(Machine { directory: directory.to_owned(), devices, bytes });
        Arc::new(Self { machine })
    }

    fn facts(&self, index: u32) -> DeviceFacts {
        let mut uuid = *b"tpad stand-in \0\0";
        uuid[12..].copy_from_slice(&index.to_be_bytes());
        DeviceFacts {
            index,
            uuid: DeviceUuid::new(uuid),
            name: "stand-in: host memory, no GPU".to_owned(),
            total_bytes: self.machine.bytes,
            granularity_bytes: GRANULARITY_BYTES,
            exports: true,
        }
    }
}

impl Driver for StandIn {
    fn kind(&self) -> DriverKind {
        DriverKind::StandIn
    }

    fn version(&self) -> String {
        "stand-in, no GPU".to_owned()
    }

    fn devices(&self) -> Result<Vec<DeviceFacts>, CudaError> {
        Ok((0..self.machine.devices).map(|index| self.facts(index)).collect())
    }

    fn open(&self, device: &DeviceName) -> Result<Arc<dyn Device>, CudaError> {
        let mut all = (0..self.machine.devices).map(|index| self.facts(index));
        let facts = all.find(|facts| device.names(facts)).ok_or_else(|| CudaError::NoDevice {
            device: device.clone(),
            there: format!("{} stand-ins", self.machine.devices),
        })?;
        let (machine, ledger) = (Arc::clone(&self.machine), Arc::default());
        Ok(Arc::new(StandInDevice { machine, facts, ledger }))
    }
}

impl Device for StandInDevice {
    fn facts(&self) -> &DeviceFacts {
        &self.facts
    }

    fn memory(&self) -> Result<MemoryUse, CudaError> {
        let total = self.machine.bytes;
        let used = self.machine.used(self.facts.index)?;
        Ok(MemoryUse { free_bytes: total.saturating_sub(used), total_bytes: total })
    }

    fn create(&self, bytes: u64) -> Result<Arc<dyn Slab>, CudaError> {
        let file = self.machine.create(self.facts.index, bytes)?;
        Ok(Arc::new(SharedMemory::made(file)?))
    }

    fn import(&self, descriptor: BorrowedFd<'_>, bytes: u64) -> Result<Arc<dyn Memory>, CudaError> {
        Ok(Arc::new(SharedMemory::imported(descriptor, bytes)?))
    }

    fn stream(&self) -> Result<Box<dyn Stream>, CudaError> {
        Ok(Box::new(ThreadStream::new(&self.ledger)?))
    }

    fn submitted(&self) -> Result<Box<dyn Completion>, CudaError> {
        Ok(Box::new(self.ledger.outstanding()))
    }

    unsafe fn register(
        &self,
        _start: NonNull<u8>,
        _bytes: usize,
    ) -> Result<Box<dyn Registration>, CudaError> {
        Ok(Box::new(Nothing))
    }

    #[cfg(feature = "testing")]
    fn read_late(
        &self,
        memory: &Arc<dyn Memory>,
        offset: u64,
        bytes: u64,
        delay: Duration,
    ) -> Result<Box<dyn crate::fault::LateRead>, CudaError> {
        stream::read_late(&self.ledger, memory, offset, bytes, delay)
    }

    #[cfg(feature = "testing")]
    fn plain_copies(&self, bytes: u64, count: u64) -> Result<Duration, CudaError> {
        let length = usize::try_from(bytes).map_err(|error| CudaError::system("a size", error))?;
        let (from, mut to) = (vec![1u8; length], vec![0u8; length]);
        let began = std::time::Instant::now();
        for _ in 0..count {
            to.copy_from_slice(std::hint::black_box(&from));
            std::hint::black_box(&mut to);
        }
        Ok(began.elapsed())
    }
}

/// Host memory needs no pinning to be copied by a processor.
#[derive(Debug)]
struct Nothing;

impl Registration for Nothing {}
