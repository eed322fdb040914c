//! What leases may hold, and whose they are.

use std::fmt;

/// The part of host memory that leases may hold where nothing else is said.
const SHARE: u64 = 4;

/// What leases may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseBounds {
    /// Bytes of slots that all workers hold together, each slot once.
    pub bytes: u64,
    /// Bytes of slots that one worker holds.
    pub worker_bytes: u64,
}

impl LeaseBounds {
    /// A quarter of so much host memory, which one worker may hold alone.
    #[must_use]
    pub fn of_capacity(capacity_bytes: u64) -> Self {
        let bytes = capacity_bytes / SHARE;
        Self { bytes, worker_bytes: bytes }
    }
}

/// Whose leases a bound is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseHolder {
    /// One worker's.
    Worker,
    /// Those of all workers.
    All,
}

impl LeaseHolder {
    /// The setting that bounds them.
    pub(crate) fn setting(self) -> &'static str {
        match self {
            Self::Worker => "handoff.worker_lease_bytes",
            Self::All => "handoff.lease_bytes",
        }
    }
}

impl fmt::Display for LeaseHolder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Worker => "this worker",
            Self::All => "all workers",
        })
    }
}
