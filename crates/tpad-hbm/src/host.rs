//! Host memory that devices copy from.
#![expect(unsafe_code, reason = "the driver has to be told of memory by its address")]

use std::any::Any;
use std::ptr::NonNull;
use std::sync::Arc;

use tpad_cuda::{Device, Registration};
use tpad_store::SlabObserver;

use crate::HbmMetrics;

/// Registers the host arena's slabs with the driver: copies from them take a sixth of
/// the time of others. Given to [`Arena::observe`](tpad_store::Arena::observe) before the
/// first block is there; slabs that are not registered are copied from all the same.
#[derive(Debug)]
pub struct HostMemory {
    /// One that counts for all.
    device: Arc<dyn Device>,
    metrics: HbmMetrics,
}

/// A slab that is registered until this is dropped.
struct Registered {
    _registration: Box<dyn Registration>,
    bytes: usize,
    metrics: HbmMetrics,
}

impl HostMemory {
    pub(crate) fn new(device: Arc<dyn Device>, metrics: HbmMetrics) -> Self {
        Self { device, metrics }
    }
}

impl SlabObserver for HostMemory {
    fn mapped(&self, start: NonNull<u8>, bytes: usize) -> Box<dyn Any + Send + Sync> {
        // SAFETY: the slab is mapped, and is unmapped only after what is returned here,
        // and the registration with it, was dropped: the arena promises that.
        let registered = unsafe { self.device.register(start, bytes) };
        match registered {
            Ok(registration) => {
                self.metrics.registered(bytes, true);
                let metrics = self.metrics.clone();
                Box::new(Registered { _registration: registration, bytes, metrics })
            }
            Err(error) => {
                self.metrics.registration_failed();
                tracing::warn!(bytes, %error, "host memory is not registered: copies of it are slow");
                Box::new(())
            }
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.metrics.registered(self.bytes, false);
    }
}
