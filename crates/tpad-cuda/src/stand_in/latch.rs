//! Work that threads do, and who waits for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::{Completion, CudaError};

/// Closed until a piece of work is over.
#[derive(Debug, Default)]
pub(super) struct Latch {
    open: Mutex<bool>,
    opened: Condvar,
}

/// What was submitted to a device and is not over yet.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Vec<Arc<Latch>>>);

/// Several pieces of work.
#[derive(Debug)]
pub(super) struct Outstanding(Vec<Arc<Latch>>);

impl Latch {
    pub(super) fn open(&self) {
        *self.lock() = true;
        self.opened.notify_all();
    }

    pub(super) fn is_open(&self) -> bool {
        *self.lock()
    }

    pub(super) fn wait(&self) {
        let mut open = self.lock();
        while !*open {
            open = self.opened.wait(open).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    /// A piece of work is submitted.
    pub(super) fn enter(&self) -> Arc<Latch> {
        let latch = Arc::<Latch>::default();
        let mut latches = self.lock();
        latches.retain(|latch| !latch.is_open());
        latches.push(Arc::clone(&latch));
        latch
    }

    pub(super) fn outstanding(&self) -> Outstanding {
        Outstanding(self.lock().iter().filter(|latch| !latch.is_open()).cloned().collect())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Latch>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Completion for Outstanding {
    fn is_done(&self) -> Result<bool, CudaError> {
        Ok(self.0.iter().all(|latch| latch.is_open()))
    }

    fn wait(&self) -> Result<(), CudaError> {
        self.0.iter().for_each(|latch| latch.wait());
        Ok(())
    }
}
