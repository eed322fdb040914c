//! The progress of publishing, as bars on a terminal.

use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;
use tpad_publish::{Phase, Progress};

use crate::progress;

/// A bar for the phase that is under way.
pub(crate) struct Bar(Mutex<ProgressBar>);

impl Bar {
    /// No phase has begun.
    pub(crate) fn new() -> Self {
        Self(Mutex::new(ProgressBar::hidden()))
    }

    fn current(&self) -> ProgressBar {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Progress for Bar {
    fn begin(&self, phase: Phase, total: u64) {
        let bar = match phase {
            // Headers are counted in shards and read in a moment.
            Phase::Headers => ProgressBar::hidden(),
            Phase::Digests => progress::bytes("digest", Some(total)),
            Phase::Verification => progress::bytes("check", Some(total)),
            Phase::Writing => progress::bytes("write", Some(total)),
        };
        self.current().finish_and_clear();
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = bar;
    }

    fn advance(&self, done: u64) {
        self.current().inc(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.current().finish_and_clear();
    }
}
