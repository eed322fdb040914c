//! What a store holds and does, for the status page.

use crate::dram::ClassUsage;
use crate::level::{Health, LevelUsage};
use crate::{ArenaUsage, Medium};

/// What a store holds and does.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct StoreStatus {
    /// The levels, fastest first.
    pub levels: Vec<LevelStatus>,
    /// The memory under the host-memory level.
    pub arena: ArenaUsage,
    /// What each class of blocks keeps in host memory.
    pub classes: Vec<ClassUsage>,
    /// Blocks that are being filled or wait for it.
    pub fills: usize,
    /// Fills that wait for memory.
    pub fills_waiting_for_memory: usize,
    /// Reads that wait for a fill.
    pub reads_waiting: usize,
}

/// One level.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct LevelStatus {
    /// What it is made of.
    pub level: Medium,
    /// What it holds.
    pub usage: LevelUsage,
    /// Whether it works.
    pub health: Health,
}
