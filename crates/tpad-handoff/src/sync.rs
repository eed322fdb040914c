//! The atomics and orders of the protocol.
//!
//! The model (`cargo xtask loom`) puts its own atomics in the place of std's, and
//! takes away one order after the other to show that each is needed. Everything
//! stronger than relaxed in `protocol.rs` therefore has a name here.

#[cfg(all(test, loom))]
use loom::sync::atomic;
#[cfg(not(all(test, loom)))]
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
pub(crate) fn full_fence(pillar: Pillar) {
    if stands(pillar) {
        atomic::fence(Ordering::SeqCst);
    }
}

/// Everything after it comes after the loads before it.
pub(crate) fn acquire_fence(pillar: Pillar) {
    if stands(pillar) {
        atomic::fence(Ordering::Acquire);
    }
}

/// `order`, to be given to an access.
pub(crate) fn order(pillar: Pillar, order: Ordering) -> Ordering {
    if stands(pillar) { order } else { Ordering::Relaxed }
}

#[cfg(not(all(test, loom)))]
const fn stands(_: Pillar) -> bool {
    true
}

#[cfg(all(test, loom))]
fn stands(pillar: Pillar) -> bool {
    crate::model::stands(pillar)
}
