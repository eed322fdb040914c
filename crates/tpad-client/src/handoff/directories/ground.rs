//! What keeps a slot as it is without a lease.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tpad_handoff::{Hazards, Held};

use crate::handoff::link::Link;

/// What blocks are held by: a worker's cells, and the connection that keeps them true. One
/// for all blocks: each costs one count of it, which another thread may give back.
#[derive(Clone, Debug)]
pub(in crate::handoff) struct Ground(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    hazards: Arc<Hazards>,
    link: Arc<Link>,
}

/// Keeps a slot as it is without a lease.
#[derive(Debug)]
pub(in crate::handoff) struct Cell {
    _held: Held<Ground>,
    /// Of host memory alone, where blocks that are held are bounded.
    _counted: Option<Counted>,
}

/// Bytes that count against the bound.
#[derive(Debug)]
pub(in crate::handoff) struct Counted {
    bytes: u64,
    held: Arc<AtomicU64>,
}

impl Ground {
    pub(super) fn new(hazards: &Arc<Hazards>, link: &Arc<Link>) -> Self {
        let (hazards, link) = (Arc::clone(hazards), Arc::clone(link));
        Self(Arc::new(Inner { hazards, link }))
    }

    /// Whether the daemon grants nothing more, and its directories are what it left behind.
    pub(super) fn is_over(&self) -> bool {
        self.0.link.shared.is_over()
    }
}

impl Cell {
    pub(super) fn new(held: Held<Ground>, counted: Option<Counted>) -> Self {
        Self { _held: held, _counted: counted }
    }
}

impl Counted {
    /// What was held before, and so many bytes more.
    pub(super) fn new(bytes: u64, held: &Arc<AtomicU64>) -> (u64, Self) {
        let before = held.fetch_add(bytes, Ordering::Relaxed);
        (before, Self { bytes, held: Arc::clone(held) })
    }
}

impl Deref for Ground {
    type Target = Hazards;

    fn deref(&self) -> &Hazards {
        &self.0.hazards
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
