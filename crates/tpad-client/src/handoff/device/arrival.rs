//! An answer on its way to who asked, through the driver.

use std::sync::Arc;

use tokio::sync::oneshot;
use tpad_cuda::CudaError;

use super::{AcquiredOn, DeviceSlab, Guard, HeldDeviceBlock};
use crate::handoff::Acquired;
use crate::handoff::task::Granted;
use crate::{Error, Gpu};

/// What the daemon granted on a device, whose slabs may have to be mapped first. Dropped,
/// its leases are given back at once: nobody knows yet where their blocks are.
pub(in crate::handoff) struct Arrival {
    gpu: Gpu,
    answer: oneshot::Sender<Result<AcquiredOn, Error>>,
    acquired: Acquired<OnSlab>,
}

/// A block with the slab that it lies in.
type OnSlab = (Granted, Arc<DeviceSlab>);

impl Arrival {
    pub(in crate::handoff) fn new(
        gpu: Gpu,
        answer: oneshot::Sender<Result<AcquiredOn, Error>>,
        acquired: Acquired<OnSlab>,
    ) -> Self {
        Self { gpu, answer, acquired }
    }

    /// Whether nothing is left to the driver.
    pub(in crate::handoff) fn is_mapped(&self) -> bool {
        self.acquired.blocks.iter().flatten().all(|(_, slab)| slab.is_mapped())
    }

    /// Maps what is not mapped yet, and answers. Blocks meanwhile.
    pub(in crate::handoff) fn deliver(self) {
        let Self { gpu, answer, acquired } = self;
        if answer.is_closed() {
            return;
        }
        let held = held(&gpu, acquired).map_err(|error| gpu.failed(error));
        // Who asked may have gone since: then the blocks are dropped here.
        let _ = answer.send(held);
    }
}

/// The blocks, or what the driver says: where one slab cannot be mapped no block is held,
/// since most likely none can be.
fn held(gpu: &Gpu, acquired: Acquired<OnSlab>) -> Result<AcquiredOn, CudaError> {
    let Acquired { revision, generation, blocks } = acquired;
    for (_, slab) in blocks.iter().flatten() {
        slab.map(&**gpu.device())?;
    }
    let mut held = Vec::with_capacity(blocks.len());
    for block in blocks {
        held.push(match block {
            Ok((granted, slab)) => {
                let mapped = slab.map(&**gpu.device())?;
                let Granted { lease, start, block, .. } = granted;
                let guard = Guard::Lease(lease);
                let held = HeldDeviceBlock::new(gpu, block, start, mapped, guard);
                held.ok_or_else(|| Error::protocol("handoff", "a lease beyond the end of its slab"))
            }
            Err(error) => Err(error),
        });
    }
    Ok(Acquired { revision, generation, blocks: held })
}
