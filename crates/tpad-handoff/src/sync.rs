//! The atomics and orders of the protocol: everything stronger than relaxed in
//! `protocol.rs` has a name here.

use std::sync::atomic;

pub(crate) use atomic::{AtomicU64, Ordering};

/// What the protocol rests on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pillar {
    /// A worker's hazard comes before its second look at the directory.
    WorkerFence,
    /// What the daemon unpublishes comes before its look at the hazards.
    DaemonFence,
    /// A block's bytes come before the entry that publishes them.
    Publish,
    /// The second look at the directory comes before the block's bytes are read.
    Look,
    /// The reads of a block's bytes come before its hazard is cleared.
    Clear,
    /// The look at a hazard comes before the slot is written again.
    Scan,
}

/// A full fence.
pub(crate) fn full_fence(_: Pillar) {
    atomic::fence(Ordering::SeqCst);
}

/// Everything after it comes after the loads before it.
pub(crate) fn acquire_fence(_: Pillar) {
    atomic::fence(Ordering::Acquire);
}

/// `order`, to be given to an access.
pub(crate) fn order(_: Pillar, order: Ordering) -> Ordering {
    order
}
