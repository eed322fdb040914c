//! What keeps a worker's leases.

use std::sync::Arc;

use tpad_engine::Worker;

/// A worker, once it has said hello. Its leases end when they are ended, and not when
/// this is dropped: a connection's task that is dropped, with its runtime or by a defect,
/// says nothing of the worker, which reads on.
#[derive(Debug, Default)]
pub(super) struct Holder(Option<Arc<Worker>>);

impl Holder {
    pub(super) fn of(worker: Worker) -> Self {
        Self(Some(Arc::new(worker)))
    }

    pub(super) fn get(&self) -> Option<&Arc<Worker>> {
        self.0.as_ref()
    }

    /// The worker is gone.
    pub(super) fn end(&mut self) {
        self.0 = None;
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // Until the process ends.
        std::mem::forget(self.0.take());
    }
}
